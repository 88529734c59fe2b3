"""One update of our SFT and GRPO beside bare TRL with the same settings, paired in one run: seconds and peak memory.

python tests/bench/bench_training.py                          a tiny model on the CPU
python tests/bench/bench_training.py --shape 1.7B --lengths 4096 16384
                                                              random weights of that size on a GPU: also tokens per
                                                              second and the share of the GPU's peak (MFU) of our SFT

Pairs alternate (ours, TRL, TRL, ours, ...), each a trainer of its own with the same weights; the first pair is not
counted. What differs in ours: ids made beforehand, weights and normalisation of the arm, ledger, metrics, the checks.
"""

import argparse
import gc
import multiprocessing
import resource
import statistics
import tempfile
import time
from itertools import pairwise
from pathlib import Path

import torch
from datasets import Dataset
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, PrinterCallback, Qwen3Config, Qwen3ForCausalLM, TrainerCallback
from trl import GRPOConfig, GRPOTrainer, SFTConfig, SFTTrainer

from data.language_model import on_cpu
from recipes.loading import load_recipe
from recipes.training_schema import PromptSpec
from train import grpo, sft
from train.accounting.cost import GPUS, shape_from_config
from train.accounting.ledger import Ledger
from train.arms import resolve_arm
from train.runtime.preemption import PaceKeeper, StopOnSignal
from train.runtime.recorder import RunRecorder

ROOT = Path(__file__).resolve().parent.parent.parent
SHAPES = {  # hidden, intermediate, layers, heads, key-value heads
    "tiny": (128, 384, 3, 4, 2),
    "1.7B": (2048, 6144, 28, 16, 8),
    "4B": (2560, 9728, 36, 32, 8),
    "8B": (4096, 12288, 36, 32, 8),
}
UPDATES = 12


def tokenizer() -> PreTrainedTokenizerFast:
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer, bpe.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<|endoftext|>", "<|im_end|>"]
    bpe.train_from_iterator([""], trainers.BpeTrainer(special_tokens=special, initial_alphabet=alphabet))
    return PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<|im_end|>", pad_token="<|endoftext|>")


def model(shape: str, vocabulary: int) -> Qwen3ForCausalLM:
    hidden, intermediate, layers, heads, kv = SHAPES[shape]
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=vocabulary, hidden_size=hidden, intermediate_size=intermediate, num_hidden_layers=layers,
        num_attention_heads=heads, num_key_value_heads=kv, head_dim=128 if shape != "tiny" else 32,
        tie_word_embeddings=shape != "8B", eos_token_id=1, pad_token_id=0,
    )  # fmt: skip
    with torch.device("cpu" if on_cpu() else "cuda"):
        return Qwen3ForCausalLM(config)


class Stamps(TrainerCallback):
    """Notes when each update begins, whatever its micro-batches are."""

    def __init__(self, stamps: list[float]) -> None:
        self.stamps = stamps

    def on_step_begin(self, *args, **kwargs):
        if not on_cpu():
            torch.cuda.synchronize()
        self.stamps.append(time.perf_counter())


def measured(build, directory: Path) -> tuple[float, float]:
    """Seconds of an update, the median without the first, and peak GB."""
    stamps = []
    trainer = build(directory)
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(Stamps(stamps))
    if not on_cpu():
        torch.cuda.reset_peak_memory_stats()
    trainer.train()
    if not on_cpu():
        torch.cuda.synchronize()
    stamps.append(time.perf_counter())
    peak = torch.cuda.max_memory_allocated() / 1e9 if not on_cpu() else None
    del trainer
    gc.collect()
    seconds = [later - earlier for earlier, later in pairwise(stamps)][
        1:
    ]  # the first update pays for what is built once
    return statistics.median(seconds), peak or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def apart(build, directory: Path) -> tuple[float, float]:
    """The same in a process of its own on a CPU, whose peak memory is then its own; a GPU's driver forbids that."""
    if not on_cpu():
        return measured(build, directory)
    context = multiprocessing.get_context("fork")
    results = context.SimpleQueue()
    process = context.Process(target=lambda: results.put(measured(build, directory)))
    process.start()
    process.join()
    if process.exitcode:
        raise SystemExit(f"a measurement ended with status {process.exitcode}")
    return results.get()


