"""Generated rows in the columns that a recipe reads, for a rehearsal without a network or a lock.

Problems are one-step sums over names and things, worded so that no two are near-duplicates and the filters of the
corpus keep them. Answers are single digits.
"""

import json
from collections.abc import Callable
from typing import Any

from data.corpus.fields import is_template
from eval.questions.forms import FORMS
from recipes.corpus_schema import BenchmarkTexts, SourceSpec, StoredCompletions
from recipes.suite_schema import TRAITS, BenchmarkSpec

Row = dict[str, Any]

_NAMES = "Ada Ben Cleo Dan Eva Finn Gina Hugo Iris Jon Kira Leo Mona Nils Olga Paul".split()
_THINGS = "pears books coins shells stamps cards tickets marbles ribbons candles keys buttons".split()
_PLACES = (
    "at the market before noon", "on the way home from school", "in a box under the old stairs", "beside the river",
    "during a long train ride", "after the storm had passed", "in the attic of the mill", "while it was raining",
)  # fmt: skip
_ENDINGS = (
    "How many are there in the end?", "What is the total now?", "State how many that makes.",
    "Find the number that remains.", "How large is the whole collection?",
)  # fmt: skip


def problems(count: int, offset: int = 0) -> list[tuple[str, str]]:
    """`count` word problems with their answers; problems of disjoint ranges from `offset` differ."""
    made = []
    for index in range(offset, offset + count):
        first, second = index % 5, (index // 5) % 5
        name, other = _NAMES[index % 16], _NAMES[(3 * index + 7) % 16]
        thing, where = _THINGS[(5 * index) % 12], _PLACES[(index // 3) % 8]
        text = f"{name} finds {first} {thing} {where}, and {other} adds {second} more as number {index}."
        made.append((f"{text} {_ENDINGS[(7 * index) % 5]}", str(first + second)))
    return made


def put(row: Row, field: str, value: Any) -> Row:
    """Set a dotted field of `row`, in place; a part that is a number makes a list.

    The text of a template becomes the name of a column, which is read in its place.
    """
    if is_template(field):
        row[field] = value
        return row
    first, _, rest = field.partition(".")
    if not rest:
        row[first] = value
    elif rest.split(".")[0].isdigit():
        inner = rest.partition(".")[2]
        row[first] = [put({}, inner, value) if inner else value]
    else:
        row[first] = put(row.get(first) or {}, rest, value)
    return row


def source_rows(spec: SourceSpec, count: int, offset: int) -> list[Row]:
    """Rows of a source of problems, with the columns of its mapping."""
    rows = []
    for index, (problem, answer) in enumerate(problems(count, offset)):
        value = {
            "value": answer,
            "boxed": f"The two numbers are added, which gives \\boxed{{{answer}}}.",
            "after_hashes": f"The two numbers are added.\n#### {answer}",
        }[spec.answer_in]
        row = put({}, spec.problem_field, spec.problem_prefix + problem + spec.problem_suffix)
        put(row, spec.answer_field, value)
        if spec.level_field is not None:
            put(row, spec.level_field, (spec.levels or ("1",))[index % len(spec.levels or ("1",))])
        for field, allowed in spec.where.items():
            put(row, field, allowed[index % len(allowed)])
        rows.append(row)
    return rows


def stored_rows(spec: StoredCompletions, pairs: list[tuple[str, str]]) -> list[Row]:
    """A stored completion for each (problem, answer)."""
    return [
        put(
            put({}, spec.problem_field, spec.problem_prefix + problem + spec.problem_suffix),
            spec.completion_field,
            f"<think>\nAdd them.\n</think>\n\nIt is \\boxed{{{answer}}}.",
        )
        for problem, answer in pairs
    ]


def text_rows(spec: BenchmarkTexts, count: int) -> list[Row]:
    """Questions of a benchmark for decontamination; none overlaps with a generated problem."""
    rows = []
    for index in range(count):
        row: Row = {}
        for field in spec.text_fields:
            put(row, field, f"{spec.name} asks in its {field} about case {index}, which no problem here mentions.")
        rows.append(row)
    return rows


def benchmark_rows(benchmark: BenchmarkSpec, count: int) -> list[Row]:
    """Rows of a benchmark in the columns of its form; units are complete."""
    data = benchmark.require_data()
    if data.form == "fields":
        rows = [_plain_row(benchmark, index) for index in range(count)]
    else:
        rows = list(map(_FORMS[data.form], range(count)))
    for index, row in enumerate(rows):
        for field in filter(None, (data.id_field, data.cluster_field)):
            put(row, field, f"{benchmark.name}-{index}")
    return rows


def _plain_row(benchmark: BenchmarkSpec, index: int) -> Row:
    data = benchmark.require_data()
    kinds = {TRAITS[rule].references for rule in benchmark.scorings.values()}
    ((problem, answer),) = problems(1, 1000 + index)
    reference = ("yes", "no")[index % 2] if "yes_no" in kinds else "AB"[index % 2] if "letter" in kinds else answer
    row: Row = {}
    for column in data.fields.values():
        put(row, column, f"{benchmark.name}: {problem}")
    return put(row, data.reference_field, reference)


def _gpqa(index: int) -> Row:
    wrong = {f"Incorrect Answer {n}": f"option {index + n} of the second kind" for n in (1, 2, 3)}
    return {"Question": f"Which option belongs to case {index}?", "Correct Answer": f"option {index}"} | wrong


def _coqa(index: int) -> Row:
    name, thing = _NAMES[index % 16], _THINGS[index % 12]
    return {
        "story": f"{name} bought {thing} and went home, {index} in all.",
        "questions": {"input_text": [f"Who bought {thing}?", "Where did they go?"]},
        "answers": {"input_text": [name, "home"]},
        "additional_answers": {"0": {"input_text": [name, "went home"]}},
    }


def _halueval(index: int) -> Row:
    empty = dict.fromkeys(("knowledge", "question", "answer", "dialogue_history", "response", "document", "summary"))
    kinds: tuple[Row, ...] = (
        {"knowledge": f"Fact {index} holds.", "question": f"Does fact {index} hold?", "answer": "It does."},
        {"knowledge": f"Fact {index} holds.", "dialogue_history": f"Tell me of fact {index}.", "response": "No."},
        {"document": f"Fact {index} holds, and so do others.", "summary": f"Fact {index} holds."},
    )
    return empty | kinds[index % 3] | {"hallucination": ("no", "yes")[index % 2]}


def _mc_taco(index: int) -> Row:
    case = index // 2  # two candidate answers for each question
    return {
        "sentence": f"{_NAMES[case % 16]} walked to place {case}.",
        "question": "How long did it take?",
        "answer": ("an hour", "a century")[index % 2],
        "label": ("yes", "no")[index % 2],
        "category": "Event Duration",
    }


def _acpbench(index: int) -> Row:
    return {
        "context": f"There are two rooms and robot {index} in the first.",
        "question": "Where can it go next? A. room one B. room two",
        "query": "Where can it go next?",
        "choices": {"text": ["room one", "room two"], "label": ["A", "B"]},
        "answer": "AB"[index % 2],
        "group": "applicable_actions_mc",
    }


def _headqa(index: int) -> Row:
    options = [{"aid": n, "atext": f"organ {index + n}"} for n in (1, 2, 3, 4)]
    return {"qtext": f"Which organ does case {index} concern?", "ra": 1 + index % 4, "answers": options}


def _ifeval(index: int) -> Row:
    kinds: tuple[tuple[str, Row], ...] = (
        ("punctuation:no_comma", {}),
        ("change_case:english_lowercase", {}),
        ("keywords:existence", {"keywords": ["river"]}),
    )
    name, arguments = kinds[index % 3]
    return {"key": 1000 + index, "prompt": f"Describe place {index}.", "instruction_id_list": [name],
            "kwargs": [arguments]}  # fmt: skip


def _livecodebench(index: int) -> Row:
    tests = [{"input": f"{index}\n", "output": f"{index + 1}\n", "testtype": "stdin"}]
    return {
        "question_id": f"rehearsal-{index}",
        "question_title": f"Add one, case {index}",
        "question_content": "Read an integer and print the next one.",
        "starter_code": "",
        "public_test_cases": json.dumps(tests),
        "private_test_cases": json.dumps(tests),
        "metadata": "{}",
        "contest_date": "2024-01-01T00:00:00",
    }


def _humaneval(index: int) -> Row:
    return {
        "task_id": f"Rehearsal/{index}",
        "prompt": f'def add_{index}(x: int) -> int:\n    """Return x plus {index}."""\n',
        "entry_point": f"add_{index}",
        "test": f"def check(candidate):\n    assert candidate(1) == {index + 1}\n",
    }


def _olympiadbench(index: int) -> Row:
    ((problem, answer),) = problems(1, 2000 + index)
    return {
        "question": problem,
        "context": None,
        "final_answer": [answer],
        "is_multiple_answer": False,
        "unit": None,
        "error": None,
        "answer_type": "Numerical",
    }


_FORMS: dict[str, Callable[[int], Row]] = {
    "gpqa": _gpqa,
    "coqa": _coqa,
    "halueval": _halueval,
    "mc_taco": _mc_taco,
    "acpbench": _acpbench,
    "headqa": _headqa,
    "ifeval": _ifeval,
    "livecodebench": _livecodebench,
    "humaneval": _humaneval,
    "olympiadbench": _olympiadbench,
}
assert _FORMS.keys() | {"fields"} == FORMS.keys()
