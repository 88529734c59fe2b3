"""How often the intervals hold what they promise: simulated studies with known truth, for docs/statistics.md.

    python tests/bench/coverage.py [--studies 1000] [--write]

Each scenario draws many studies (questions from a population, responses to them, training seeds), computes every
interval by the project's own code and counts how often the truth lies inside. The truth is the population's, which a
study with endless questions, responses and seeds would find. --write replaces the table in docs/statistics.md.
"""

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from eval.statistics.bootstrap import ArmScores, BenchmarkScores, draw_scores
from eval.statistics.inference import (
    Interval,
    contrast_interval,
    gain_p_value,
    linear_interval,
    percentile_interval,
    weights_of,
)
from eval.statistics.transfer_index import MATH, index_difference, index_with_interval, transfer_gain, transfer_index

DOCS = Path(__file__).resolve().parent.parent.parent / "docs" / "statistics.md"
BEGIN, END = "<!-- coverage table, written by tests/bench/coverage.py -->", "<!-- end -->"  # the page has other tables
DRAWS = 1000
GROUPS = {MATH: [0, 1], "other": [2, 3]}


@dataclass(frozen=True)
class Scenario:
    """A kind of study."""

    name: str
    questions: tuple[int, int, int, int] = (200, 200, 200, 200)
    samples: int = 4
    seeds: int = 1
    seed_spread: float = 0.0
    """Standard deviation between training seeds, in points, the same shift on all benchmarks."""
    gains: tuple[float, float, float, float] = (0.15, 0.15, 0.08, 0.08)
    """True gain of the first arm on each benchmark; the second arm gains half."""
    base: float = 0.4
    cluster: int = 1
    """Questions that share a context."""
    seed_only_noise: bool = False


SCENARIOS = (
    Scenario("200 questions each"),
    Scenario("30 questions in math", questions=(30, 30, 200, 200), samples=16),
    Scenario("30 questions everywhere", questions=(30, 30, 30, 30)),
    Scenario("one greedy response", samples=1),
    Scenario("clusters of five", cluster=5, questions=(300, 300, 300, 300)),
    Scenario("base near zero", base=0.05, gains=(0.1, 0.1, 0.05, 0.05)),
    Scenario("small math gain", gains=(0.03, 0.03, 0.02, 0.02)),
    Scenario("no gain at all", gains=(0.0, 0.0, 0.0, 0.0)),
    Scenario("3 seeds, spread 0", seeds=3),
    Scenario("3 seeds, spread 1 point", seeds=3, seed_spread=1.0),
    Scenario("3 seeds, spread 3 points", seeds=3, seed_spread=3.0),
    Scenario("3 seeds, spread 8 points", seeds=3, seed_spread=8.0),
    Scenario("5 seeds, spread 3 points", seeds=5, seed_spread=3.0),
    Scenario("1 seed of a spread of 3 points", seeds=1, seed_spread=3.0),
)


