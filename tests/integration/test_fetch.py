"""`transfer fetch` against a hub on the loopback, and builds that read what it fetched without a network."""

import hashlib
import io
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.paths import RECIPES, SMOKE
from tests.support.forked_command import ForkedCommand, run_fresh
from tests.support.servers import hub

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


SETTINGS = {"HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}


@pytest.fixture(scope="module")
def offline(tmp_path_factory):
    """Commands without a network, and the link to the hub cache of all of them, which each test sets."""
    cache = tmp_path_factory.mktemp("home") / "hub"
    command = ForkedCommand({**SETTINGS, "HF_HOME": str(cache)})
    yield command, cache
    command.close()


@pytest.fixture
def run(tmp_path, offline):
    """Run the command with a hub cache of its own; `address=None` means offline."""
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    (tmp_path / "hub").mkdir()
    command, cache = offline
    cache.unlink(missing_ok=True)
    cache.symlink_to(tmp_path / "hub")

    def run(*arguments, address=None):
        words = list(map(str, arguments))
        if address is None:
            return command.run(words)
        network = {"HF_HOME": str(tmp_path / "hub"), "HF_ENDPOINT": address, "HF_HUB_OFFLINE": "0"}
        return run_fresh(words, settings={**SETTINGS, **network})

    return run


def lock_of(tmp_path):
    return json.loads((tmp_path / "recipe.lock.json").read_text())


def test_fetch_pins_what_was_seen_and_the_build_needs_no_network(tmp_path, repositories, run):
    recipe = tmp_path / "recipe.yaml"
    before = run("run", recipe, "--out", tmp_path / "study")
    assert before.returncode == 2
    unresolved = f"sources squares, bench are not resolved; run `transfer fetch {recipe}` on a connected machine"
    assert unresolved in before.stderr
    planned = run("plan", recipe)
    assert planned.returncode == 0
    assert f"missing: {unresolved}" in planned.stdout
    validated = run("validate", recipe)
    assert validated.returncode == 0
    assert f"missing: {unresolved}" in validated.stdout
    assert validated.stdout.endswith(
        "has no mistakes as far as it could be checked; fetch what is missing and validate again\n"
    )
    with hub(repositories) as address:
        result = run("fetch", recipe, address=address)
    assert result.returncode == 0, result.stderr
    assert "missing: " not in run("plan", recipe).stdout
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


def test_failed_fetch_is_a_sentence_and_pins_the_rest(tmp_path, repositories, run):
    fetched(tmp_path, repositories, run)
    recipe, before = tmp_path / "recipe.yaml", lock_of(tmp_path)
    repositories["datasets/org/gated"] = {"sha": SHA, "gated": "auto", "files": {"a.jsonl": b"{}"}}
    first = "corpus.sources.0"
    same = "kept from the previous lock: squares"
    gone = "not resolved: squares; the other 1 are in"
    cases = [
        (
            [f"{first}.dataset=org/absent"],
            "squares: dataset org/absent does not exist on the hub or needs a token",
            gone,
        ),
        ([f"{first}.files=[x/*.parquet]"], "squares: dataset org/squares has no file that matches x/*.parquet", gone),
        ([f"{first}.answer_field=gold"], "has no column 'gold'; it has kind, prompt", gone),
        ([f"{first}.answer_field=truth.gold"], "no row has a value at 'truth.gold'", gone),
        ([f"{first}.revision=deadbeef"], "squares: dataset org/squares has no such revision", same),
        (
            [f"{first}.dataset=org/gated", f"{first}.files=[a.jsonl]"],
            "org/gated is gated: accept its terms at https://huggingface.co/datasets/org/gated and set HF_TOKEN",
            gone,
        ),
    ]
    with hub(repositories) as address:
        for overrides, message, rest in cases:
            (tmp_path / "recipe.lock.json").write_text(json.dumps(before))
            result = run("fetch", recipe, *overrides, address=address)
            assert result.returncode == 2, result.stderr
            assert message in result.stderr
            assert rest in result.stderr
            assert "Traceback" not in result.stderr
            left = {} if rest is gone else {"squares": before["sources"]["squares"]}
            assert lock_of(tmp_path)["sources"] == left | {"bench": before["sources"]["bench"]}


def test_fetch_without_a_network_leaves_the_lock(tmp_path, repositories, run):
    fetched(tmp_path, repositories, run)
    before = (tmp_path / "recipe.lock.json").read_bytes()
    result = run("fetch", tmp_path / "recipe.yaml", address="http://127.0.0.1:9")
    assert result.returncode == 2
    assert result.stderr.splitlines()[-2] == (
        "transfer: the hub cannot be reached (ConnectError): dataset org/squares, dataset org/bench; run the same "
        "command on a machine with a network that shares this cache"
    )
    assert "kept from the previous lock: squares, bench" in result.stderr
    assert "not resolved" not in result.stderr
    assert (tmp_path / "recipe.lock.json").read_bytes() == before
    assert run("run", tmp_path / "recipe.yaml", "--out", tmp_path / "study").returncode == 0


# Several misses, alternatives


def said(result):
    """What the command itself wrote to standard error, without the hub's progress bars."""
    return [line for line in result.stderr.splitlines() if line.startswith("transfer: ")]


def jsonl(*rows):
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


MANY = """
study: many
corpus:
  sources:
    - {kind: hub, name: good, dataset: org/good, files: [a.jsonl]}
    - {kind: hub, name: moved, dataset: org/moved, files: [OE_maths/*.jsonl], alternatives: ALTERNATIVES}
    - {kind: hub, name: script, dataset: org/script, files: ["*.tsv"]}
    - {kind: hub, name: gated, dataset: org/gated, files: [a.jsonl]}
    - {kind: hub, name: half, dataset: org/good, files: [a.jsonl, b.jsonl]}
  near_duplicate: null
  problem_set: all
"""


@pytest.fixture
def many(tmp_path, run):
    """A recipe of five sources (in place of that of `run`), one of them where it says, and the hub they are on."""
    (tmp_path / "recipe.yaml").write_text(MANY.replace("ALTERNATIVES", "[]"))
    rows = jsonl({"problem": "1+1?", "answer": "2"}, {"problem": "1+2?", "answer": "3"})
    moved = {f"Olympiad/OE_maths/part-{n:02}.jsonl": rows for n in range(14)}
    return {
        "datasets/org/good": {"sha": SHA, "files": {"a.jsonl": rows}},
        "datasets/org/moved": {"sha": SHA, "files": moved | {"dataset_infos.json": b"{}", "README.md": b"x"}},
        "datasets/org/script": {"sha": SHA, "files": {"script.py": b"x", "README.md": b"x"}},
        "datasets/org/gated": {"sha": SHA, "gated": "auto", "files": {"a.jsonl": rows}},
    }


def test_every_problem_is_told_at_once_and_the_rest_is_pinned(tmp_path, many, run):
    recipe = tmp_path / "recipe.yaml"
    with hub(many) as address:
        result = run("fetch", recipe, address=address)
    assert result.returncode == 2
    assert "Traceback" not in result.stderr
    moved, script, gated, half, left = said(result)
    listed = ", ".join(f"Olympiad/OE_maths/part-{n:02}.jsonl" for n in range(12))
    assert moved == (
        "transfer: moved: dataset org/moved has no file that matches OE_maths/*.jsonl; it has "
        f"{listed} and 2 more; the nearest to OE_maths/*.jsonl is Olympiad/OE_maths/part-13.jsonl"
    )
    assert script == (
        "transfer: script: dataset org/script has no file that matches *.tsv: it has no data file, only README.md, "
        "script.py; `revision: refs/convert/parquet` may hold the hub's own conversion"
    )
    assert gated.startswith("transfer: gated: dataset org/gated is gated: accept its terms at")
    assert half.startswith("transfer: half: dataset org/good has no file that matches b.jsonl; it has a.jsonl")
    assert left == (
        f"transfer: not resolved: moved, script, gated, half; the other 1 are in {tmp_path / 'recipe.lock.json'}; "
        "after fixing that, run the same command again"
    )
    assert list(lock_of(tmp_path)["sources"]) == ["good"]
    refused = run("run", recipe, "--out", tmp_path / "study")
    assert refused.returncode == 2
    assert "sources moved, script, gated, half are not resolved" in refused.stderr
    # What is mended is added by a second call, also while the network is bad for the first.
    lock = lock_of(tmp_path)
    several = ["corpus.sources.1.files=[Olympiad/OE_maths/*.jsonl]", "corpus.sources.4.files=[a.jsonl]"]
    del many["datasets/org/good"]["files"]["a.jsonl"]
    many["datasets/org/script"]["files"]["x.tsv"] = b"problem\tanswer\n2+2?\t4\n"
    many["datasets/org/gated"]["gated"] = False
    with hub(many) as address:
        second = run("fetch", recipe, *several, address=address)
    assert "kept from the previous lock: good" in second.stderr
    assert "not resolved: half; the other 4 are in" in second.stderr
    assert lock_of(tmp_path)["sources"]["good"] == lock["sources"]["good"]
    rows = {name: entry["rows"] for name, entry in lock_of(tmp_path)["sources"].items()}
    assert rows == {"good": 2, "moved": 28, "script": 1, "gated": 2}
    many["datasets/org/good"]["files"]["a.jsonl"] = many["datasets/org/gated"]["files"]["a.jsonl"]
    with hub(many) as address:
        third = run("fetch", recipe, *several, address=address)
    assert third.returncode == 0, third.stderr
    assert run("run", recipe, *several, "--out", tmp_path / "study").returncode == 0


def test_first_place_that_has_files_is_taken_and_read_by_its_own_columns(tmp_path, many, run):
    alternatives = (
        "[{revision: refs/convert/parquet}, {dataset: org/mirror, files: [x.jsonl], problem_field: question}]"
    )
    recipe = tmp_path / "recipe.yaml"
    text = MANY.replace("ALTERNATIVES", alternatives)
    recipe.write_text(
        "\n".join(line for line in text.splitlines() if not any(n in line for n in ("script", "gated", "half")))
    )
    many["datasets/org/mirror"] = {"sha": SHA[::-1], "files": {"x.jsonl": jsonl({"question": "7+7?", "answer": "14"})}}
    with hub(many) as address:
        result = run("fetch", recipe, address=address)
    assert result.returncode == 0, result.stderr
    (line,) = [line for line in result.stdout.splitlines() if "is taken" in line]
    assert line.startswith(
        "  moved: alternative 2 is taken (org/mirror: x.jsonl), because dataset org/moved has no file that matches"
    )
    assert "; dataset org/moved has no such revision; see https://huggingface.co/datasets/org/moved" in line
    assert "org/mirror  alternative 2" in result.stdout
    entry = lock_of(tmp_path)["sources"]["moved"]
    assert (entry["dataset"], entry["revision"], entry["alternative"], entry["rows"]) == ("org/mirror", SHA[::-1], 2, 1)
    built = run("run", recipe, "--out", tmp_path / "study")
    assert built.returncode == 0, built.stdout + built.stderr
    rows = pq.read_table(tmp_path / "study" / "corpus" / "problems.parquet").to_pylist()
    assert {row["problem"] for row in rows} == {"1+1?", "1+2?", "7+7?"}
    assert f"| moved | org/mirror | {SHA[::-1]} |" in (tmp_path / "study" / "corpus" / "README.md").read_text()
    # Another order of alternatives, or fewer, is not what was locked.
    for change, message in (
        (
            "corpus.sources.1.alternatives=[{files: [y.jsonl]}, {files: [z.jsonl]}]",
            "the lock is for dataset org/mirror",
        ),
        ("corpus.sources.1.alternatives=[{files: [y.jsonl]}]", "the lock is for alternative 2, the recipe has 1"),
    ):
        refused = run("run", recipe, change, "--out", tmp_path / "other")
        assert refused.returncode == 2
        assert message in refused.stderr
    # A place that has its files comes before the mirror, also when it is one of the hub's conversions.
    many["datasets/org/moved"]["revisions"] = {
        "refs/convert/parquet": {"sha": "c" * 40, "files": {"OE_maths/0.jsonl": jsonl({"problem": "5", "answer": "5"})}}
    }
    with hub(many) as address:
        assert (
            "alternative 1 is taken (org/moved at refs/convert/parquet" in run("fetch", recipe, address=address).stdout
        )
    entry = lock_of(tmp_path)["sources"]["moved"]
    assert (entry["dataset"], entry["revision"], entry["alternative"]) == ("org/moved", "c" * 40, 1)


def test_missing_access_is_no_reason_to_take_another_place(tmp_path, many, run):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "study: x\ncorpus:\n  sources:\n    - {kind: hub, name: gated, dataset: org/gated, files: [a.jsonl], "
        "alternatives: [{dataset: org/good}]}\n  problem_set: all\n"
    )
    with hub(many) as address:
        result = run("fetch", recipe, address=address)
    assert result.returncode == 2
    assert "org/gated is gated" in result.stderr
    assert "no lock was written" in result.stderr
    assert not (tmp_path / "recipe.lock.json").exists()


