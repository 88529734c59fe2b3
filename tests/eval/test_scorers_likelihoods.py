"""Given answers, compared by their likelihoods."""

from eval.questions.records import Question
from eval.scorers.records import Response
from eval.scorers.rules import score_rows


def test_likelihoods():
    questions = [Question("a", {}, "yes"), Question("b", {}, "B")]
    rows = [
        Response("a", answers=("no", "yes"), likelihoods=(-2.0, -1.0)),
        # -3 over 10 bytes is -0.3; -2 over 2 bytes is -1: by text the first, by byte the second wins.
        Response("b", answers=("ab", "abcdefghij"), likelihoods=(-2.0, -3.0)),
    ]
    assert [row.value for row in score_rows(rows, questions, "likelihood", 10)] == [1, 0]
    assert [row.value for row in score_rows(rows, questions, "likelihood_per_byte", 10)] == [1, 1]


def by_likelihood(reference, answers, likelihoods, rule="likelihood"):
    rows = [Response("q", answers=tuple(answers), likelihoods=tuple(likelihoods))]
    (row,) = score_rows(rows, [Question("q", {}, reference)], rule, 10)
    return row.value


def test_a_letter_is_not_taken_for_an_answer_that_reads_like_one():
    groups = ("O", "A", "B", "AB")  # the reference is B, the blood group A
    assert [by_likelihood("B", groups, [float(n == index) for n in range(4)]) for index in range(4)] == [0, 1, 0, 0]
    assert by_likelihood("AB", groups, [0, 0, 0, 1]) == 1, "no letter, so it is the text"


def test_more_answers_than_letters():
    answers = [f"answer {number}" for number in range(12)]
    assert by_likelihood("answer 11", answers, range(12)) == 1
    assert by_likelihood("J", answers, range(12)) == 0


def test_the_blank_in_front_of_an_answer_is_no_byte_of_it():
    """-1 over 2 bytes is less than -4.5 over 10; over 3 and 11 it would be more."""
    assert by_likelihood("B", (" ab", " abcdefghij"), (-1.0, -4.5), "likelihood_per_byte") == 1
