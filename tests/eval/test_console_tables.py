"""Tables of commands as people read them: every column has a name, every count says of what."""

from pathlib import Path

import pytest

from eval.forgetting.schema import Candidate, Pick
from eval.report.checkpoints import format_pick
from eval.responses.rescore import format_rescored
from tests.support.reports import estimate


def test_every_column_of_the_frontier_has_a_heading():
    row = Candidate(
        arm="grpo", seed=0, step=8, trained_gain=estimate(20), worst_group="other_reasoning", worst_gain=estimate(-2),
        passes_from=3.14, on_frontier=True,
    )  # fmt: skip
    made = Pick(
        max_drop=5, choice=row, proposed=row, refused=[], reported={}, tied=[], questions=5, checked=5,
        candidates=[row], learned_nothing=[],
    )  # fmt: skip
    heading, line, *_ = format_pick(made, Path("runs/x")).splitlines()
    for name, value in (
        ("gain, points", "+20.0 [+19.0, +21.0]"),
        ("passes from", "3.2"),
        ("in the worst group", "-2.0 [-3.0, -1.0]"),
    ):
        assert line[: heading.index(name) + len(name)].endswith(value)
    assert line[heading.index("  worst group") :] == "  other_reasoning"


@pytest.mark.parametrize(
    ("moved", "said"),
    [
        (
            {"no_answer -> wrong": 2, "truncated -> wrong": 4},
            "6 of 48 responses changed: 2 from no_answer to wrong; 4 from truncated to wrong",
        ),
        ({"partial -> partial": 3}, "3 of 48 responses changed: 3 partial as before, with another score"),
        ({}, "none of 48 responses changed"),
    ],
)
def test_a_rescoring_says_how_many_responses_changed_and_how(moved, said):
    change = {
        "model": "base", "benchmark": "sum", "prompting": "native", "against": "robust", "scoring": "loose",
        "rule": "plain", "before": 25.0, "after": 25.0, "responses": 48, "moved": moved,
    }  # fmt: skip
    assert format_rescored([change]).endswith(f"25.0 -> loose (plain) 25.0  {said}")


def test_tables_that_are_as_they_were_are_counted():
    change = {
        "model": "base", "benchmark": "sum", "prompting": "native", "against": "robust", "scoring": "robust",
        "rule": "plain", "before": 25.0, "after": 25.0, "responses": 48, "moved": {},
    }  # fmt: skip
    moved = change | {"model": "grpo", "moved": {"wrong -> correct": 2}, "after": 29.2}
    lines = format_rescored([change, moved, change | {"benchmark": "sort"}]).splitlines()
    assert lines[0] == "as before: 2 of 3 tables, 96 judgements"
    assert len(lines) == 2 and lines[1].endswith("2 of 48 responses changed: 2 from wrong to correct")
    assert "none of 48 responses changed" in format_rescored([change | {"scoring": "loose"}])
