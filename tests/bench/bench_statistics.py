"""Time and memory of the joint draws at the size of the full suite, beside a bootstrap written question by question.

    OMP_NUM_THREADS=2 python tests/bench/bench_statistics.py [--draws 10000]

Twelve benchmarks with 46,100 questions, a base and three arms with three seeds each. The plain bootstrap is
scipy.stats.bootstrap over the questions of the largest benchmark, for as many draws as fit a few seconds, scaled up.
"""

import argparse
import resource
import time

import numpy as np
from scipy import stats

from eval.statistics.bootstrap import BenchmarkScores, bootstrap_scores, draw_scores

SIZES = {
    "math500": (500, 3),
    "aime24": (30, 16),
    "aime25": (30, 16),
    "olympiadbench": (675, 1),
    "livecodebench": (511, 3),
    "gpqa": (198, 3),
    "acpbench": (910, 1),
    "headqa": (2742, 1),
    "coqa": (500, 1),
    "ifeval": (541, 1),
    "halueval": (30000, 1),
    "mctaco": (9442, 1),
}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=10000)
    draws = parser.parse_args().draws
    rng = np.random.default_rng(0)
    benchmarks = []
    for name, (questions, samples) in SIZES.items():
        chance = rng.beta(0.4, 0.4, (questions, 1)) + rng.normal(0, 0.1, (questions, 10))
        scores = 100 * rng.binomial(samples, np.clip(chance, 0, 1)) / samples
        clusters = np.arange(questions) // 7 if name == "mctaco" else None
        benchmarks.append(BenchmarkScores(name, "math" if "a" in name else "other", scores, clusters))
    started = time.monotonic()
    draw_scores(benchmarks, {"a": [1, 2, 3], "b": [4, 5, 6], "c": [7, 8, 9]}, draws, 0)
    ours = time.monotonic() - started
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    total = sum(questions for questions, _ in SIZES.values())
    print(f"{draws:,} joint draws of {total:,} questions, 10 models: {ours:.1f} s, peak {memory:.2f} GB")
    largest = benchmarks[list(SIZES).index("halueval")]
    started = time.monotonic()
    bootstrap_scores(largest, draws, rng)
    own = time.monotonic() - started
    few = max(10, draws // 100)
    started = time.monotonic()
    stats.bootstrap(
        (largest.score_QM,),
        np.mean,
        n_resamples=few,
        axis=0,
        method="percentile",
        batch=10,
        rng=np.random.default_rng(0),
    )
    theirs = (time.monotonic() - started) * draws / few
    print(f"the largest benchmark alone: {own:.2f} s, scipy.stats.bootstrap {theirs:.1f} s: {theirs / own:.0f} times")


if __name__ == "__main__":
    main()
