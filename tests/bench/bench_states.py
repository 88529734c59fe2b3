"""Pooled states of all layers from one pass, beside one pass per layer as the published analysis makes them.

    OMP_NUM_THREADS=1 python tests/bench/bench_states.py [--layers 24] [--prompts 64] [--pairs 3]

Both take the masked mean at every level of the same prompts; the results are compared first. Prints the ratio of the
times, pair by pair, and the peak memory of ours for ten times as many prompts.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from eval.shifts.states import read_pooled_states, write_pooled_states


def build(layers: int) -> Qwen3ForCausalLM:
    torch.manual_seed(0)
    return Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=1000, hidden_size=256, intermediate_size=768, num_hidden_layers=layers, num_attention_heads=8,
            num_key_value_heads=4, head_dim=32,
        )
    ).eval()  # fmt: skip


def make_prompts(count: int) -> list[list[int]]:
    rng = np.random.default_rng(0)
    return [rng.integers(1, 1000, size=int(rng.integers(40, 160))).tolist() for _ in range(count)]


def one_pass_per_layer(model: Qwen3ForCausalLM, prompts: list[list[int]], size: int = 32) -> np.ndarray:
    """[levels, prompts, width]: for each level the whole model reads all prompts and that level is kept."""
    levels = []
    for level in range(model.config.num_hidden_layers + 1):
        rows = []
        for start in range(0, len(prompts), size):
            part = prompts[start : start + size]
            width = max(map(len, part))
            ids = torch.tensor([row + [0] * (width - len(row)) for row in part])
            mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in part])
            with torch.no_grad():
                hidden = model.model(input_ids=ids, attention_mask=mask, output_hidden_states=True).hidden_states[level]
            rows.append(((hidden * mask.unsqueeze(-1)).sum(1) / mask.sum(1, keepdim=True)).numpy())
        levels.append(np.concatenate(rows))
    return np.stack(levels)


def peak_of(prompts: int, layers: int) -> float:
    """Peak memory in MB of a process that pools so many prompts, above one that pools eight."""
    command = [sys.executable, __file__, "--peak", str(prompts), "--layers", str(layers)]
    return float(json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--peak", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    model = build(options.layers)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "states.npy"
        if options.peak is not None:
            write_pooled_states(model, make_prompts(options.peak), path, 4096, "model")
            print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
            return
        prompts = make_prompts(options.prompts)
        write_pooled_states(model, prompts, path, 4096, "model")
        ours, theirs = read_pooled_states(path)[:, 0], one_pass_per_layer(model, prompts)
        difference = float(np.abs(ours - theirs).max() / np.abs(theirs).max())
        assert difference < 1e-5, difference
        ratios = []
        for _ in range(options.pairs):
            started = time.perf_counter()
            write_pooled_states(model, prompts, path, 4096, "model")
            one = time.perf_counter() - started
            started = time.perf_counter()
            one_pass_per_layer(model, prompts)
            many = time.perf_counter() - started
            ratios.append(many / one)
            print(f"one pass {one:.2f} s, one pass per layer {many:.2f} s, ratio {ratios[-1]:.1f}")
    print(f"{options.layers} layers: ratio {np.median(ratios):.1f} (wanted: above {options.layers / 2:.0f})")
    print(f"largest relative difference {difference:.1e}")
    small, large = peak_of(8, options.layers), peak_of(2000, options.layers)
    print(f"peak memory: 8 prompts {small:.0f} MB, 2,000 prompts {large:.0f} MB")


if __name__ == "__main__":
    main()