@pytest.mark.parametrize(
    ("alternatives", "message"),
    [
        ("[{answer_field: gold}]", "alternatives.0 is the same location: set its `dataset`, `files` or `revision`"),
        ("[{files: [a], kind: file}]", "alternatives.0 sets `kind`, which all alternatives of a source share"),
        ("[{files: [a], answer: gold}]", "`alternatives.0.answer`: Extra inputs are not permitted"),
        ("[{files: []}]", "a source of kind `hub` needs `dataset` and `files`"),
    ],
)
def test_alternatives_are_checked_when_the_recipe_is_read(tmp_path, run, alternatives, message):
    (tmp_path / "recipe.yaml").write_text(MANY.replace("ALTERNATIVES", alternatives))
    result = run("plan", tmp_path / "recipe.yaml")
    assert result.returncode == 2
    assert message in result.stderr


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
    smoke = (SMOKE).read_text()
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
    evaluate.append("suite.max_prompt_tokens=1000")  # the base's context is 1,024
    unresolved = run(*evaluate)
    assert unresolved.returncode == 2
    assert f"benchmark math500 is not resolved; run `transfer fetch {suite}` on a connected" in unresolved.stderr
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


def test_coqa_of_either_publisher(tmp_path, run):
    """One has the questions as texts and one answer to each, the other as rows with the answers of four people."""
    turns = {"input_text": ["a cat", "sat"], "answer_start": [0, 2]}
    own = [{"story": "A cat sat.", "questions": ["Who?", "Did what?"], "answers": turns}]
    other = [own[0] | {"questions": {"input_text": own[0]["questions"], "turn_id": [1, 2]}}]
    other[0]["additional_answers"] = {"0": {"input_text": ["cat", "it sat"]}}
    repositories = {"datasets/stanfordnlp/coqa": {"sha": SHA, "files": {"data/validation-0.parquet": parquet(own)}}}
    repositories["datasets/EleutherAI/coqa"] = {"sha": SHA, "files": {"coqa_validation.parquet": parquet(other)}}
    twelve = (RECIPES / "suites" / "twelve.yaml").read_text()
    suite = tmp_path / "suite.yaml"
    parts = twelve.split("    - name: ")
    head = next(part for part in parts if part.startswith("math500"))
    coqa = next(part for part in parts if part.startswith("coqa"))
    suite.write_text("    - name: ".join([parts[0], head, coqa]))
    repositories["datasets/HuggingFaceH4/MATH-500"] = {
        "sha": SHA, "files": {"test.jsonl": jsonl({"problem": "1?", "answer": "1", "unique_id": 1})}
    }  # fmt: skip
    found = {}
    for publisher in ("EleutherAI", "stanfordnlp"):
        with hub(repositories) as address:
            result = run("fetch", suite, address=address)
        assert result.returncode == 0, result.stderr
        expected = "the number of questions differs from the recipe's published_rows (in brackets): "
        expected += "math500 1 (500), coqa 1 (500)"
        assert said(result) == [f"transfer: warning: {expected}"]
        script = (
            "from recipes.loading import load_recipe; from eval.questions.build import read_source_questions\n"
            "import json; "
            f"recipe = load_recipe({str(suite)!r}); from pathlib import Path; "
            "print(json.dumps([q.dump() for q in read_source_questions(recipe, recipe.suite.benchmarks[1], Path())]))"
        )
        printed = run("-c", script)
        assert printed.returncode == 0, printed.stderr
        (found[publisher],) = json.loads(printed.stdout)
        entry = json.loads((tmp_path / "suite.lock.json").read_text())["benchmarks"]["coqa"]
        assert entry["dataset"] == f"{publisher}/coqa"
        repositories.pop("datasets/EleutherAI/coqa", None)
    assert found["EleutherAI"]["reference"]["annotators"] == ["sat", "it sat"]
    assert found["stanfordnlp"]["reference"]["annotators"] == ["sat"]
    assert found["EleutherAI"]["fields"] == found["stanfordnlp"]["fields"] == {
        "story": "A cat sat.", "history": [{"question": "Who?", "answer": "a cat"}], "question": "Did what?"
    }  # fmt: skip
    assert found["EleutherAI"]["question_id"] == found["stanfordnlp"]["question_id"]


def test_missing_access_to_a_benchmark_is_one_sentence_with_its_page(tmp_path, run):
    gated = {"datasets/org/math": {"sha": SHA, "gated": "auto", "files": {"test.jsonl": math_rows(2)}}}
    suite = tmp_path / "suite.yaml"
    suite.write_text(SUITE)
    with hub(gated) as address:
        result = run("fetch", suite, address=address)
    assert result.returncode == 2
    assert "org/math is gated: accept its terms at https://huggingface.co/datasets/org/math" in result.stderr
    assert not (tmp_path / "suite.lock.json").exists()
