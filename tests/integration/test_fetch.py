"""`transfer fetch` against a hub on the loopback, and builds that read what it fetched without a network."""

import hashlib
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.servers import hub

ROOT = Path(__file__).resolve().parent.parent.parent
SHA = "0123456789abcdef0123456789abcdef01234567"
ROWS = [
    {
        "prompt": [{"role": "user", "content": f"Solve. What is {n} squared? Answer!"}],
        "truth": {"answer": str(n * n)},
        "kind": "a",
    }
    for n in range(2, 12)
]
RECIPE = """
study: fetched
model: null
corpus:
  sources:
    - kind: hub
      name: squares
      dataset: org/squares
      files: [data/*.parquet]
      problem_field: prompt.0.content
      problem_prefix: "Solve. "
      problem_suffix: " Answer!"
      answer_field: truth.answer
      where: {kind: [a]}
  decontamination:
    benchmarks:
      - {kind: hub, name: bench, dataset: org/bench, files: [test.jsonl], text_fields: [question], restricted: true}
  near_duplicate: null
  problem_set: all
"""


def parquet(rows):
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), sink)
    return sink.getvalue()


@pytest.fixture
def repositories():
    bench = "Tell me please, what is the value of 5 squared, dear reader?"
    return {
        "datasets/org/squares": {
            "sha": SHA,
            "files": {
                "data/train-0.parquet": parquet(ROWS[:6]),
                "data/train-1.parquet": parquet(ROWS[6:]),
                "README.md": b"x",
            },
        },
        "datasets/org/bench": {"sha": SHA[::-1], "files": {"test.jsonl": json.dumps({"question": bench}).encode()}},
    }


