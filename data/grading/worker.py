"""The process behind `data/grading/grader.py`: compares answers with math-verify, one JSON line in, one out.

A request is {"answer": ..., "reference": ...}, or {"reference": ...} to ask whether a reference parses. It runs
in a process of its own because symbolic algebra on model-written text can take for ever or all memory.
"""

import json
import resource
import sys
import time
import warnings

_MEMORY_BYTES = 2 << 30
_ORPHAN_CPU_SECONDS = 60


def compare(answer: str | None, reference: str) -> str:
    """Outcome name for one pair; for `answer=None`, whether the reference parses at all."""
    from math_verify import parse, verify

    # Timeouts are None because the parent process enforces a wall clock; math-verify's own use signals.
    gold = parse(f"${reference}$", fallback_mode="no_fallback", parsing_timeout=None)
    if not gold:
        return "gold_unparseable"
    if answer is None:
        return "correct"
    return "correct" if verify(gold, parse(f"${answer}$", parsing_timeout=None), timeout_seconds=None) else "wrong"


def main() -> None:
    """Serve requests until standard input ends."""
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, _MEMORY_BYTES))
    warnings.simplefilter("ignore")
    import logging

    logging.getLogger("math_verify").setLevel(logging.CRITICAL)
    compare("1", "1+0")  # pays for the imports before the parent starts its clock
    print(json.dumps({"ready": True}), flush=True)
    _, hard_limit = resource.getrlimit(resource.RLIMIT_CPU)
    for line in sys.stdin:
        request = json.loads(line)
        # The parent's clock is the limit; this one ends a comparison whose parent was killed.
        resource.setrlimit(resource.RLIMIT_CPU, (int(time.process_time()) + _ORPHAN_CPU_SECONDS, hard_limit))
        try:
            outcome = compare(request.get("answer"), request["reference"])
        except (Exception, RecursionError, MemoryError):  # untrusted text: any failure of the algebra is an outcome
            outcome = "crash"
        print(json.dumps({"outcome": outcome}), flush=True)


if __name__ == "__main__":
    main()
