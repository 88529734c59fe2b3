"""Sources as people have them: bytes, lines and types of files, damaged values, templates; and the console."""

import csv
import gzip
import json
from datetime import date, datetime, time
from decimal import Decimal

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from data.corpus.build import STEPS
from data.corpus.build import run as build_corpus
from data.corpus.fields import field_value
from data.corpus.files import read_file
from data.corpus.first_row import field_mistakes
from data.corpus.rows import read_demonstrations
from data.corpus.sources import read_source
from data.corpus.values import figure_mark, is_non_answer, repaired
from launch.execution.display import Display
from launch.execution.failures import MISTAKE, Failure
from launch.planning.preflight import check_before_running
from recipes.corpus_schema import SourceSpec
from recipes.errors import UserError
from recipes.loading import validate_recipe
from recipes.manifest import read_manifest, start_stage

# The separators of str.splitlines that are no newlines, NUL, a byte order mark, quotes and characters of two units.
_ODD = "\u2028\u2029\x85\x0b\x0c\x1c\x1d\x1e\x00\ufeff\"',\\\U0001d54f é"
_TEXT = st.text(alphabet=st.one_of(st.sampled_from(_ODD), st.characters(exclude_categories=["Cs"])))
_ONE_LINE = _TEXT.map(lambda text: "".join(c for c in text if c not in "\n\r\t"))


def source(path, **mapping):
    return SourceSpec(kind="file", name="s", path=str(path), **mapping)


