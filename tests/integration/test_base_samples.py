"""Samples of a local model: the pass-rate filter and a transformers teacher, with the smoke study's base."""

import json
import shutil
from collections import Counter, defaultdict
from pathlib import Path

import pytest

from data.corpus import demonstrations
from data.corpus.build import run as build_corpus
from data.corpus.rows import problem_id, read_demonstrations, read_problems
from data.grading.grader import Grader
from data.prompts.prompt import load_tokenizer
from data.sampling.store import SampleStore
from launch.stages import build_stages
from recipes.loading import load_recipe
from recipes.manifest import read_manifest, start_stage
from tests.paths import SMOKE

SAMPLER = "{kind: transformers, model: base, samples_per_problem: 4, temperature: 1.0, top_p: 1.0, concurrency: 16}"


@pytest.fixture(scope="module")
def study(smoke_study, tmp_path_factory):
    study = tmp_path_factory.mktemp("samples") / "study"
    study.mkdir()
    (study / "base").symlink_to(smoke_study / "base")
    return study


def build(study, *overrides):
    recipe = load_recipe(SMOKE, ["corpus.train_problems=null", "corpus.heldout_problems=0", *overrides])
    shutil.rmtree(study / "corpus", ignore_errors=True)
    start_stage(study / "corpus", "corpus", {})
    build_corpus(recipe, study, study / "corpus", resume=False)
    return read_manifest(study / "corpus")["facts"]


