"""Makes the data files of the SmolLM2 study from what their publishers have on GitHub.

    python recipes/smollm2-135m/prepare.py                     downloads 13 files, 5 MB in all
    python recipes/smollm2-135m/prepare.py --from FOLDER       takes them from a folder, under their publishers' names

Every file is pinned: its commit is in the address, its SHA-256 is compared. The word problems (MAWPS and ASDiv-A, as
the SVAMP repository has them) get their numbers, a worked solution and a part: `warm_start`, from which the base is
made, or `study`.
"""

import argparse
import csv
import gzip
import io
import json
import operator
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

ROOT = "https://raw.githubusercontent.com"
SVAMP = f"{ROOT}/arkilpatel/SVAMP/689d7ccac74b9983a2ac7cc3b264f441b99e7c53"
ACPBENCH = f"{ROOT}/IBM/ACPBench/2ed9c925962d57b275bf8c4e7b5d6f564aac9d6d/dataset"
ACPBENCH_HASHES = {  # by task
    "app": "45d676dcf505de50e99ec8315141fc0da408d74fb2abca8228133e4684874ffb",
    "areach": "a38cc2eff01bd6214d313d0abc4a15bd9b862212a61d0748d2841f0f43cb686f",
    "just": "32294c39ff9a99b31655526806fd92f709b9bda2780edbf31e6c2645d56e8233",
    "land": "654f0f81b609233d9df71fb2a8fe78536ed4c7542cdd53330b8c1304997ce3a0",
    "prog": "037a042229a51d4747f291d01e41cc4e4433f6ec70b230ed1076b2816a512b17",
    "reach": "3533b5622f30a137eadcf64c426035bbb35e049f40aa29eced38726ae6977247",
    "val": "0b2cbf4e8bfb67ba1d3f68792e52d58d5ceadc21b1d3a8644c61985ea9974b18",
}
GRADE_SCHOOL = f"{ROOT}/openai/grade-school-math/3101c7d5072418e28b9008a6636bde82a006892c/grade_school_math/data"
SOURCES = {  # name in the folder of --from: address and SHA-256
    "word_problems.csv": (
        f"{SVAMP}/data/mawps-asdiv-a_svamp/train.csv",
        "c761cdc6390a67a285c6c346a2931f61bc8f47430eceaeb123cc3d0263efa821",
    ),
    "SVAMP.json": (f"{SVAMP}/SVAMP.json", "5be77703a6d891ae476d7c082787ad361392aa02453b132516cdd5f4e7934e3e"),
    "gsm8k_test.jsonl": (
        f"{GRADE_SCHOOL}/test.jsonl",
        "3730d312f6e3440559ace48831e51066acaca737f6eabec99bccb9e4b3c39d14",
    ),
    "HumanEval.jsonl.gz": (
        f"{ROOT}/openai/human-eval/6d43fb980f9fee3c892a914eda09951f772ad10d/data/HumanEval.jsonl.gz",
        "b796127e635a67f93fb35c04f4cb03cf06f38c8072ee7cee8833d7bee06979ef",
    ),
    "ifeval.jsonl": (
        f"{ROOT}/google-research/google-research/19638399cc9e03623c5b9087a1d6fa8813974ce9"
        "/instruction_following_eval/data/input_data.jsonl",
        "67ffeee0fcb87c317c5b08a2de85557b4a7e96ada6178aa645b4954fe4b53d49",
    ),
    "mctaco_test.tsv": (
        f"{ROOT}/CogComp/MCTACO/0ba9b790ad5a87ab3eef0f0cb7819408192f9729/dataset/test_9442.tsv",
        "47e12f88559eb0735eeca2af2d0a3ed48efb3bb2742ff31de9fcfc9a76094354",
    ),
    **{f"acpbench_{task}.json": (f"{ACPBENCH}/{task}/dev.mcq.json", sha) for task, sha in ACPBENCH_HASHES.items()},
}
SIGNS = {"+": "+", "-": "-", "*": "×", "/": "÷"}
WORDED = {
    "+": (
        "Together that is {left} plus {right}, which makes {value}.",
        "We add {right} to {left} and get {value}.",
        "Both amounts count, {left} and {right}, so there are {value}.",
        "First there are {left}, then {right} more. In all that is {value}.",
    ),
    "-": (
        "Taking {right} away from {left} leaves {value}.",
        "From {left} we subtract {right} and get {value}.",
        "The difference between {left} and {right} is {value}.",
        "First there are {left}, then {right} less. That leaves {value}.",
    ),
    "*": (
        "There are {left} times {right}, which makes {value}.",
        "We multiply {left} by {right} and get {value}.",
        "Every one of the {left} counts {right}, so there are {value}.",
        "Taking {right} for each of {left} gives {value} in all.",
    ),
    "/": (
        "Sharing {left} into {right} equal parts gives {value}.",
        "We divide {left} by {right} and get {value}.",
        "In {left} there is {right} exactly {value} times.",
        "Splitting {left} evenly by {right} makes {value} each.",
    ),
}
RESULTS = {"+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.truediv}
WARM_START_PERCENT = 20


class SourceError(Exception):
    """A file that is not the pinned one, or cannot be had."""


def read_source(name: str, folder: Path | None) -> bytes:
    """The pinned content of a publisher's file.

    Raises:
        SourceError: it is missing, cannot be downloaded, or has another SHA-256.
    """
    address, wanted = SOURCES[name]
    try:
        if folder is None:
            with urllib.request.urlopen(address, timeout=60) as answer:
                content = answer.read()
        else:
            content = (folder / name).read_bytes()
    except (OSError, urllib.error.URLError) as error:
        advice = f"download {address} and give its folder with --from"
        raise SourceError(f"{name} cannot be read ({error}); {advice}") from None
    if sha256(content).hexdigest() != wanted:
        raise SourceError(f"{name} is not the pinned file (SHA-256 {wanted}); download it again from {address}")
    return content


def tidy(text: str) -> str:
    """A tokenised sentence as it is written: no blanks before punctuation."""
    for mark in (".", ",", "?", "!", ";", ":", "'s", "n't"):
        text = text.replace(f" {mark}", mark)
    return " ".join(text.replace("$ ", "$").split())


def plain_number(value: float) -> str:
    """A number without the trailing zeros of a float."""
    return f"{value:.10g}"


def word_problems(content: bytes) -> Iterator[dict[str, Any]]:
    """Problems of one operation with their numbers, a worked solution in words, and the part they belong to."""
    for row in csv.DictReader(io.StringIO(content.decode())):
        operation, *names = row["Equation"].split()
        if len(names) != 2:  # two operations or more
            continue
        values = {f"number{index}": float(value) for index, value in enumerate(row["Numbers"].split())}
        left, right = (values[name] if name in values else float(name) for name in names)
        text = row["Question"]
        for name, value in values.items():
            text = text.replace(name, plain_number(value))
        if abs(RESULTS[operation](left, right) - float(row["Answer"])) > 1e-6:  # a rounded answer
            continue
        answer = plain_number(float(row["Answer"]))
        numbers = {"left": plain_number(left), "right": plain_number(right), "value": answer}
        problem = tidy(text)
        bucket = int(sha256(problem.encode()).hexdigest(), 16) % 100
        equation = f"{numbers['left']} {SIGNS[operation]} {numbers['right']} = {answer}"
        yield {
            "problem": problem,
            "answer": answer,
            "part": "warm_start" if bucket < WARM_START_PERCENT else "study",
            "short": f"{equation}\n\\boxed{{{answer}}}",
            "worded": [f"{text.format(**numbers)} The answer is \\boxed{{{answer}}}." for text in WORDED[operation]],
        }


def svamp(content: bytes) -> Iterator[dict[str, Any]]:
    """Questions of SVAMP: story and question in one text."""
    for row in json.loads(content):
        body = row["Body"].strip()
        body = body if body.endswith((".", "?", "!")) else body + "."
        yield {"id": row["ID"], "problem": f"{body} {row['Question'].strip()}", "answer": plain_number(row["Answer"])}


def gsm8k(content: bytes) -> Iterator[dict[str, Any]]:
    """Questions of GSM8K with the number after ####."""
    for line in content.decode().splitlines():
        row = json.loads(line)
        yield {"problem": row["question"], "answer": row["answer"].split("####")[1].strip().replace(",", "")}


def make(folder: Path | None, out: Path) -> None:
    """Write every file of the study to `out`."""
    contents = {name: read_source(name, folder) for name in SOURCES}
    acpbench = [row for name in SOURCES if name.startswith("acpbench") for row in json.loads(contents[name])]
    tables = {
        "word_problems.jsonl": list(word_problems(contents["word_problems.csv"])),
        "svamp.jsonl": list(svamp(contents["SVAMP.json"])),
        "gsm8k_test.jsonl": list(gsm8k(contents["gsm8k_test.jsonl"])),
        "acpbench.jsonl": acpbench,
    }
    files = {name: "".join(json.dumps(row) + "\n" for row in rows).encode() for name, rows in tables.items()}
    files["humaneval.jsonl"] = gzip.decompress(contents["HumanEval.jsonl.gz"])
    files["ifeval.jsonl"] = contents["ifeval.jsonl"]
    files["mctaco_test.tsv"] = contents["mctaco_test.tsv"]
    out.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        temporary = out / f".{name}.part"
        temporary.write_bytes(content)
        temporary.replace(out / name)
        print(f"{out / name}: {len(content) / 1e6:.2f} MB")


def main() -> int:
    """Run the command line; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--from", dest="folder", type=Path, help="folder with the publishers' files")
    out = Path(__file__).parent / "data"
    parser.add_argument("--out", type=Path, default=out, help="where to write; default: %(default)s")
    arguments = parser.parse_args()
    try:
        make(arguments.folder, arguments.out)
    except SourceError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"error: {arguments.out} cannot be written ({error}); give another folder with --out", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
