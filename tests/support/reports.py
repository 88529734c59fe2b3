"""Small transfer reports for tests: what a test does not set has an empty or neutral value."""

from eval.report.ablation_page import draw_ablation, render_ablation
from eval.report.ablation_verdict import conclude
from eval.report.learning_rates import Accuracy, choose_rates, rates_figure, render_rates
from eval.report.response_curves import PointResult, response_curves
from eval.report.schema import SCHEMA_VERSION, ArmResult, Transfer
from recipes.loading import load_recipe
from tests.paths import SMOKE


def estimate(middle, low=None, high=None):
    return {
        "estimate": middle,
        "low": middle - 1 if low is None else low,
        "high": middle + 1 if high is None else high,
    }


def gain_shown(value):
    """A gain of `transfer.json` as texts have it: zero without a sign."""
    middle, low, high = (f"{value[key]:+.1f}" if value[key] != 0 else "0.0" for key in ("estimate", "low", "high"))
    return f"{middle} [{low}, {high}]"


def arm_values(groups, scores=None, index=None):
    """An arm. `groups`: gains; `scores`: benchmark -> score; `index`: group -> index by the definition `points`."""
    rest = {"gain": estimate(0), "p_value": 1, "p_holm": 1, "seed_scores": [], "outcomes": {}, "change": {}}
    return {
        "groups": groups,
        "benchmarks": {name: {"score": score} | rest for name, score in (scores or {}).items()},
        "index": {"points": index or {}},
    }


def arm_result(*args, **more) -> ArmResult:
    return ArmResult.model_validate(arm_values(*args, **more))


def base_values(scores):
    return {"benchmarks": {name: {"score": score, "outcomes": {}} for name, score in scores.items()}}


def make_transfer(**parts) -> Transfer:
    values = {
        "schema_version": SCHEMA_VERSION,
        "study": "s",
        "title": None,
        "status": "matched",
        "split": "test",
        "trained_group": "math",
        "confidence": 0.95,
        "draws": 1000,
        "pocket": False,
        "analysis": {"sha256": "", "before": [], "after": [], "claims": []},
        "reading": "robust",
        "definition": "points",
        "base": {"benchmarks": {}},
        "trajectory": None,
        "diagnostics": None,
        "certificate": None,
    }
    values |= {key: [] for key in ("differences", "seeds", "contrasts", "cells", "warnings", "examples")}
    values |= {
        key: {}
        for key in ("samples", "groups", "questions", "clusters", "guess_level", "arms", "readings", "pass_at_k")
    }
    values |= {key: {} for key in ("versions", "budget", "settings", "models")}
    return Transfer.model_validate(values | parts)


def reading(base, arms, cells=None):
    return {"base": base, "arms": arms, "contrasts": [], "cells": cells or {}}


RUN = {
    "presented_problems": 8,
    "contributed_problems": 6,
    "exposures": 16,
    "completions": 64,
    "correct_completions": 32,
    "prompt_tokens": 900,
    "generated_tokens": 12_000,
    "trained_tokens": 9_000,
    "generate_flops": 1e12,
    "reference_flops": 0.0,
    "train_flops": 2e12,
}


def ablation_point(rate, gains, *, key="train.learning_rate", warnings=(), hours=None, status="matched"):
    """A finished point of an ablation with one axis. `gains`: arm -> gain of every group, ±3 points."""
    groups = {"math": [], "other_reasoning": [], "non_reasoning": []}
    arms = {
        arm: arm_values({group: estimate(v, v - 3, v + 3) for group, v in zip(groups, values, strict=True)})
        for arm, values in gains.items()
    }
    budget = {arm: [RUN, RUN | {"generated_tokens": 14_000}] for arm in gains}
    transfer = make_transfer(
        arms=arms, groups=groups, seeds=[0, 1], budget=budget, warnings=list(warnings), status=status
    )
    return PointResult(f"lr-{rate}", {key: rate}, {key: rate, "seeds": [0, 1]}, {"base": "1"}, transfer, hours or {})


RATES = [
    ablation_point(1e-4, {"off_policy_sft": (8.0, -6.0, -2.0), "grpo": (5.0, 1.0, 0.5), "rejection": (1.0, -1.0, 0.0)}),
    ablation_point(
        2e-4,
        {"off_policy_sft": (20.0, -9.0, -4.0), "grpo": (14.0, 0.5, 4.0), "rejection": (2.0, -2.0, 0.0)},
        hours={"grpo": 0.25},
        warnings=[{"code": "few_questions", "message": "few independent questions: <b>aime</b> (30)"}],
    ),
    ablation_point(
        4e-4, {"off_policy_sft": (21.0, -30.0, -20.0), "grpo": (15.0, -8.0, 1.0), "rejection": (-9.0, -9.0, -9.0)}
    ),
]
"""Off-policy SFT gains most at 2e-4 and 4e-4, which cannot be told apart; rejection gains nowhere."""


def ablation_page(path, points, missing=(), title="Gains along the learning rate"):
    """Write the page of an ablation over one axis and return its path."""
    curves = response_curves(points, list(points[0].values), paired=False)
    found = conclude(curves, missing)
    figures = draw_ablation(curves, found)
    page = render_ablation(curves, found, missing, figures, name="made-up", title=title, clock_unit="GPU-hours")
    path.write_text(page)
    return path


def rates_page(path, missing=(), title="Word problems"):
    """Write the page of a choice among three learning rates for two arms and return its path."""
    rows = {"off_policy_sft": (40.0, 55.0, 30.0), "grpo": (45.0, 50.0)}
    rates = (1e-5, 3e-5, 1e-4)
    frontier = {
        arm: {
            str(rate): Accuracy(accuracy=value, error=4, seconds=5000, steps=64, completions=8192)
            for rate, value in zip(rates, values, strict=False)
        }
        for arm, values in rows.items()
    }
    choice = choose_rates(frontier, rates, Accuracy(accuracy=42, error=4), missing, 1)
    recipe = load_recipe(SMOKE, [])
    path.write_text(render_rates(choice, rates_figure(choice), recipe=recipe, name="made-up", title=title))
    return path
