"""`transfer score`: judge stored responses again, without a model, and say what changed."""

from pathlib import Path
from typing import Any, get_args

from eval.questions.build import load_questions
from eval.responses.generate import finish, score_unit, scores_path
from eval.responses.units import Unit, open_units, require_answers
from eval.scorers.records import ScoreRow, count_outcomes, mean_score, read_scores, write_scores
from eval.scorers.rules import score_rows
from recipes.errors import UserError
from recipes.manifest import MANIFEST, read_manifest, reopen_stage
from recipes.schema import Recipe
from recipes.suggestions import did_you_mean
from recipes.suite_schema import TRAITS, Scoring


def parse_rescorings(recipe: Recipe, texts: list[str]) -> dict[str, tuple[str, Scoring]]:
    """`benchmark.name=rule` texts as benchmark -> (name of the scoring, rule).

    Raises:
        UserError: the text has another form, or names no benchmark or rule.
    """
    known = {benchmark.name: benchmark for benchmark in recipe.require_suite().benchmarks}
    rescorings: dict[str, tuple[str, Scoring]] = {}
    for text in texts:
        target, _, rule = text.partition("=")
        benchmark, _, name = target.rpartition(".")
        if rule and benchmark and name and benchmark not in known:
            raise UserError(
                f"{text!r}: {benchmark!r} is not a benchmark of the suite; {did_you_mean(benchmark, known)}"
            )
        if not (rule and benchmark) or not name.replace("_", "").replace("-", "").isalnum():
            raise UserError(
                f"{text!r} must have the form BENCHMARK.NAME=RULE, for instance math500.loose=plain; benchmarks are "
                f"{', '.join(known)}"
            )
        if rule not in get_args(Scoring):
            raise UserError(f"{rule!r} is not a scoring rule; {did_you_mean(rule, get_args(Scoring))}")
        if name in known[benchmark].scorings:
            raise UserError(
                f"the recipe's scoring {name!r} of {benchmark} is {known[benchmark].scorings[name]!r}; give the new "
                "one another name"
            )
        rescorings[benchmark] = (name, rule)  # type: ignore[assignment]
    return rescorings


def rescore(recipe: Recipe, study_dir: Path, new: dict[str, tuple[str, Scoring]]) -> list[dict[str, Any]]:
    """Judge the stored responses of every evaluated model.

    With `new`, those benchmarks are judged by a further rule, compared with the primary reading's, and the table is
    kept beside the others. Without, every stored table is computed again and compared with itself; nothing is written.

    Raises:
        UserError: nothing is stored, or what is stored does not fit its questions.
    """
    changes = []
    for _, units in _evaluated(recipe, study_dir).values():
        for unit in units:
            benchmark = unit.benchmark
            if new and benchmark.name not in new:
                continue
            if new:
                name, rule = new[benchmark.name]
                if TRAITS[rule].likelihoods != unit.likelihoods:
                    continue
                wanted = benchmark.cell(recipe.analysis.reading)[1]
                fitting = [s for p, s in benchmark.cells() if p == unit.prompting]
                against = wanted if wanted in fitting else fitting[0]
                changes.append(_judge_again(recipe, study_dir, unit, name, rule, against, keep=True))
            else:
                for scoring, rule in unit.rules.items():
                    changes.append(_judge_again(recipe, study_dir, unit, scoring, rule, scoring, keep=False))
    return changes


def judge_all(recipe: Recipe, study_dir: Path) -> list[dict[str, Any]]:
    """Judge the stored responses of every evaluated model by today's rules, and write what comes out.

    A kill leaves every table as it was or judged again, and the evaluation incomplete: the next call judges everything
    again, and `transfer run` finishes that evaluation. Returns what changed against what was stored, as `rescore` does.

    Raises:
        UserError: nothing is stored, an evaluation is not finished, or what is stored does not fit its questions.
    """
    changes = []
    for stage_dir, (model_dir, units) in _evaluated(recipe, study_dir).items():
        before = {path: read_scores(path) for unit in units for path in _tables(unit)}
        reopen_stage(stage_dir, "math-verify")  # the one package that judges
        for unit in units:
            reopen_stage(unit.directory, "math-verify")
            score_unit(recipe, study_dir, unit)
            for path, (name, rule) in zip(_tables(unit), unit.rules.items(), strict=True):
                changes.append(_change(unit, name, rule, name, before[path], read_scores(path)))
        finish(recipe, stage_dir, model_dir, units)
    return changes


