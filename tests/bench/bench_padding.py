"""GRPO updates on completions of very different lengths beside bare TRL with the same completions: seconds and tokens.

python tests/bench/bench_padding.py                           a tiny model on the CPU
python tests/bench/bench_padding.py --shape 1.7B --limit 8192 --rows 256 --micro-batch 2
                                                              random weights of that size on a GPU

The lengths of the first line are log-normal, cut at the limit: their mean is a third of it, one in fifty is as long.
Those of the second line are all equal. Pairs alternate (ours, TRL, TRL, ours, ...), each a trainer of its own with the
same weights; the first pair is not counted. Every group has a gradient, so no row is skipped. The losses of both must
agree to 1e-6 and the norms of the gradients to 1e-4 of their size (in bfloat16: 1e-3, 1e-2), or the benchmark fails.
"""

import argparse
import gc
import math
import multiprocessing
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import torch
from datasets import Dataset
from transformers import PreTrainedTokenizerFast, PrinterCallback
from trl import GRPOConfig, GRPOTrainer

from data.language_model import on_cpu
from recipes.loading import load_recipe
from recipes.training_schema import PromptSpec
from tests.bench.bench_training import ROOT, SHAPES, model, tokenizer
from train import grpo
from train.arms import resolve_arm

GROUP, UPDATES = 10, 3
PROMPT_TOKENS = 16
AT_THE_LIMIT, MEAN = 1 / 50, 1 / 3


class Measurement(NamedTuple):
    seconds: float
    """Of an update, the median without the first. On a CPU those of the process, so that other work does not count."""
    losses: list[float]
    norms: list[float]
    """Of the gradients."""
    computed: int
    """Tokens that the model read, padding included."""


def long_tailed(rows: int, limit: int) -> list[int]:
    """Lengths of a log-normal distribution at its quantiles (i + 1/2) / rows, cut at the limit.

    The parameters solve P(X >= limit) = `AT_THE_LIMIT` and E[min(X, limit)] = `MEAN` * limit.
    """
    normal = statistics.NormalDist()
    z = normal.inv_cdf(1 - AT_THE_LIMIT)

    def mean(sigma: float) -> float:  # of min(X, 1), where log X has mean -z sigma and deviation sigma
        return math.exp(-z * sigma + sigma**2 / 2) * normal.cdf(z - sigma) + AT_THE_LIMIT

    low, high = 0.01, 2.0  # the mean falls with the deviation
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if mean(middle) > MEAN else (low, middle)
    shares = [math.exp(low * (normal.inv_cdf((row + 0.5) / rows) - z)) for row in range(rows)]
    return [max(1, round(limit * min(1.0, share))) for share in shares]


class Stored:
    """Completions of each update, for both trainers."""

    def __init__(self, lengths: list[int], vocabulary: int) -> None:
        draw = random.Random(0)
        self.updates = [
            [[draw.randrange(2, vocabulary) for _ in range(length)] for length in draw.sample(lengths, len(lengths))]
            for _ in range(UPDATES)
        ]

    def completions(self, step: int, draw: object) -> list[list[int]]:
        return self.updates[step]


def reward(prompts: list[str], completions: list[str], **columns: object) -> list[float]:
    return [float(number % 3 == 0) for number in range(len(completions))]


