"""vLLM's OpenAI-compatible server with the pocket model: as engine of the evaluation and as teacher of a corpus."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from data.sampling.completions import SampleStore, sample_from_endpoint
from eval.responses.engines import EngineOnDemand, engine_facts
from eval.scorers.records import mean_score
from eval.scorers.rules import score_rows
from recipes.corpus_schema import SamplerSpec
from recipes.errors import UserError
from recipes.training_schema import PromptSpec
from tests.engines.outputs import HF, assert_equal_up_to_ties, generate, pocket_questions, recipe_for
from tests.paths import ROOT, SMOKE

pytestmark = pytest.mark.engines

LENGTH = 128


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Server:
    """`vllm serve` of one model on a port of the loopback."""

    def __init__(self, model_dir, log):
        self.model_dir, self.log, self.port = model_dir, log, free_port()
        self.process = None

    def start(self):
        program = str(Path(sys.executable).with_name("vllm"))
        command = [
            sys.executable, program, "serve", str(self.model_dir), "--host", "127.0.0.1", "--port", str(self.port),
            "--served-model-name", "pocket", "--dtype", "float32", "--max-model-len", str(LENGTH), "--enforce-eager",
            "--gpu-memory-utilization", "0.5", "--disable-log-stats",
        ]  # fmt: skip
        with self.log.open("ab") as file:
            self.process = subprocess.Popen(command, stdout=file, stderr=file, start_new_session=True)
        end = time.monotonic() + 300
        while time.monotonic() < end:
            assert self.process.poll() is None, self.log.read_text()[-3000:]
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/health", timeout=2):
                    return
            except OSError:
                time.sleep(0.3)
        raise AssertionError(self.log.read_text()[-3000:])

    def kill(self):
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}/v1"

    def engine(self, model="pocket"):
        return f"suite.engine={{kind: endpoint, base_url: '{self.url}/completions', model: {model}, concurrent: 4}}"


@pytest.fixture(scope="module")
def server(pocket_study, tmp_path_factory):
    running = Server(pocket_study / "base", tmp_path_factory.mktemp("server") / "log")
    running.start()
    yield running
    running.kill()


def test_greedy_scores_equal_those_of_this_process_and_samples_repeat(server, pocket_study, tmp_path):
    outputs = {}
    for name, kind in (("hf", HF), ("endpoint", server.engine())):
        recipe = recipe_for(kind)
        with EngineOnDemand(recipe, pocket_study / "base", "base", tmp_path / name) as engine:
            outputs[name] = generate(engine(), recipe)
            if name == "endpoint":
                sampled = recipe_for(kind, "suite.temperature=1.0", "suite.samples_per_question=4")
                first, again = (generate(engine(), sampled, ("sum", "story")) for _ in range(2))
    assert_equal_up_to_ties(pocket_study / "base", outputs["hf"], outputs["endpoint"])
    for benchmark in (item for item in recipe.suite.benchmarks if item.name in outputs["hf"]):
        asked, rule = pocket_questions(recipe, benchmark.name, 8), benchmark.scorings["robust"]
        scores = [mean_score(score_rows(outputs[name][benchmark.name], asked, rule, 24)) for name in outputs]
        assert scores[0] == pytest.approx(scores[1], abs=1 / 8)
    assert engine_facts(tmp_path / "endpoint") == {
        "name": "endpoint", "version": "0.31.0", "device": None, "dtype": None, "model": "pocket",
    }  # fmt: skip
    texts = [row.responses for rows in first.values() for row in rows]
    assert [row.responses for rows in again.values() for row in rows] == texts
    assert sum(len(set(four)) > 1 for four in texts) >= 12


def test_a_server_of_another_model_or_of_shorter_texts_is_refused_before_it_is_asked(server, pocket_study, tmp_path):
    def load(recipe):
        with EngineOnDemand(recipe, pocket_study / "base", "base", tmp_path) as engine:
            engine()

    with pytest.raises(UserError, match=r"serves pocket, not theirs; set suite\.engine\.model"):
        load(recipe_for(server.engine("theirs")))
    longer = r"takes 128 tokens of prompt and response, but 129 may be needed; start it with --max-model-len 129"
    with pytest.raises(UserError, match=longer):
        load(recipe_for(server.engine(), "suite.max_response_tokens=25"))


def teacher(server, **values):
    fixed = {"kind": "endpoint", "model": "pocket", "base_url": server.url, "samples_per_problem": 2, "attempts": 1}
    return SamplerSpec(**(fixed | values))


def test_it_teaches(server, tmp_path):
    """Samples of two problems: stored, different from each other, the same when drawn again."""
    prompt = PromptSpec(max_prompt_tokens=64, max_completion_tokens=24)
    problems = [(q.question_id, q.fields["problem"]) for q in pocket_questions(recipe_for(), "sum", 4)]
    drawn = []
    for name in ("first", "again"):
        store = SampleStore(tmp_path / f"{name}.jsonl")
        sample_from_endpoint(teacher(server, temperature=1.0, top_p=1.0), prompt, problems, store)
        drawn.append([sample for identity, _ in problems for sample in store.of(identity, 2)])
        store.close()
    assert drawn[0] == drawn[1]
    assert len(drawn[0]) == 8
    assert {sample.finished for sample in drawn[0]} <= {True, False}
    assert any(sample.completion.startswith("\\boxed{") for sample in drawn[0])
    for first, second in zip(drawn[0][::2], drawn[0][1::2], strict=True):  # the server tells the sum of both
        assert 2 <= first.generated_tokens + second.generated_tokens <= 48


def test_a_teacher_whose_server_takes_less_than_a_completion_is_refused(server, tmp_path):
    prompt = PromptSpec(max_prompt_tokens=64, max_completion_tokens=128)
    store = SampleStore(tmp_path / "samples.jsonl")
    with pytest.raises(
        UserError, match=r"takes 128 tokens .* but 192 may be needed; start it with --max-model-len 192"
    ):
        sample_from_endpoint(teacher(server), prompt, [("p", "1+1=?")], store)
    with pytest.raises(UserError, match="serves pocket, not theirs; set its `model`"):
        sample_from_endpoint(teacher(server, model="theirs"), PromptSpec(), [("p", "1+1=?")], store)


def test_a_server_that_is_killed_is_a_sentence_and_the_command_goes_on_with_the_next(server, pocket_study, tmp_path):
    """kill -9 of the server after some chunks; the command ends with a sentence, and later asks only for the rest."""
    out, base = tmp_path / "study", pocket_study / "base"
    settings = ["model.dtype=float32", "suite.questions=40", "suite.samples_per_question=2", "suite.chunk_questions=1"]
    settings += ["suite.max_prompt_tokens=104", "suite.max_response_tokens=24", server.engine(), "resources.workers=1"]
    settings += ["suite.benchmarks=[{name: sum, group: math, scorings: {robust: boxed}}]"]
    arguments = ["--base", base, "--model", base, "--suite", SMOKE, "--out", out, *settings]
    command = [sys.executable, "-m", "launch", "eval", *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}

    def chunks():
        return {path: path.stat().st_mtime_ns for path in out.glob("eval/*/*/chunk-*")}

    process = subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    while not chunks():
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.01)
    server.kill()
    text, _ = process.communicate(timeout=300)
    assert process.returncode == 2, text
    assert f"the server at {server.url}/completions failed" in text
    assert "start it again, and the same command continues" in text
    before = chunks()
    assert 1 <= len(before) < 80
    server.start()
    result = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr
    after = chunks()
    assert len(after) == 80
    assert {path: after[path] for path in before} == before
