"""Small transfer reports for tests: what a test does not set has an empty or neutral value."""

from eval.report.schema import SCHEMA_VERSION, ArmResult, Transfer


def estimate(middle, low=None, high=None):
    return {
        "estimate": middle,
        "low": middle - 1 if low is None else low,
        "high": middle + 1 if high is None else high,
    }


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
    values |= {key: {} for key in ("samples", "groups", "questions", "clusters", "arms", "readings", "pass_at_k")}
    values |= {key: {} for key in ("versions", "budget", "settings", "models")}
    return Transfer.model_validate(values | parts)


def reading(base, arms):
    return {"base": base, "arms": arms, "contrasts": [], "cells": {}}
