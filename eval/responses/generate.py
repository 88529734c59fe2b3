"""Stage `eval/<model>`: generate and score one checkpoint's responses to every question of the suite.

Responses are stored as they finish and never generated again, so a killed stage loses only the requests that were
running. Other processes and machines can share the work (`transfer work`). Seeds depend on model, benchmark, prompting,
chunk and prompt, so a response does not depend on which worker generates it. Scoring follows the last response.
"""

import time
from pathlib import Path
from typing import Any

from eval.questions.build import load_questions
from eval.responses.engines import engine_facts
from eval.responses.units import Unit, open_units, require_answers
from eval.scorers.records import count_outcomes, mean_score, write_scores
from eval.scorers.rules import score_rows
from eval.scorers.sandbox import sandbox_versions
from eval.scorers.version import RULES_VERSION, rules_version
from recipes.files import hash_files
from recipes.manifest import finish_stage, read_manifest, stage_state, start_stage
from recipes.progress import Progress, duration, remaining_seconds
from recipes.schema import Recipe
from recipes.suite_schema import TRAITS

_POLL_SECONDS = 2.0
_PROGRESS_SECONDS = 1.0
_WRITE_SECONDS = 10.0  # between two looks for chunks that are complete


def run(recipe: Recipe, study_dir: Path, stage_dir: Path, resume: bool, model_dir: str) -> None:
    """Generate what is missing and score all benchmarks for the checkpoint in `study_dir / model_dir`."""
    units = open_units(recipe, study_dir, stage_dir, model_dir)
    for unit in units:
        if stage_state(unit.directory, unit.inputs).state not in ("done", "resume"):
            start_stage(unit.directory, f"eval/{unit.label}/{unit.name}", unit.inputs)

    incomplete = [unit for unit in units if unit.missing()]
    if incomplete:
        _generate(recipe, study_dir, stage_dir, study_dir / model_dir, incomplete)

    for unit in units:
        done = stage_state(unit.directory, unit.inputs).state == "done" and unit not in incomplete
        if not done or not _scored(unit):
            score_unit(recipe, study_dir, unit)
    finish(recipe, stage_dir, model_dir, units)


def finish(recipe: Recipe, stage_dir: Path, model_dir: str, units: list[Unit]) -> None:
    """Complete the manifest of a stage whose units are scored."""
    outputs: dict[str, str] = {}
    facts: dict[str, Any] = {}
    for unit in units:
        manifest = read_manifest(unit.directory) or {}
        outputs |= {f"{unit.name}/{file}": digest for file, digest in manifest["outputs"].items()}
        facts[unit.name] = manifest["facts"]
    accuracy = _accuracies(recipe, facts)
    stage_facts = {"accuracy": accuracy, "model": model_dir, "units": facts, "engine": engine_facts(stage_dir)}
    finish_stage(stage_dir, outputs, stage_facts)


def _generate(recipe: Recipe, study_dir: Path, stage_dir: Path, model_dir: Path, units: list[Unit]) -> None:
    """Generate until every chunk file is written, together with other workers."""
    from eval.responses.scheduling import ResponseScheduler

    progress = Progress(stage_dir, sum(unit.questions * unit.samples for unit in units), "responses")
    with ResponseScheduler(recipe, study_dir, model_dir, units) as scheduler:
        started, stored_before = time.monotonic(), scheduler.stored()
        next_update, next_write = started, started + _WRITE_SECONDS

        def on_progress() -> None:
            nonlocal next_update, next_write
            now = time.monotonic()
            if now >= next_update:
                next_update, stored = now + _PROGRESS_SECONDS, scheduler.stored()
                left = remaining_seconds(now - started, stored - stored_before, progress.total - stored)
                progress.update(stored, f"{duration(left)} left" if left else "")
            if now >= next_write:
                next_write = now + _WRITE_SECONDS
                scheduler.write_complete_chunks()

        while True:
            on_progress()
            scheduler.run(on_progress)
            scheduler.write_complete_chunks()
            if not any(unit.missing() for unit in units):
                break
            time.sleep(_POLL_SECONDS)  # other workers are generating the rest
    progress.update(progress.total)


def _accuracies(recipe: Recipe, facts: dict[str, Any]) -> dict[str, float]:
    cells = {benchmark.name: benchmark.cell(recipe.analysis.reading) for benchmark in recipe.require_suite().benchmarks}
    return {name: facts[f"{name}-{prompting}"]["scores"][scoring] for name, (prompting, scoring) in cells.items()}


def scores_path(directory: Path, scoring: str) -> Path:
    """The table of a unit's scores by one scoring."""
    return directory / f"scores-{scoring}.parquet"


def _scored(unit: Unit) -> bool:
    """Whether the scores on disk are by the rules the recipe names now, as they are now."""
    facts = (read_manifest(unit.directory) or {}).get("facts", {})
    exist = all(scores_path(unit.directory, name).is_file() for name in unit.rules)
    return exist and facts.get("rules") == unit.rules and facts.get(RULES_VERSION) == rules_version()


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
        RULES_VERSION: rules_version(),
        "questions": len(questions),
        "tokens": sum(sum(row.tokens) for row in rows),
        "restricted": unit.benchmark.restricted,
    }
    if any(TRAITS[rule].runs_code for rule in unit.rules.values()):
        facts["sandbox"] = sandbox_versions(not unit.suite.allow_unsandboxed_code)
    finish_stage(unit.directory, hash_files(unit.directory, files), facts)
