"""What to say where demonstrations cannot be trained on."""

import textwrap
from collections.abc import Mapping, Sequence

from data.corpus.rows import Demonstration
from data.corpus.sources import RawRow

_MANY_WITHOUT = 0.25  # of the problems with a demonstration; fewer are usual in published sets
_LOOKED_FOR = {"boxed": "in \\boxed{}", "plain": "as its last value"}


def first_unusable(rows: Sequence[Demonstration], limit: int, problems: Mapping[str, RawRow], answer_form: str) -> str:
    """The first demonstration that cannot be trained on, the row of its problem, and why; empty if all can be.

    `problems`: row of each problem id.
    """
    first = next((row for row in rows if not row.usable), None)
    if first is None:
        return ""
    problem = problems[first.problem_id]
    if first.grade != "correct":
        answer = repr(problem.reference_answer)
        why = f"is graded {first.grade}: the grader looks for {answer} {_LOOKED_FOR[answer_form]}"
    elif first.tokens > limit:
        why = f"has {first.tokens} tokens, more than prompt.max_completion_tokens {limit}"
    else:
        why = "is unfinished or has a control token"
    return f"the first that is not, for the problem at {problem.at}, {_shown(first)}, {why}"


def many_without(rows: Sequence[Demonstration]) -> list[str]:
    """A warning where many problems have demonstrations of which none can be trained on."""
    asked, solved = {row.problem_id for row in rows}, {row.problem_id for row in rows if row.usable}
    without = len(asked) - len(solved)
    if without <= _MANY_WITHOUT * len(asked):
        return []
    return [
        f"{without:,} of {len(asked):,} problems with demonstrations have none that is correct and fits, so they are "
        "not teacher-solvable; the first is shown under the corpus"
    ]


def none_usable(rows: Sequence[Demonstration], limit: int, answers: Mapping[str, str], answer_form: str) -> str:
    """Why no demonstration can be trained on. `answers`: reference answer of each problem id."""
    correct = [row.tokens for row in rows if row.grade == "correct"]
    if correct and min(correct) > limit:
        which = f"all {len(rows):,}" if len(correct) == len(rows) else f"{len(correct):,} of {len(rows):,}"
        return (
            f"no correct demonstration is within prompt.max_completion_tokens {limit}: {which} are correct, the "
            f"shortest of them has {min(correct)} tokens; raise prompt.max_completion_tokens"
        )
    grades = ", ".join(sorted({row.grade for row in rows}))
    if correct:
        return "no demonstration is finished and without a control token, so no problem is teacher-solvable"
    first, where = rows[0], _LOOKED_FOR[answer_form]
    answer = textwrap.shorten(answers[first.problem_id], 80, placeholder=" ...")
    return (
        f"no demonstration is correct (grades: {grades}), so no problem is teacher-solvable; the first is "
        f"{_shown(first)}, in which the grader looks for {answer!r} {where} (corpus.answer_form: {answer_form}); is "
        "completion_field the column of whole solutions, and answer_field that of the answers alone? `transfer grade "
        '--explain` shows how a text is read; a template of completion_field can add a box or "The answer is"'
    )


def _shown(row: Demonstration) -> str:
    return repr(textwrap.shorten(row.completion, 80, placeholder=" ..."))
