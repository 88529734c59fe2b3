"""Demonstrations from a server that speaks the chat completion protocol, also when it misbehaves."""

import json
import signal
import subprocess
import sys
import time
from collections import Counter

import pyarrow.parquet as pq
import pytest

from data.corpus.rows import read_demonstrations, read_problems
from data.prompts.thinking import strip_thinking
from data.sampling import completions as sampling
from data.sampling.completions import sample_from_endpoint
from data.sampling.store import Sample, SampleStore, sample_seed, sampling_config, store_path
from recipes.corpus_schema import SamplerSpec
from recipes.errors import UserError
from recipes.training_schema import PromptSpec
from tests.paths import RECIPES, ROOT
from tests.support.forked_command import killed_when
from tests.support.servers import TeacherState, teacher

PROMPT = PromptSpec(suffix=" Box it.", system="Be brief.", max_completion_tokens=99)
PROBLEMS = [(f"id{n}", f"{n}+1?") for n in range(6)]


def answer(problem, seed, index):
    """Right for two of three seeds, with the problem's number plus one in a box."""
    number = int(problem.split("+")[0]) + 1
    return f"<think>\nhm {seed % 7}\n</think>\n\nIt is \\boxed{{{number + (index == 2)}}}"


def spec(base_url, **settings):
    values = {
        "kind": "endpoint",
        "model": "qwen3-32b",
        "base_url": base_url,
        "samples_per_problem": 3,
        "concurrency": 2,
    }
    return SamplerSpec(**(values | settings))


def drawn(store):
    return {identity: [sample.completion for sample in store.of(identity, 3)] for identity, _ in PROBLEMS}


@pytest.fixture(autouse=True)
def short_waits(monkeypatch):
    monkeypatch.setattr(sampling, "_FIRST_WAIT_SECONDS", 0.01)


def test_requests_say_what_the_recipe_says(tmp_path, monkeypatch):
    monkeypatch.setenv("TEACHER_KEY", "sk-very-secret")
    state = TeacherState(answer)
    with teacher(state) as url:
        settings = spec(url, thinking="on", top_k=20, temperature=0.7, api_key_variable="TEACHER_KEY", seed=3)
        store = SampleStore(tmp_path / "s.jsonl")
        sample_from_endpoint(settings, PROMPT, PROBLEMS[:1], store)
    assert state.bodies == [
        {
            "model": "qwen3-32b",
            "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "0+1? Box it."}],
            "n": 3,
            "temperature": 0.7,
            "top_p": 0.95,
            "max_tokens": 99,
            "seed": sample_seed(3, "id0", 0),
            "top_k": 20,
            "chat_template_kwargs": {"enable_thinking": True},
        }
    ]
    assert state.headers[0]["Authorization"] == "Bearer sk-very-secret"
    assert "sk-very-secret" not in (tmp_path / "s.jsonl").read_text()
    (first, _, _) = store.of("id0", 3)
    assert first.completion == answer("0+1?", sample_seed(3, "id0", 0), 0)
    assert first.finished
    assert first.generated_tokens == pytest.approx(7)  # 21 words in three choices


def test_every_fault_is_tried_again_and_nothing_is_lost_or_asked_twice(tmp_path):
    state = TeacherState(answer, ["rate limit", 500, "hang", "reset", "garbage", "one choice too few", 503])
    with teacher(state) as url:
        store = SampleStore(tmp_path / "s.jsonl")
        sample_from_endpoint(spec(url, timeout_seconds=0.5), PROMPT, PROBLEMS, store)
        plain = SampleStore(tmp_path / "plain.jsonl")
        sample_from_endpoint(spec(url), PROMPT, PROBLEMS, plain)
        asked = len(state.bodies)
        sample_from_endpoint(spec(url), PROMPT, PROBLEMS, plain)  # all there: no request
    assert drawn(store) == drawn(plain)
    assert len(state.bodies) == asked
    assert Counter(state.answered.values()) == {6: 6}  # three choices for each of the two stores


def test_more_samples_later_ask_only_for_those(tmp_path):
    state = TeacherState(answer)
    with teacher(state) as url:
        store = SampleStore(tmp_path / "s.jsonl")
        sample_from_endpoint(spec(url, samples_per_problem=2), PROMPT, PROBLEMS[:1], store)
        sample_from_endpoint(spec(url, samples_per_problem=5), PROMPT, PROBLEMS[:1], store)
    assert [body["n"] for body in state.bodies] == [2, 3]
    assert state.bodies[1]["seed"] == sample_seed(0, "id0", 2)


