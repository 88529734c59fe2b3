"""Stage `eval/<model>`: one checkpoint answers every question of the suite.

Responses are kept as they come; an answer that is stored is never asked for again, so a killed stage loses at most what
it was generating. `transfer work` lets other processes and machines share the work. Random numbers are seeded so that a
response does not depend on who drew it. When all questions are answered, the responses are scored.
"""

import time
from pathlib import Path
from typing import Any

from eval.questions.build import load_questions
from eval.responses.engines import engine_facts
from eval.responses.units import Unit, open_units, require_answers
from eval.scorers.records import count_outcomes, mean_score, write_scores
from eval.scorers.rules import score_rows
from recipes.manifest import Progress, finish_stage, hash_files, read_manifest, stage_state, start_stage
from recipes.schema import Recipe

_POLL_SECONDS = 2.0
_SHOW_SECONDS = 1.0
_ASSEMBLE_SECONDS = 10.0


def run(recipe: Recipe, study_dir: Path, stage_dir: Path, resume: bool, model_dir: str) -> None:
    """Generate what is missing and score all benchmarks for the checkpoint in `study_dir / model_dir`."""
    units = open_units(recipe, study_dir, stage_dir, model_dir)
    for unit in units:
        if stage_state(unit.directory, unit.inputs).state not in ("done", "resume"):
            start_stage(unit.directory, f"eval/{unit.label}/{unit.name}", unit.inputs)

    incomplete = [unit for unit in units if unit.missing()]
    if incomplete:
        _generate(recipe, study_dir, stage_dir, study_dir / model_dir, incomplete)

    # Scores
    outputs: dict[str, str] = {}
    facts: dict[str, Any] = {}
    for unit in units:
        done = stage_state(unit.directory, unit.inputs).state == "done" and unit not in incomplete
        if not done or not _scored(unit):
            score_unit(recipe, study_dir, unit)
        manifest = read_manifest(unit.directory) or {}
        outputs |= {f"{unit.name}/{file}": digest for file, digest in manifest["outputs"].items()}
        facts[unit.name] = manifest["facts"]
    accuracy = _accuracies(recipe, facts)
    answered = {"accuracy": accuracy, "model": model_dir, "units": facts, "engine": engine_facts(stage_dir)}
    finish_stage(stage_dir, outputs, answered)


def _generate(recipe: Recipe, study_dir: Path, stage_dir: Path, model_dir: Path, units: list[Unit]) -> None:
    """Ask until every chunk is written; others may ask a part."""
    from eval.responses.asking import Asking

    progress = Progress(stage_dir, sum(unit.questions * unit.samples for unit in units), "responses")
    with Asking(recipe, study_dir, model_dir, units) as asking:
        started, before = time.monotonic(), asking.done()
        shown, assembled = 0.0, started

        def show() -> None:
            nonlocal shown, assembled
            now = time.monotonic()
            if now > shown + _SHOW_SECONDS:
                shown, done = now, asking.done()
                left = (now - started) / (done - before) * (progress.total - done) if done > before else None
                progress.update(done, "" if left is None or done == progress.total else f"{_duration(left)} left")
            if now > assembled + _ASSEMBLE_SECONDS:
                assembled = now
                asking.assemble()

        while True:
            show()
            asking.work(show)
            asking.assemble()
            if not any(unit.missing() for unit in units):
                break
            time.sleep(_POLL_SECONDS)  # others are generating the rest
    progress.update(progress.total)


def _accuracies(recipe: Recipe, facts: dict[str, Any]) -> dict[str, float]:
    assert recipe.suite is not None
    cells = {benchmark.name: benchmark.cell(recipe.analysis.reading) for benchmark in recipe.suite.benchmarks}
    return {name: facts[f"{name}-{prompting}"]["scores"][scoring] for name, (prompting, scoring) in cells.items()}


def _duration(seconds: float) -> str:
    return (
        f"{seconds:.0f} s"
        if seconds < 90
        else f"{seconds / 60:.0f} min"
        if seconds < 5400
        else f"{seconds / 3600:.1f} h"
    )


def scores_path(directory: Path, scoring: str) -> Path:
    """The table of a unit's scores by one scoring."""
    return directory / f"scores-{scoring}.parquet"


def _scored(unit: Unit) -> bool:
    """Whether the scores on disk are by the rules the recipe names now."""
    manifest = read_manifest(unit.directory)
    there = all(scores_path(unit.directory, name).is_file() for name in unit.rules)
    return there and manifest is not None and manifest.get("facts", {}).get("rules") == unit.rules


def score_unit(recipe: Recipe, study_dir: Path, unit: Unit) -> None:
    """Judge a unit's stored responses by every scoring that fits and complete its manifest.

    Raises:
        UserError: the stored rows are not one for each question, or code would have to run without a sandbox.
    """
    questions = load_questions(recipe, unit.benchmark, study_dir)
    rows = unit.rows()
    require_answers(unit, rows, questions)
    files = [unit.path(chunk).name for chunk in range(unit.chunks)]
    scores: dict[str, float] = {}
    outcomes: dict[str, dict[str, int]] = {}
    for name, rule in unit.rules.items():
        limit, sandboxed = unit.suite.max_response_tokens, not unit.suite.allow_unsandboxed_code
        table = score_rows(rows, questions, rule, limit, sandboxed)
        write_scores(scores_path(unit.directory, name), table)
        files.append(scores_path(unit.directory, name).name)
        scores[name] = mean_score(table)
        outcomes[name] = count_outcomes(table)
    facts = {
        "scores": scores,
        "outcomes": outcomes,
        "rules": unit.rules,
        "questions": len(questions),
        "tokens": sum(sum(row.tokens) for row in rows),
        "restricted": unit.benchmark.restricted,
    }
    finish_stage(unit.directory, hash_files(unit.directory, files), facts)
