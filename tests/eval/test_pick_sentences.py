"""What `pick` says where it ships nothing, on made-up slices: two halves of 1000 questions a benchmark."""

import re
from pathlib import Path

import numpy as np

from eval.forgetting.curves import Slice
from eval.forgetting.pick import choose
from eval.forgetting.schema import Pick
from eval.report.checkpoints import format_pick
from eval.statistics.bootstrap import BenchmarkScores
from recipes.loading import load_recipe
from tests.paths import SMOKE

HALF = np.arange(2000) < 1000
NOISE = np.tile(np.where(np.arange(1000) % 2, 40.0, -40.0), 2)
"""Of mean zero in each half; the mean of 1000 such questions has a standard error of 1.3."""


def chosen(max_drop: float, guess: dict[str, float] | None = None, **columns: list) -> Pick:
    """`columns`: of every benchmark, which is its own group, the scores of the base and of GRPO's checkpoints."""
    benchmarks = [
        BenchmarkScores(name, name, np.stack([np.broadcast_to(values, 2000) for values in scores], axis=1))
        for name, scores in columns.items()
    ]
    models = [("grpo", 0, step) for step in range(1, len(benchmarks[0].score_QM[0]))]
    settings = load_recipe(SMOKE).statistics.model_copy(update={"draws": 400, "seed": 0})
    return choose(Slice(benchmarks, models, [HALF] * len(benchmarks)), "math", max_drop, settings, (), guess)


def test_a_gain_and_a_score_above_guessing_are_not_of_the_same_checkpoint():
    """Guessing scores 50. The first gains 1 for certain and may score 49; the second scores 51 and may gain nothing."""
    math = [50 + NOISE, 51 + NOISE, 51.0]
    (reason,) = chosen(100, {"math": 50.0}, math=math, facts=[60.0, 60.0, 60.0]).refused
    assert reason == "no checkpoint has both a gain on math and a score above guessing"


def test_a_loss_on_the_other_half_is_no_gain_rather_than_one_that_cannot_be_told_from_zero():
    found = chosen(100, math=[40.0, np.where(HALF, 60.0, 30.0)], facts=[60.0, 60.0])
    reported = found.reported["math"]  # equal differences have a width all the same
    assert reported.estimate == -10 and -10.3 < reported.low < reported.high < -9.7
    shown = f"[{reported.low:.1f}, {reported.high:.1f}]"
    assert found.refused[0] == f"on the other half it has no gain on math that can be told from zero {shown}"


def named_limit(reason: str) -> tuple[float, str]:
    found = re.search(r"a checkpoint first ships at --max-drop ([\d.]+) \((.*); more questions lower it", reason)
    assert found is not None
    return float(found[1]), found[2]


def test_the_limit_that_is_named_is_that_of_the_half_that_needs_more():
    """A loss of 2 on the half that proposes and of 6 on the other; equal differences have a width all the same."""
    columns = {"math": [40.0, 60.0], "facts": [60.0, np.where(HALF, 58.0, 54.0)]}
    for given in (0, 4):  # below both, nothing is proposed; between them the other half refuses
        kept = chosen(given, **columns)
        limit, why = named_limit(kept.refused[-1])
        assert 6 < limit < 6.5
        table = kept.candidates[1].passes_from
        assert 2 < table < 2.5
        assert why == f"{np.ceil(10 * table) / 10:.1f} by the half that proposes, {limit:.1f} by the other"
        assert format_pick(kept, Path("runs/x")).endswith(
            "That model was not chosen among checkpoints, so it may pass there."
        )
    assert "transfer gate" not in format_pick(chosen(limit, **columns), Path("runs/x"))


def test_a_limit_above_those_of_both_halves_says_why():
    """The first gained nothing on the other half and loses 5, the second loses 10, the third 20.

    The second cannot be told from the others, which can be told apart: it is proposed only where the third is within
    the limit, and before that the first is, which is refused.
    """
    math = [40.0, np.where(HALF, 50.0, 40.0), 51 + NOISE, 52.0]
    columns = {"math": math, "facts": [60.0, 55.0, 50.0, 40.0]}
    limit, why = named_limit(chosen(0, **columns).refused[-1])
    assert 20 < limit < 20.5
    assert why == "what is proposed below it is refused"
    assert chosen(limit, **columns).choice.step == 2
    refused = chosen(12, **columns)
    assert refused.proposed is not None and refused.proposed.step == 1
