"""Final answers: the grader of training, the string comparison the field began with, and equality of texts."""

import re
from functools import lru_cache

from data.grading.grader import AnswerForm, Grader, last_boxed
from data.prompts.thinking import answer_text
from eval.scorers.score import NO_ANSWER, Reference, Score, first_line, judged


@lru_cache(maxsize=1)
def _grader() -> Grader:
    return Grader()


def score_graded(response: str, reference: Reference, form: AnswerForm) -> Score:
    """By the final answer, judged as the reward judges it during training.

    OlympiadBench's references say more: a tolerance is absolute, and the unit of the reference may be repeated or left
    out. Several answers count in any order, as the grader reads any list of answers.
    """
    if isinstance(reference, dict):
        return _score_olympiad(response, reference, form)
    grade = _grader().grade(response, str(reference), form)
    return Score(float(grade.correct), grade.outcome.value, grade.extracted_answer)


def _score_olympiad(response: str, reference: dict[str, Reference], form: AnswerForm) -> Score:
    answer = reference["answer"]
    grade = _grader().grade(response, answer, form)
    extracted = grade.extracted_answer
    if grade.correct or extracted is None:
        return Score(float(grade.correct), grade.outcome.value, extracted)
    if reference["unit"]:
        with_unit = _grader().grade(response, f"{answer.strip('$')} {reference['unit'].strip('$')}", form)
        if with_unit.correct:
            return Score(1.0, "correct", extracted)
    if reference["tolerance"]:
        return judged(_within(extracted, answer, reference["unit"], reference["tolerance"]), extracted)
    return Score(0.0, grade.outcome.value, extracted)


def _within(extracted: str, answer: str, unit: str, tolerance: float) -> bool:
    """Whether two numbers lie within a tolerance; the unit of the reference may follow either."""
    unit = re.sub(r"[$\\\s]", "", unit)
    try:
        texts = [
            re.sub(r"\\(?:mathrm|text|mathbf)\b|[$\\{}~\s]", "", text) for text in (_plain_fraction(extracted), answer)
        ]
        numbers = [_number(text.removesuffix(unit)) for text in texts]
    except (ValueError, ZeroDivisionError):
        return False
    # A little slack for decimal tolerances that no float equals.
    return abs(numbers[0] - numbers[1]) <= tolerance * (1 + 1e-9)


def _number(text: str) -> float:
    """A decimal number or a fraction of two; infinite where no float is large enough."""
    numerator, slash, denominator = text.partition("/")
    return float(numerator) / (float(denominator) if slash else 1.0)


def _plain_fraction(text: str) -> str:
    r"""`\frac{a}{b}` as `a/b`."""
    return re.sub(r"\\[dt]?frac\s*\{([^{}]*)\}\s*\{([^{}]*)\}", r"\1/\2", text)


def score_exact(response: str, reference: Reference) -> Score:
    """By equality of the whole text after the thinking, runs of white space read as one space."""
    answer = " ".join((answer_text(response) or "").split())
    return judged(answer == " ".join(str(reference).split()), answer) if answer else NO_ANSWER


def score_first_line(response: str, reference: Reference) -> Score:
    """By equality of the first line, thinking included: as the paper's authors judge what is not math."""
    line = first_line(response)
    return judged(line == " ".join(str(reference).split()), line) if line else NO_ANSWER


def score_last_box_text(response: str, reference: Reference) -> Score:
    """By the last box in the whole response, compared as normalised text with the reference.

    The comparison is `is_equiv` of Hendrycks et al. 2021 (arXiv 2103.03874), as lm-evaluation-harness has it.
    OlympiadBench's references are compared as the paper's authors do (a4f5ea8): with the dollar signs they are printed
    in, which no box has, so 266 of its 675 problems cannot be solved; several answers in one order alone.
    """
    from lm_eval.tasks.hendrycks_math.utils import is_equiv, last_boxed_only_string, remove_boxed

    boxed = last_boxed_only_string(response)
    if boxed is None:
        return NO_ANSWER
    try:
        answer = remove_boxed(boxed)
    except AssertionError:  # a box without its braces
        return judged(False, boxed)
    if isinstance(reference, dict):
        return judged(bool(is_equiv(_without_zeros(answer), _without_zeros(reference["answer"]))), answer)
    return judged(bool(is_equiv(answer, last_boxed(str(reference)) or str(reference))), answer)


def _without_zeros(text: str) -> str:
    """Without leading zeros and a fraction of zeros, as the authors prepare OlympiadBench's answers."""
    text = text.lstrip("0")
    whole, point, fraction = text.partition(".")
    return whole if point and not fraction.split(".")[0].rstrip("0") else text