def builders(kind: str, shape: str, length: int, rows: int):
    tok = tokenizer()
    words = tok(("0123456789 " * (length // 11 + 1))[:length])["input_ids"]
    text = tok.decode(words)[: max(8, length - 16)]
    recipe = load_recipe(ROOT / "recipes" / "pocket" / "smoke.yaml")
    group = rows if kind == "grpo" else 1
    settings = resolve_arm(recipe, "grpo" if kind == "grpo" else "off_policy_sft")
    changes = {
        "steps": UPDATES, "save_every_steps": 1000,
        "problems_per_step": max(1, rows // group), "completions_per_problem": max(group, 1), "micro_batch_size": rows,
        "dtype": "float32" if on_cpu() else "bfloat16", "loss_normalisation": "all_tokens",
        "prompt": PromptSpec(max_completion_tokens=min(length, 64 if on_cpu() else 512)),
    }  # fmt: skip
    settings = settings.model_copy(update=changes)

    def reward(prompts, completions, **columns):
        return [float(len(text) % 2) for text in completions]

    prompts = [{"prompt": f"{n} + {n} = "} for n in range(UPDATES * max(1, rows // group))]
    pairs = [{"prompt": f"{n} = ", "completion": text} for n in range(UPDATES * rows)]
    shared = {
        "max_steps": UPDATES, "per_device_train_batch_size": rows, "learning_rate": settings.learning_rate,
        "lr_scheduler_type": "constant_with_warmup", "bf16": not on_cpu(), "use_cpu": on_cpu(),
        "gradient_checkpointing": not on_cpu(), "dataloader_pin_memory": False, "logging_steps": 1, "report_to": [],
        "disable_tqdm": True, "save_strategy": "no", "seed": 0, "adam_beta2": settings.adam_beta2,
    }  # fmt: skip

    def ours(directory: Path):
        ledger = Ledger(directory, 0)
        callbacks = [RunRecorder(directory, UPDATES, 0, ledger), StopOnSignal(PaceKeeper(directory, UPDATES))]
        made = model(shape, len(tok))
        if kind == "sft":
            return sft.build_trainer(settings, made, tok, pairs, sft.arguments(settings, directory, 0), callbacks)
        return grpo.build_trainer(
            settings, made, tok, prompts, grpo.arguments(settings, tok, directory, 0), reward, callbacks
        )

    def plain(directory: Path):
        made = model(shape, len(tok))
        if kind == "sft":
            return SFTTrainer(
                model=made, processing_class=tok, train_dataset=Dataset.from_list(pairs),
                args=SFTConfig(output_dir=str(directory), max_length=None, **shared),
            )  # fmt: skip
        return GRPOTrainer(
            model=made, processing_class=tok, train_dataset=Dataset.from_list(prompts), reward_funcs=reward,
            args=GRPOConfig(
                output_dir=str(directory), num_generations=group, shuffle_dataset=False, top_k=0,
                max_completion_length=settings.prompt.max_completion_tokens, **shared,
            ),
        )  # fmt: skip

    return ours, plain


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="tiny")
    parser.add_argument("--lengths", type=int, nargs="+", default=[128], help="tokens of an SFT row")
    parser.add_argument("--rows", type=int, default=8, help="completions of an update")
    parser.add_argument("--pairs", type=int, default=5, help="pairs that count")
    parser.add_argument("--gpu", choices=GPUS, default="H100-80GB", help="whose peak the MFU is a share of")
    options = parser.parse_args()
    device = "CPU" if on_cpu() else torch.cuda.get_device_name()
    print(f"{options.shape} on {device}, torch {torch.__version__}, {torch.get_num_threads()} thread(s)")
    print(f"{'':<14}{'ours, s':>10}{'TRL, s':>10}{'ratio':>8}{'pairs':>18}{'ours, GB':>10}{'TRL, GB':>10}")
    for kind in ("sft", "grpo"):
        for length in options.lengths if kind == "sft" else options.lengths[:1]:
            ours, plain = builders(kind, options.shape, length, options.rows)
            taken = {ours: [], plain: []}
            for number in range(options.pairs + 1):
                for build in (ours, plain) if number % 2 == 0 else (plain, ours):
                    with tempfile.TemporaryDirectory() as folder:
                        taken[build].append(apart(build, Path(folder)))
            mine, theirs = ([seconds for seconds, _ in taken[build][1:]] for build in (ours, plain))
            ratios = sorted(a / b for a, b in zip(mine, theirs, strict=True))
            seconds = statistics.median(mine)
            print(
                f"{kind} {length:>8}{seconds:>10.4f}{statistics.median(theirs):>10.4f}{statistics.median(ratios):>8.3f}"
                f"{f'{ratios[0]:.3f} to {ratios[-1]:.3f}':>18}{taken[ours][-1][1]:>10.2f}{taken[plain][-1][1]:>10.2f}"
            )
            if kind == "sft" and not on_cpu():
                shape = shape_from_config(model(options.shape, len(tokenizer())).config.to_dict())
                tokens = options.rows * length
                flops = 3 * shape.forward_flops_with_attention(tokens, length)
                print(
                    f"  {tokens / seconds:,.0f} tokens/s, {flops / seconds / GPUS[options.gpu].peak_flops:.1%} of the "
                    f"peak of {options.gpu} (without what checkpointing computes twice)"
                )


if __name__ == "__main__":
    main()
