"""Programs of LiveCodeBench and HumanEval: the last code block of a response, run on the tests in a sandbox.

LiveCodeBench (Jain et al. 2024, arXiv 2403.07974) publishes two kinds of tests: standard input and output, and calls of
a method of a class `Solution`. HumanEval (Chen et al. 2021, arXiv 2107.03374) publishes a function `check` with
assertions; as there, the program is run after the question's own code, so a block with only the function's body counts
as well. A question counts when all tests pass.
"""

import json
import re
import secrets
import textwrap
import threading
from decimal import Decimal, InvalidOperation
from typing import Any

from data.prompts.thinking import answer_text
from eval.questions.forms import code_tests
from eval.scorers.sandbox import Limits, run_program
from eval.scorers.score import NO_ANSWER, Reference, Score, judged

LIMITS = Limits(wall_seconds=10.0, cpu_seconds=6)  # 6 s is the limit that LiveCodeBench sets for a test
_FENCE = re.compile(r"^(\s*)((?:[-*+]|\d{1,3}[.)])\s+)?```+\s*([\w+#.-]*)\s*$")  # also behind the mark of a list
_FUTURE = re.compile(r"^from __future__ import .*$\n?", re.MULTILINE)
_MARK = "result of the call: "
_PASSED = f"checks passed: {secrets.token_hex(16)}"  # drawn anew, so that no program can print it by itself
_ALONE = threading.Lock()
# As LiveCodeBench has it: the built-in pow comes back after math's, which takes no modulus.
_PRELUDE = """\
import bisect, collections, functools, heapq, itertools, math, operator, random, re, string, sys
from bisect import *
from collections import *
from functools import *
from heapq import *
from itertools import *
from math import *
from builtins import *
from typing import *
sys.setrecursionlimit(50_000)
"""
# Where functions are called a main guard does not run: the publishers execute the program as a module, not as a script.
_AS_MODULE = "sys.modules['solution'] = sys.modules[__name__]\n__name__ = 'solution'\n"
_CALL = """
import json as _json, sys as _sys
_arguments = [_json.loads(line) for line in _sys.stdin.read().split("\\n") if line.strip()]
_result = Solution().{function}(*_arguments)
print()
print({mark!r} + _json.dumps(_result))
"""


def last_program(response: str) -> str | None:
    """The last block of Python after the thinking, or the last one of no named language; None if there is none.

    Fences are paired line by line, so that a block of another language does not take the next one's fence for its own.
    A block of a list loses the indentation of its fence.
    """
    blocks: dict[bool, str] = {}
    opened: tuple[str, int, list[str]] | None = None
    for line in (answer_text(response) or "").replace("\r\n", "\n").split("\n"):
        fence = _FENCE.match(line)
        if opened is not None and (fence is None or fence[2]):
            opened[2].append(line)
        elif fence is not None and opened is None:
            opened = (fence[3].lower(), len(fence[1] + (fence[2] or "")), [])
        elif opened is not None:
            if opened[0] in ("python", "python3", "py", ""):
                blocks[opened[0] != ""] = _outdented(opened[2], opened[1])
            opened = None
    return blocks.get(True, blocks.get(False))


def _outdented(lines: list[str], most: int) -> str:
    """Lines without the indentation of the first, and without more than the `most` that their fence has."""
    margins = [len(line) - len(line.lstrip()) for line in lines]
    most = min(most, next((margin for margin, line in zip(margins, lines, strict=True) if line.strip()), 0))
    return "\n".join(line[min(most, margin) :] for margin, line in zip(margins, lines, strict=True)) + "\n"


def score_code(response: str, reference: Reference, sandboxed: bool = True) -> Score:
    """Whether the last code block passes every test; the answer says which it failed and how."""
    program = last_program(response)
    if program is None:
        return NO_ANSWER
    for number, test in enumerate(code_tests(reference), start=1):
        failure = _failure(program, test, reference, sandboxed)
        if failure is not None:
            return judged(False, f"test {number}: {failure}")
    return judged(True, None)


def _failure(program: str, test: dict[str, Any], reference: Any, sandboxed: bool) -> str | None:
    """Why a program fails a test; None if it passes."""
    called, checked = test["testtype"] == "functional", test["testtype"] == "check"
    before = reference["prompt"] + "\n" if checked else ""
    program = _without_margin(program, reference["entry_point"] if checked else None)
    prelude = _PRELUDE + (_AS_MODULE if called or checked else "")
    source = "".join(_FUTURE.findall(program)) + prelude + before + _FUTURE.sub("", program)
    if checked:
        source += f"\n{test['output']}\ncheck({reference['entry_point']})\nprint()\nprint({_PASSED!r})\n"
    elif called:
        function = reference["function"]
        if function is None or not function.isidentifier():
            raise ValueError(f"a functional test needs the name of a function, not {function!r}")
        source += _CALL.format(function=function, mark=_MARK)
    ended = run_program(source, test["input"], LIMITS, sandboxed)
    if ended.status == "timeout":  # perhaps the machine was busy, not the program
        with _ALONE:
            ended = run_program(source, test["input"], LIMITS, sandboxed)
    if ended.status != "ok":
        last = ended.stderr.strip().splitlines()[-1:] or [""]
        return f"{ended.status} {last[0][:120]}".strip()
    if checked:  # a program that ends by itself before the checks has not passed them
        return None if ended.stdout.splitlines()[-1:] == [_PASSED] else "ended before the checks"
    if called:
        lines = [line for line in ended.stdout.split("\n") if line.startswith(_MARK)]
        if not lines:
            return "no result"
        try:
            result = json.loads(lines[-1].removeprefix(_MARK))
        except (ValueError, RecursionError):  # the program wrote the line itself
            return "no result"
        return None if result == json.loads(test["output"]) else "wrong result"
    return None if same_output(ended.stdout, test["output"]) else "wrong output"


def _without_margin(program: str, function: str | None) -> str:
    """A program that is indented as a whole, without it. A block with only the body of the `function` keeps its own."""
    first = next((line for line in program.split("\n") if line.strip()), "")
    if first == first.lstrip():
        return program
    dedented = textwrap.dedent(program)
    whole = function is None or re.search(rf"^(?:async )?def {re.escape(function)}\b", dedented, re.MULTILINE)
    return dedented if whole else program


def same_output(printed: str, wanted: str) -> bool:
    """Equality line by line, blanks at both ends aside; numbers by value, so that 1.0 is 1."""
    lines = [[line.strip() for line in text.strip().split("\n")] for text in (printed, wanted)]
    if len(lines[0]) != len(lines[1]):
        return False
    return all(a == b or _same_numbers(a, b) for a, b in zip(*lines, strict=True))


def _same_numbers(left: str, right: str) -> bool:
    try:
        values = [[Decimal(word) for word in text.split()] for text in (left, right)]
        return values[0] == values[1]
    except InvalidOperation:  # no number, or a signalling NaN, which cannot be compared
        return False
