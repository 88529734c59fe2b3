"""Worker process of `grader.py`: compares answers with math-verify, one JSON line in, one JSON line out.

A request is {"answer": ..., "reference": ...}, or {"reference": ...} for whether a reference parses. It is a separate
process because symbolic algebra on model-written text can run forever or exhaust the memory.
"""

import json
import resource
import sys
import time
import warnings

_MEMORY_BYTES = 2 << 30
_ORPHAN_CPU_SECONDS = 60


def compare(answer: str | None, reference: str) -> str:
    """Name of the outcome of one pair; with `answer=None`, "correct" if the reference parses."""
    from math_verify import parse, verify

    # No timeouts here: the parent process enforces the limit, and math-verify's own need signals.
    gold = parse(f"${reference}$", fallback_mode="no_fallback", parsing_timeout=None)
    if not gold:
        return "gold_unparseable"
    if answer is None:
        return "correct"
    return "correct" if verify(gold, parse(f"${answer}$", parsing_timeout=None), timeout_seconds=None) else "wrong"


def main() -> None:
    """Answer requests until standard input ends."""
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, _MEMORY_BYTES))
    warnings.simplefilter("ignore")
    import logging

    logging.getLogger("math_verify").setLevel(logging.CRITICAL)
    compare("1", "1+0")  # import sympy before the parent starts its clock
    print(json.dumps({"ready": True}), flush=True)
    _, hard_limit = resource.getrlimit(resource.RLIMIT_CPU)
    for line in sys.stdin:
        request = json.loads(line)
        # The parent enforces the limit; this one ends a comparison whose parent was killed.
        resource.setrlimit(resource.RLIMIT_CPU, (int(time.process_time()) + _ORPHAN_CPU_SECONDS, hard_limit))
        try:
            outcome = compare(request.get("answer"), request["reference"])
        except (Exception, RecursionError, MemoryError):  # untrusted text: every failure is an outcome
            outcome = "crash"
        print(json.dumps({"outcome": outcome}), flush=True)


if __name__ == "__main__":
    main()
