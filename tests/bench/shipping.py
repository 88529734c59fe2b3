"""How often `transfer gate` refuses on fresh questions what `transfer pick` ships, and coverage at extreme rates.

    python tests/bench/shipping.py [--studies 1000] [--write]

Simulated studies with known chances of every checkpoint on every question. `pick` chooses by the project's own code,
then its choice answers as many fresh questions and is judged by the rule of `gate`. --write replaces the tables in
docs/statistics.md.
"""

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from eval.forgetting.curves import Slice
from eval.forgetting.pick import choose
from eval.statistics.bootstrap import BenchmarkScores, bootstrap_scores, draw_scores
from eval.statistics.decisions import refused_groups
from eval.statistics.inference import Interval
from eval.statistics.transfer_index import group_gain
from recipes.suite_schema import StatisticsSpec

DOCS = Path(__file__).resolve().parent.parent.parent / "docs" / "statistics.md"
GROUPS = ("law", "reasoning", "general")
TRAINED = "law"


@dataclass(frozen=True)
class Study:
    """A kind of study: two arms with `checkpoints` each, one benchmark a group."""

    name: str
    questions: int = 400
    base: float = 0.5
    losses: tuple[float, float] = (-0.02, 0.25)
    """Range of a checkpoint's true loss in each other group."""
    max_drop: float = 25.0
    checkpoints: int = 4
    independent: float = 0.1
    """Share of questions on which a checkpoint answers independently of the base."""


STUDIES = (
    Study("losses up to the limit"),
    Study("losses of half the limit", losses=(0.08, 0.12)),
    Study("losses just inside the limit", losses=(0.23, 0.25)),
    Study("no losses", losses=(0.0, 0.0), max_drop=15.0),
    Study("60 questions a group", questions=60, losses=(-0.02, 0.5), max_drop=50.0),
    Study("base near the floor", base=0.08, losses=(0.0, 0.08), max_drop=12.0),
    Study("10 checkpoints an arm", checkpoints=10),
)


@dataclass(frozen=True)
class Outcome:
    """What became of one study."""

    shipped: bool
    refused_same: bool = False
    refused_fresh: bool = False
    """Whether the rule of `gate` refuses the shipped checkpoint on the same and on fresh questions."""


def drawn_scores(study: Study, chance_GM: np.ndarray, rng: np.random.Generator) -> list[BenchmarkScores]:
    """Scores of all models on fresh questions; on most questions a checkpoint departs from the base only by its gain.

    A model answers right where its chance exceeds the question's difficulty, which is drawn anew for a model on a
    share `independent` of the questions.
    """
    benchmarks = []
    for group, chance_M in zip(GROUPS, chance_GM, strict=True):
        shape = (study.questions, len(chance_M))
        own_QM = rng.random(shape) < study.independent
        difficulty_QM = np.where(own_QM, rng.random(shape), rng.random((study.questions, 1)))
        benchmarks.append(BenchmarkScores(group, group, 100.0 * (difficulty_QM < chance_M)))
    return benchmarks


def gate_gains(benchmarks: list[BenchmarkScores], model: int, draws: int, seed: int) -> dict[str, Interval]:
    """Group gains of one model as a report computes them."""
    scores = draw_scores(benchmarks, {"arm": [model]}, draws, seed)["arm"]
    return {item.group: group_gain(scores, [number]) for number, item in enumerate(benchmarks)}


