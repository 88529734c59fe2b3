"""A rank of `tests/integration/test_rows_of_ranks.py`: two steps of SFT with more places than demonstrations.

    python -m torch.distributed.run ... -m tests.support.sft_ranks DIRECTORY

Prints the losses and gradient norms, and the lengths of the rows that each rank computed in each step.
"""

import json
import sys
from pathlib import Path

import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from recipes.loading import load_recipe
from recipes.training_schema import PromptSpec
from tests.bench.bench_training import tokenizer
from tests.paths import SMOKE
from tests.support.trainers import replace, sft_trainer
from train.arms import resolve_arm
from train.runtime.ranks import gathered, prepare, rank
from train.sft import rows_of_step

LENGTHS = [[40, 6, 30, 8], [12, 36, 5, 28, 9]]
"""Tokens of the completions of two steps with eight places each."""


def main(directory):
    prepare()
    torch.manual_seed(0)
    tok = tokenizer()
    config = Qwen3Config(
        vocab_size=len(tok), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=16, tie_word_embeddings=True, eos_token_id=1, pad_token_id=0,
    )  # fmt: skip
    rows = []
    for step, lengths in enumerate(LENGTHS):
        prompts = [f"{step}{n} =" for n in range(len(lengths))]
        rows += rows_of_step(
            [
                {"prompt": prompt, "completion": "ab"[n % 2] * length, "tokens": length, "prompt_tokens": 4}
                for n, (prompt, length) in enumerate(zip(prompts, lengths, strict=True))
            ],
            8,
            "00 =",
        )
    changes = {
        "steps": 2, "problems_per_step": 8, "completions_per_problem": 1, "save_every_steps": 100,
        "learning_rate": 1e-2, "max_grad_norm": 1e9, "micro_batch_tokens": 60,
        "prompt": PromptSpec(max_prompt_tokens=8, max_completion_tokens=48),
    }  # fmt: skip
    settings = replace(resolve_arm(load_recipe(SMOKE), "off_policy_sft"), **changes)
    trainer = sft_trainer(settings, Qwen3ForCausalLM(config), tok, rows, Path(directory), 0)
    computed, deal = [], trainer.deal
    trainer.deal = lambda lengths: (computed.append(sorted(lengths)), deal(lengths))[1]
    trainer.train()
    logs = [(row["loss"], row["grad_norm"]) for row in trainer.state.log_history if "loss" in row]
    everything = gathered([computed])
    if rank() == 0:
        print("FOUND " + json.dumps({"logs": logs, "computed": everything}), flush=True)
    if torch.distributed.is_initialized():
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1])
