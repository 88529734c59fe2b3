"""From the rows a benchmark publishes to questions: one function for each form of row.

A question keeps the columns its prompts use, the reference it is judged by, and two identities: its own, and that of
the context it shares with others, which are resampled together. Choices (the order of options, the sample of rows) are
made from hashes of the content, so they are the same for every model, machine and run.
"""

import base64
import json
import pickletools
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from hashlib import sha256
from itertools import zip_longest
from typing import Any

from eval.questions.records import Question, Row
from recipes.errors import UserError
from recipes.files import hash_json
from recipes.suite_schema import BenchmarkData

LETTERS = "ABCDEFGHIJ"


def short_hash(*parts: Any) -> str:
    """16 hexadecimal digits that identify a content."""
    return hash_json(list(parts))[:16]


def questions_of(name: str, data: BenchmarkData, rows: Iterable[Row]) -> list[Question]:
    """The questions of a benchmark's rows; `data.rows` of them, if it asks for a sample.

    Raises:
        UserError: a row lacks what its form needs, or two questions have one identity.
    """
    questions = []
    for index, row in enumerate(rows):
        try:
            question = replace(FORMS[data.form].read(data, row), at=_place(row, index))
            if data.id_field is not None:
                question = replace(question, extra=question.extra | {"id": str(row[data.id_field])})
            questions.append(question)
        except _EmptyError as error:
            raise UserError(f"benchmark {name}, {_place(row, index)}: {error}; fill it in, or remove the row") from None
        except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
            why = f"it has no {error}" if isinstance(error, KeyError) else error
            raise UserError(
                f"benchmark {name}, {_place(row, index)}: it is not of the form {data.form!r} ({why}); repair the row, "
                "or set data.form and data.fields to what the rows are"
            ) from None
    seen: dict[str, int] = {}
    for index, question in enumerate(questions):
        if FORMS[data.form].repeats and question.question_id in seen:
            question = questions[index] = replace(question, question_id=f"{question.question_id}-{index}")
        first = seen.setdefault(question.question_id, index)
        if first != index:
            same = f"identity {question.question_id}; set `data.id_field` to a column that tells them apart"
            if data.id_field is not None:
                same = (
                    f"{data.id_field} {question.extra['id']!r}; make its values unique, or set `data.id_field` to a "
                    "column that tells them apart"
                )
            raise UserError(f"benchmark {name}: rows {first + 1} and {index + 1} have the same {same}")
    return questions if data.rows is None else sample_questions(questions, data.rows, name)


def _place(row: Row, index: int) -> str:
    """Where a row is: the line of its file, where there are lines."""
    line = getattr(row, "line", None)
    return f"row {index + 1}" if line is None else f"{getattr(row, 'file', '')} line {line}"


def sample_questions(questions: list[Question], count: int, name: str) -> list[Question]:
    """`count` questions, equally many of each stratum, chosen by the hash of their identity and kept in order.

    Parts that are judged together are taken together or not at all, so there may be a few fewer.

    Raises:
        UserError: there are fewer, or `count` is less than the first part has.
    """
    if count > len(questions):
        raise UserError(
            f"benchmark {name} has {len(questions)} questions, but `rows` is {count}; set data.rows to at most "
            f"{len(questions)}, or to null"
        )
    chosen, sizes = _choose_units(questions, count)
    if not chosen and sizes:
        raise UserError(
            f"benchmark {name}: `rows` is {count}, but its questions are judged together in parts of up to "
            f"{max(sizes.values())}, so none would be selected; set data.rows={max(sizes.values())} or more, or to null"
        )
    return [question for question in questions if _unit(question) in chosen]


def sample_slice(questions: list[Question], count: int) -> list[Question]:
    """At most `count` questions, chosen like those of `sample_questions`, but never none: a first part that is larger
    is taken whole.
    """
    chosen, sizes = _choose_units(questions, count)
    chosen = chosen or set(list(sizes)[:1])
    return [question for question in questions if _unit(question) in chosen]


