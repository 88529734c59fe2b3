"""Stage `questions`: the questions for every model of the study, fixed once.

One file per benchmark, `<benchmark>.jsonl.zst`: identity, fields for the prompt, reference, cluster. Rows are checked
against the lock file first. Of a benchmark whose publisher asks not to spread its questions only the identities are
written; the questions are read from their source each time and must hash to what was fixed.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data.corpus.rows import problem_id, read_problems
from data.corpus.sources import read_rows
from data.hub import chosen
from data.pocket_world import TASKS, benchmark_questions
from eval.questions.analysis_lock import write_lock
from eval.questions.choices import choice_reader, is_answer
from eval.questions.forms import FORMS, LETTERS, form_columns, questions_of
from eval.questions.records import Question, json_line, read_questions, write_questions
from eval.questions.task_files import suite_folder, task_path
from eval.questions.wording import printed_empty
from recipes.errors import UserError, collected
from recipes.files import hash_files, hash_json
from recipes.manifest import finish_stage, finished_manifest
from recipes.progress import Progress
from recipes.schema import Recipe
from recipes.suite_schema import TRAITS, BenchmarkData, BenchmarkSpec

FOLDER = "questions"
_SHOWN_CHARS = 40
_EXAMPLES = {"letter": """, as in "{{ 'ABCD'[label | int] }}" for labels from 0, `label | int - 1` from 1"""}
_ALLOWED = {"letter": tuple(LETTERS), "yes_no": ("yes", "no")}  # kind of reference -> those that a rule can find right


def run(recipe: Recipe, study_dir: Path, stage_dir: Path, resume: bool) -> None:
    """Write the questions of all benchmarks into `stage_dir`.

    Raises:
        UserError: a benchmark is missing, changed, or not of the form the recipe says.
    """
    suite = recipe.require_suite()
    write_lock(recipe, study_dir)
    progress = Progress(stage_dir, len(suite.benchmarks), "benchmarks")
    facts: dict[str, Any] = {}
    for count, benchmark in enumerate(suite.benchmarks, start=1):
        questions = read_source_questions(recipe, benchmark, study_dir)
        facts[benchmark.name] = {
            "questions": len(questions),
            "clusters": len({question.cluster or question.question_id for question in questions}),
            "restricted": benchmark.restricted,
            "content": content_hash(questions),
        }
        write_questions(stage_dir / f"{benchmark.name}.jsonl.zst", questions, benchmark.restricted)
        progress.update(count, benchmark.name)
    names = [f"{benchmark.name}.jsonl.zst" for benchmark in suite.benchmarks]
    contents = {f"content of {name}": fact["content"] for name, fact in facts.items()}
    finish_stage(stage_dir, hash_files(stage_dir, names) | contents, {"benchmarks": facts})


def content_hash(questions: list[Question]) -> str:
    """sha256 of questions: what must not change while a study lasts. Raises UserError like `json_line`.

    Without the id in the file, of which the identity is a hash.
    """
    rows = [question.dump() for question in questions]
    try:
        return hash_json([row | {"extra": {k: v for k, v in row["extra"].items() if k != "id"}} for row in rows])
    except UnicodeEncodeError:
        for row in rows:
            json_line(row)  # names the question
        raise


def require_world_task(benchmark: BenchmarkSpec) -> None:
    """Raise UserError if a benchmark without `data` is no task of the synthetic world."""
    if benchmark.name not in TASKS:
        raise UserError(
            f"benchmark {benchmark.name!r} has no `data` and is not a task of the synthetic world; give it `data`, or "
            f"the name of a task ({', '.join(TASKS)})"
        )


def read_source_questions(recipe: Recipe, benchmark: BenchmarkSpec, study_dir: Path) -> list[Question]:
    """The questions of a benchmark from where it is published, the synthetic world, or the corpus.

    Raises:
        UserError: they cannot be read, or are not what was locked.
    """
    if benchmark.data is None and benchmark.name == "heldout":
        problems = read_problems(study_dir / "corpus", "heldout")
        return [Question(p.problem_id, {"problem": p.problem}, p.reference_answer) for p in problems]
    if benchmark.data is None:
        suite = recipe.require_suite()
        require_world_task(benchmark)
        drawn = benchmark_questions(suite.seed, benchmark.name, suite.split, suite.questions)
        return [Question(problem_id(q.problem), {"problem": q.problem}, q.reference_answer) for q in drawn]
    data = benchmark_files(benchmark)
    lock = recipe.lock.get("benchmarks", {}).get(data.name)
    data = chosen(data, lock)
    questions = questions_of(benchmark.name, data, read_benchmark_rows(data, lock))
    _require_references(benchmark, questions)
    _require_texts(recipe, benchmark, questions)
    _require_choices(recipe, benchmark, questions)
    return questions


def _require_texts(recipe: Recipe, benchmark: BenchmarkSpec, questions: list[Question]) -> None:
    """Refuse an empty value that a task file would print. The rows of publishers' forms are as they publish them."""
    data = benchmark.require_data()
    for prompting in benchmark.promptings if data.form == "fields" else ():
        empty, question = None, None
        with collected([]):  # what is wrong with a task file is said by those who fill it
            path = task_path(suite_folder(recipe.require_suite()), benchmark.name, prompting)
            for question in questions:
                if (empty := printed_empty(path, question.fields)) is not None:
                    break
        if empty is None or question is None:
            continue
        names = dict.fromkeys(text.split(".")[0] for text in empty.paths)
        named = " or ".join(f"{data.fields.get(name, name)!r}, the field {name!r}," for name in names)
        whole = empty.whole and all(text in data.fields for text in empty.paths)
        raise UserError(
            f"benchmark {benchmark.name}, {question.location}: {named} {'is' if whole else 'has a value that is'} "
            f"empty, but {path.name} prints it; fill it in, remove the row, or {empty.remedy}"
        )


