"""The grader beside `trl.rewards.accuracy_reward`: completions per second and correctness, in one run.

python tests/bench/bench_grading.py --responses math500_responses.jsonl --problems math500.jsonl

`--responses`: JSON lines with `input` (a prompt that contains the problem) and `output`; `--problems`: JSON lines with
`problem` and `answer`. Ours uses two workers, started before the clock; TRL's function has no workers. Neither has
seen a completion before its timed call.
"""

import argparse
import json
import logging
import time
import warnings
from collections import Counter
from pathlib import Path

from trl.rewards import accuracy_reward

from data.grading.grader import Grader
from data.grading.notation import undress
from data.grading.reading import read_answer
from data.grading.values import computed

ROOT = Path(__file__).resolve().parent.parent.parent
GOLDEN = ROOT / "tests" / "golden" / "grading.jsonl"
WARM = [r"\boxed{\sum_{k=1}^{3} k}", r"\boxed{\sum_{k=1}^{4} k}"], ["6", "10"]


def forget() -> None:
    """Empty the caches, so that the next timed call has seen nothing."""
    for cached in (read_answer, undress, computed):
        cached.cache_clear()


def trl_rewards(completions: list[str], references: list[str]) -> list[float | None]:
    # TRL parses the reference as LaTeX, so it needs dollars around it.
    messages = [[{"role": "assistant", "content": text}] for text in completions]
    return accuracy_reward(messages, [f"${reference}$" for reference in references])


def timed(call, *arguments):
    begun = time.perf_counter()
    result = call(*arguments)
    return result, time.perf_counter() - begun


def beside(name: str, completions: list[str], references: list[str]) -> None:
    grader = Grader(workers=2)
    grader.grade_many(*WARM)
    trl_rewards(*WARM)
    forget()
    grades, ours = timed(grader.grade_many, completions, references)
    rewards, theirs = timed(trl_rewards, completions, references)
    grader.close()
    count = len(completions)
    print(
        f"{name:<34}{count:>6}{count / ours:>12,.0f}{count / theirs:>12,.0f}{theirs / ours:>8.0f}x"
        f"{sum(g.correct for g in grades):>9}{sum(r == 1.0 for r in rewards):>9}",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--responses", type=Path, required=True)
    parser.add_argument("--problems", type=Path, required=True)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    problems = [json.loads(line) for line in options.problems.read_text().splitlines()]
    completions, references = [], []
    for line in options.responses.read_text().splitlines():
        row = json.loads(line)
        asked = [p for p in problems if p["problem"] in row["input"]]
        completions.append(row["output"])
        references.append(max(asked, key=lambda p: len(p["problem"]))["answer"])
    print(f"{'':<34}{'rows':>6}{'ours / s':>12}{'TRL / s':>12}{'ratio':>9}{'correct':>9}{'TRL':>9}")
    beside("stored responses", completions, references)
    beside("golds permuted", completions, references[7:] + references[:7])

    cases = [json.loads(line) for line in GOLDEN.read_text().splitlines()]
    cases = [case for case in cases if case.get("form", "boxed") == "boxed"]
    grader = Grader(workers=2)
    grades = grader.grade_many([c["completion"] for c in cases], [c["reference"] for c in cases])
    rewards = trl_rewards([c["completion"] for c in cases], [c["reference"] for c in cases])
    right = sum(grade.outcome == case["outcome"] for grade, case in zip(grades, cases, strict=True))
    same = sum(grade.correct == (case["outcome"] == "correct") for grade, case in zip(grades, cases, strict=True))
    trl = sum((reward == 1.0) == (case["outcome"] == "correct") for reward, case in zip(rewards, cases, strict=True))
    print(f"\ngolden file, {len(cases)} boxed cases: ours {right} outcomes and {same} rewards right, TRL {trl} rewards")

    step = [text for text in completions for _ in range(17)][:8192]
    golds = [text for text in references for _ in range(17)][:8192]
    # Samples of a group differ in their text; the answers repeat as they do among real samples.
    step = [f"{number}\n{text}" for number, text in enumerate(step)]
    grader.grade_many(*WARM)
    forget()
    grades, seconds = timed(grader.grade_many, step, golds)
    grader.close()
    outcomes = dict(Counter(grade.outcome.value for grade in grades))
    print(f"one GRPO step of 512 x 16 = {len(step):,} completions: {seconds:.2f} s; outcomes {outcomes}")


if __name__ == "__main__":
    main()