def _evaluated(recipe: Recipe, study_dir: Path) -> dict[Path, tuple[str, list[Unit]]]:
    """Folder of every evaluation -> the folder of its weights, and its units."""
    folders = [study_dir / "eval" / label for label in recipe.all_labels]
    stages: dict[Path, tuple[str, list[Unit]]] = {}
    for stage_dir in (folder for folder in folders if (folder / MANIFEST).is_file()):
        model_dir = ((read_manifest(stage_dir) or {}).get("facts") or {}).get("model")
        units = [] if model_dir is None else open_units(recipe, study_dir, stage_dir, model_dir)
        complete = all(not unit.missing() and all(path.is_file() for path in _tables(unit)) for unit in units)
        if model_dir is None or not complete:
            raise UserError(f"the evaluation of {stage_dir.name} is not finished; `transfer run` continues it")
        stages[stage_dir] = model_dir, units
    if not stages:
        raise UserError(f"{study_dir} has no stored responses; `transfer run` generates them")
    return stages


def _tables(unit: Unit) -> list[Path]:
    """The tables of a unit's scores, in the order of its rules."""
    return [scores_path(unit.directory, name) for name in unit.rules]


def _judge_again(
    recipe: Recipe, study_dir: Path, unit: Unit, name: str, rule: Scoring, against: str, keep: bool
) -> dict[str, Any]:
    """Score a unit's responses by `rule`, and count what changes against the stored scoring `against`.

    `keep`: write the table, as the scoring `name`.
    """
    questions = load_questions(recipe, unit.benchmark, study_dir)
    rows = unit.rows()
    require_answers(unit, rows, questions)
    sandboxed = not unit.suite.allow_unsandboxed_code
    table = score_rows(rows, questions, rule, unit.suite.max_response_tokens, sandboxed)
    if keep:
        write_scores(scores_path(unit.directory, name), table)
    return _change(unit, name, rule, against, read_scores(scores_path(unit.directory, against)), table)


def _change(
    unit: Unit, name: str, rule: Scoring, against: str, old: list[ScoreRow], table: list[ScoreRow]
) -> dict[str, Any]:
    """What changes from the stored scoring `against` to a table, as the scoring `name`."""
    before = {(row.question_id, row.sample_index): (row.value, row.outcome) for row in old}
    moves: dict[str, int] = {}
    for row in table:
        key = (row.question_id, row.sample_index)
        if key in before and before[key] != (row.value, row.outcome):
            move = f"{before[key][1]} -> {row.outcome}"
            moves[move] = moves.get(move, 0) + 1
    return {
        "model": unit.label,
        "benchmark": unit.benchmark.name,
        "prompting": unit.prompting,
        "against": against,
        "scoring": name,
        "rule": rule,
        "before": round(100 * mean_score(old), 3),
        "after": round(100 * mean_score(table), 3),
        "responses": len(table),
        "moved": dict(sorted(moves.items())),
        "outcomes": count_outcomes(table),
    }


def format_rescored(changes: list[dict[str, Any]]) -> str:
    """What changed, as text. Tables that are as they were are counted, unless they are of a further rule."""
    lines = []
    same = [change for change in changes if change["scoring"] == change["against"] and not change["moved"]]
    if same:
        responses = sum(change["responses"] for change in same)
        lines.append(f"as before: {len(same)} of {len(changes)} tables, {responses:,} judgements")
    for change in (change for change in changes if change not in same):
        lines.append(
            f"{change['model']:<28}{change['benchmark']}-{change['prompting']:<10} "
            f"{change['against']} {change['before']:.1f} -> {change['scoring']} ({change['rule']}) "
            f"{change['after']:.1f}  {_moved_text(change['moved'], change['responses'])}"
        )
    return "\n".join(lines) if lines else "no stored responses fit this rule"


def _moved_text(moved: dict[str, int], responses: int) -> str:
    """How many judgements changed, and from which outcome to which."""
    if not moved:
        return f"none of {responses:,} responses changed"
    texts = []
    for move, count in moved.items():
        before, _, after = move.partition(" -> ")
        how = f"{after} as before, with another score" if before == after else f"from {before} to {after}"
        texts.append(f"{count:,} {how}")
    return f"{sum(moved.values()):,} of {responses:,} responses changed: {'; '.join(texts)}"