def simulate(study: Study, studies: int, draws: int, seed: int) -> Iterator[Outcome]:
    """The outcomes of many studies of a kind."""
    rng = np.random.default_rng(seed)
    models = [(arm, 0, update) for arm in ("sft", "grpo") for update in range(1, 1 + study.checkpoints)]
    for number in range(studies):
        gain_M = rng.uniform(0.0, 0.3, len(models))
        loss_GM = rng.uniform(*study.losses, (2, len(models)))
        chance_GM = np.clip(study.base + np.vstack([gain_M, -loss_GM]), 0, 1)
        chance_GM = np.column_stack([np.full(3, study.base), chance_GM])
        benchmarks = drawn_scores(study, chance_GM, rng)
        half = np.arange(study.questions) % 2 == 0
        settings = StatisticsSpec(draws=draws, seed=number)
        choice = choose(Slice(benchmarks, models, [half] * 3), TRAINED, study.max_drop, settings).choice
        if choice.arm is None:
            yield Outcome(shipped=False)
            continue
        column = 1 + models.index((choice.arm, choice.seed, choice.step))
        same = refused_groups(gate_gains(benchmarks, column, draws, number + 1), study.max_drop)
        fresh = refused_groups(
            gate_gains(drawn_scores(study, chance_GM, rng), column, draws, number + 2), study.max_drop
        )
        yield Outcome(True, bool(same), bool(fresh))


def coverage_at_edges(
    questions: int, samples: int, rates: tuple[float, float], studies: int, draws: int, seed: int
) -> tuple[float, float]:
    """Share of studies whose interval of a score, and of a gain of 0 to 2 points, contains the truth."""
    rng = np.random.default_rng(seed)
    covered = np.zeros(2)
    for number in range(studies):
        rate, gain = rng.uniform(*rates), rng.uniform(0, 0.02)
        chance = np.array([rate, rate + (1 - rate) * gain])
        scores = 100 * rng.binomial(samples, np.tile(chance, (questions, 1))) / samples
        drawn = bootstrap_scores(BenchmarkScores("a", "a", scores), draws, np.random.default_rng(number))
        for place, (values, truth) in enumerate(
            ((drawn[:, 0], chance[0]), (drawn[:, 1] - drawn[:, 0], chance[1] - chance[0]))
        ):
            low, high = np.percentile(values, [2.5, 97.5])
            covered[place] += low <= 100 * truth <= high
    return float(covered[0] / studies), float(covered[1] / studies)


EDGES = (
    (200, 1, (0.0, 0.03)),
    (200, 1, (0.97, 1.0)),
    (40, 1, (0.0, 0.1)),
    (40, 1, (0.9, 0.98)),
    (40, 2, (0.02, 0.1)),
    (20, 4, (0.0, 0.1)),
)


def tables(studies: int) -> dict[str, list[str]]:
    """The lines of both tables by the name of their marker."""
    ships = [
        "| studies with | shipped | refused on the same questions | refused on fresh questions |",
        "|---|---|---|---|",
    ]
    for study in STUDIES:
        rows = [row for row in simulate(study, studies, 300, 1) if row.shipped]
        if rows:
            same, fresh = (100 * np.mean([getattr(row, f"refused_{on}") for row in rows]) for on in ("same", "fresh"))
            rates = f"{same:.1f} | {fresh:.1f}"
        else:
            rates = "none | none"
        ships.append(f"| {study.name} | {100 * len(rows) / studies:.1f} | {rates} |")
        print(ships[-1], flush=True)
    edges = ["| questions | responses | true scores | score | gain |", "|---|---|---|---|---|"]
    for questions, samples, (low, high) in EDGES:
        score, gain = coverage_at_edges(questions, samples, (low, high), studies, 500, 2)
        cells = f"{100 * low:.0f} to {100 * high:.0f} | {100 * score:.1f} | {100 * gain:.1f}"
        edges.append(f"| {questions} | {samples} | {cells} |")
        print(edges[-1], flush=True)
    return {"shipping": [*ships, "", f"{studies} simulated studies a row; all cells in percent."], "edges": edges}


def main() -> None:
    """Print both tables, and with --write put them into the documentation."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--studies", type=int, default=1000)
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    for name, lines in tables(options.studies).items():
        if options.write:
            text = DOCS.read_text(encoding="utf-8")
            begin = f"<!-- {name} table, written by tests/bench/shipping.py -->"
            before, rest = text.split(begin)
            after = rest.split("<!-- end -->", 1)[1]
            DOCS.write_text("\n".join([before + begin, *lines, "<!-- end -->"]) + after, encoding="utf-8")


if __name__ == "__main__":
    main()