def _choose_units(questions: list[Question], count: int) -> tuple[set[str], dict[str, int]]:
    """The units that together have at most `count` questions, and the sizes of all, in the order of the choice."""
    strata: dict[str, list[str]] = {}
    members: dict[str, int] = {}
    for question in sorted(questions, key=lambda item: sha256(_unit(item).encode()).digest()):
        if _unit(question) not in members:
            strata.setdefault(question.stratum, []).append(_unit(question))
        members[_unit(question)] = members.get(_unit(question), 0) + 1
    turns = zip_longest(*(strata[key] for key in sorted(strata)))
    sizes = {unit: members[unit] for turn in turns for unit in turn if unit is not None}
    chosen: set[str] = set()
    for unit, size in sizes.items():
        if size > count:
            break
        chosen.add(unit)
        count -= size
    return chosen, sizes


def _unit(question: Question) -> str:
    return question.unit or question.question_id


@dataclass(frozen=True)
class Form:
    """How rows of one form are read."""

    read: Callable[[BenchmarkData, Row], Question]
    columns: tuple[str, ...]
    """Columns every row must have."""
    optional: tuple[str, ...] = ()
    """Columns that some publications have."""
    repeats: bool = False
    """Whether a row may occur twice, and counts twice."""


def form_columns(data: BenchmarkData) -> list[str]:
    """The columns that reading a benchmark needs."""
    own = [*data.fields.values(), data.reference_field] if data.form == "fields" else list(FORMS[data.form].columns)
    return [*dict.fromkeys([*own, *filter(None, (data.id_field, data.cluster_field))])]


def _identity(data: BenchmarkData, row: Row, *content: Any) -> str:
    return short_hash(row[data.id_field]) if data.id_field else short_hash(*content)


class _EmptyError(ValueError):
    """A value that a question needs is empty."""


def _fields(data: BenchmarkData, row: Row) -> Question:
    fields = {name: row[column] for name, column in data.fields.items()}
    for name, value in fields.items():
        if value is None:
            raise _EmptyError(f"{data.fields[name]!r}, the field {name!r}, is empty")
    reference = row[data.reference_field]
    if reference is None or not str(reference).strip():
        raise _EmptyError(f"{data.reference_field!r}, the reference answer, is empty")
    cluster = short_hash(row[data.cluster_field]) if data.cluster_field else ""
    reference = reference if isinstance(reference, list) else str(reference)
    return Question(_identity(data, row, fields), fields, reference, cluster)


def _olympiadbench(data: BenchmarkData, row: Row) -> Question:
    # `context` holds what several questions share; without it some cannot be answered.
    fields = {"problem": row["question"], "context": row["context"] or ""}
    answer = row["final_answer"][0]
    tolerance = [float(part) for part in str(row["error"]).split(",")] if row["error"] not in (None, "") else []
    reference = {
        "answer": answer,
        "unit": row["unit"] or "",
        "tolerance": max(tolerance) if tolerance else 0.0,
    }
    return Question(
        _identity(data, row, fields),
        fields,
        reference,
        extra={"type": row["answer_type"], "several": bool(row["is_multiple_answer"])},
    )


def _gpqa(data: BenchmarkData, row: Row) -> Question:
    # The publisher strips nothing: options differ in trailing blanks, which would give the answer away.
    options = [str(row[column]).strip() for column in _GPQA_OPTIONS]
    order = sorted(range(4), key=lambda i: short_hash(row["Question"], options[i], i))
    fields = {"question": str(row["Question"]).strip(), "options": [options[i] for i in order]}
    return Question(_identity(data, row, fields["question"]), fields, LETTERS[order.index(0)])


def _coqa(data: BenchmarkData, row: Row) -> Question:
    # One publisher has the questions as texts, the other as rows of text and turn; only one has further answers.
    asked, answered = _texts(row["questions"]), _texts(row["answers"])
    history = [{"question": q, "answer": a} for q, a in zip(asked[:-1], answered[:-1], strict=True)]
    golds = [answered[-1]]
    golds += [_texts(other)[len(asked) - 1] for other in (row["additional_answers"] or {}).values()]
    fields = {"story": row["story"], "history": history, "question": asked[-1]}
    return Question(_identity(data, row, fields), fields, {"question": asked[-1], "annotators": golds})