def written(tmp_path, name, rows):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    if path.suffix == ".parquet":
        pq.write_table(rows if isinstance(rows, pa.Table) else pa.Table.from_pylist(rows), path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def read(tmp_path, rows, name="rows.jsonl", **mapping):
    """(reference answer, reason) of every row."""
    found = read_source(source(written(tmp_path, name, rows), **mapping), 0)
    return [(row.reference_answer, row.reject) for row in found]


def answers(tmp_path, values, **mapping):
    return read(
        tmp_path, [{"problem": f"What is it, number {n}?", "answer": a} for n, a in enumerate(values)], **mapping
    )


def build(tmp_path, rows, **corpus):
    """The corpus stage on JSONL rows: facts, rejects, lines of the console."""
    spec = {"kind": "file", "name": "s", "path": str(written(tmp_path, "rows.jsonl", rows))}
    spec |= corpus.pop("mapping", {})
    recipe = validate_recipe({"study": "c", "corpus": {"sources": [spec], "problem_set": "all"} | corpus}, "test")
    stage = tmp_path / "corpus"
    start_stage(stage, "corpus", {})
    build_corpus(recipe, tmp_path, stage, resume=False)
    return read_manifest(stage)["facts"], rejects_of(stage), (stage / "notes.txt").read_text().splitlines()


def rejects_of(stage):
    return [json.loads(line) for line in (stage / "rejects.jsonl").read_text().split("\n") if line]


@settings(max_examples=30, deadline=None)
@given(
    rows=st.lists(st.tuples(_TEXT, _TEXT, _ONE_LINE), min_size=1, max_size=5),
    end=st.sampled_from(["\n", "\r\n"]),
    bom=st.booleans(),
    packed=st.sampled_from(["", ".gz", ".zst"]),
    ascii_only=st.booleans(),
)
def test_what_is_written_is_read(tmp_path_factory, rows, end, bom, packed, ascii_only):
    folder = tmp_path_factory.mktemp("written")
    expected = [{"a": a, "b": b} for a, b, _ in rows]
    one_line = [{"a": c, "b": "x" + c} for _, _, c in rows]

    def content(lines):
        text = ("\ufeff" if bom else "") + "".join(line + end for line in lines)
        data = text.encode()
        return {"": bytes, ".gz": gzip.compress, ".zst": zstandard.compress}[packed](data)

    def read_back(name):
        return [dict(row) for row in read_file(folder / name, {"a", "b"})]

    name = f"rows.jsonl{packed}"
    (folder / name).write_bytes(content(json.dumps(row, ensure_ascii=ascii_only) for row in expected))
    assert read_back(name) == expected

    name = f"rows.json{packed}"
    (folder / name).write_bytes(content([json.dumps(expected, ensure_ascii=ascii_only)]))
    assert read_back(name) == expected

    name = f"rows.tsv{packed}"
    (folder / name).write_bytes(content(["a\tb", *(f"{row['a']}\t{row['b']}" for row in one_line)]))
    assert read_back(name) == one_line

    pq.write_table(pa.Table.from_pylist(expected), folder / "rows.parquet")
    assert read_back("rows.parquet") == expected

    with (folder / "rows.csv").open("w", encoding="utf-8-sig" if bom else "utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator=end, quoting=csv.QUOTE_ALL)
        writer.writerows([["a", "b"], *([row["a"], row["b"]] for row in expected)])
    assert read_back("rows.csv") == expected


def test_half_a_surrogate_pair_rejects_its_row_alone(tmp_path):
    rows = [{"problem": "half \ud835 a pair", "answer": "1"}, {"problem": "whole \U0001d54f", "answer": "2"}]
    assert read(tmp_path, rows) == [("", "invalid_text"), ("2", None)]
    assert build(tmp_path, rows)[1][0]["problem"] == r"half \ud835 a pair"


def test_a_line_of_megabytes_and_blank_lines(tmp_path):
    path = tmp_path / "rows.jsonl"
    long = "x " * 2_000_000
    path.write_text(f'\n{{"problem": "{long}end", "answer": 1}}\r\n  \r\n{{"problem": "b", "answer": 2}}')
    rows = read_source(source(path), 0)
    assert [(row.line, len(row.problem), row.reference_answer) for row in rows] == [(2, 4_000_003, "1"), (4, 1, "2")]


def test_numbers_read_as_a_person_writes_them(tmp_path):
    values = [3, 3.0, 3.5, 0.1 + 0.2, 1e20, 10**25, -0.0, 1e-7, True, float("nan"), float("inf"), None, ["5"], [], {}]
    assert answers(tmp_path, values) == [
        ("3", None), ("3", None), ("3.5", None), ("0.3", None), ("100000000000000000000", None),
        ("10000000000000000000000000", None), ("0", None), ("0.0000001", None), ("", "reference_is_no_text"),
        ("", "reference_is_no_text"), ("", "reference_is_no_text"), ("", "missing_field"), ("5", None),
        ("", "reference_is_no_text"), ("", "reference_is_no_text"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "values", "expected"),
    [
        (pa.decimal128(12, 2), [Decimal("3.50"), Decimal("-1234567.00"), None], ["3.50", "-1234567.00", None]),
        (pa.decimal256(40, 0), [Decimal(10**39)], ["1" + 39 * "0"]),
        (pa.float32(), [0.1, 2.0, None], ["0.1", "2", None]),
        (pa.list_(pa.float32()), [[0.1]], ["0.1"]),
        (pa.struct([("value", pa.float32())]), [{"value": 0.3}], ["0.3"]),
        (pa.int64(), [2**62, None], ["4611686018427387904", None]),
        (pa.date32(), [date(2024, 2, 29)], ["2024-02-29"]),
        (pa.timestamp("us"), [datetime(2024, 2, 29)], ["2024-02-29"]),
        (pa.timestamp("us"), [datetime(2024, 2, 29, 12, 30)], ["2024-02-29 12:30:00"]),
        (pa.time64("us"), [time(12, 30)], ["12:30:00"]),
        (pa.binary(), ["5 é".encode(), b"\xff"], ["5 é", None]),
        (pa.list_(pa.binary()), [[b"7"]], ["7"]),
        (pa.dictionary(pa.int32(), pa.string()), ["1", "2"], ["1", "2"]),
        (pa.large_string(), ["1"], ["1"]),
        (pa.list_(pa.list_(pa.string())), [[["8"]]], ["8"]),
        (pa.bool_(), [True], [None]),
        (pa.duration("s"), [5], [None]),
    ],
)  # fmt: skip
def test_columns_of_parquet_read_as_a_person_would_or_are_refused(tmp_path, kind, values, expected):
    table = pa.table({"problem": [f"Number {n}?" for n in range(len(values))], "answer": pa.array(values, kind)})
    found = read(tmp_path, table, "rows.parquet")
    assert [None if reason else answer for answer, reason in found] == expected
    assert {reason for answer, reason in found if reason} <= {"reference_is_no_text", "missing_field"}


def test_refused_types_are_named(tmp_path):
    table = pa.table({"problem": ["a", "b"], "answer": pa.array([b"\xff", b"5"], pa.binary())})
    rows = read_source(source(written(tmp_path, "rows.parquet", table)), 0)
    assert rows[0].detail == "it is bytes that are no UTF-8"
    rows = read_source(source(written(tmp_path, "rows.jsonl", [{"problem": {"x": "a", "y": "b"}, "answer": 1}])), 0)
    assert (rows[0].reject, rows[0].detail) == ("problem_is_no_text", "it is an object with the keys x, y")
    chat = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "What is 2+3?"}]
    path = written(tmp_path, "chat.jsonl", [{"problem": chat, "answer": 5}])
    assert "name one message, as in `problem_field: problem.0.content`" in str(read_source(source(path), 0)[0].detail)
    (row,) = read_source(source(path, problem_field="problem.0.content"), 0)
    assert (row.reject, row.detail) == (
        "not_the_user", "problem.0.content is the message of the system; problem.1.content is the user's",
    )  # fmt: skip
    (row,) = read_source(source(path, problem_field="problem.1.content"), 0)
    assert (row.problem, row.reject) == ("What is 2+3?", None)


