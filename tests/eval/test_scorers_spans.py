"""Short answers: the best of several golds, annotators, and what stands around an answer."""

import pytest

from eval.scorers.rules import score


def coqa(*golds, question="What colour?"):
    return {"question": question, "annotators": list(golds)}


@pytest.mark.parametrize(
    ("rule", "response", "golds", "value"),
    [
        # All agree but one: without the odd one 1, without one of the others still 1.
        ("span_em", "white", ["white", "white", "White", "It was white"], 1),
        # "it was white" of one annotator in four: 0 where that one is left out.
        ("span_em", "it was white", ["white", "white", "White", "It was white"], 3 / 4),
        # F1 with "white" is 1 of 3 words, precision 1/3 and recall 1: 1/2 where the odd one is left out.
        ("span_f1", "it was white", ["white", "white", "White", "It was white"], (3 + 1 / 2) / 4),
        ("span_em", "grey", ["white", "white", "White", "It was white"], 0),
        ("span_em", "white", ["white"], 1),
        ("span_em", "white", ["white", "grey"], 1 / 2),
        # The paper's reading: white and "It was white" count once each.
        ("span_em_first_line", "white", ["white", "white", "White", "It was white"], 1 / 2),
        ("span_f1_first_line", "white", ["white", "white", "White", "It was white"], 3 / 4),
        ("span_em_first_line", "white", ["white", "White"], 1),
    ],
)
def test_annotators_of_coqa(rule, response, golds, value):
    assert score(response, coqa(*golds), rule).value == pytest.approx(value)


def test_annotators_are_scored_as_the_harness_and_the_publishers_do():
    """Against lm-evaluation-harness's own code: on the golds it makes of a row, and, for the publishers, on all."""
    from lm_eval.tasks.coqa.utils import compute_scores, doc_to_target

    for golds in (["a", "b", "b", "A b"], ["yes", "Yes", "Yes.", "yes it is"], ["x y", "y"], ["x"]):
        texts = [{"input_text": ["first", gold]} for gold in golds]
        row = {"questions": {"input_text": ["?", "?"]}, "answers": texts[0]}
        row["additional_answers"] = {str(number): text for number, text in enumerate(texts[1:])}
        for response in ("a b", "yes", "Yes it is", "y", "x y z"):
            unique, all_golds = (compute_scores(some, response) for some in (doc_to_target(row), golds))
            for metric in ("em", "f1"):
                assert score(response, coqa(*golds), f"span_{metric}_first_line").value == unique[metric]
                assert score(response, coqa(*golds), f"span_{metric}").value == all_golds[metric]


@pytest.mark.parametrize(
    ("response", "taken"),
    [
        ("\\boxed{\\text{white}}", "white"),
        ("\\boxed{\\textbf{\\text{the white}}}", "the white"),
        ("\\boxed{\\mathrm{white\\ house}}", "white house"),
        ("\\boxed{\\text{in}~\\text{1984}}", "in 1984"),
        ("\\boxed{\\text{Answer: white}}", "white"),
        ("$\\text{white}$", "$white$"),
        ("\\boxed{\\textwidth}", "\\textwidth"),  # no command that holds words
        ("Answer:\nwhite", "white"),
        ("**Answer:** white", "white"),
        ("**Answer**: **white**\nbecause", "white"),
        ("A: **white**", "white"),
        ("Q: What colour?\n\nA: white", "white"),
        ("Q: What colour?\nA: white\n\nQ: Who?\nA: the cat", "white"),
        ("Q: Who?\nA: the cat\nQ: What colour?\nA: white", "white"),
        ("**Q: what colour**\n\n**A: White.**", "White."),
        ("Question: And what colour?\nAnswer:\nwhite", "white"),
        ("Q: What colour is the cat? A: white", "white"),
        ("Q: What colour is it?\nA: grey\nQ: What colour?\nA: white", "white"),
        ("<think>Q: What colour?\nA: grey</think>Q: What colour?\nA: white", "white"),
        ("Q: What colour?\n\nA: \\text{white}", "white"),
        # An answer to a question that nobody asked is none, nor is a question without an answer.
        ("Q: Who was it?\n\nA: white", "Q: Who was it?"),
        ("Q: What colour?", "Q: What colour?"),
        ("Q: What colour?\nQ: Who?\nA: white", "Q: What colour?"),
        ("white\n\nQ: What colour?\nA: grey", "white"),
        ("Queen A: white", "Queen A: white"),
        ("A cat: white", "A cat: white"),
    ],
)
def test_short_answers_behind_artefacts_of_format(response, taken):
    assert score(response, coqa("white"), "span_em").answer == taken


def test_a_question_that_is_not_known_may_be_any():
    assert score("Q: Who was it?\n\nA: white", ["white"], "span_em").value == 1