@pytest.fixture
def run(tmp_path):
    """Run the command with a hub cache of its own; `address=None` means offline."""
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(RECIPE)

    def run(*arguments, address=None):
        network = {"HF_ENDPOINT": address, "HF_HUB_OFFLINE": "0"} if address else {"HF_HUB_OFFLINE": "1"}
        settings = {"HF_HOME": str(tmp_path / "hub"), "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
        return subprocess.run(
            [sys.executable, "-m", "launch", *map(str, arguments)],
            cwd=ROOT, capture_output=True, text=True, check=False,
            env={**os.environ, **settings, **network},
        )  # fmt: skip

    return run


def lock_of(tmp_path):
    return json.loads((tmp_path / "recipe.lock.json").read_text())


def test_fetch_pins_what_was_seen_and_the_build_needs_no_network(tmp_path, repositories, run):
    recipe = tmp_path / "recipe.yaml"
    before = run("run", recipe, "--out", tmp_path / "study")
    assert before.returncode == 2
    assert "source squares is not resolved; run `transfer fetch RECIPE`" in before.stderr
    assert run("plan", recipe).returncode == 0
    with hub(repositories) as address:
        result = run("fetch", recipe, address=address)
    assert result.returncode == 0, result.stderr
    files = repositories["datasets/org/squares"]["files"]
    assert lock_of(tmp_path)["sources"]["squares"] == {
        "dataset": "org/squares",
        "revision": SHA,
        "gated": False,
        "files": {
            f"data/train-{n}.parquet": hashlib.sha256(files[f"data/train-{n}.parquet"]).hexdigest() for n in (0, 1)
        },
        "rows": 10,
    }
    assert "squares" in result.stdout
    assert "10 rows" in result.stdout
    assert SHA[:12] in result.stdout
    built = run("run", recipe, "--out", tmp_path / "study")
    assert built.returncode == 0, built.stdout + built.stderr
    problems = pq.read_table(tmp_path / "study" / "corpus" / "problems.parquet").to_pylist()
    assert {row["problem"]: row["reference_answer"] for row in problems} == {
        f"What is {n} squared?": str(n * n) for n in range(2, 12)
    }
    assert f"| squares | org/squares | {SHA} |" in (tmp_path / "study" / "corpus" / "README.md").read_text()


def fetched(tmp_path, repositories, run):
    with hub(repositories) as address:
        assert run("fetch", tmp_path / "recipe.yaml", address=address).returncode == 0


def test_restricted_questions_are_compared_but_not_copied(tmp_path, repositories, run):
    question = "In how many ways can the king of the hill cross the seven old bridges?"
    repositories["datasets/org/bench"]["files"]["test.jsonl"] = json.dumps({"question": question}).encode()
    rows = [*ROWS, {"prompt": [{"role": "user", "content": question}], "truth": {"answer": "8"}, "kind": "a"}]
    repositories["datasets/org/squares"]["files"] = {"data/all.parquet": parquet(rows)}
    fetched(tmp_path, repositories, run)
    assert run("run", tmp_path / "recipe.yaml", "--out", tmp_path / "study").returncode == 0
    corpus = tmp_path / "study" / "corpus"
    (found,) = [json.loads(line) for line in (corpus / "contamination.jsonl").read_text().splitlines()]
    assert (found["benchmark"], found["question"], found["coverage"]) == ("bench", "question 0, not copied", 1.0)
    for name in ("contamination.jsonl", "rejects.jsonl", "README.md"):  # a near-copy would give it away as well
        assert "king of the hill" not in (corpus / name).read_text()


@pytest.mark.parametrize("damage", ["content", "rows", "missing"])
def test_build_refuses_what_is_not_what_was_locked(tmp_path, repositories, run, damage):
    fetched(tmp_path, repositories, run)
    if damage == "rows":
        lock = lock_of(tmp_path)
        lock["sources"]["squares"]["rows"] = 9
        (tmp_path / "recipe.lock.json").write_text(json.dumps(lock))
        message = "source squares has 10 rows, 9 were locked"
    else:
        (blob,) = (tmp_path / "hub").rglob(f"snapshots/{SHA}/data/train-1.parquet")
        target = blob.resolve()
        target.unlink()
        if damage == "content":
            target.write_bytes(parquet(ROWS[6:9]))
        message = "is not the file that was locked" if damage == "content" else "cannot be reached"
    result = run("run", tmp_path / "recipe.yaml", "--out", tmp_path / "study")
    assert result.returncode == 2
    assert message in result.stdout + result.stderr
    assert "Traceback" not in result.stdout + result.stderr
    assert not (tmp_path / "study" / "corpus" / "problems.parquet").exists()


def test_lock_of_another_dataset_or_commit_is_refused(tmp_path, repositories, run):
    fetched(tmp_path, repositories, run)
    for override, message in (
        ("corpus.sources.0.dataset=org/other", "the lock is for dataset org/squares"),
        (f"corpus.sources.0.revision={SHA[::-1]}", f"the lock is for revision {SHA}"),
        ("corpus.sources.0.files=[other.jsonl]", "the lock is for files data/train-0.parquet"),
    ):
        result = run("run", tmp_path / "recipe.yaml", override, "--out", tmp_path / "study")
        assert result.returncode == 2
        assert message in result.stdout + result.stderr
    with hub(repositories) as address:
        bad = run("fetch", tmp_path / "recipe.yaml", "corpus.sources.0.dataset=a/b/c", address=address)
    assert bad.returncode == 2
    assert "Traceback" not in bad.stderr


def test_failed_fetch_is_a_sentence_and_leaves_the_lock(tmp_path, repositories, run):
    fetched(tmp_path, repositories, run)
    recipe, before = tmp_path / "recipe.yaml", (tmp_path / "recipe.lock.json").read_bytes()
    repositories["datasets/org/gated"] = {"sha": SHA, "gated": "auto", "files": {"a.jsonl": b"{}"}}
    cases = [
        (["corpus.sources.0.dataset=org/absent"], "dataset org/absent does not exist on the hub or needs a token"),
        (["corpus.sources.0.files=[x/*.parquet]"], "dataset org/squares has no file that matches x/*.parquet"),
        (["corpus.sources.0.answer_field=gold"], "has no column 'gold'; it has kind, prompt"),
        (["corpus.sources.0.answer_field=truth.gold"], "no row has a value at 'truth.gold'"),
        (["corpus.sources.0.revision=deadbeef"], "dataset org/squares has no such revision"),
        (
            ["corpus.sources.0.dataset=org/gated", "corpus.sources.0.files=[a.jsonl]"],
            "org/gated is gated: accept its terms at https://huggingface.co/datasets/org/gated and set HF_TOKEN",
        ),
    ]
    with hub(repositories) as address:
        results = [(message, run("fetch", recipe, *overrides, address=address)) for overrides, message in cases]
    results.append(("cannot be reached", run("fetch", recipe, address="http://127.0.0.1:9")))
    for message, result in results:
        assert result.returncode == 2, result.stderr
        assert message in result.stderr
        assert "Traceback" not in result.stderr
    assert (tmp_path / "recipe.lock.json").read_bytes() == before


def test_local_file_is_locked_too(tmp_path, run):
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"problem": "1+1?", "answer": "2"}\n')
    (tmp_path / "recipe.yaml").write_text(
        f"study: local\ncorpus:\n  sources: [{{kind: file, name: rows, path: {rows}}}]\n  problem_set: all\n"
    )
    assert run("fetch", tmp_path / "recipe.yaml").returncode == 0
    rows.write_text('{"problem": "1+2?", "answer": "3"}\n')
    result = run("run", tmp_path / "recipe.yaml", "--out", tmp_path / "study")
    assert result.returncode == 2
    assert "rows.jsonl is not the file that was locked (other sha256)" in result.stdout