def population(scenario: Scenario, count: int, rng: np.random.Generator) -> np.ndarray:
    """Chances of the base on `count` questions; those of a cluster are equal up to a little."""
    mean = scenario.base
    clusters = -(-count // scenario.cluster)
    shared = rng.beta(2 * mean, 2 * (1 - mean), clusters)
    return np.repeat(shared, scenario.cluster)[:count]


def improved(chance: np.ndarray, gain: float, mean: float) -> np.ndarray:
    """Chances after a gain that is `gain` on average over the population: a share of what is missing is repaired."""
    return chance + (1 - chance) * gain / (1 - mean)


def draw_study(scenario: Scenario, rng: np.random.Generator) -> list[BenchmarkScores]:
    """Scores of base and two arms in one study."""
    shifts = rng.normal(0, scenario.seed_spread / 100, (2, scenario.seeds))
    benchmarks = []
    for number, count in enumerate(scenario.questions):
        chance = population(scenario, count, rng)
        columns = [chance]
        for arm, part in ((0, 1.0), (1, 0.5)):
            for seed in range(scenario.seeds):
                gain = scenario.gains[number] * part + shifts[arm, seed]
                columns.append(np.clip(improved(chance, gain, scenario.base), 0, 1))
        scores = 100 * rng.binomial(scenario.samples, np.stack(columns, axis=1)) / scenario.samples
        clusters = np.arange(count) // scenario.cluster if scenario.cluster > 1 else None
        benchmarks.append(BenchmarkScores(f"b{number}", MATH if number < 2 else "other", scores, clusters))
    return benchmarks


def truth(scenario: Scenario) -> dict[str, float]:
    """What an endless study would find; gains in points, indices in percent. The base is known exactly."""
    base = np.full(4, 100 * scenario.base)
    gains = 100 * np.array(scenario.gains)
    found = {"score": base[0] + gains[0], "gain": gains[2], "group gain": gains[2:].mean()}
    found["contrast"] = gains[2:].mean() / 2
    for definition in ("points", "relative", "literal", "paper"):
        parts = [transfer_gain(definition, base[m], (base + gains)[m]) for m in GROUPS.values()]
        found[definition] = float(transfer_index(definition, "other_reasoning", parts[1], parts[0]))
        half = [transfer_gain(definition, base[m], (base + gains / 2)[m]) for m in GROUPS.values()]
        found[f"difference of {definition}"] = found[definition] - float(
            transfer_index(definition, "other_reasoning", half[1], half[0])
        )
    return found


def intervals(scenario: Scenario, benchmarks: list[BenchmarkScores], seed: int) -> dict[str, Interval | None]:
    """Every interval of a study; None where an index is not identified."""
    seeds = scenario.seeds
    columns = {"base": [0], "first": list(range(1, 1 + seeds)), "second": list(range(1 + seeds, 1 + 2 * seeds))}
    drawn: dict[str, ArmScores] = draw_scores(benchmarks, columns, DRAWS, seed)
    first, second = drawn["first"], drawn["second"]
    groups = {MATH: GROUPS[MATH], "other_reasoning": GROUPS["other"]}
    others = weights_of(GROUPS["other"], 4)
    found: dict[str, Interval | None] = {
        "score": percentile_interval(first.arm_B[0], first.arm_DB[:, 0], 0.95),
        "gain": linear_interval(first, weights_of([2], 4)),
        "group gain": linear_interval(first, others),
        "contrast": contrast_interval(first, second, others),
    }
    for definition in ("points", "relative", "paper"):
        found[definition] = index_with_interval(definition, first, groups, "other_reasoning").interval
        found[f"difference of {definition}"] = index_difference(
            definition, first, second, groups, "other_reasoning"
        ).interval
    p_value = gain_p_value(first, drawn["base"], others)
    found["test"] = Interval(0, 0, 0) if p_value >= 0.05 else Interval(0, 1, 1)
    return found


COLUMNS = (
    "score",
    "gain",
    "group gain",
    "contrast",
    "points",
    "relative",
    "paper",
    "difference of points",
)


def coverage(scenario: Scenario, studies: int, progress: Callable[[str], None]) -> dict[str, tuple[float, float]]:
    """Share of studies whose interval holds the truth, among those that have one, and the share that have one."""
    rng = np.random.default_rng(sum(map(ord, scenario.name)))
    true = truth(scenario)
    held = dict.fromkeys(COLUMNS, 0)
    given = dict.fromkeys(COLUMNS, 0)
    for number in range(studies):
        found = intervals(scenario, draw_study(scenario, rng), number)
        for name in COLUMNS:
            interval = found[name]
            if interval is not None:
                given[name] += 1
                held[name] += interval.low <= true[name] <= interval.high
    progress(f"{scenario.name}: done")
    return {
        name: (held[name] / max(1, given[name]) if np.isfinite(true[name]) else np.nan, given[name] / studies)
        for name in COLUMNS
    }


def cell(held: float, given: float, studies: int) -> str:
    """Coverage in percent; in brackets the share of studies with an interval, where it is not all of them."""
    if np.isnan(held):  # there is no true index, and whoever identifies one is mistaken
        return f"none ({100 * given:.0f})"
    if given * studies < 50:
        return "–"
    text = f"{100 * held:.1f}"
    if held < 0.93:
        text = f"**{text}**"
    return text if given == 1 else f"{text} ({100 * given:.0f})"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", type=int, default=1000)
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    started = time.monotonic()
    lines = ["| studies with | " + " | ".join(COLUMNS) + " |", "|---" * (len(COLUMNS) + 1) + "|"]
    for scenario in SCENARIOS:
        found = coverage(scenario, options.studies, lambda text: print(text, flush=True))
        cells = [cell(*found[name], options.studies) for name in COLUMNS]
        lines.append(f"| {scenario.name} | " + " | ".join(cells) + " |")
    error = 100 * np.sqrt(0.95 * 0.05 / options.studies)
    lines += [
        "",
        f"{options.studies} simulated studies a row, {DRAWS} draws each; nominal 95 %, standard error of a cell "
        f"{error:.1f}. In brackets: percent of\nstudies in which the index is identified, where not all.",
    ]
    table = "\n".join(lines)
    print(table)
    print(f"{time.monotonic() - started:.0f} s")
    if options.write:
        text = DOCS.read_text(encoding="utf-8")
        before, rest = text.split(BEGIN)
        after = rest.split(END, 1)[1]
        DOCS.write_text(f"{before}{BEGIN}\n{table}\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
