"""Side-by-side responses of all models to the same questions, for the report.

Two questions of each benchmark: the first by its hash, so that it is nobody's choice, and the one on which the models'
scores differ most. Model outputs are untrusted text; they are data here, and the page escapes them.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data.prompts.thinking import split_thinking, strip_thinking
from eval.forgetting.trajectory import HELDOUT
from eval.questions.build import load_questions
from eval.report.schema import Example, ShownResponse
from eval.responses.readings import read_cell_scores, unit_dir
from eval.scorers.records import Response, read_responses
from recipes.manifest import read_manifest
from recipes.schema import Recipe
from recipes.suite_schema import BenchmarkSpec

MAX_CHARACTERS = 3000  # of a response or a prompt


def sample_responses(recipe: Recipe, study_dir: Path) -> list[Example]:
    """Examples of every benchmark in the primary reading; none of those whose questions must not be spread."""
    examples: list[Example] = []
    for benchmark in recipe.require_suite().benchmarks:
        if not benchmark.restricted and benchmark.name != HELDOUT:
            examples += _of_benchmark(recipe, study_dir, benchmark)
    return examples


def _of_benchmark(recipe: Recipe, study_dir: Path, benchmark: BenchmarkSpec) -> list[Example]:
    prompting, scoring = benchmark.cell(recipe.analysis.reading)
    if prompting in benchmark.likelihood:  # there is no response to show
        return []
    models = {"base": "base"} | {arm: recipe.labels(arm)[0] for arm in recipe.arms}
    values = {who: _first_scores(study_dir, label, benchmark.name, prompting, scoring) for who, label in models.items()}
    questions = load_questions(recipe, benchmark, study_dir)
    positions = {question.question_id: position for position, question in enumerate(questions)}
    identities = sorted(identity for identity in values["base"] if identity in positions)
    if not identities:  # parts that are judged together have scores of their own
        return []
    spread = {i: max(v[i][0] for v in values.values()) - min(v[i][0] for v in values.values()) for i in identities}
    differing = max(identities, key=lambda identity: spread[identity])
    chosen = {identities[0]: "the first by its hash"}
    if spread[differing] > 0 and differing != identities[0]:
        chosen[differing] = "where the models differ most"
    folders = {who: unit_dir(study_dir, label, benchmark.name, prompting) for who, label in models.items()}
    examples = []
    for identity, why in chosen.items():
        rows = {who: _row(folder, positions[identity], identity) for who, folder in folders.items()}
        responses = {who: _response(row, values[who][identity][1]) for who, row in rows.items()}
        examples.append(
            Example(
                benchmark=benchmark.name,
                group=benchmark.group,
                question_id=identity,
                why=why,
                prompt=_cut(rows["base"].prompt or ""),
                reference=_reference(questions[positions[identity]].reference),
                responses=responses,
            )
        )
    return examples


def _first_scores(
    study_dir: Path, label: str, benchmark: str, prompting: str, scoring: str
) -> dict[str, tuple[float, str]]:
    """Value and outcome of the first response to every question."""
    table = read_cell_scores(study_dir, label, benchmark, prompting, scoring)
    return {row.question_id: (row.value, row.outcome) for row in table if row.sample_index == 0}


def _row(directory: Path, position: int, identity: str) -> Response:
    """What a model answered to one question; only the chunk it is in is read."""
    manifest = read_manifest(directory)
    assert manifest is not None
    chunk = f"chunk-{position // manifest['inputs']['chunk_questions']:04}-"
    (name,) = (name for name in manifest["outputs"] if name.startswith(chunk))
    return next(row for row in read_responses(directory / name) if row.question_id == identity)


def _reference(reference: Any) -> str | None:
    if isinstance(reference, dict):
        reference = reference.get("annotators")
    if isinstance(reference, Sequence) and not isinstance(reference, str):
        reference = reference[0] if reference else None
    return _cut(reference) if isinstance(reference, str) else None


def _response(row: Response, outcome: str) -> ShownResponse:
    """The first response to a question, its thinking apart from the rest."""
    thinking, _ = split_thinking(row.responses[0], row.opens_thinking)
    text = _cut(strip_thinking(row.responses[0], row.opens_thinking))
    return ShownResponse(thinking=None if thinking is None else _cut(thinking), text=text, outcome=outcome)


def _cut(text: str) -> str:
    left = len(text) - MAX_CHARACTERS
    return text if left <= 0 else f"{text[:MAX_CHARACTERS]} … ({left:,} more characters)"