def _texts(turns: Any) -> list[str]:
    """The texts of a conversation's turns: a list of texts or of rows, or a row of lists."""
    if isinstance(turns, dict):
        return list(turns["input_text"])
    return [turn["input_text"] if isinstance(turn, dict) else turn for turn in turns]


def _halueval(data: BenchmarkData, row: Row) -> Question:
    if row.get("summary") is not None:
        kind, context, candidate, asked = "summarization", row["document"], row["summary"], ""
    elif row.get("response") is not None:
        kind, context, candidate, asked = "dialogue", row["knowledge"], row["response"], row["dialogue_history"]
    else:
        kind, context, candidate, asked = "qa", row["knowledge"], row["answer"], row["question"]
    if row["hallucination"] not in ("yes", "no"):
        raise ValueError(f"hallucination is {row['hallucination']!r}, not yes or no")
    fields = {"kind": kind, "context": context, "asked": asked, "candidate": candidate}
    # Candidates for one question or document share a cluster.
    return Question(
        _identity(data, row, fields), fields, row["hallucination"], short_hash(kind, context, asked), stratum=kind
    )


def _mc_taco(data: BenchmarkData, row: Row) -> Question:
    fields = {key: row[key] for key in ("sentence", "question", "answer")}
    label = {"yes": "yes", "no": "no", "1": "yes", "0": "no"}[str(row["label"])]
    unit = short_hash(row["sentence"], row["question"])
    # Some candidates are listed twice under one question; the publisher's metric counts both (`repeats`).
    return Question(_identity(data, row, fields), fields, label, short_hash(row["sentence"]), unit)


def _acpbench(data: BenchmarkData, row: Row) -> Question:
    fields = {
        "context": row["context"],
        "question": row["question"],
        "query": row["query"],
        "options": list(row["choices"]["text"]),
        "shots": acpbench_shots(row["group"]),
    }
    if row["answer"] not in row["choices"]["label"]:
        raise ValueError(f"answer {row['answer']!r} is none of {row['choices']['label']}")
    return Question(_identity(data, row, row["group"], fields["context"], fields["question"]), fields, row["answer"])


def acpbench_shots(group: str) -> list[dict[str, str]]:
    """The two worked examples that lm-evaluation-harness has for a kind of planning question, read from there."""
    from importlib.util import find_spec
    from pathlib import Path

    import yaml

    spec = find_spec("lm_eval")
    if spec is None or spec.origin is None:
        raise UserError("lm-eval is not installed; run `make setup`")
    folder = Path(spec.origin).parent / "tasks" / "acpbench" / "mcq_cot_2shot"
    if group not in _ACPBENCH_FILES:
        raise ValueError(f"group {group!r} is none of {', '.join(_ACPBENCH_FILES)}")
    values = yaml.safe_load((folder / f"{_ACPBENCH_FILES[group]}.yaml").read_text(encoding="utf-8"))
    return [
        {key: shot[key] for key in ("context", "question", "answer")} for shot in values["fewshot_config"]["samples"]
    ]


def _headqa(data: BenchmarkData, row: Row) -> Question:
    options = [option["atext"].strip() for option in row["answers"]]
    correct = [int(option["aid"]) for option in row["answers"]].index(int(row["ra"]))
    fields = {"question": row["qtext"].strip(), "options": options}
    return Question(_identity(data, row, fields), fields, LETTERS[correct])


def _ifeval(data: BenchmarkData, row: Row) -> Question:
    arguments = [{k: v for k, v in item.items() if v is not None} for item in row["kwargs"]]
    reference = {
        "key": int(row["key"]),
        "prompt": row["prompt"],
        "instructions": list(row["instruction_id_list"]),
        "arguments": arguments,
    }
    return Question(short_hash(row["key"]), {"prompt": row["prompt"]}, reference)