def test_model_is_fetched_and_prepared_from_the_snapshot(tmp_path, smoke_study, run):
    base = smoke_study / "base"
    files = {p.name: p.read_bytes() for p in base.iterdir() if p.suffix in (".json", ".jinja", ".safetensors")}
    repositories = {"models/org/tiny": {"sha": SHA, "files": files | {"evil.py": b"raise SystemExit"}}}
    smoke = (ROOT / "recipes" / "pocket" / "smoke.yaml").read_text()
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(smoke.replace("  pocket: {hidden_size: 64", "  path: org/tiny #"))
    unresolved = run("run", recipe, "--until", "base", "--out", tmp_path / "study")
    assert "model org/tiny is not resolved" in unresolved.stderr
    with hub(repositories) as address:
        result = run("fetch", recipe, "--json", address=address)
    assert result.returncode == 0, result.stderr
    entry = json.loads(result.stdout)["models"]["org/tiny"]
    assert entry["revision"] == SHA
    assert entry["files"]["model.safetensors"] == hashlib.sha256(files["model.safetensors"]).hexdigest()
    assert "evil.py" not in entry["files"]
    assert run("run", recipe, "--until", "base", "--out", tmp_path / "study").returncode == 0
    assert (tmp_path / "study" / "base" / "model.safetensors").read_bytes() == files["model.safetensors"]


SUITE = """
study: suite
suite:
  tasks: twelve
  benchmarks:
    - name: math500
      group: math
      promptings: [robust]
      scorings: {robust: boxed}
      data: {kind: hub, dataset: org/math, files: [test.jsonl], fields: {problem: problem}, id_field: n}
"""


def math_rows(count):
    return "".join(json.dumps({"problem": f"{n}+1?", "answer": n + 1, "n": n}) + "\n" for n in range(count)).encode()


def test_suite_is_pinned_and_changed_rows_are_refused(tmp_path, run, smoke_study):
    repositories = {"datasets/org/math": {"sha": SHA, "files": {"test.jsonl": math_rows(4)}}}
    suite = tmp_path / "suite.yaml"
    suite.write_text(SUITE)
    evaluate = ["eval", "--base", smoke_study / "base", "--model", smoke_study / "base", "--suite", suite]
    evaluate += ["--out", tmp_path / "study", "suite.engine={kind: hf}", "suite.max_response_tokens=2"]
    unresolved = run(*evaluate)
    assert unresolved.returncode == 2
    assert "benchmark math500 is not resolved; run `transfer fetch` on its recipe" in unresolved.stderr
    with hub(repositories) as address:
        result = run("fetch", suite, address=address)
    assert result.returncode == 0, result.stderr
    lock = json.loads((tmp_path / "suite.lock.json").read_text())["benchmarks"]["math500"]
    assert (lock["revision"], lock["rows"]) == (SHA, 4)
    scored = run(*evaluate)
    assert scored.returncode == 0, scored.stdout + scored.stderr
    (cached,) = (tmp_path / "hub").rglob("snapshots/*/test.jsonl")
    content = cached.read_bytes()
    cached.unlink()
    cached.write_bytes(content.replace(b"0+1?", b"0+9?"))
    changed = run(*evaluate[:7], "--out", tmp_path / "other", *evaluate[9:])
    assert changed.returncode == 2, changed.stdout
    assert "is not the file that was locked (other sha256)" in changed.stdout + changed.stderr


def test_missing_access_to_a_benchmark_is_one_sentence_with_its_page(tmp_path, run):
    gated = {"datasets/org/math": {"sha": SHA, "gated": "auto", "files": {"test.jsonl": math_rows(2)}}}
    suite = tmp_path / "suite.yaml"
    suite.write_text(SUITE)
    with hub(gated) as address:
        result = run("fetch", suite, address=address)
    assert result.returncode == 2
    assert "org/math is gated: accept its terms at https://huggingface.co/datasets/org/math" in result.stderr
    assert not (tmp_path / "suite.lock.json").exists()