@pytest.fixture(scope="module")
def problems(tmp_path_factory):
    """Sixty problems of the world as a file, so that the base has a chance and there is no scripted teacher."""
    from data.pocket_world import corpus_problems

    path = tmp_path_factory.mktemp("world") / "rows.jsonl"
    rows = [{"problem": q.problem, "answer": q.reference_answer} for q in corpus_problems(5, "train", 60)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = f"corpus.sources=[{{kind: file, name: world, path: {path}}}]"
    return [source, "arms={}", "corpus.near_duplicate=null"]


def stored_samples(study):
    (path,) = (study.parent / "samples").glob("*.jsonl")
    samples = defaultdict(dict)
    for line in path.read_text().splitlines():
        identity, index, completion, finished, tokens, *_ = json.loads(line)
        samples[identity][index] = (completion, finished, tokens)
    return path, samples


def test_pass_rate_filter_keeps_what_the_base_solves_sometimes(study, problems):
    setting = f"corpus.pass_rate={{low: 0.25, high: 0.75, sampler: {SAMPLER}}}"
    facts = build(study, *problems, "corpus.teacher=null", "corpus.problem_set=all", setting)
    _, samples = stored_samples(study)
    golds = {}
    rows = [json.loads(line) for line in Path(problems[0].split("path: ")[1][:-2]).read_text().splitlines()]
    golds = {problem_id(row["problem"]): row["answer"] for row in rows}
    grader = Grader()
    rates = {
        identity: sum(grader.grade(completion, golds[identity]).correct for completion, _, _ in found.values()) / 4
        for identity, found in samples.items()
    }
    assert len(rates) == 60
    assert len(set(rates.values())) > 2  # the base solves some, sometimes
    kept = {row.problem_id: row.base_pass_rate for row in read_problems(study / "corpus", "train")}
    assert kept == {identity: rate for identity, rate in rates.items() if 0.25 <= rate <= 0.75}
    removed = {
        "pass_rate_too_low": sum(r < 0.25 for r in rates.values()),
        "pass_rate_too_high": sum(r > 0.75 for r in rates.values()),
    }
    assert facts["funnel"][-2]["removed"] == {reason: count for reason, count in sorted(removed.items()) if count}
    parameters = read_manifest(study / "base")["facts"]["parameters"]
    tokens = round(sum(tokens for found in samples.values() for _, _, tokens in found.values()))
    spent = {"samples": 240, "generated_tokens": tokens, "generate_flops": 2 * parameters * tokens}
    assert facts["sampling"] == [{"phase": "pass_rate", "model": "base"} | spent]


def test_local_teacher_continues_with_the_same_samples(study, problems, tmp_path):
    teacher = [f"corpus.teacher={SAMPLER}", "corpus.problem_set=teacher_solvable"]
    build(study, *problems, *teacher)
    path, samples = stored_samples(study)
    whole = path.read_text()
    expected = read_demonstrations(study / "corpus")
    assert Counter(row.grade for rows in expected.values() for row in rows)["correct"] > 0
    tokenizer = load_tokenizer(str(study / "base"))
    for rows in expected.values():
        for row in rows:
            text, finished, _ = samples[row.problem_id][row.sample_index]
            assert row.completion == text
            assert row.tokens == len(tokenizer(text)["input_ids"]) + 1  # as SFT will read it, end of turn included
            assert row.fits == (finished and row.tokens <= 64)
    # Killed in the second batch: the rest is drawn again as it was.
    lines = whole.splitlines(keepends=True)
    path.write_text("".join(lines[:100]) + lines[100][:20])
    build(study, *problems, *teacher)
    assert read_demonstrations(study / "corpus") == expected
    assert sorted(path.read_text().splitlines()) == sorted(whole.splitlines())


def test_stored_completions_are_graded_and_matched_by_text(study, problems, tmp_path):
    rows = [json.loads(line) for line in Path(problems[0].split("path: ")[1][:-2]).read_text().splitlines()]
    stored = tmp_path / "stored.jsonl"
    published = [
        {"q": rows[0]["problem"].upper(), "r": [f"\\boxed{{{rows[0]['answer']}}}", "\\boxed{0}"]},
        {"q": rows[1]["problem"], "r": f"<think>\nx\n</think>\n\\boxed{{{rows[1]['answer']}}}"},
        {"q": "another problem", "r": "\\boxed{1}"},
    ]
    stored.write_text("".join(json.dumps(row) + "\n" for row in published))
    files = f"{{kind: file, name: published, path: {stored}, problem_field: q, completion_field: r}}"
    facts = build(study, *problems, f"corpus.teacher={{kind: stored, model: m, stored: {files}}}")
    assert facts["demonstrations"] == {"correct": 2, "wrong": 1}
    assert facts["teacher_solvable"] == 2
    found = read_demonstrations(study / "corpus")[problem_id(rows[1]["problem"])]
    assert [(row.thinking, row.teacher, row.grade) for row in found] == [("x", "m", "correct")]


def test_more_samples_later_draw_only_those(smoke_study, tmp_path, monkeypatch):
    """The first two of each problem stay as they are, and the model is asked for the other two alone."""
    import data.language_model as subject
    from data.sampling.completions import sample_locally
    from recipes.corpus_schema import SamplerSpec

    asked = []
    generate = subject.generate

    def counted(model, tokenizer, prompts, **decoding):
        asked.append(len(prompts))
        return generate(model, tokenizer, prompts, **decoding)

    monkeypatch.setattr(subject, "generate", counted)
    recipe = load_recipe(SMOKE)
    problems = [(f"id-{n}", f"{n}+{n + 1}=?") for n in range(5)]
    store = SampleStore(tmp_path / "samples.jsonl")
    for count in (2, 4, 4):
        spec = SamplerSpec(
            kind="transformers", model="base", samples_per_problem=count, concurrency=3, max_completion_tokens=16
        )
        sample_locally(spec, recipe.prompt, problems, store, str(smoke_study / "base"), "float32")
        drawn = {identity: store.of(identity, count) for identity, _ in problems}
        if count == 2:
            first = drawn
    store.close()
    assert asked == [6, 4, 6, 4]  # batches of three problems and of two, twice two samples each; then nothing
    assert {identity: rows[:2] for identity, rows in drawn.items()} == first


def test_a_local_sampler_that_was_written_again_is_another_sampler(tmp_path, monkeypatch):
    """Its samples are kept apart, and the corpus that was made with the old one is out of date."""
    folder = tmp_path / "teacher"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"1")
    teacher = f"{{kind: transformers, model: {folder}, samples_per_problem: 4}}"
    recipe = load_recipe(SMOKE, [f"corpus.teacher={teacher}"])
    monkeypatch.setattr(demonstrations, "sample_locally", lambda *_: None)

    def corpus_and_store():
        (stage,) = [stage for stage in build_stages(recipe) if stage.name == "corpus"]
        paths = []
        monkeypatch.setattr(
            demonstrations, "SampleStore", lambda path, longest: paths.append(path) or SampleStore(path)
        )
        demonstrations.draw_samples(recipe.corpus.teacher, recipe, tmp_path / "study", [], None, "demonstrations")
        return stage.reads[f"content of {folder}"], paths[0]

    before = corpus_and_store()
    assert corpus_and_store() == before
    (folder / "model.safetensors").write_bytes(b"22")
    after = corpus_and_store()
    assert after[0] != before[0]
    assert after[1] != before[1]
