"""Side-by-side responses of all models to the same questions, for the report.

Two questions of each benchmark: the first by its hash, so that it is nobody's choice, and the one on which the models'
scores differ most. Model outputs are untrusted text; they are data here, and the page escapes them.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data.thinking import THINK_CLOSE, THINK_OPEN
from eval.generate import open_units
from eval.questions import load_questions
from eval.readings import read_scores
from eval.trajectory import HELDOUT
from recipes.schema import Recipe
from recipes.suite_schema import BenchmarkSpec

MAX_CHARACTERS = 3000  # of a response or a prompt
Row = dict[str, Any]


def sample_responses(recipe: Recipe, study_dir: Path) -> list[Row]:
    """Examples of every benchmark in the primary reading; none of those whose questions must not be spread."""
    assert recipe.suite is not None
    found: list[Row] = []
    for benchmark in recipe.suite.benchmarks:
        restricted = benchmark.data is not None and benchmark.data.restricted
        if not restricted and benchmark.name != HELDOUT:
            found += _of_benchmark(recipe, study_dir, benchmark)
    return found


def _of_benchmark(recipe: Recipe, study_dir: Path, benchmark: BenchmarkSpec) -> list[Row]:
    prompting, scoring = benchmark.cell(recipe.analysis.reading)
    models = {"base": "base"} | {arm: recipe.labels(arm)[0] for arm in recipe.arms}
    stored: dict[str, dict[str, Row]] = {}
    values: dict[str, dict[str, tuple[float, str]]] = {}
    for who, label in models.items():
        model_dir = _model_dir(recipe, who)
        (unit,) = (
            unit
            for unit in open_units(recipe, study_dir, study_dir / "eval" / label, model_dir)
            if unit.benchmark.name == benchmark.name and unit.prompting == prompting
        )
        stored[who] = {row["question_id"]: row for row in unit.rows()}
        table = read_scores(study_dir, label, benchmark.name, prompting, scoring)
        values[who] = {
            identity: (float(value), str(outcome))
            for identity, index, value, outcome in zip(
                table["question_id"], table["sample_index"], table["value"], table["outcome"], strict=True
            )
            if index == 0
        }
    shared = [
        identity
        for identity in values["base"]
        if all("responses" in rows.get(identity, {}) for rows in stored.values())
    ]
    if not shared:  # likelihoods of given answers, or parts judged together: there is no response to show
        return []
    first = min(shared)
    spread = {i: max(v[i][0] for v in values.values()) - min(v[i][0] for v in values.values()) for i in shared}
    differing = max(sorted(shared), key=lambda identity: spread[identity])
    chosen = {first: "the first by its hash"}
    if spread[differing] > 0 and differing != first:
        chosen[differing] = "where the models differ most"
    references = {
        q.question_id: q.reference for q in load_questions(recipe, benchmark, study_dir) if q.question_id in chosen
    }
    return [
        {
            "benchmark": benchmark.name,
            "group": benchmark.group,
            "question_id": identity,
            "why": why,
            "prompt": _cut(stored["base"][identity]["prompt"]),
            "reference": _reference(references.get(identity)),
            "responses": {
                who: _response(stored[who][identity]["responses"][0]) | {"outcome": values[who][identity][1]}
                for who in models
            },
        }
        for identity, why in chosen.items()
    ]


def _model_dir(recipe: Recipe, who: str) -> str:
    if who == "base":
        return "base"
    return f"external/{who}" if who in recipe.external else f"arms/{who}/seed-{recipe.seeds[0]}/final"


def _reference(reference: Any) -> str | None:
    if isinstance(reference, Sequence) and not isinstance(reference, str):
        reference = reference[0] if reference else None
    return _cut(reference) if isinstance(reference, str) else None


def _response(text: str) -> Row:
    """A response as its thinking and the rest."""
    before, closed, after = text.rpartition(THINK_CLOSE)
    if not closed:
        return {"thinking": None, "text": _cut(text)}
    return {"thinking": _cut(before.replace(THINK_OPEN, "", 1).strip()), "text": _cut(after.lstrip())}


def _cut(text: str) -> str:
    left = len(text) - MAX_CHARACTERS
    return text if left <= 0 else f"{text[:MAX_CHARACTERS]} … ({left:,} more characters)"
