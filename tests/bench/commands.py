"""Times of the commands a user waits for, as ratios against what they would be without the lazy imports.

python tests/bench/commands.py            --help, plan, dry run (seconds)
python tests/bench/commands.py --studies  also the smoke and the default study from nothing (minutes),
                                          with the peak memory of all their processes together
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from launch.execution.usage import descendants, host_bytes

ROOT = Path(__file__).resolve().parent.parent.parent
COMMAND = [str(Path(sys.executable).with_name("transfer"))]
REPEATS = 5


def seconds(arguments: list[str], repeats: int = REPEATS) -> float:
    """Median wall seconds of a command."""
    times = []
    for _ in range(repeats):
        begun = time.perf_counter()
        subprocess.run(arguments, cwd=ROOT, check=True, capture_output=True)
        times.append(time.perf_counter() - begun)
    return statistics.median(times)


def tree_bytes(root: int) -> int:
    """Memory of a process and its descendants, shared pages once."""
    return host_bytes(descendants(root))


def study(recipe: str) -> tuple[float, float]:
    """Wall seconds and peak GB of a study from nothing."""
    with tempfile.TemporaryDirectory() as directory:
        begun, peak = time.perf_counter(), 0
        process = subprocess.Popen(
            [*COMMAND, "run", recipe, "--out", f"{directory}/study"], cwd=ROOT, stdout=subprocess.DEVNULL
        )
        while process.poll() is None:
            peak = max(peak, tree_bytes(process.pid))
            time.sleep(0.5)
        if process.returncode:
            raise SystemExit(f"{recipe} failed with status {process.returncode}")
        return time.perf_counter() - begun, peak / 1e9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--studies", action="store_true")
    options = parser.parse_args()
    recipe = "recipes/pocket/study.yaml"
    with tempfile.TemporaryDirectory() as directory:
        out = ["--out", f"{directory}/study"]
        large = "recipes/qwen3-14b/matched.yaml"
        site = ["--on", "slurm", "--site", "launch/site.example.yaml"]
        grid = ["--grid", "arms.grpo.beta=0,0.001,0.01,0.04", "--grid", "train.learning_rate=1e-6,3e-6"]
        commands = {
            "transfer --help": ([*COMMAND, "--help"], 0.5),
            "transfer plan": ([*COMMAND, "plan", recipe, *out], 2.0),
            "transfer run --dry-run": ([*COMMAND, "run", recipe, "--dry-run", *out], 2.0),
            "plan, 14B": ([*COMMAND, "plan", large, "--out", f"{directory}/14b"], 2.0),
            "--on slurm --dry-run, 14B": ([*COMMAND, "run", large, *site, "--dry-run", "--out", f"{directory}/j"], 2.0),
            "ablate --dry-run, 8 points": ([*COMMAND, "ablate", large, *grid, "--dry-run"], 2.0),
        }
        eager = seconds([sys.executable, "-c", "import torch, transformers, trl"], repeats=1)
        print(f"{os.cpu_count()} cores; importing torch, transformers and trl alone: {eager:.2f} s")
        print(f"{'command':<28}{'seconds':>9}{'target':>8}{'share of that import':>23}")
        for name, (arguments, target) in commands.items():
            taken = seconds(arguments)
            print(f"{name:<28}{taken:>9.2f}{target:>8.1f}{taken / eager:>23.3f}")
    if options.studies:
        print(f"{'study':<28}{'seconds':>9}{'target':>8}{'peak GB':>10}")
        for path, target in (("recipes/pocket/smoke.yaml", 90), (recipe, 600)):
            taken, peak = study(path)
            print(f"{path:<28}{taken:>9.0f}{target:>8}{peak:>10.2f}", flush=True)


if __name__ == "__main__":
    main()