def test_several_references_are_kept_by_a_template_or_refused_but_never_cut(tmp_path):
    rows = [{"problem": "Solve.", "answer": ["7", "8"], "text": "['7', '8']", "one": '["5"]', "same": [1.0, "1"]}]
    path = written(tmp_path, "rows.jsonl", rows)

    def gold(field):
        (row,) = read_source(source(path, answer_field=field), 0)
        return row.reference_answer, row.reject, row.detail

    join = "a template can join them: {{ answer | join(', ') }}"
    assert gold("answer") == ("", "several_references", f"it is a list of 2: '7', '8'; {join}")
    assert gold("answer.0")[:2] == ("", "several_references")
    assert gold("text")[1] == "several_references"
    assert gold("{{ answer | join(', ') }}")[:2] == ("7, 8", None)
    assert gold("{{ text | from_json | join(' or ') }}")[:2] == ("7 or 8", None)
    assert gold("one")[:2] == ("5", None)
    assert gold("same")[:2] == ("1", None)
    path.write_text(
        '{"problem": "Twice?", "answer": "1", "answer": "2"}\n{"problem": "Same?", "answer": 3, "answer": 3}\n'
    )
    assert [(row.reference_answer, row.reject) for row in read_source(source(path), 0)] == [
        ("", "several_references"), ("3", None),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("damaged", "expected", "kinds"),
    [
        ("\x0crac{1}{2}", r"\frac{1}{2}", ("lost escape",)),
        ("\text{blue}", r"\text{blue}", ("lost escape",)),
        ("\x08oxed{5}", r"\boxed{5}", ("lost escape",)),
        ("\neq 3", r"\neq 3", ("lost escape",)),
        ("2\times 3", r"2\times 3", ("lost escape",)),
        ("a\tan apple", "a\tan apple", ()),
        ("1\nnot 2", "1\nnot 2", ()),
        (r"[0, \\frac{1}{2}]", r"[0, \frac{1}{2}]", ("doubled escape",)),
        (r"x=1 \\ y=2", r"x=1 \\ y=2", ()),
        (r"x=1 \\y=2", r"x=1 \\y=2", ()),
        (r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}", r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}", ()),
        ("x &lt; 3", "x < 3", ("HTML entity",)),
        ("x<sup>2</sup>", "x^{2}", ("HTML sub- or superscript",)),
        ("\u00e2\u02c6\u01612", "√2", ("wrong encoding",)),
        ("café", "café", ()),
        ("15\u200b", "15", ("invisible character",)),
        ("0.30000000000000004", "0.3", ("float noise",)),
        ("0.333", "0.333", ()),
    ],
)
def test_damage_that_one_original_explains_is_repaired(damaged, expected, kinds):
    assert repaired(damaged, answer=True) == (expected, kinds)
    assert repaired(expected, answer=True) == (expected, ())


