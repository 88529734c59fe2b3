"""Yes and no as models settle on them, and questions with several candidates."""

import pytest

from eval.questions.records import Question
from eval.scorers.choices import read_yes_no
from eval.scorers.records import Response, mean_score
from eval.scorers.rules import score_rows


def pairs(*labels):
    return [Question(f"c{i}", {}, label, cluster="s", unit="q1" if i < 3 else "q2") for i, label in enumerate(labels)]


def rows_of(*texts):
    return [Response(f"c{i}", responses=(text,), tokens=(1,)) for i, text in enumerate(texts)]


def test_mc_taco_is_judged_question_by_question():
    """Two questions with three and two candidates, one of five judged wrong."""
    questions = pairs("yes", "no", "no", "yes", "no")
    rows = rows_of("yes", "yes", "no", "yes", "no")
    plain = score_rows(rows, questions, "yes_no", 10)
    assert mean_score(plain) == pytest.approx(4 / 5)
    strict = score_rows(rows, questions, "strict_yes_no", 10)
    assert [(row.question_id, row.value, row.cluster) for row in strict] == [("q1", 0, "s"), ("q2", 1, "s")]
    f1 = score_rows(rows, questions, "f1_yes_no", 10)
    # First: 1 of 2 called plausible is right, 1 of 1 plausible found: 2 (1/2)(1) / (3/2) = 2/3. Second: 1.
    assert [row.value for row in f1] == pytest.approx([2 / 3, 1])
    none = score_rows(rows_of("no", "no", "no", "yes", "?"), questions, "strict_yes_no", 10)
    assert [(row.value, row.outcome) for row in none] == [(0, "wrong"), (0, "no_answer")]
    # Where nothing is plausible, calling nothing plausible is right, and saying nothing is not.
    silent = score_rows(rows_of("?", "?", "?", "no", "no"), pairs("no", "no", "no", "no", "no"), "f1_yes_no", 10)
    assert [(row.value, row.outcome) for row in silent] == [(0, "no_answer"), (1, "correct")]
    # Nothing called plausible: precision 1 by definition, recall 0.
    assert score_rows(rows_of("no", "no", "no", "no", "no"), questions, "f1_yes_no", 10)[0].value == 0


@pytest.mark.parametrize(
    ("response", "word"),
    [
        ("No part is supported.\n\nFinal answer: $\\boxed{\\text{yes}}$", "yes"),
        ("No evidence supports this. \\boxed{Yes, it does}", "yes"),
        ("No information supports this.\n\n**Yes**", "yes"),
        ("No, because it is not said.", "no"),
        ("\\boxed{maybe} yes", None),
        ("Judgement: No. Yes would be wrong.", "no"),
        # "no" in front of a noun is no answer, wherever it stands
        ("There is no mention of it in the document, so it is unsupported.", None),
        ("It is plausible: there is no reason why it should take longer.", None),
        ("There is **no** mention of it. So yes, this is made up.", "yes"),
        ("No evidence in the document supports this.", None),
        ("No mention of it is made.\n\nYes, it is hallucinated.", "yes"),
        ("\\boxed{\\text{no mention}}", None),
        ("The answer is no longer supported. Yes", "yes"),
        ("Answer: No information is given on this.", None),
        ("It is no more than a guess; nobody said so, and no one could. Yes.", "yes"),
        ("The summary is faithful, and no-one would object: no", "no"),
        ("See No. 5 of the list.", None),
        # "no" that answers
        ("No it is not plausible.", "no"),
        ("No the summary does not hold up.", "no"),
        ("**No** - the summary is faithful.", "no"),
        ("No\n\nThe summary is faithful.", "no"),
        ("I would say no because it takes longer.", "no"),
        ("I would say no, it takes longer.", "no"),
        ("No hallucination.", "no"),
        ("\\boxed{\\text{No hallucination}}", "no"),
        ("The answer is no, since there is no reason for it.", "no"),
        # The last line, alone, is later than any statement
        ('The candidate answer is "no". A dog can do so, so this is plausible.\n\nYes', "yes"),
        ("The answer is no, one may think. But dogs can.\n\n**Yes.**", "yes"),
        ("The answer seems to be: no.\nBut dogs can.\n- Yes", "yes"),
        ("A dog can do so. Therefore, yes.", "yes"),
        ("Is it plausible? No.", "no"),
        ("Plausible (Yes/No): Yes", "yes"),
        ("#Your Judgement#: Yes", "yes"),
        ("The verdict is **no**.\nThe document says otherwise.", "no"),
        ("**Judgement:**\n\nNo, all of it is said.", "no"),
        ("The answer is yes.\n\nNo further explanation is needed.", "yes"),
        ("The answer should be yes, as dogs can.", "yes"),
        # No statement of the model's own
        ('The candidate answer is "no". That is plausible.', None),
        ("The given answer: no. It is plausible, and the answer is yes, dogs can.", "yes"),
        ("We must say whether the answer is yes or no.", None),
        ("If the answer is no, the dog is dead. It barks, so the answer is yes.", "yes"),
        ("Yes, dogs can. If the answer is no, then no dog barks at all.", "yes"),
        ("One may ask: dogs bark, no?\nYes, they can.", "yes"),
        ("Yes or no?", None),
        ("Yes/No", None),
    ],
)
def test_words_that_models_settle_on(response, word):
    assert read_yes_no(response) == word
