"""The scheduler of responses: a full engine, nothing generated twice, two workers, two models."""

import pytest

from eval.questions import build as questions
from eval.responses import engines
from eval.responses.claims import Claims
from eval.responses.journal import JournalIndex
from eval.responses.request_engine import RequestEngine
from eval.responses.scheduling import ResponseScheduler
from eval.responses.units import open_units
from launch.execution.replicas import work
from launch.stages import build_stages, stage_inputs
from recipes.loading import load_recipe
from recipes.manifest import finish_stage, start_stage
from tests.paths import SMOKE
from tests.support.servers import completions

SETTINGS = (
    "arms={}", "train=null", "suite.questions=10", "suite.samples_per_question=3", "suite.chunk_questions=4",
    "suite.benchmarks=[{name: sum, group: math, scorings: {robust: boxed}}, "
    "{name: copy, group: non_reasoning, scorings: {robust: exact}}]",
)  # fmt: skip
RESPONSES = 2 * 10 * 3


class FakeEngine(RequestEngine):
    """Runs four requests at a time; one that takes n steps answers with n words. Counts what it was sent."""

    max_num_seqs = 4

    def __init__(self, fail_after=None):
        self.left, self.texts, self.sent = {}, {}, []
        self.fail_after = fail_after
        self.waited = 0
        """Steps with less than four requests while some of the suite had not been sent."""

    def seed_key(self, prompt):
        return prompt

    def add_request(self, request_id, prompt, gen_kwargs, seed):
        self.left[request_id] = 1 + seed % (40 if seed % 10 == 0 else 5)  # one in ten is long
        self.texts[request_id] = " ".join([str(seed)] * self.left[request_id])
        self.sent.append((prompt, seed))

    def step(self):
        if self.fail_after == 0:
            raise RuntimeError("killed")
        self.waited += len(self.left) < self.max_num_seqs and len(self.sent) < RESPONSES
        for request_id in list(self.left)[: self.max_num_seqs]:
            self.left[request_id] -= 1
        finished = [request_id for request_id, left in self.left.items() if left == 0]
        for request_id in finished:
            del self.left[request_id]
        if self.fail_after is not None:
            self.fail_after -= 1
        return {request_id: self.texts[request_id] for request_id in finished}


def prepare(smoke_study, study, *overrides):
    """A study whose stage of the model `base` has begun; its recipe and units."""
    engine = "suite.engine={kind: endpoint, base_url: 'http://127.0.0.1:9/v1/completions', model: m}"
    recipe = load_recipe(SMOKE, [engine, *SETTINGS, *overrides])
    study.mkdir()
    (study / "base").symlink_to(smoke_study / "base")
    start_stage(study / "questions", "questions", {})
    questions.run(recipe, study, study / "questions", False)
    return recipe, begin(recipe, study, "base", "base")


def begin(recipe, study, label, model_dir):
    """The units of a stage that has begun."""
    stage_dir = study / "eval" / label
    (stage,) = [stage for stage in build_stages(recipe) if stage.name == f"eval/{label}"] or [None]
    start_stage(stage_dir, f"eval/{label}", stage_inputs(stage, study) if stage else {}, stage.code if stage else "")
    units = open_units(recipe, study, stage_dir, model_dir)
    for unit in units:
        start_stage(unit.directory, unit.name, unit.inputs)
    return units


def generate(monkeypatch, engine, recipe, study, units):
    """Responses that a worker with this engine generated; what it leaves is complete if it did not fail."""
    monkeypatch.setattr(engines, "load_engine", lambda *arguments: engine)
    monkeypatch.setattr(engines, "describe_engine", lambda *arguments: {})
    with ResponseScheduler(recipe, study, study / "base", units) as scheduler:
        try:
            scheduler.run()
        finally:
            scheduler.write_complete_chunks()
    return scheduler.generated


def test_the_engine_is_full_while_requests_remain_and_chunk_files_hold_all_responses(
    smoke_study, tmp_path, monkeypatch
):
    recipe, units = prepare(smoke_study, tmp_path / "study")
    engine = FakeEngine()
    assert generate(monkeypatch, engine, recipe, tmp_path / "study", units) == RESPONSES
    assert engine.waited == 0
    assert len(set(engine.sent)) == RESPONSES
    rows = [row for unit in units for row in unit.rows()]
    assert sorted((row.prompt, int(text.split()[0])) for row in rows for text in row.responses) == sorted(engine.sent)
    assert [len(list(unit.directory.glob("chunk-*"))) for unit in units] == [3, 3]
    assert not [path for unit in units for path in unit.directory.glob("answers-*")]