def test_what_cannot_be_repaired_is_named(tmp_path):
    (row,) = read_source(source(written(tmp_path, "r.jsonl", [{"problem": "a\x00b", "answer": "1"}])), 0)
    assert (row.reject, row.detail) == ("invalid_text", "it has the control character '\\x00'")


@pytest.mark.parametrize("answer", ["proof", "notfound", "None", "N/A", "See solution", r"\text{proof}", "QED", "error",
                                    "No answer", "The statement is proved.", "NaN", "na", "#REF!", "TBD"])  # fmt: skip
def test_answers_that_say_there_is_none(answer):
    assert is_non_answer(answer)


@pytest.mark.parametrize("answer", ["0", "A", "Na", "none of the above", "north", r"\infty", "no", "proof by induction",
                                    r"\varnothing"])  # fmt: skip
def test_answers_that_are_some(answer):
    assert not is_non_answer(answer)


def test_every_reason_has_a_count_and_its_first_row_on_the_console(tmp_path):
    rows = [
        {"problem": "What is six times seven?", "answer": "42"},
        {"problem": "Prove that there are infinitely many primes.", "answer": "proof"},
        {"problem": "How many days has a leap year?", "answer": None},
        {"problem": "How far is the moon away?", "answer": "notfound"},
        {"problem": "![image](https://example.org/a.jpg)", "answer": "7"},
        {"problem": "[asy] draw((0,0)--(1,1)); [/asy] Find the length.", "answer": "\\sqrt2"},
        {"problem": "The column is gone from here on."},
        {"problem": "What is a third in decimals?", "answer": "\x0crac{1}{3}"},
        {"problem": "what is SIX times seven?", "answer": "43"},
    ]
    facts, rejects, console = build(tmp_path, rows)
    assert facts["rejected"] == {
        "conflicting_reference": 2, "empty_problem": 1, "gold_placeholder": 2, "missing_column": 1, "missing_field": 1,
    }  # fmt: skip
    assert console == [
        "9 rows read, 2 kept",
        "1 repaired: lost escape",
        "1 kept with a figure (asy 1), listed in figures.jsonl; corpus.figures=reject removes them",
        "2 conflicting_reference (the first: s, rows.jsonl line 1: '42' in s, rows.jsonl line 1, '43' in s, "
        "rows.jsonl line 9; 2 rows have this problem)",
        "1 empty_problem (the first: s, rows.jsonl line 5: it has no words besides images, drawing code or "
        "punctuation)",
        "2 gold_placeholder (the first: s, rows.jsonl line 2: 'proof')",
        "1 missing_column (the first: s, rows.jsonl line 7: no column 'answer'; the row has problem)",
        "1 missing_field (the first: s, rows.jsonl line 3: answer is null)",
    ]
    assert sorted((row["line"], row["reason"]) for row in rejects) == [
        (1, "conflicting_reference"), (2, "gold_placeholder"), (3, "missing_field"), (4, "gold_placeholder"),
        (5, "empty_problem"), (7, "missing_column"), (9, "conflicting_reference"),
    ]  # fmt: skip
    (figure,) = (tmp_path / "corpus" / "figures.jsonl").read_text().splitlines()
    assert json.loads(figure)["figure"] == "asy"
    facts, rejects, _ = build(tmp_path / "strict", rows, figures="reject")
    assert facts["rejected"]["needs_figure"] == 1
    assert list(facts["seconds"]) == list(STEPS[:-1])  # the last one is what the manifest ends
    assert not (tmp_path / "strict" / "corpus" / "figures.jsonl").exists()


