"""How many cases of each kind this grader, math-verify and TRL's `accuracy_reward` get right.

python tests/bench/grading_kinds.py [--before OTHER_CHECKOUT]

The cases are tests/golden/grading_reports.jsonl. `--before` adds a column for the grader of another checkout of this
repository, in its own process.
"""

import argparse
import json
import logging
import os
import subprocess
import sys
import warnings
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
CASES = ROOT / "tests" / "golden" / "grading_reports.jsonl"
_GRADE = """
import json, sys
try:
    from data.grading.grader import Grader
except ImportError:  # an older checkout
    from data.grading import Grader
grader = Grader(workers=2)
cases = [json.loads(line) for line in sys.stdin.read().split("\\n") if line]
print(json.dumps([grader.grade(c["response"], c["gold"], c["form"]).correct for c in cases]))
grader.close()
"""


def ours(checkout: Path, text: str) -> list[bool]:
    result = subprocess.run(
        [sys.executable, "-c", _GRADE],
        input=text,
        capture_output=True,
        text=True,
        cwd=checkout,
        env={**os.environ, "PYTHONPATH": str(checkout)},
        check=True,
    )
    return json.loads(result.stdout)


def math_verify(case: dict[str, str]) -> bool:
    from math_verify import parse, verify

    try:
        gold = parse(f"${case['gold']}$")
        return bool(gold) and bool(verify(gold, parse(case["response"])))
    except Exception:  # a crash of the other grader is not a correct answer
        return False


def trl(case: dict[str, str]) -> bool:
    from trl.rewards import accuracy_reward

    messages = [[{"role": "assistant", "content": case["response"]}]]
    try:
        return accuracy_reward(messages, [f"${case['gold']}$"]) == [1.0]
    except Exception:  # of any kind from inside the library; an answer it cannot judge earns no reward
        return False


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", type=Path, help="another checkout")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.ERROR)
    text = CASES.read_text()
    cases = [json.loads(line) for line in text.split("\n") if line]
    columns = {"ours": ours(ROOT, text)}
    if options.before:
        columns["before"] = ours(options.before.resolve(), text)
    columns["math-verify"] = [math_verify(case) for case in cases]
    columns["TRL"] = [trl(case) for case in cases]
    expected = [case["expected"] == "correct" for case in cases]
    right = {name: [a == b for a, b in zip(column, expected, strict=True)] for name, column in columns.items()}
    sizes = Counter(case["kind"] for case in cases)
    print(f"{'kind':<38}{'cases':>6}" + "".join(f"{name:>12}" for name in columns))
    for kind, size in sizes.items():
        of_kind = [case["kind"] == kind for case in cases]
        counts = [sum(ok and own for ok, own in zip(right[name], of_kind, strict=True)) for name in columns]
        print(f"{kind:<38}{size:>6}" + "".join(f"{count:>12}" for count in counts))
    print(f"{'all':<38}{len(cases):>6}" + "".join(f"{sum(right[name]):>12}" for name in columns))
    false = [sum(said and not truth for said, truth in zip(columns[name], expected, strict=True)) for name in columns]
    print(
        f"{'wrong answers called correct':<38}{expected.count(False):>6}" + "".join(f"{count:>12}" for count in false)
    )


if __name__ == "__main__":
    main()