def _livecodebench(data: BenchmarkData, row: Row) -> Question:
    fields = {
        "title": row["question_title"],
        "problem": row["question_content"],
        "starter_code": row["starter_code"] or "",
    }
    reference = {
        "public": row["public_test_cases"],
        "private": row["private_test_cases"],
        "function": json.loads(row["metadata"] or "{}").get("func_name"),
    }
    return Question(short_hash(row["question_id"]), fields, reference, extra={"date": str(row["contest_date"])})


def _humaneval(data: BenchmarkData, row: Row) -> Question:
    fields = {"prompt": row["prompt"], "entry_point": row["entry_point"]}
    if f"def {row['entry_point']}(" not in row["prompt"]:
        raise ValueError(f"the prompt does not define {row['entry_point']!r}")
    return Question(short_hash(row["task_id"]), fields, fields | {"test": row["test"]})


def code_tests(reference: Row) -> list[Row]:
    """The tests of a question, each with `input`, `output` and `testtype`: LiveCodeBench's public and private ones, or
    the one test of HumanEval, whose `output` is the code of its checks.

    Raises:
        ValueError: they are in no form this project reads.
    """
    if "test" in reference:
        return [{"testtype": "check", "input": "", "output": reference["test"]}]
    private = str(reference["private"] or "[]")
    if not private.lstrip().startswith("["):
        private = unpack_text(private)
    return [*json.loads(reference["public"] or "[]"), *json.loads(private)]


def unpack_text(packed: str) -> str:
    """The text in a base64 of a zlib of a pickle, read without unpickling: only a pickle of one text is accepted.

    Raises:
        ValueError: it is something else.
    """
    content = zlib.decompress(base64.b64decode(packed))
    texts = []
    for opcode, argument, _ in pickletools.genops(content):
        if opcode.name in ("BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "UNICODE"):
            texts.append(str(argument))
        elif opcode.name not in ("PROTO", "FRAME", "MEMOIZE", "BINPUT", "LONG_BINPUT", "STOP"):
            raise ValueError(f"packed tests hold more than a text (opcode {opcode.name})")
    if len(texts) != 1:
        raise ValueError("packed tests do not hold one text")
    return texts[0]


_GPQA_OPTIONS = ("Correct Answer", "Incorrect Answer 1", "Incorrect Answer 2", "Incorrect Answer 3")
_ACPBENCH_FILES = {
    "reachable_action_mc": "act_reach",
    "applicable_actions_mc": "app",
    "action_justification_mcq": "just",
    "landmarks_mcq": "land",
    "progression_mcq": "prog",
    "reachable_atom_mc": "reach",
    "validation_mcq": "val",
}
FORMS = {
    "fields": Form(_fields, ()),
    "olympiadbench": Form(
        _olympiadbench,
        ("question", "context", "final_answer", "is_multiple_answer", "unit", "error", "answer_type"),
    ),
    "gpqa": Form(_gpqa, ("Question", *_GPQA_OPTIONS)),
    "coqa": Form(_coqa, ("story", "questions", "answers"), ("additional_answers",)),
    "halueval": Form(
        _halueval,
        ("hallucination",),
        ("knowledge", "question", "answer", "dialogue_history", "response", "document", "summary"),
    ),
    "mc_taco": Form(_mc_taco, ("sentence", "question", "answer", "label"), repeats=True),
    "acpbench": Form(_acpbench, ("context", "question", "query", "choices", "answer", "group")),
    "headqa": Form(_headqa, ("qtext", "ra", "answers")),
    "ifeval": Form(_ifeval, ("key", "prompt", "instruction_id_list", "kwargs")),
    "humaneval": Form(_humaneval, ("task_id", "prompt", "entry_point", "test")),
    "livecodebench": Form(
        _livecodebench,
        (
            "question_id",
            "question_title",
            "question_content",
            "starter_code",
            "public_test_cases",
            "private_test_cases",
            "metadata",
            "contest_date",
        ),
    ),
}