def test_a_failed_stage_leaves_its_rejects_and_shows_their_counts(tmp_path, capsys):
    rows = [{"problem": f"Prove statement {n}.", "answer": "proof"} for n in range(3)]
    with pytest.raises(UserError, match="no problem is left for training; the filters removed 3 of 3 rows, most often "
                                        r"as gold_placeholder \(3; the first: s, rows.jsonl line 1: 'proof'\); each is "
                                        f"in {tmp_path}/corpus/rejects.jsonl"):  # fmt: skip
        build(tmp_path, rows)
    assert [row["line"] for row in rejects_of(tmp_path / "corpus")] == [1, 2, 3]
    notes = (tmp_path / "corpus" / "notes.txt").read_text()
    assert notes == "3 rows read, 0 kept\n3 gold_placeholder (the first: s, rows.jsonl line 1: 'proof')\n"
    assert not (tmp_path / "corpus" / "problems.parquet").exists()
    capsys.readouterr()
    Display().ended("corpus", tmp_path, "corpus", Failure("too few problems", MISTAKE), 2.0)
    assert capsys.readouterr().out.splitlines()[:3] == [
        "  FAILED   corpus after 2 s: too few problems",
        "           3 rows read, 0 kept",
        "           3 gold_placeholder (the first: s, rows.jsonl line 1: 'proof')",
    ]


@pytest.mark.parametrize(("problem", "mark"), [
    ("As shown in the figure, find x.", "figure"), ("[asy] draw(); [/asy] Find x.", "asy"),
    ("<image> Find x.", "image"),
    ("Figure out how many there are.", None), ("How many graphs have 4 vertices?", None)])  # fmt: skip
def test_figures_are_marked(problem, mark):
    assert figure_mark(problem) == mark


