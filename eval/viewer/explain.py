"""Why a rule judged a response as it did, for one question at a time."""

import json
import re
import threading
from functools import lru_cache, partial
from typing import Any

from data.grading.grader import Grader
from data.grading.tree import described
from data.prompts.thinking import THINK_OPEN
from eval.questions.forms import code_tests
from eval.scorers.instructions import followed_instructions
from eval.scorers.records import Response
from eval.scorers.rules import RULES, Rule
from recipes.suite_schema import TRAITS

_GRADED = ("boxed", "plain")
_TESTS = 20  # of a program that are shown
_LONGEST = 200  # characters of an input, an output or an argument
_lock = threading.Lock()


@lru_cache(maxsize=1)
def _grader() -> Grader:
    return Grader()


def rule_text(rule: str) -> str:
    """What a rule goes by, in one sentence: the first of the docstring of the function that judges."""
    if rule not in RULES:
        return ""
    judge = RULES[rule].combine or RULES[rule].judge
    function = judge.func if isinstance(judge, partial) else judge
    return (function.__doc__ or "").strip().split("\n\n")[0]


def answer_name(rule: str) -> str | None:
    """What the answer of a score is called; None if the explanation says it all."""
    kind = TRAITS[rule].references if rule in TRAITS else "text"
    return None if kind == "instructions" else "failed" if kind == "tests" else "answer"


def reference_text(reference: Any) -> str | None:
    """A reference as a person reads it: instructions and tests line by line, other values by name."""
    if reference is None or isinstance(reference, str):
        return reference
    if not isinstance(reference, dict):
        return json.dumps(reference, ensure_ascii=False)
    if "instructions" in reference:
        return "\n".join(_instructions(reference))
    if "public" in reference:
        try:
            tests = code_tests(reference)
        except ValueError:
            return json.dumps(reference, ensure_ascii=False)
        lines = [f"{len(tests)} tests" + (f" of the function {name}" if (name := reference["function"]) else "")]
        lines += [f"test {number}: {_test(test)}" for number, test in enumerate(tests[:_TESTS], start=1)]
        return "\n".join(lines + (["…"] if len(tests) > _TESTS else []))
    return "\n".join(f"{name}: {value}" for name, value in reference.items() if value not in ("", 0, None))


def _instructions(reference: dict[str, Any]) -> list[str]:
    lines = []
    for name, values in zip(reference["instructions"], reference["arguments"], strict=True):
        given = [f"{key} {_short(str(value))}" for key, value in values.items() if value is not None]
        lines.append(f"{name} ({', '.join(given)})" if given else name)
    return lines


def _test(test: dict[str, Any]) -> str:
    if test.get("testtype") == "check":
        return _short(test["output"].strip())
    return f"input {_short(test['input'].rstrip())!r}, expected {_short(test['output'].rstrip())!r}"


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"


def explain(rule: str, response: Response, sample: int, reference: Any, answer: str | None = None) -> list[str]:
    """Why a rule judged a response as it did.

    Of the grader: how it read an answer and the reference, and the rule of comparison that decided; tolerances and
    units of OlympiadBench are applied on top of what is shown. Of IFEval: every instruction. Of code: the test that
    failed. Of a question in parts: how this part was judged. Empty for rules that compare the answer as it is.

    Args:
        rule: the rule.
        response: what the model answered.
        sample: which of its responses.
        reference: the reference of the question.
        answer: the answer of the score.
    """
    if reference is None or rule not in RULES:
        return []
    if RULES[rule].combine is not None:
        return _part(RULES[rule], response, sample, reference)
    if response.likelihoods:
        return []
    text = (THINK_OPEN if response.opens_thinking else "") + response.responses[sample]
    judge, kind = RULES[rule].judge, TRAITS[rule].references
    if kind == "instructions":
        assert isinstance(judge, partial)
        with _lock:  # the checkers seed the generator of the process
            followed = followed_instructions(text, reference, loose=judge.keywords["loose"]) or []
        named = zip(reference["instructions"], followed, strict=False)
        return [f"{name} {'followed' if met else 'NOT followed'}" for name, met in named]
    if kind == "tests" and (failed := re.match(r"test (\d+):", answer or "")):
        return [f"test {failed[1]}: {_test(code_tests(reference)[int(failed[1]) - 1])}"]
    if rule not in _GRADED:
        return []
    gold = reference["answer"] if isinstance(reference, dict) else str(reference)
    with _lock:
        explanation = _grader().explain(text, gold, rule)  # type: ignore[arg-type]
    lines = [f"reference read as {described(explanation.reference)}"]
    if explanation.grade.extracted_answer is not None:
        lines.insert(0, f"answer read as {described(explanation.answer)}")
    if explanation.rules:
        lines.append(f'decided by the rule "{explanation.rules[-1]}"')
    return lines


def _part(rule: Rule, response: Response, sample: int, reference: Any) -> list[str]:
    """How a part of a question was judged by itself."""
    if response.likelihoods:
        score = rule.judge(response.answers, response.likelihoods, reference)
    else:
        text = (THINK_OPEN if response.opens_thinking else "") + response.responses[sample]
        score = rule.judge(text, reference)
    said = "" if score.answer is None else f", answer {score.answer}"
    return [f"this part: {score.outcome.replace('_', ' ')}{said}"]
