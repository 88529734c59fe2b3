"""Records of questions, responses and scores: what is written is read again, whatever is in the texts."""

import dataclasses

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from data.sampling.store import whole_characters
from eval.questions.records import Question, read_questions, write_questions
from eval.scorers.records import (
    Response,
    ScoreRow,
    mean_score,
    read_responses,
    read_scores,
    write_responses,
    write_scores,
)
from recipes.errors import UserError

# Every character that a file can hold, those at which `str.splitlines` cuts more often.
TEXT = st.text(st.characters(exclude_categories=["Cs"]) | st.sampled_from("\r\n\t\x0b\x0c\x1c\x85\u2028\u2029\ufeff\0"))
VALUE = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)
QUESTION = st.builds(
    Question, TEXT, st.dictionaries(TEXT, VALUE, max_size=3), VALUE, TEXT, TEXT, TEXT, st.dictionaries(TEXT, VALUE)
)
GENERATED = st.lists(st.tuples(TEXT, st.integers(0, 10**6)), min_size=1, max_size=3).flatmap(
    lambda pairs: st.builds(
        Response,
        question_id=TEXT,
        prompt_hash=TEXT,
        prompt=st.none() | TEXT,
        opens_thinking=st.booleans(),
        responses=st.just(tuple(text for text, _ in pairs)),
        tokens=st.just(tuple(length for _, length in pairs)),
    )
)
CHOSEN = st.lists(st.tuples(TEXT, st.floats(max_value=0, allow_nan=False)), min_size=1, max_size=3).flatmap(
    lambda pairs: st.builds(
        Response,
        question_id=TEXT,
        prompt_hash=TEXT,
        prompt=st.none() | TEXT,
        answers=st.just(tuple(text for text, _ in pairs)),
        likelihoods=st.just(tuple(value for _, value in pairs)),
    )
)
SCORE = st.builds(ScoreRow, TEXT, TEXT, st.integers(0, 99), st.floats(0, 1), TEXT, st.none() | TEXT, st.floats(0.5, 9))


@settings(max_examples=60, deadline=None)
@given(st.lists(QUESTION, max_size=4))
def test_questions_are_read_as_they_were_written(tmp_path_factory, questions):
    path = tmp_path_factory.mktemp("q") / "q.jsonl.zst"
    write_questions(path, questions, restricted=False)
    assert read_questions(path) == questions


@settings(max_examples=60, deadline=None)
@given(st.lists(GENERATED | CHOSEN, max_size=4))
def test_responses_are_read_as_they_were_written(tmp_path_factory, responses):
    path = tmp_path_factory.mktemp("r") / "r.jsonl.zst"
    write_responses(path, responses)
    assert read_responses(path) == responses


@settings(max_examples=60, deadline=None)
@given(st.lists(SCORE, max_size=4, unique_by=lambda row: (row.question_id, row.sample_index)))
def test_scores_are_read_as_they_were_written(tmp_path_factory, rows):
    path = tmp_path_factory.mktemp("s") / "s.parquet"
    write_scores(path, rows)
    assert read_scores(path) == rows


def test_the_stored_form_of_a_response_is_fixed(tmp_path):
    """Finished studies hold these bytes."""
    write_responses(
        tmp_path / "c.zst",
        [
            Response("a", "h", "1+1=?\u2028", True, ("2", "3"), (1, 1)),
            Response("b", "h", answers=("no",), likelihoods=(-0.5,)),
        ],
    )
    assert zstandard.decompress((tmp_path / "c.zst").read_bytes()).decode() == (
        '{"question_id": "a", "prompt": "1+1=?\u2028", "prompt_hash": "h", "opens_thinking": true, '
        '"responses": ["2", "3"], "tokens": [1, 1]}\n'
        '{"question_id": "b", "prompt_hash": "h", "answers": ["no"], "likelihoods": [-0.5]}\n'
    )


def test_restricted_questions_leave_their_identities_alone(tmp_path):
    write_questions(tmp_path / "q.zst", [Question("a", {"problem": "SECRET"}, "x")], restricted=True)
    assert zstandard.decompress((tmp_path / "q.zst").read_bytes()) == b'{"question_id": "a"}\n'


@pytest.mark.parametrize("half", ["\ud800", "x\udbff\udfff"])
def test_half_of_a_surrogate_pair_is_refused_or_replaced(tmp_path, half):
    for write, row in (
        (write_responses, Response("q7", responses=(half,), tokens=(1,))),
        (lambda path, rows: write_questions(path, rows, restricted=False), Question("q7", {"problem": half}, "x")),
    ):
        with pytest.raises(UserError, match=r"the text of 'q7' holds '\\u\w{4}', half of a surrogate pair"):
            write(tmp_path / "file", [row])
    assert not list(tmp_path.iterdir())  # nothing half-written


def test_surrogates_in_a_servers_text_are_joined_or_replaced():
    assert whole_characters("a\ud83d\ude00b") == "a\U0001f600b"  # JSON's two halves of one character
    assert whole_characters("a\ud83db\udc00") == "a\ufffdb\ufffd"
    assert whole_characters("\ufeffa\u2028") == "\ufeffa\u2028"


def test_records_are_frozen_and_means_are_weighted():
    row = ScoreRow("a", "a", 0, 1.0, "correct", None, 3.0)
    assert mean_score([row, dataclasses.replace(row, value=0.0, weight=1.0)]) == 0.75
    with pytest.raises(dataclasses.FrozenInstanceError):
        row.value = 0.0


def test_a_table_of_an_earlier_version_without_answers_is_read(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = {"question_id": ["a"], "sample_index": [0], "cluster": ["c"], "weight": [1.0], "value": [1.0]}
    pq.write_table(pa.table(columns | {"outcome": ["correct"]}), tmp_path / "s.parquet")
    assert read_scores(tmp_path / "s.parquet") == [ScoreRow("a", "c", 0, 1.0, "correct")]
    (tmp_path / "s.parquet").write_bytes(b"no parquet")
    with pytest.raises(UserError, match=r"cannot be read .* delete it, and `transfer run` scores again"):
        read_scores(tmp_path / "s.parquet")