def test_most_rows_with_one_text_are_explained(tmp_path):
    rows = [{"problem": "You are a helpful assistant.", "answer": str(n)} for n in range(5)]
    rows.append({"problem": "Another one?", "answer": "1"})
    _, rejects, _ = build(tmp_path, rows)
    assert "so its field may not hold the problem: 'You are a helpful assistant.'" in rejects[0]["detail"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("r.csv", b"problem,answer\na,1\nWhat is 3, 4 and 5?,12,more\n",
         "line 3 has 4 values for 2 columns (problem, answer); quote values that contain commas"),
        ("r.csv", b"problem,answer\na,1\nalone\n", "line 3 has 1 value for 2 columns"),
        ("r.csv", b'problem,answer\na,1\n"never closed,2\nb,3\n', "line 3: a quote that is opened there is never"),
        ("r.csv", b"answer,answer,problem\n1,2,a\n", "line 1 has the column 'answer' twice; rename one"),
        ("r.tsv", b"problem\tanswer\na\tb\tc\n", "line 2 has 3 values for 2 columns"),
        ("r.jsonl", b'{"problem": "a", "answer": "1"}\n{"problem": "cut\n',
         "line 2: Unterminated string starting at column 13"),
        ("r.jsonl", b'{"problem": "a", "answer": "1"}\n[1]\n', "line 2 is not an object"),
        ("r.jsonl", '{"problem": "caf\xe9"}\n'.encode("latin-1"), "line 1 is not UTF-8 (byte 0xe9); convert the file"),
        ("r.jsonl", '{"problem": "a"}\n'.encode("utf-16"), "its encoding is UTF-16, not UTF-8; convert it with `iconv"),
        ("r.json", b'[["a", "1"]]', "row 1 is not an object"),
        ("r.json", b'{"problem": ["a", "b"], "answer": ["1"]}', "columns differ in length: problem has 2, answer has"),
        ("r.parquet", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "it is a pointer of Git LFS"),
        ("r.jsonl.gz", b"not gzip", "cannot be read as jsonl"),
        ("r.jsonl.gz", gzip.compress(b'{"problem": "1+1"}', mtime=0)[:10] + b"\xff" * 20, "cannot be read as jsonl"),
        ("r.jsonl.zst", b"not zstandard", "cannot be read as jsonl"),
        ("r.jsonl", b"", "is empty"),
        ("r.jsonl", b'{"Problem ": "a", "answer": 1}\n',
         "has no column 'problem'; it has 'Problem ', answer; did you mean 'Problem '?"),
    ],
)  # fmt: skip
def test_files_that_cannot_be_read_are_a_sentence_with_the_line(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        read_source(source(path), 0)
    assert message in str(caught.value)
    assert path.name in str(caught.value)
    assert "\n" not in str(caught.value)


def test_columns_as_json_and_names_with_blanks(tmp_path):
    path = tmp_path / "r.json"
    path.write_text('{"problem": ["a", "b"], "answer": [1, "2"]}')
    assert [(row.problem, row.reference_answer) for row in read_source(source(path), 0)] == [("a", "1"), ("b", "2")]
    path = tmp_path / "r.csv"
    path.write_bytes(b'\xef\xbb\xbfProblem ,Answer\r\n"two\r\nlines, a comma",7\r\n')
    (row,) = read_source(source(path, problem_field="Problem", answer_field="Answer"), 0)
    assert (row.problem, row.reference_answer, row.line) == ("two\nlines, a comma", "7", 2)


OPTIONS = {
    "problem_field": "{{ question }}\n{% for text in options.values() %}({{ 'ABCD'[loop.index0] }}) {{ text }}\n"
    "{% endfor %}",
    "answer_field": "{{ 'ABCD'[label | int] }}",
}


def test_a_problem_may_be_a_template_over_columns(tmp_path):
    rows = [
        {"question": "Which is prime?", "options": {"a": "4", "b": 5, "c": 6.0}, "label": 1},
        {"question": "Which is even?", "options": {"a": "3", "b": None, "c": "2"}, "label": "2"},
        {"question": "Which is odd?", "options": {"a": "3", "b": "2"}},
        {"question": "Which is big?", "options": {"a": "1000", "b": "2"}, "label": 0},
    ]
    found = read_source(source(written(tmp_path, "r.jsonl", rows), **OPTIONS), 0)
    assert found[0].problem == "Which is prime?\n(A) 4\n(B) 5\n(C) 6"
    assert [(row.reference_answer, row.reject) for row in found] == [
        ("B", None), ("", "template_failed"), ("", "template_failed"), ("A", None),
    ]  # fmt: skip
    assert (found[1].detail, found[2].detail) == (
        "a value of 'options' is null; if it may be, write {% if text %} around it", "'label' is undefined",
    )  # fmt: skip
    pq.write_table(pa.table({"Question Text": ["Who?"], "A": ["me"], "Correct Answer": ["A"]}), tmp_path / "r.parquet")
    mapping = {"problem_field": '{{ row["Question Text"] }} (A) {{ A }}', "answer_field": '{{ row["Correct Answer"] }}'}
    (row,) = read_source(source(tmp_path / "r.parquet", **mapping), 0)
    assert (row.problem, row.reference_answer) == ("Who? (A) me", "A")


@pytest.mark.parametrize(
    ("template", "label", "answer"),
    [
        ("{{ 'ABC'[label | int] }}", "2", "C"),
        ("{{ 'ABC'[label | int] }}", "1.0", "B"),  # a column with an empty cell, written by pandas
        ("{{ 'ABC'[label | int] }}", 1.0, "B"),
        ("{{ 'ABC'[label | int] }}", "C", "the filter int got 'C', which is no integer"),
        ("{{ 'ABC'[label | int] }}", "", "the filter int got '', which is no integer"),
        ("{{ 'ABC'[label | int] }}", None, "the filter int got None, which is no integer"),
        ("{{ 'ABC'[label | int] }}", "1.5", "the filter int got '1.5', which is no integer"),
        ("{{ 'ABC'[label | int(2)] }}", "x", "C"),
        ("{{ label | int(base=16) }}", "1f", "31"),
        ("{{ 'ABC'[label | int] }}", "-1", "'ABC' has no place -1; the last character is `| last`"),  # a hidden label
        ("{{ label.split(', ')[-1] }}", "A, B", "B"),  # of a list
        ("{{ label | float }}", "1.5", "1.5"),
        ("{{ label | float }}", "x", "the filter float got 'x', which is no number"),
        ("{{ label | float(2) }}", "x", "2"),
    ],
)
def test_a_label_that_picks_no_letter_is_rejected(tmp_path, template, label, answer):
    rows = [{"problem": "Which of the four?", "label": 1}, {"problem": "Which of the three?", "label": label}]
    row = read_source(source(written(tmp_path, "r.jsonl", rows), answer_field=template), 0)[1]
    rejected = " " in answer
    assert (row.reference_answer, row.reject) == (("", "template_failed") if rejected else (answer, None))
    assert row.detail == (answer if rejected else None)


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ question }} {{ choices }}", "'choices' is undefined; the row has the columns label, options, question"),
        ("{{ question }} {{ options }}", "a value it prints is not text: it is an object with the keys a, b"),
        ("{{ question", "line 1 of the template"),
        ("{{ question.__class__.mro() }}", "unsafe"),
    ],
)
def test_a_template_that_does_not_fit_the_first_row_is_refused_before_anything_runs(tmp_path, template, message):
    rows = [{"question": "Which?", "options": {"a": "1", "b": "2"}, "label": 0}]
    spec = source(written(tmp_path, "r.jsonl", rows), problem_field=template, answer_field="label")
    with pytest.raises(UserError, match="source s: "):
        read_source(spec, 0)
    (sentence,) = field_mistakes(spec, [template, "label"])
    assert sentence.startswith("source s: ")
    assert message in sentence


