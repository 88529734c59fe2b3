"""Worker process of `grader.py`: compares answers with math-verify. A JSON line [answer, reference] in, an outcome out.

It is a separate process because symbolic algebra on model-written text can run forever or exhaust the memory.
"""

import json
import logging
import resource
import sys
import time
import warnings
from typing import Any

_MEMORY_BYTES = 2 << 30
_ORPHAN_CPU_SECONDS = 60
_POINTS = 3
_TOLERANCE = 1e-12


def compare(answer: str, reference: str) -> str:
    """Name of the outcome of one pair: correct if math-verify calls it so and the values agree as numbers."""
    from math_verify import parse, verify

    # No timeouts here: the parent process enforces the limit, and math-verify's own need signals.
    gold = parse(f"${reference}$", fallback_mode="no_fallback", parsing_timeout=None)
    given = parse(f"${answer}$", fallback_mode="no_fallback", parsing_timeout=None)
    if not gold or not given or not verify(gold, given, timeout_seconds=None):
        return "wrong"
    return "correct" if _agree(gold[0], given[0]) else "wrong"


def _agree(gold: Any, given: Any) -> bool:
    """Whether two expressions have the same variables and, at some values of these, the same values."""
    import sympy  # type: ignore[import-untyped]

    if not isinstance(gold, sympy.Expr) or not isinstance(given, sympy.Expr):
        return False
    symbols = sorted(gold.free_symbols | given.free_symbols, key=str)
    for point in range(_POINTS if symbols else 1):
        value_of = {symbol: sympy.Rational(7 * index + 11 * point + 3, 13) for index, symbol in enumerate(symbols)}
        difference = [complex(sympy.N(side.subs(value_of).doit(), 20)) for side in (gold, given)]
        if not abs(difference[0] - difference[1]) <= _TOLERANCE * max(1e-300, *map(abs, difference)):
            return False
    return True


def main() -> None:
    """Answer requests until standard input ends."""
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, _MEMORY_BYTES))
    warnings.simplefilter("ignore")
    logging.getLogger("math_verify").setLevel(logging.CRITICAL)
    compare("1", "1+0")  # import sympy before the parent starts its clock
    print("ready", flush=True)
    _, hard_limit = resource.getrlimit(resource.RLIMIT_CPU)
    for line in sys.stdin:
        # The parent enforces the limit; this one ends a comparison whose parent was killed.
        resource.setrlimit(resource.RLIMIT_CPU, (int(time.process_time()) + _ORPHAN_CPU_SECONDS, hard_limit))
        try:
            outcome = compare(*json.loads(line))
        except Exception:  # untrusted text: every failure is an outcome
            outcome = "crash"
        print(outcome, flush=True)


if __name__ == "__main__":
    main()