def test_torn_line_is_dropped_and_asked_again(tmp_path):
    state = TeacherState(answer)
    path = tmp_path / "s.jsonl"
    with teacher(state) as url:
        store = SampleStore(path)
        sample_from_endpoint(spec(url), PROMPT, PROBLEMS[:2], store)
        store.close()
        whole = path.read_text()
        path.write_text(whole[:-9])
        store = SampleStore(path)
        assert sorted([*store.missing("id0", 3), *store.missing("id1", 3)]) == [2]
        sample_from_endpoint(spec(url), PROMPT, PROBLEMS[:2], store)
        store.close()
    assert [body["n"] for body in state.bodies] == [3, 3, 1]
    lines = path.read_text().splitlines()
    assert len(lines) == 6
    for line in lines:  # the limit, and the request that brought it: its seed, its choices, the place among them
        identity, index, *_, limit, seed, choices, choice = json.loads(line)
        assert (limit, seed, choices, choice) in {
            (99, sample_seed(0, identity, 0), 3, index),
            (99, sample_seed(0, identity, 2), 1, 0),
        }


def test_server_that_is_gone_stops_soon_and_keeps_what_it_said(tmp_path):
    many = [(f"id{n}", f"{n}+1?") for n in range(100)]
    state = TeacherState(answer, [None] * 5 + [500] * 1000)
    with teacher(state) as url:
        store = SampleStore(tmp_path / "s.jsonl")
        with pytest.raises(UserError, match=r"got no answer from .* status 500.*the same command requests the rest"):
            sample_from_endpoint(spec(url, attempts=2), PROMPT, many, store)
        assert len(state.bodies) < 60
        assert sum(not store.missing(identity, 3) for identity, _ in many) == 5
    with pytest.raises(UserError, match="connection failed"):
        sample_from_endpoint(spec("http://127.0.0.1:9/v1", attempts=1), PROMPT, many, store)


def test_refusals_are_sentences(tmp_path, monkeypatch):
    store = SampleStore(tmp_path / "s.jsonl")
    with (
        teacher(TeacherState(answer, [404])) as url,
        pytest.raises(UserError, match=r"status 404.*check base_url, model"),
    ):
        sample_from_endpoint(spec(url, concurrency=1), PROMPT, PROBLEMS, store)
    with teacher(TeacherState(answer, [400])) as url, pytest.raises(UserError, match=r"1 of 6 problems .* status 400"):
        sample_from_endpoint(spec(url), PROMPT, PROBLEMS, store)
    monkeypatch.delenv("TEACHER_KEY", raising=False)
    with pytest.raises(UserError, match="TEACHER_KEY with the server's key is not set"):
        sample_from_endpoint(spec("http://127.0.0.1:9", api_key_variable="TEACHER_KEY"), PROMPT, [("x", "y")], store)


def test_thinking_beside_the_content_and_stripped():
    reply = {"choices": [{"finish_reason": "stop", "message": {"content": "\n\n4", "reasoning_content": "2+2\n"}}]}
    assert sampling.parse_reply(reply, 1, stripped=False).completions == [("<think>\n2+2\n</think>\n\n4", True)]
    assert sampling.parse_reply(reply, 1, stripped=True).completions == [("4", True)]
    assert strip_thinking("<think>never ends") == ""
    assert strip_thinking("no thinking") == "no thinking"


def test_another_sampling_configuration_has_another_file(tmp_path):
    one = spec("http://a/v1")
    same = [one, spec("http://b/v1", concurrency=9, attempts=2), spec("http://a/v1", samples_per_problem=99)]
    other = [spec("http://a/v1", thinking="off"), spec("http://a/v1", temperature=0.1), spec("http://a/v1", seed=1)]
    paths = [store_path(tmp_path, sampling_config(item, PROMPT)) for item in (*same, *other)]
    assert len(set(paths[:3])) == 1
    assert len(set(paths)) == 4
    assert store_path(tmp_path, sampling_config(one, PromptSpec(suffix="?"))) not in paths


# One store for all studies


def test_length_limit_has_no_file_of_its_own(tmp_path):
    paths = {
        store_path(tmp_path, sampling_config(spec("http://a/v1", max_completion_tokens=n), PROMPT))
        for n in (None, 10, 1000)
    }
    assert len(paths) == 1


def by_length(problem, seed, index):
    """Choice 0 has 3 words, choice 1 has 30, choice 2 has 300; words are the tokens of the tests' server."""
    return " ".join([f"w{seed}.{index}"] * 3 * 10**index)


def limited(state_answers):
    """A teacher that cuts at `max_tokens`, as servers do."""

    class Cutting(TeacherState):
        def __init__(self):
            super().__init__(None)
            self.answers = self.cut

        def cut(self, problem, seed, index):
            words = state_answers(problem, seed, index).split(" ")
            limit = self.bodies[-1]["max_tokens"]
            return " ".join(words) if len(words) <= limit else " ".join([*words[: limit - 1], "CUT"])

    return Cutting()