def test_a_mistyped_column_in_a_template_gets_a_suggestion(tmp_path):
    spec = source(written(tmp_path, "r.jsonl", [{"question": "Which?", "label": 0}]))
    for template, hint in (("{{ 'AB'[lable | int] }}", "question; did you mean 'label'?"), ("{{ xyz }}", "question")):
        (sentence,) = field_mistakes(spec, [template])
        assert sentence.endswith(f"is undefined; the row has the columns label, {hint}")


def test_the_first_row_is_checked_with_the_recipe(tmp_path):
    path = written(tmp_path, "r.jsonl", [{"question": "Which?", "answer": "1"}])
    spec = {"kind": "file", "name": "s", "path": str(path), "problem_field": "{{ question }} {{ options }}"}
    recipe = validate_recipe({"study": "c", "corpus": {"sources": [spec], "problem_set": "all"}}, "test")
    with pytest.raises(UserError, match="does not fit the first row: 'options' is undefined; the row has the columns"):
        check_before_running(recipe)
    spec["problem_field"] = "problem"
    recipe = validate_recipe({"study": "c", "corpus": {"sources": [spec], "problem_set": "all"}}, "test")
    with pytest.raises(UserError, match="has no column 'problem'; it has answer, question"):
        check_before_running(recipe)


def test_stored_completions_meet_repaired_problems_and_are_whole_texts(tmp_path):
    rows = [{"problem": "Is 1 &lt; 2? Answer 1 for yes.", "answer": "1"}]
    stored = written(tmp_path, "stored.jsonl", [rows[0] | {"completion": "\ud835 \\boxed{1}"}])
    files = {"kind": "file", "name": "t", "path": str(stored)}
    build(tmp_path, rows, teacher={"kind": "stored", "stored": files})
    ((demonstration,),) = read_demonstrations(tmp_path / "corpus").values()
    assert (demonstration.completion, demonstration.grade) == ("\ufffd \\boxed{1}", "correct")
    written(tmp_path, "stored.jsonl", [rows[0] | {"completion": [{"role": "assistant", "content": "1"}]}])
    with pytest.raises(UserError, match=r"is a dict, not text; name the field with its text, as in completion\.0\."):
        build(tmp_path, rows, teacher={"kind": "stored", "stored": files})


def test_labels_from_one_need_a_minus_behind_the_filter_or_a_mapping():
    for template, labels in (
        ("{{ 'ABC'[label | int - 1] }}", ("1", "2", "3")),
        ("{{ 'ABC'[label | int] }}", ("0", "1", "2")),
        ("{{ {'first': 'A', 'second': 'B', 'third': 'C'}[label] }}", ("first", "second", "third")),
    ):
        assert [field_value({"label": label}, template) for label in labels] == ["A", "B", "C"]
