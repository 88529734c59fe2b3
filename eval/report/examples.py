"""Side-by-side responses of all models to the same questions, for the report.

Two questions of each benchmark: the first by its hash, so that it is nobody's choice, and the one on which the models'
scores differ most. Model outputs are untrusted text; they are data here, and the page escapes them.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data.prompts.thinking import THINK_CLOSE, THINK_OPEN
from eval.forgetting.trajectory import HELDOUT
from eval.questions.build import load_questions
from eval.responses.generate import read_chunk
from eval.responses.readings import read_scores, unit_dir
from recipes.manifest import read_manifest
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
    if prompting in benchmark.likelihood:  # there is no response to show
        return []
    models = {"base": "base"} | {arm: recipe.labels(arm)[0] for arm in recipe.arms}
    values = {who: _first_scores(study_dir, label, benchmark.name, prompting, scoring) for who, label in models.items()}
    questions = load_questions(recipe, benchmark, study_dir)
    places = {question.question_id: place for place, question in enumerate(questions)}
    asked = sorted(identity for identity in values["base"] if identity in places)
    if not asked:  # parts that are judged together have scores of their own
        return []
    spread = {i: max(v[i][0] for v in values.values()) - min(v[i][0] for v in values.values()) for i in asked}
    differing = max(asked, key=lambda identity: spread[identity])
    chosen = {asked[0]: "the first by its hash"}
    if spread[differing] > 0 and differing != asked[0]:
        chosen[differing] = "where the models differ most"
    folders = {who: unit_dir(study_dir, label, benchmark.name, prompting) for who, label in models.items()}
    found = []
    for identity, why in chosen.items():
        rows = {who: _row(folder, places[identity], identity) for who, folder in folders.items()}
        responses = {
            who: _response(row["responses"][0]) | {"outcome": values[who][identity][1]} for who, row in rows.items()
        }
        found.append(
            {
                "benchmark": benchmark.name,
                "group": benchmark.group,
                "question_id": identity,
                "why": why,
                "prompt": _cut(rows["base"]["prompt"]),
                "reference": _reference(questions[places[identity]].reference),
                "responses": responses,
            }
        )
    return found


def _first_scores(
    study_dir: Path, label: str, benchmark: str, prompting: str, scoring: str
) -> dict[str, tuple[float, str]]:
    """Value and outcome of the first response to every question."""
    table = read_scores(study_dir, label, benchmark, prompting, scoring)
    columns = (table[name] for name in ("question_id", "sample_index", "value", "outcome"))
    return {i: (float(value), str(outcome)) for i, index, value, outcome in zip(*columns, strict=True) if index == 0}


def _row(directory: Path, place: int, identity: str) -> Row:
    """A model's stored row of one question; only the chunk it is in is read."""
    manifest = read_manifest(directory)
    assert manifest is not None
    chunk = f"chunk-{place // manifest['inputs']['chunk_questions']:04}-"
    (name,) = (name for name in manifest["outputs"] if name.startswith(chunk))
    return next(row for row in read_chunk(directory / name) if row["question_id"] == identity)


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
