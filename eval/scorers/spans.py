"""Short answers to questions about a text: SQuAD's exact match and F1, as CoQA uses them."""

import re
from collections.abc import Callable

from data.grading.grader import last_boxed
from data.prompts.thinking import THINK_CLOSE, answer_text
from eval.scorers.score import NO_ANSWER, Reference, Score, first_line, fraction


def score_span(response: str, reference: Reference, metric: str) -> Score:
    """By the answer after the thinking: what is boxed, or the first line, without a leading "A:" or "Answer:"."""
    text = answer_text(response)
    answer = "" if text is None else last_boxed(text) or first_line(text)
    answer = re.sub(r"^\W*(?:final\s+)?(?:a|answer)\s*:\s*", "", answer, flags=re.IGNORECASE).strip(" *\"'")
    return _compared(answer, reference, metric) if answer else NO_ANSWER


def score_span_first_line(response: str, reference: Reference, metric: str) -> Score:
    """By the first line after the last `</think>`, be there one or not: CoQA as the paper's authors judge it."""
    line = first_line(response.rpartition(THINK_CLOSE)[2])
    return _compared(line, reference, metric) if line else NO_ANSWER


def _compared(answer: str, golds: list[str], metric: str) -> Score:
    """The best match among the golds; with several golds the mean over leaving each out, as CoQA's evaluator does."""
    from transformers.data.metrics.squad_metrics import compute_exact, compute_f1

    compare: Callable[[str, str], float] = compute_exact if metric == "em" else compute_f1
    values = [float(compare(gold, answer)) for gold in golds]
    if len(values) == 1:
        return fraction(values[0], answer)
    return fraction(sum(max(values[:i] + values[i + 1 :]) for i in range(len(values))) / len(values), answer)
