"""Why a rule judged a response as it did, for one question at a time."""

import threading
from functools import lru_cache, partial
from typing import Any

from data.grading.grader import Grader
from data.grading.tree import described
from data.prompts.thinking import THINK_OPEN
from eval.scorers.records import Response
from eval.scorers.rules import RULES

_GRADED = ("boxed", "plain")
_lock = threading.Lock()


@lru_cache(maxsize=1)
def _grader() -> Grader:
    return Grader()


def rule_text(rule: str) -> str:
    """What a rule goes by, in one sentence: the first of the docstring of the function that judges."""
    if rule not in RULES:
        return ""
    judge = RULES[rule].judge
    function = judge.func if isinstance(judge, partial) else judge
    return (function.__doc__ or "").strip().split("\n\n")[0]


def explain(rule: str, response: Response, sample: int, reference: Any) -> list[str]:
    """How the grader read an answer and the reference, and the rule of comparison that decided.

    Empty for other rules than the grader's, which compare what was taken as the answer as it is. Tolerances and units
    of OlympiadBench are applied on top of what is shown.
    """
    if rule not in _GRADED or response.likelihoods or reference is None:
        return []
    gold = reference["answer"] if isinstance(reference, dict) else str(reference)
    text = (THINK_OPEN if response.opens_thinking else "") + response.responses[sample]
    with _lock:
        found = _grader().explain(text, gold, rule)  # type: ignore[arg-type]
    lines = [f"reference read as {described(found.reference)}"]
    if found.grade.extracted_answer is not None:
        lines.insert(0, f"answer read as {described(found.answer)}")
    if found.rules:
        lines.append(f"decided by {found.rules[-1]!r}")
    return lines
