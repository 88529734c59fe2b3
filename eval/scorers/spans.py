"""Short answers to questions about a text: SQuAD's exact match and F1, as CoQA uses them."""

import re
from collections.abc import Callable

from data.grading.grader import last_boxed
from data.prompts.thinking import THINK_CLOSE, answer_text
from eval.scorers.score import NO_ANSWER, Reference, Score, first_line, fraction

_LABEL = re.compile(r"\W{0,9}(?:final\s+)?(?:a|answer)\W{0,5}:\s*", re.IGNORECASE)
_ASKED = re.compile(r"\W{0,9}(?:q|question)\W{0,5}:", re.IGNORECASE)
_ANSWERED = re.compile(r"(?:^|\s)[*_]*(?:A|Answer)[*_]*:")  # on the line of the question
_TEXT_COMMAND = re.compile(
    r"\\(?:text(?:bf|it|rm|sf|tt|sc|up|normal)?|mbox|hbox|emph|underline|math(?:rm|bf|it|sf|tt)|boldsymbol|operatorname)"
    r"\s*\{([^{}]*)\}"
)
_LATEX_BLANK = re.compile(r"\\[ ,;:>]|\\q?quad(?![A-Za-z])|(?<=\S)~(?=\S)")


def score_span(response: str, reference: Reference, metric: str) -> Score:
    """By the answer after the thinking: what is boxed, or the first line, without "A:", "Answer:" or LaTeX's fonts.

    Where a response begins by repeating the question ("Q: ..."), the answer is the "A:" behind it. Of several golds the
    best counts. Of several annotators, as in CoQA, each is left out in turn and the best of the others counts; the
    score is the mean. All of them count, also those that say the same, as in CoQA's own evaluator.
    """
    asked = reference["question"] if isinstance(reference, dict) else None
    text = answer_text(response)
    answer = "" if text is None else _answer(text, asked)
    if not answer:
        return NO_ANSWER
    if isinstance(reference, dict) and len(reference["annotators"]) > 1:
        return fraction(_leaving_one_out(answer, reference["annotators"], metric), answer)
    golds = reference["annotators"] if isinstance(reference, dict) else _listed(reference)
    return fraction(max(_values(answer, golds, metric)), answer)


def score_span_first_line(response: str, reference: Reference, metric: str) -> Score:
    """By the first line after the last `</think>`, be there one or not: CoQA as the paper's authors judge it.

    As in lm-evaluation-harness, golds that say the same count once, and of several each is left out in turn, so an
    answer that one gold alone has cannot reach 1.
    """
    line = first_line(response.rpartition(THINK_CLOSE)[2])
    if not line:
        return NO_ANSWER
    golds = reference["annotators"] if isinstance(reference, dict) else _listed(reference)
    different = list({gold.lower(): gold for gold in reversed(golds)}.values())[::-1]
    if len(different) == 1:
        return fraction(_values(line, different, metric)[0], line)
    return fraction(_leaving_one_out(line, different, metric), line)


def _listed(reference: Reference) -> list[str]:
    return reference if isinstance(reference, list) else [str(reference)]


def _answer(text: str, asked: str | None) -> str:
    """What a text says in short."""
    boxed = last_boxed(text)
    if boxed is None or not boxed.strip():
        answer = _behind_question(text.strip(), asked)
        answer = first_line(_LABEL.sub("", answer, count=1) if _LABEL.match(answer) else answer)
    else:
        answer = boxed
    for _ in range(3):  # nested, as in \text{\textbf{white}}
        answer = _TEXT_COMMAND.sub(r"\1", answer)
    answer = " ".join(_LATEX_BLANK.sub(" ", answer).split())
    return _LABEL.sub("", answer, count=1).strip(" *\"'") if _LABEL.match(answer) else answer.strip(" *\"'")


def _behind_question(text: str, asked: str | None) -> str:
    """The text from the answer on, where it begins with a question and one of its questions is the one asked.

    A question repeats the one asked if it has all of its words; one with no others is preferred. `asked`: None if it is
    not known, so that the first question counts.
    """
    if not _ASKED.match(text):
        return text
    lines = text.split("\n")
    found: list[tuple[bool, int, int]] = []  # whether it has other words; where the answer begins: line and column
    question = None
    for number, line in enumerate(lines):
        begins = 0
        if _ASKED.match(line):
            inline = _ANSWERED.search(line, 2)
            question, begins = line[: inline.start()] if inline else line, inline.start() if inline else -1
        elif _LABEL.match(line) is None:
            continue
        if question is not None and begins >= 0:
            said, wanted = (_words(_ASKED.sub("", question, count=1)), _words(asked or ""))
            if wanted <= said:
                found.append((asked is not None and said != wanted, number, begins))
            question = None
    if not found:
        return text
    _, number, begins = min(found)
    return "\n".join([lines[number][begins:].strip(), *lines[number + 1 :]])


def _words(question: str) -> set[str]:
    """The words of a question, without those that tie it to the one before."""
    return set(re.findall(r"\w+", question.lower())) - {"and", "but", "so", "then"}


def _values(answer: str, golds: list[str], metric: str) -> list[float]:
    from transformers.data.metrics.squad_metrics import compute_exact, compute_f1

    compare: Callable[[str, str], float] = compute_exact if metric == "em" else compute_f1
    return [float(compare(gold, answer)) for gold in golds]


def _leaving_one_out(answer: str, golds: list[str], metric: str) -> float:
    """The mean over leaving each gold out in turn, of the best match among the others."""
    values = _values(answer, golds, metric)
    return sum(max(values[:i] + values[i + 1 :]) for i in range(len(values))) / len(values)