def test_samples_of_one_limit_serve_another(tmp_path):
    """Finished ones serve every longer limit; cut ones are asked for again, by the same request; shorter limits cut."""
    state = limited(by_length)
    path = tmp_path / "s.jsonl"
    one = PROBLEMS[:1]

    def draw(limit):
        store = SampleStore(path, limit)
        sample_from_endpoint(spec(state.url, max_completion_tokens=limit), PROMPT, one, store)
        store.close()
        return [(len(s.completion.split()), s.finished) for s in store.of("id0", 3)]

    with teacher(state) as state.url:
        assert draw(50) == [(3, True), (30, True), (50, False)]
        assert [body["max_tokens"] for body in state.bodies] == [50]
        assert draw(50) == [(3, True), (30, True), (50, False)]
        assert draw(40) == [(3, True), (30, True), (40, False)]
        assert draw(20) == [(3, True), (20, False), (20, False)]
        assert len(state.bodies) == 1
        assert draw(400) == [(3, True), (30, True), (300, True)]
        assert len(state.bodies) == 2
        first, second = state.bodies
        assert second == first | {"max_tokens": 400}  # the same request, its seed and three choices
        for limit, expected in ((1000, [3, 30, 300]), (300, [3, 30, 300]), (200, [3, 30, 200])):
            assert [words for words, _ in draw(limit)] == expected
        assert len(state.bodies) == 2
    texts = [json.loads(line)[2] for line in path.read_text().splitlines()]
    assert len(texts) == 4  # one was drawn twice, cut and whole; the others are in the file once
    assert texts[3].startswith(texts[2].removesuffix("CUT"))


APPEND = """
import sys
from pathlib import Path
from data.sampling.store import Sample, SampleStore

store = SampleStore(Path(sys.argv[1]), 9999)
for number in range(200):
    text = sys.argv[2] * 5000  # longer than what an append writes at once
    store.add([Sample(f"id{number}", index, text, True, 1.0, 9999) for index in range(2)])
"""


def test_several_processes_append_to_one_file(tmp_path):
    path = tmp_path / "s.jsonl"
    command = [sys.executable, "-c", APPEND, str(path)]
    writers = [subprocess.Popen([*command, letter], cwd=ROOT) for letter in "abc"]
    assert [writer.wait() for writer in writers] == [0, 0, 0]
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert sorted((identity, index) for identity, index, *_ in rows) == sorted(
        (f"id{n}", index) for n in range(200) for index in range(2)
    )
    assert {row[2] for row in rows} <= {letter * 5000 for letter in "abc"}
    store = SampleStore(path)
    assert {s.completion for s in store.of("id7", 2)} == {row[2] for row in rows if row[0] == "id7"}


def test_killed_writer_loses_only_the_line_it_was_writing(tmp_path):
    path = tmp_path / "s.jsonl"
    writer = subprocess.Popen([sys.executable, "-c", APPEND, str(path), "a"], cwd=ROOT)
    while not path.exists() or path.stat().st_size < 100_000:
        time.sleep(0.005)
    writer.kill()
    writer.wait()
    with path.open("ab") as file:
        file.write(b'["id0", 7, "half a li')
    store = SampleStore(path, 9999)
    known = len(path.read_bytes().splitlines()) - 1
    assert known >= 19
    store.add([Sample("new", 0, "x", True, 1.0, 9999)])
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert len(rows) == known + 1
    assert rows[-1][0] == "new"


# The whole stage


def corpus_command(tmp_path, url, *more):
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"problem": f"{n}+1?", "answer": str(n + 1)}) + "\n" for n in range(40)))
    settings = [
        f"corpus.sources.0.path={rows}", "corpus.sources.0.level_field=null", "corpus.sources.0.levels=null",
        "corpus.near_duplicate=null", "corpus.problem_set=teacher_solvable",
        f"corpus.teacher={{kind: endpoint, model: t, base_url: '{url}', samples_per_problem: 3, concurrency: 2}}",
        "corpus.teacher.parameters=1.0e+6",
    ]  # fmt: skip
    recipe = RECIPES / "corpora" / "math_train_file.yaml"
    return ["run", recipe, "--no-reuse", "--until", "corpus", *settings, *more]


def whole_answer(problem, seed, index):
    number = int(problem.split("+")[0])
    if number % 10 == 3:
        return f"\\boxed{{{number}}}"  # always wrong
    if index == 1:
        return f"\\boxed{{{number + 1}}} CUT"  # right, but never finished
    return answer(problem, seed, index)


@pytest.fixture
def run_corpus(transfer):
    return lambda tmp_path, url, out, *more: transfer(*corpus_command(tmp_path, url, *more), "--out", out)