def builders(
    shape: str, lengths: list[int], limit: int, micro_batch: int
) -> tuple[Callable[[Path], GRPOTrainer], Callable[[Path], GRPOTrainer], int]:
    """The two trainers, and the tokens that an update needs."""
    tok: PreTrainedTokenizerFast = tokenizer()
    stored, rows = Stored(lengths, 250), len(lengths)
    prompts = [{"prompt": "1" * PROMPT_TOKENS} for _ in range(UPDATES * rows // GROUP)]
    settings = resolve_arm(load_recipe(ROOT / "recipes" / "pocket" / "smoke.yaml"), "grpo").model_copy(
        update={
            "steps": UPDATES, "save_every_steps": 1000, "problems_per_step": rows // GROUP,
            "completions_per_problem": GROUP, "micro_batch_size": micro_batch, "loss_normalisation": "all_tokens",
            "dtype": "float32" if on_cpu() else "bfloat16",
            "prompt": PromptSpec(max_prompt_tokens=PROMPT_TOKENS, max_completion_tokens=limit),
        }
    )  # fmt: skip

    def ours(directory: Path) -> GRPOTrainer:
        arguments = grpo.arguments(settings, tok, directory, 0)
        return grpo.build_trainer(settings, model(shape, len(tok)), tok, prompts, arguments, reward, (), stored)

    def plain(directory: Path) -> GRPOTrainer:
        arguments = GRPOConfig(
            output_dir=str(directory), num_generations=GROUP, shuffle_dataset=False, max_steps=UPDATES, beta=0.0,
            per_device_train_batch_size=micro_batch, gradient_accumulation_steps=rows // micro_batch,
            learning_rate=settings.learning_rate, lr_scheduler_type="constant_with_warmup", loss_type="dapo",
            adam_beta2=settings.adam_beta2, max_completion_length=limit, bf16=not on_cpu(), use_cpu=on_cpu(),
            gradient_checkpointing=not on_cpu(), dataloader_pin_memory=False, logging_steps=1, report_to=[],
            disable_tqdm=True, save_strategy="no", seed=0,
        )  # fmt: skip

        def fed(asked: list[str], trainer: GRPOTrainer) -> dict[str, object]:
            ids = stored.completions(trainer.state.global_step, None)
            return {"prompt_ids": tok(asked)["input_ids"], "completion_ids": ids, "logprobs": None}

        return GRPOTrainer(
            model=model(shape, len(tok)), processing_class=tok, train_dataset=Dataset.from_list(prompts),
            reward_funcs=reward, rollout_func=fed, args=arguments,
        )  # fmt: skip

    return ours, plain, UPDATES * (sum(lengths) + rows * PROMPT_TOKENS)


def measured(build: Callable[[Path], GRPOTrainer]) -> Measurement:
    stamps, read = [], []
    with tempfile.TemporaryDirectory() as folder:
        trainer = build(Path(folder))
        trainer.remove_callback(PrinterCallback)
        trainer.model.get_decoder().register_forward_pre_hook(
            lambda module, args, kwargs: read.append(kwargs["input_ids"].numel()), with_kwargs=True
        )
        log = trainer.log

        def stamped(*args: object, **kwargs: object) -> None:
            stamps.append(_now())
            log(*args, **kwargs)

        trainer.log = stamped
        trainer.train()
    losses, norms = ([row[name] for row in trainer.state.log_history[:UPDATES]] for name in ("loss", "grad_norm"))
    del trainer
    gc.collect()
    return Measurement(statistics.median(b - a for a, b in pairwise(stamps[:UPDATES])), losses, norms, sum(read))


def _now() -> float:
    if on_cpu():
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def apart(build: Callable[[Path], GRPOTrainer]) -> Measurement:
    """The same in a process of its own on a CPU, so that none finds the other's memory; a GPU's driver forbids that."""
    if not on_cpu():
        return measured(build)
    context = multiprocessing.get_context("fork")
    results = context.SimpleQueue()
    process = context.Process(target=lambda: results.put(measured(build)))
    process.start()
    process.join()
    if process.exitcode:
        raise SystemExit(f"a measurement ended with status {process.exitcode}")
    return results.get()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="tiny")
    parser.add_argument("--limit", type=int, default=1024, help="tokens of the longest completion")
    parser.add_argument("--rows", type=int, default=100, help=f"completions of an update, a multiple of {GROUP}")
    parser.add_argument("--micro-batch", type=int, default=4, help="rows of TRL's micro-batches; our tokens follow")
    parser.add_argument("--pairs", type=int, default=3, help="pairs that count")
    options = parser.parse_args()
    device = "CPU" if on_cpu() else torch.cuda.get_device_name()
    print(f"{options.shape} on {device}, torch {torch.__version__}, {torch.get_num_threads()} thread(s)")
    print(f"{options.rows} completions an update, at most {options.limit} tokens; micro-batches of the tokens of "
          f"{options.micro_batch} such rows")  # fmt: skip
    print(f"{'lengths':<12}{'ours, s':>9}{'TRL, s':>9}{'speed-up':>10}{'pairs':>16}{'computed/needed':>17}{'TRL':>7}"
          f"{'loss differs by':>17}{'gradient':>10}")  # fmt: skip
    tolerances = (1e-6, 1e-4) if on_cpu() else (1e-3, 1e-2)
    cases = {"long-tailed": long_tailed(options.rows, options.limit), "equal": [options.limit // 3] * options.rows}
    for name, lengths in cases.items():
        *both, needed = builders(options.shape, lengths, options.limit if name != "equal" else lengths[0],
                                 options.micro_batch)  # fmt: skip
        taken: list[list[Measurement]] = [[], []]
        for number in range(options.pairs + 1):
            for index in (0, 1) if number % 2 == 0 else (1, 0):
                taken[index].append(apart(both[index]))
        mine, theirs = (results[1:] for results in taken)
        ratios = sorted(b.seconds / a.seconds for a, b in zip(mine, theirs, strict=True))
        loss = max(abs(a - b) for a, b in zip(mine[0].losses, theirs[0].losses, strict=True))
        norm = max(abs(a / b - 1) for a, b in zip(mine[0].norms, theirs[0].norms, strict=True))
        print(
            f"{name:<12}{statistics.median(one.seconds for one in mine):>9.3f}"
            f"{statistics.median(one.seconds for one in theirs):>9.3f}{statistics.median(ratios):>9.2f}x"
            f"{f'{ratios[0]:.2f} to {ratios[-1]:.2f}':>16}{mine[0].computed / needed:>17.3f}"
            f"{theirs[0].computed / needed:>7.3f}{loss:>17.1e}{norm:>10.1e}",
            flush=True,
        )
        if loss > tolerances[0] or norm > tolerances[1]:
            raise SystemExit(f"losses may differ by {tolerances[0]:.0e} and norms by {tolerances[1]:.0e}, not more")


if __name__ == "__main__":
    main()
