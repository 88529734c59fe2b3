"""Sentences and numbers of a report, by hand."""

from eval.report.verdict import certainty
from tests.support.reports import make_transfer


def test_one_arm_alone_is_no_comparison_at_an_equal_gain():
    """The other reaches the gain too seldom for an interval, never reaches it, or has one."""

    def reached(low, high):
        groups = {"math": {"estimate": 9, "low": 1, "high": 17}, "other": {"estimate": -45, "low": low, "high": high}}
        return {"crossings": 1, "reached": 0.88, "groups": groups}

    def said(sft):
        target = {"heldout_gain": 16.667, "arms": {"grpo": reached(-55.5, -34.3), "sft": sft}, "contrasts": []}
        curves = {"questions": {}, "groups": [], "arms": {}, "best_heldout_gain": {}, "razor": None}
        return certainty(make_transfer(seeds=[0], trajectory=curves | {"equal_gain": [target]}))[1:]

    assert said(reached(None, None)) == said({"crossings": 0, "reached": 0}) == []
    assert said(reached(-50, -40)) == [
        "At an equal held-out gain of +16.7 the worst groups are GRPO -45.0 [-55.5, -34.3] on other, SFT -45.0 "
        "[-50.0, -40.0] on other."
    ]