def test_the_batches_of_a_chunk_are_progress(smoke_study, tmp_path):
    """transformers on a chunk of 4 questions with 3 samples: its 12 responses count before the chunk is written."""
    recipe, units = prepare(smoke_study, tmp_path / "study", "suite.engine={kind: hf, batch_size: 5}")
    study, seen = tmp_path / "study", []
    with ResponseScheduler(recipe, study, study / "base", units) as scheduler:
        scheduler.run(lambda: seen.append(scheduler.stored()))
    assert seen == sorted(seen)
    assert [count for count in range(13) if count in seen] == list(range(1, 13))
    assert seen[-1] == RESPONSES


def test_a_worker_that_dies_loses_what_was_running_and_the_rest_is_the_same(smoke_study, tmp_path, monkeypatch):
    recipe, units = prepare(smoke_study, tmp_path / "whole")
    generate(monkeypatch, FakeEngine(), recipe, tmp_path / "whole", units)
    study = tmp_path / "killed"
    recipe, killed = prepare(smoke_study, study)
    engine, second = FakeEngine(fail_after=15), FakeEngine()
    with pytest.raises(RuntimeError, match="killed"):
        generate(monkeypatch, engine, recipe, study, killed)
    in_flight = len(engine.left)
    assert 4 <= in_flight <= 6  # those that ran, and half as many waiting in the engine
    assert generate(monkeypatch, second, recipe, study, killed) == RESPONSES - (len(engine.sent) - in_flight)
    assert len(second.sent) == RESPONSES - (len(engine.sent) - in_flight)
    assert [unit.rows() for unit in killed] == [unit.rows() for unit in units]


def test_requests_expected_to_be_long_come_first(smoke_study, tmp_path, monkeypatch):
    """By the lengths of the model that was evaluated before."""
    recipe, units = prepare(smoke_study, tmp_path / "study")
    study = tmp_path / "study"
    generate(monkeypatch, FakeEngine(), recipe, study, units)
    for unit in units:
        finish_stage(unit.directory, {})
    lengths = {}
    for unit in units:
        for row in unit.rows():
            lengths[row.prompt] = sum(row.tokens) / 3
    engine = FakeEngine()
    (study / "next").symlink_to(smoke_study / "base")
    generate(monkeypatch, engine, recipe, study, begin(recipe, study, "next", "next"))
    order = [lengths[prompt] for prompt, _ in engine.sent]
    assert order == sorted(order, reverse=True)
    assert order[0] > 2 * order[-1]


def test_the_last_response_of_a_model_does_not_hold_up_the_next(smoke_study, tmp_path, capsys):
    """A worker that generates the last response of the base is slow; another goes on to the next model."""
    study = tmp_path / "study"
    with completions([], lambda prompt, seed: f"\\boxed{{{seed}}}") as address:
        engine = f"suite.engine={{kind: endpoint, base_url: '{address}', model: 'm-{{label}}', concurrent: 4}}"
        arms = f"arms={{other: {{external: {{path: {smoke_study / 'base'}}}}}}}"
        recipe, units = prepare(smoke_study, study, engine, arms)
        (study / "external").mkdir()
        (study / "external" / "other").symlink_to(smoke_study / "base")
        others = begin(recipe, study, "other", "external/other")
        key, slow = f"{units[0].name}-{units[0].version}", 7
        with Claims(study / "eval" / "base" / ".queue") as claims:
            assert claims.claim(iter([(key, slow)]), 1)
            assert work(recipe, study, wait=False) == 0
        assert f"{2 * RESPONSES - 1} response(s) generated" in capsys.readouterr().out
        for unit, count in zip([*units, *others], [29, 30, 30, 30], strict=True):
            assert len(JournalIndex(unit).refresh()) == count
        assert work(recipe, study, wait=False) == 0
        assert "1 response(s) generated" in capsys.readouterr().out
