"""`transfer grade`: the grader on one response."""

import argparse
import dataclasses
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from launch.commands.arguments import argument, command
from recipes.errors import UserError
from recipes.suggestions import similar_path

if TYPE_CHECKING:
    from data.grading.policy import Policy


@command(
    "is the answer of a response correct?",
    argument("--gold", metavar="ANSWER", required=True, help="the reference answer, in LaTeX or plain text"),
    argument("--response", metavar="FILE", required=True, help="the response; - reads standard input"),
    argument(
        "--form",
        choices=("boxed", "plain"),
        default="boxed",
        help="the answer is in the last box (default), or may be stated in plain text",
    ),
    argument(
        "--explain",
        action="store_true",
        help="show what was extracted, how both sides were read, and which rule decided",
    ),
    argument(
        "--switch",
        metavar="NAME=on|off",
        action="append",
        default=[],
        help="change a debatable convention, see docs/grading.md; may be repeated",
    ),
)
def grade(options: argparse.Namespace) -> int:
    """Grade one response against a reference answer with the grader that judges demonstrations, rewards and scores.
    Exit status: 0 for a correct answer, 1 for any other outcome, 2 for a mistake in the command.
    """
    from data.grading.grader import Grader
    from data.grading.tree import described

    grader = Grader(policy=_policy(options.switch))
    explained = grader.explain(_response(options.response), options.gold, options.form)
    grader.close()
    answer = explained.grade.extracted_answer
    shown: dict[str, Any] = {"outcome": explained.grade.outcome.value, "extracted": answer}
    if options.explain:
        shown |= {
            "answer_read_as": explained.answer if answer is not None else None,
            "gold_read_as": explained.reference,
            "rules": list(explained.rules),
        }
    if options.json:
        print(json.dumps(shown, indent=1, ensure_ascii=False, default=dataclasses.asdict))
    elif options.explain:
        print(f"outcome         {shown['outcome']}")
        print(f"extracted       {'nothing' if answer is None else answer}")
        print(f"answer read as  {'nothing' if answer is None else described(explained.answer)}")
        print(f"gold read as    {described(explained.reference)}")
        print(f"decided by      {explained.rules[-1] if explained.rules else 'no comparison was needed'}")
    else:
        print(shown["outcome"])
    return 0 if explained.grade.correct else 1


def _response(name: str) -> str:
    if name == "-":
        return sys.stdin.read()
    try:
        return Path(name).read_text(encoding="utf-8")
    except FileNotFoundError:
        near = similar_path(Path(name))
        hint = f"did you mean {near}?" if near is not None else "name a file with the response, or - for stdin"
        raise UserError(f"--response {name} does not exist; {hint}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--response {name} cannot be read as a UTF-8 text file: {error}") from None


def _policy(switches: list[str]) -> "Policy":
    from data.grading.policy import Policy

    known = [field.name for field in dataclasses.fields(Policy)]
    values = {}
    for switch in switches:
        name, _, value = switch.partition("=")
        if name not in known or value not in ("on", "off"):
            raise UserError(f"--switch {switch} must be NAME=on or NAME=off with one of {', '.join(known)}")
        values[name] = value == "on"
    return Policy(**values)
