"""The corpus stage on real corpora: seconds per step, beside a plain 8-gram decontamination; time against rows.

python tests/bench/bench_corpus.py --data DIR               the three corpora through the whole funnel
python tests/bench/bench_corpus.py --data DIR --rows 10000 50000 250000
                                                            also corpora of that many rows, with peak memory

DIR holds corpora/math_train.json, corpora/aime_1983_2023.json, corpora/gsm8k_train.jsonl and
benchmarks/{math500,aime24,aime25,olympiadbench,ifeval}.jsonl. Larger corpora are made of these rows with their numbers
changed, so that texts are alike as those of large collections are.
"""

import argparse
import json
import random
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from pathlib import Path

from data.corpus.rows import problem_id
from data.corpus.text_match import jaccard, shingles, words
from launch.execution.usage import descendants, host_bytes

ROOT = Path(__file__).resolve().parent.parent.parent
LABELS = ROOT / "tests" / "golden" / "contamination_labels.jsonl"
CORPORA = {
    "math-train": ("corpora/math_train.json", {}),
    "aime": ("corpora/aime_1983_2023.json", {}),
    "gsm8k": ("corpora/gsm8k_train.jsonl", {"problem_field": "question", "answer_in": "after_hashes"}),
}
BENCHMARKS = {
    "math500": "problem",
    "aime24": "problem",
    "aime25": "problem",
    "olympiadbench": "question",
    "ifeval": "prompt",
}


def read(path: Path) -> list[dict]:
    text = path.read_text()
    return json.loads(text) if path.suffix == ".json" else [json.loads(line) for line in text.splitlines()]


def recipe(data: Path, sources: list[dict]) -> dict:
    benchmarks = [
        {"kind": "file", "name": name, "path": str(data / "benchmarks" / f"{name}.jsonl"), "text_fields": [field]}
        for name, field in BENCHMARKS.items()
    ]
    corpus = {"sources": sources, "problem_set": "all", "decontamination": {"benchmarks": benchmarks}}
    return {"study": "bench", "corpus": corpus}


def build(directory: Path, values: dict) -> tuple[dict, float, float]:
    """Facts of the manifest, wall seconds and peak GB of the whole command, workers included."""
    path = directory / "recipe.yaml"
    path.write_text(json.dumps(values))  # JSON is YAML
    command = [sys.executable, "-m", "launch", "run", str(path), "--out", str(directory / "study")]
    begun, peak = time.perf_counter(), 0.0
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)
    while process.poll() is None:
        peak = max(peak, tree_gigabytes(process.pid))
        time.sleep(0.2)
    if process.returncode:
        raise SystemExit(f"the build failed with status {process.returncode}; see {directory}/study/logs")
    seconds = time.perf_counter() - begun
    return json.loads((directory / "study" / "corpus" / "manifest.json").read_text())["facts"], seconds, peak


def tree_gigabytes(root: int) -> float:
    """Memory of a process and its descendants, shared pages once."""
    return host_bytes(descendants(root)) / 1e9


def plain_eight_grams(problems: list[str], questions: list[str]) -> tuple[set[int], float]:
    """The usual rule: a problem that shares eight words in a row with a question; plain sets of Python."""
    begun = time.perf_counter()
    grams = set()
    for question in questions:
        split = question.lower().split()
        grams |= {tuple(split[start : start + 8]) for start in range(len(split) - 7)}
    hits = set()
    for number, problem in enumerate(problems):
        split = problem.lower().split()
        if any(tuple(split[start : start + 8]) in grams for start in range(len(split) - 7)):
            hits.add(number)
    return hits, time.perf_counter() - begun


def show_precision(problems: dict[str, str], questions: dict[str, list[str]]) -> None:
    """Precision of both rules on hand-checked samples of fifty pairs each; which threshold follows from them."""
    samples = defaultdict(list)
    for row in read(LABELS):
        left = words(problems[row["problem_id"]])
        right = words(questions[row["benchmark"]][row["question"]])
        samples[row["sample"]].append((jaccard(shingles(left), shingles(right)), row["label"]))
    print("\nhand-checked samples of 50: the same problem, a variant of it, or shared phrasing only")
    for name, pairs in samples.items():
        print(f"  {name:<18} {dict(Counter(label for _, label in pairs))}")
    for threshold in (0.3, 0.35, 0.4, 0.45, 0.5):
        kept = [label for similarity, label in samples["similarity 0.3"] if similarity >= threshold]
        right = sum(label != "phrase" for label in kept)
        print(f"  similarity from {threshold:<4} {right} of {len(kept)} same or variant")


def larger(rows: list[tuple[str, str]], count: int) -> list[dict]:
    """`count` rows made of `rows` with every number in the text changed."""
    rng = random.Random(0)
    made = []
    for number in range(count):
        problem, answer = rows[number % len(rows)]
        if number >= len(rows):
            problem = re.sub(r"\d+", lambda match: str(rng.randrange(10 ** len(match.group()))), problem)
        made.append({"problem": problem, "answer": answer})
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--rows", type=int, nargs="*", default=[])
    options = parser.parse_args()
    data = options.data.resolve()
    sources = [{"kind": "file", "name": n, "path": str(data / p)} | mapping for n, (p, mapping) in CORPORA.items()]
    with tempfile.TemporaryDirectory() as directory:
        facts, seconds, peak = build(Path(directory), recipe(data, sources))
    print(f"{facts['rows']:,} rows -> {facts['train_problems']:,} problems in {seconds:.1f} s, peak {peak:.2f} GB")
    for step, taken in facts["seconds"].items():
        print(f"  {step:<20}{taken:>8.2f} s")
    print(f"  removed: {facts['rejected']}")

    rows = []
    for path, mapping in CORPORA.values():
        for row in read(data / path):
            problem, answer = row.get(mapping.get("problem_field", "problem")), row.get("answer")
            if problem and answer is not None:
                rows.append((problem, str(answer).rpartition("####")[2].strip()))
    questions = {n: [row[f] for row in read(data / "benchmarks" / f"{n}.jsonl")] for n, f in BENCHMARKS.items()}
    hits, plain_seconds = plain_eight_grams([p for p, _ in rows], [q for part in questions.values() for q in part])
    ours = f"{facts['contaminated']} in {facts['seconds']['decontamination']:.2f} s"
    print(f"\nplain 8-grams: {len(hits):,} problems hit in {plain_seconds:.2f} s; ours: {ours}")
    show_precision({problem_id(problem): problem for problem, _ in rows}, questions)

    print(f"\n{'rows':>9}{'seconds':>10}{'rows / s':>10}{'peak GB':>9}" if options.rows else "")
    for count in options.rows:
        with tempfile.TemporaryDirectory() as directory:
            path = Path(directory) / "rows.jsonl"
            path.write_text("".join(json.dumps(row) + "\n" for row in larger(rows, count)))
            source = {"kind": "file", "name": "rows", "path": str(path)}
            facts, seconds, peak = build(Path(directory), recipe(data, [source]))
            print(f"{count:>9,}{seconds:>10.1f}{count / seconds:>10,.0f}{peak:>9.2f}  {facts['seconds']}", flush=True)


if __name__ == "__main__":
    main()