def _require_choices(recipe: Recipe, benchmark: BenchmarkSpec, questions: list[Question]) -> None:
    """Refuse references that are none of the answers whose likelihoods are compared."""
    for prompting in benchmark.likelihood:
        wrong, path = None, None
        with collected([]):  # what is wrong with a task file is said by those who fill it
            path = task_path(suite_folder(recipe.require_suite()), benchmark.name, prompting)
            read = choice_reader(path)
            answers = ((question, read(question)) for question in questions if read is not None)
            wrong = next((item for item in answers if _is_wrong(benchmark, *item)), None)
        if wrong is None or path is None:
            continue
        (question, choices), rules = wrong, benchmark.scorings.values()
        if _has_empty_answer(benchmark, choices):
            number = 1 + next(index for index, choice in enumerate(choices) if not choice.strip())
            raise UserError(
                f"benchmark {benchmark.name}, {question.location}: answer {number} of doc_to_choice in {path.name} is "
                'empty; fill it in, remove the row, or leave it out, as in doc_to_choice: "{{[a, b] | select | list}}"'
            )
        rule = next(rule for rule in rules if TRAITS[rule].likelihoods)
        shown = ", ".join(repr(choice.strip()[:_SHOWN_CHARS]) for choice in choices)
        raise UserError(
            f"benchmark {benchmark.name}: the reference of {question.location} is "
            f"{str(question.reference)[:_SHOWN_CHARS]!r} but {rule!r} compares with the letter of a choice "
            f"({', '.join(LETTERS[: len(choices)])}) or its text ({shown}); correct the references or doc_to_choice, "
            "or name their column, or a template that makes them, in data.reference_field"
        )


def _is_wrong(benchmark: BenchmarkSpec, question: Question, choices: list[str]) -> bool:
    return _has_empty_answer(benchmark, choices) or not is_answer(question.reference, choices)


def _has_empty_answer(benchmark: BenchmarkSpec, choices: list[str]) -> bool:
    """Whether an answer of a file's own columns is empty. The rows of publishers' forms are as they publish them."""
    return benchmark.require_data().form == "fields" and not all(choice.strip() for choice in choices)


def _require_references(benchmark: BenchmarkSpec, questions: list[Question]) -> None:
    """Refuse references that a rule could never find right, which would read as a score of zero."""
    for rule in benchmark.scorings.values():
        allowed = _ALLOWED.get(TRAITS[rule].references)
        for question in questions:
            if allowed is not None and question.reference not in allowed:
                raise UserError(
                    f"benchmark {benchmark.name}: the reference of {question.location} is "
                    f"{str(question.reference)[:_SHOWN_CHARS]!r} but {rule!r} compares with {', '.join(allowed)}; "
                    "correct the references, name their column or a template that makes them in data.reference_field"
                    f"{_EXAMPLES.get(TRAITS[rule].references, '')}, or choose another rule"
                )


def benchmark_files(benchmark: BenchmarkSpec) -> BenchmarkData:
    """Where a benchmark's rows are, under the name its lock entry has."""
    assert benchmark.data is not None
    return benchmark.data.model_copy(update={"name": benchmark.data.name or benchmark.name})


def read_benchmark_rows(data: BenchmarkData, lock: dict[str, Any] | None) -> Sequence[dict[str, Any]]:
    """The rows of a benchmark with the columns its form needs. Raises UserError like `read_rows`."""
    return list(read_rows(data, form_columns(data), lock, FORMS[data.form].optional))


def load_questions(recipe: Recipe, benchmark: BenchmarkSpec, study_dir: Path) -> list[Question]:
    """The fixed questions of a study.

    Raises:
        UserError: the stage has not run, or a restricted benchmark changed since.
    """
    manifest = finished_manifest(study_dir / FOLDER)
    if manifest is None or benchmark.name not in manifest["facts"]["benchmarks"]:
        raise UserError(f"{study_dir} has no questions of {benchmark.name}; `transfer run` fixes them")
    fixed = manifest["facts"]["benchmarks"][benchmark.name]
    if not fixed["restricted"]:
        return read_questions(study_dir / FOLDER / f"{benchmark.name}.jsonl.zst")
    questions = read_source_questions(recipe, benchmark, study_dir)
    if content_hash(questions) != fixed["content"]:
        raise UserError(
            f"benchmark {benchmark.name} is not what it was when this study fixed its questions; restore its files, or "
            "use a new --out"
        )
    return questions