def test_corpus_with_an_endpoint_teacher(tmp_path, run_corpus):
    state = TeacherState(whole_answer)
    with teacher(state) as url:
        result = run_corpus(tmp_path, url, tmp_path / "study")
    assert result.returncode == 0, result.stdout + result.stderr
    corpus = tmp_path / "study" / "corpus"
    demonstrations = read_demonstrations(corpus)
    assert {identity: len(rows) for identity, rows in demonstrations.items()} == {
        p.problem_id: 3 for p in read_problems(corpus, "train")
    }
    grades = Counter((row.grade, row.fits) for rows in demonstrations.values() for row in rows)
    # 36 problems: one right and finished, one right but cut off, one wrong; 4 problems: all three wrong.
    assert grades == {("correct", True): 36, ("correct", False): 36, ("wrong", True): 36 + 12}
    solvable = read_problems(corpus, "train", "teacher_solvable")
    assert len(solvable) == 36
    facts = json.loads((corpus / "manifest.json").read_text())["facts"]
    assert facts["teacher_solvable"] == 36
    assert facts["unsolved_by_level"] == {"None": 4}
    words = sum(len(whole_answer(f"{n}+1?", 0, index).split()) for n in range(40) for index in range(3))
    (row,) = [json.loads(line) for line in (corpus / "ledger.jsonl").read_text().splitlines()]
    assert row == {
        "phase": "teacher",
        "model": "t",
        "samples": 120,
        "generated_tokens": words,
        "generate_flops": 2_000_000 * words,
    }
    assert pq.read_table(corpus / "demonstrations.parquet")["thinking"].to_pylist().count("") < 120


def test_kill_in_the_middle_asks_only_for_the_rest(tmp_path, run_corpus):
    reference = TeacherState(whole_answer)
    with teacher(reference) as url:
        assert run_corpus(tmp_path, url, tmp_path / "elsewhere" / "reference").returncode == 0
    state = TeacherState(whole_answer, delay_seconds=0.2)
    with teacher(state) as url:
        with killed_when(tmp_path / "study", lambda: sum(state.answered.values()) >= 30):
            killed = run_corpus(tmp_path, url, tmp_path / "study")
        assert killed.returncode == -signal.SIGKILL, "the study ended before it could be killed"
        time.sleep(0.5)  # its worker dies with it
        assert 30 <= sum(state.answered.values()) < 120
        state.delay_seconds = 0.0
        again = run_corpus(tmp_path, url, tmp_path / "study")
    assert again.returncode == 0, again.stdout
    # At most the two requests that were under way at the kill were asked twice.
    assert sum(state.answered.values()) <= 120 + 2 * 3
    hashes = [
        json.loads((tmp_path / name / "corpus" / "manifest.json").read_text())["output_hash"]
        for name in ("elsewhere/reference", "study")
    ]
    assert hashes[0] == hashes[1]


@pytest.mark.slow
def test_another_study_asks_only_for_what_no_study_has(tmp_path, monkeypatch, run_corpus):
    state = TeacherState(whole_answer)
    with teacher(state) as url:
        assert run_corpus(tmp_path, url, tmp_path / "first").returncode == 0
        (path,) = (tmp_path / "samples").glob("*.jsonl")
        assert path.name.startswith("t-")
        asked = len(state.bodies)
        # A longer limit: the 40 samples that were cut are asked for again, with the request that brought them.
        longer = run_corpus(tmp_path, url, tmp_path / "second", "prompt.max_completion_tokens=100000")
        assert longer.returncode == 0, longer.stdout + longer.stderr
        cut = {body["messages"][-1]["content"]: body["seed"] for body in state.bodies[asked:]}
        before = {body["messages"][-1]["content"]: body["seed"] for body in state.bodies[:asked]}
        assert len(cut) == len(state.bodies) - asked == 36
        assert cut.items() <= before.items()
        asked = len(state.bodies)
        assert run_corpus(tmp_path, url, tmp_path / "third").returncode == 0
        assert len(state.bodies) == asked
        monkeypatch.setenv("TRANSFER_SAMPLES", str(tmp_path / "elsewhere"))
        assert run_corpus(tmp_path, url, tmp_path / "fourth").returncode == 0
        assert len(state.bodies) == asked + 40
    hashes = [
        json.loads((tmp_path / name / "corpus" / "manifest.json").read_text())["output_hash"]
        for name in ("first", "third", "fourth")
    ]
    assert len(set(hashes)) == 1


@pytest.mark.slow
def test_changed_filter_reuses_the_samples(tmp_path, run_corpus):
    state = TeacherState(whole_answer)
    with teacher(state) as url:
        assert run_corpus(tmp_path, url, tmp_path / "study").returncode == 0
        asked = len(state.bodies)
        again = run_corpus(tmp_path, url, tmp_path / "study", "corpus.train_problems=10")
    assert again.returncode == 0, again.stdout
    assert "corpus (corpus.train_problems: null -> 10)" in again.stdout
    assert len(state.bodies) == asked
