"""What to say where no demonstration can be trained on."""

import textwrap
from collections.abc import Mapping, Sequence

from data.corpus.rows import Demonstration


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
    first, where = rows[0], "in \\boxed{}" if answer_form == "boxed" else "as its last value"
    return (
        f"no demonstration is correct (grades: {grades}), so no problem is teacher-solvable; the first is "
        f"{textwrap.shorten(first.completion, 80, placeholder=' ...')!r}, in which the grader looks for "
        f"{answers[first.problem_id]!r} {where} (corpus.answer_form: {answer_form}); is completion_field the column "
        "with whole solutions?"
    )
