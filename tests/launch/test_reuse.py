"""A new study takes over what a study beside it has made, whole and unchanged, or not at all."""

import json
import os

import pytest

from eval.scorers.version import RULES_VERSION
from launch.planning.plan import build_plan
from launch.planning.plan_text import format_plan
from launch.reuse import plan_reuse, reuse
from launch.stages import build_stages, stage_inputs, stage_states
from recipes.files import hash_files, write_json
from recipes.loading import STUDY_FILE, load_recipe
from recipes.manifest import finish_stage, read_manifest, start_stage
from tests.paths import SMOKE

FILES = {
    "base": {"model.safetensors": "weights", "metrics.jsonl": "{}\n"},
    "corpus": {"problems.parquet": "problems"},
    "questions": {"sum.jsonl.zst": "1 + 1?"},
    "eval/base": {"sum-native/chunk-0.jsonl.zst": "2"},
}


def make(study, *overrides, until="eval/base"):
    """Make the first stages of the smoke study by hand; all but `metrics.jsonl` are outputs."""
    recipe = load_recipe(SMOKE, overrides)
    write_json(study / STUDY_FILE, recipe.dump())
    for stage in build_stages(recipe):
        if stage.name in FILES:
            folder = study / stage.name
            start_stage(folder, stage.name, stage_inputs(stage, study), stage.code, stage.facts.in_place)
            for name, text in FILES[stage.name].items():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                (folder / name).write_text(text)
            finish_stage(folder, hash_files(folder, [n for n in FILES[stage.name] if n != "metrics.jsonl"]))
        if stage.name == until:
            return study
    raise AssertionError(until)


def take(study, *overrides):
    """Take over into a study; the states of its stages."""
    recipe = load_recipe(SMOKE, overrides)
    stages = build_stages(recipe)
    reuse(recipe, study, stages)
    return {name: state.state for name, state in stage_states(stages, study).items() if name in FILES}


def test_stages_with_the_same_inputs_are_taken_over_with_equal_hashes(tmp_path, capsys):
    old, new = make(tmp_path / "old"), tmp_path / "new"
    assert take(new, "arms.grpo.beta=0.04") == dict.fromkeys(FILES, "done")
    assert capsys.readouterr().out == (
        f"  reused   base, corpus, questions, eval/base of {old} (--no-reuse makes them again)\n"
    )
    for name, files in FILES.items():
        before, after = read_manifest(old / name), read_manifest(new / name)
        assert after == before | {"reused_from": "../old"}
        for file, text in files.items():
            assert (new / name / file).read_text() == text
    assert not (new / ".reuse").exists()
    lock = json.loads((new / "analysis.lock").read_text())
    assert lock["before"] is True
    assert "arm grpo" in lock["declared"]


def test_a_third_study_takes_from_the_one_that_made_the_stages(tmp_path):
    make(tmp_path / "old")
    for name in ("between", "new"):
        assert take(tmp_path / name) == dict.fromkeys(FILES, "done")
        assert {read_manifest(tmp_path / name / stage)["reused_from"] for stage in FILES} == {"../old"}


def test_what_may_be_written_into_again_is_copied(tmp_path):
    old, new = make(tmp_path / "old"), tmp_path / "new"
    take(new)
    linked = {
        f"{name}/{file}": (old / name / file).samefile(new / name / file) for name in FILES for file in FILES[name]
    }
    assert linked == {
        "base/model.safetensors": True,
        "base/metrics.jsonl": False,
        "corpus/problems.parquet": True,
        "questions/sum.jsonl.zst": True,
        "eval/base/sum-native/chunk-0.jsonl.zst": False,
    }
    with (new / "eval/base/sum-native/chunk-0.jsonl.zst").open("a") as file:
        file.write("3")
    assert (old / "eval/base/sum-native/chunk-0.jsonl.zst").read_text() == "2"


def test_where_files_cannot_be_linked_they_are_copied(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    old, new = make(tmp_path / "old"), tmp_path / "new"
    assert take(new) == dict.fromkeys(FILES, "done")
    assert not (old / "base/model.safetensors").samefile(new / "base/model.safetensors")


@pytest.mark.parametrize(
    ("override", "kept"),
    [
        ("model.pocket.documents=23999", ["questions"]),
        ("corpus.heldout_problems=9", ["base", "questions", "eval/base"]),
        ("suite.questions=9", ["base"]),
        ("suite.max_response_tokens=47", ["base", "corpus", "questions"]),
        ("train.steps=5", list(FILES)),
    ],
)
def test_a_changed_input_is_not_taken_over(tmp_path, override, kept):
    make(tmp_path / "old")
    states = take(tmp_path / "new", override)
    assert [name for name, state in states.items() if state == "done"] == sorted(kept, key=list(states).index)
    assert {state for name, state in states.items() if name not in kept} <= {"new"}


def test_what_needs_a_stage_that_is_made_again_is_not_taken_over(tmp_path):
    """The base is by other code, and so everything that rests on it is made again."""
    old = make(tmp_path / "old")
    write_json(old / "base" / "manifest.json", read_manifest(old / "base") | {"code": "0123456789ab"})
    assert take(tmp_path / "new") == {"base": "new", "corpus": "new", "questions": "done", "eval/base": "new"}


def test_other_packages_are_another_stage(tmp_path, capsys):
    old = make(tmp_path / "old")
    manifest = read_manifest(old / "questions")
    here = manifest["environment"]["packages"]["datasets"]
    manifest["environment"]["packages"]["datasets"] = "0.0.1"
    write_json(old / "questions" / "manifest.json", manifest)
    assert take(tmp_path / "new")["questions"] == "new"
    assert f"  not reused questions of {old}: made with datasets 0.0.1, here {here}\n" in capsys.readouterr().out


def test_an_evaluation_judged_by_other_rules_is_not_taken_over(tmp_path, capsys):
    old = make(tmp_path / "old")
    manifest = read_manifest(old / "eval" / "base")
    write_json(old / "eval/base/manifest.json", manifest | {"facts": {"units": {"sum-native": {RULES_VERSION: "old"}}}})
    assert take(tmp_path / "new") == dict.fromkeys(FILES, "done") | {"eval/base": "new"}
    assert f"  not reused eval/base of {old}: made by other scoring rules\n" in capsys.readouterr().out


def test_the_plan_says_why_a_study_of_the_same_recipe_is_not_reused(tmp_path):
    recipe, new = load_recipe(SMOKE), tmp_path / "new"
    stages = build_stages(recipe)

    def notes():
        text = format_plan(build_plan(recipe, stages, new, with_reuse=True))
        return [line for line in text.splitlines() if "not reused" in line]

    # Another study altogether is not named; of one that differs in a setting it is said which.
    other = ("model.pocket.documents=23999", "model.pocket.seed=5", "model.pocket.hidden_size=16")
    make(tmp_path / "far", *other, until="base")
    assert notes() == []
    near = make(tmp_path / "near", "model.pocket.documents=23999", "suite.questions=9")
    documents, questions = recipe.model.pocket.documents, recipe.suite.questions
    assert notes() == [
        f"note: not reused base of {near}: made from other inputs (model.pocket.documents: 23999 -> {documents})",
        f"note: not reused questions of {near}: made from other inputs (suite.questions: 9 -> {questions})",
    ]
    # The nearest one is named, and with one that can be reused, none.
    old = make(tmp_path / "old")
    for name in ("base", "questions"):
        write_json(old / name / "manifest.json", read_manifest(old / name) | {"code": "0123456789ab"})
    assert notes() == [f"note: not reused base, questions of {old}: made by other code"]
    make(tmp_path / "same")
    assert notes() == []


CPUINFO = "processor\t: 0\nvendor_id\t: GenuineIntel\nflags\t\t: fpu sse2 fma avx avx2{}\n"


@pytest.fixture
def processor(tmp_path, monkeypatch):
    """Sets the vector instructions of this machine's processor, besides AVX2, and its variables."""
    file = tmp_path / "cpuinfo"
    monkeypatch.setattr("recipes.processor._CPUINFO", file)
    monkeypatch.delenv("OPENBLAS_CORETYPE", raising=False)

    def change(instructions="", **variables):
        file.write_text(CPUINFO.format(instructions))
        for name in ("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA"):
            monkeypatch.delenv(name, raising=False)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    change()
    return change


def test_stages_with_other_cpu_kernels_are_not_taken_over_and_it_is_said(tmp_path, capsys, processor):
    old = make(tmp_path / "old")
    assert read_manifest(old / "base")["environment"]["cpu_kernels"] == {
        "vendor": "GenuineIntel", "instructions": "avx avx2 fma"
    }  # fmt: skip
    recipe, stages = load_recipe(SMOKE), build_stages(load_recipe(SMOKE))
    for number, (change, said) in enumerate(
        [
            ({"ATEN_CPU_CAPABILITY": "default"}, "ATEN_CPU_CAPABILITY not set there, default here"),
            ({"ONEDNN_MAX_CPU_ISA": "AVX2"}, "ONEDNN_MAX_CPU_ISA not set there, AVX2 here"),
            (
                {"instructions": " avx512f avx512bw avx512vl amx_tile"},
                "here only: amx_tile, avx512bw, avx512f and 1 more",
            ),
        ]
    ):
        processor(**change)
        sentences = [f"not reused base, questions of {old}: made with other CPU kernels ({said})"]
        assert plan_reuse(recipe, tmp_path / f"new-{number}", stages) == ({}, sentences)
        assert take(tmp_path / f"new-{number}") == dict.fromkeys(FILES, "new")
        assert capsys.readouterr().out == "".join(f"  {text}\n" for text in sentences)
        plan = build_plan(recipe, stages, tmp_path / f"new-{number}", with_reuse=True)
        assert f"note: {sentences[0]}" in format_plan(plan)
        # Not on a cluster, whose nodes are not known, and not where GPUs compute.
        assert list(plan_reuse(recipe, tmp_path / "other", stages, on_cluster=True).sources) == list(FILES)
        on_gpu = load_recipe(SMOKE, ["resources.gpu=H100-80GB"])
        assert plan_reuse(on_gpu, tmp_path / "other", stages).refused == []
    processor()
    assert take(tmp_path / "same") == dict.fromkeys(FILES, "done")
    assert "not reused" not in capsys.readouterr().out


def test_stages_of_unknown_or_several_cpu_kernels_are_not_taken_over(tmp_path, capsys, processor):
    old = make(tmp_path / "old")
    manifest = read_manifest(old / "base")
    del manifest["environment"]["cpu_kernels"]  # as an earlier version wrote it
    write_json(old / "base" / "manifest.json", manifest)
    stage = next(stage for stage in build_stages(load_recipe(SMOKE)) if stage.name == "questions")
    write_json(old / "questions" / "manifest.json", read_manifest(old / "questions") | {"completed": None})
    processor(ATEN_CPU_CAPABILITY="avx2")
    assert start_stage(old / "questions", "questions", stage_inputs(stage, old), stage.code)
    finish_stage(old / "questions", hash_files(old / "questions", list(FILES["questions"])))
    processor()
    take(tmp_path / "new")
    why = "made with several kinds of CPU kernels, or before manifests recorded them"
    assert capsys.readouterr().out == f"  not reused base, questions of {old}: {why}\n"


@pytest.mark.parametrize("damage", ["changed", "missing", "manifest"])
def test_a_damaged_source_is_named_and_another_one_taken(tmp_path, capsys, damage):
    other, old, new = make(tmp_path / "another"), make(tmp_path / "old"), tmp_path / "new"
    for name in FILES:  # the damaged one comes first
        write_json(old / name / "manifest.json", read_manifest(old / name) | {"completed": "2099-01-01T00:00:00+00:00"})
    path = old / "base" / "model.safetensors"
    if damage == "changed":
        path.write_text("weightz")
    elif damage == "missing":
        path.unlink()
    else:
        manifest = read_manifest(old / "base")
        manifest["outputs"]["model.safetensors"] = "0" * 64
        write_json(old / "base" / "manifest.json", manifest)
    assert take(new) == dict.fromkeys(FILES, "done")
    lines = capsys.readouterr().out.splitlines()
    what = {"changed": "model.safetensors does not match its hash", "missing": "model.safetensors is missing"}
    assert lines[0] == f"  not reused base of {old}: " + what.get(damage, "its manifest does not match its hash")
    assert f"  reused   base of {other} (--no-reuse makes them again)" in lines
    assert read_manifest(new / "base")["reused_from"] == "../another"
    assert read_manifest(new / "corpus")["reused_from"] == "../old"
    assert (new / "base" / "model.safetensors").read_text() == "weights"


def test_a_damaged_source_alone_leaves_the_stage_to_be_made(tmp_path, capsys):
    old = make(tmp_path / "old")
    (old / "questions" / "sum.jsonl.zst").write_text("2 + 2?")
    assert take(tmp_path / "new")["questions"] == "new"
    assert "not reused questions" in capsys.readouterr().out
    assert not (tmp_path / "new" / "questions").exists()


def test_a_source_that_cannot_be_copied_is_a_sentence(tmp_path, monkeypatch, capsys):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("launch.reuse.shutil.copy2", full)
    old = make(tmp_path / "old")
    assert take(tmp_path / "new")["base"] == "new"
    assert f"not reused base of {old}: [Errno 28] No space left on device\n" in capsys.readouterr().out


@pytest.mark.faults
@pytest.mark.parametrize("moment", ["hash_file", "write_json", "write_lock"])
def test_a_kill_leaves_nothing_half_made(tmp_path, monkeypatch, moment):
    """Killed between the copies and the move of a stage; the next run goes on from the stages that are whole."""
    make(tmp_path / "old")
    new, real, calls = tmp_path / "new", reuse.__globals__[moment], []

    def die(*arguments):
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(f"launch.reuse.{moment}", die)
    with pytest.raises(KeyboardInterrupt):
        take(new)
    monkeypatch.undo()
    assert (new / ".reuse").exists()
    whole = [name for name in FILES if (new / name).exists()]
    assert whole == (["base"] if moment != "write_lock" else ["base", "corpus"])
    assert all(read_manifest(new / name)["reused_from"] == "../old" for name in whole)
    assert take(new) == dict.fromkeys(FILES, "done")
    assert not (new / ".reuse").exists()


def test_what_is_there_is_never_replaced(tmp_path):
    make(tmp_path / "old")
    new = make(tmp_path / "new", until="base")
    (new / "base" / "model.safetensors").write_text("mine")
    (new / "questions").mkdir()
    take(new)
    assert (new / "base" / "model.safetensors").read_text() == "mine"
    assert list((new / "questions").iterdir()) == []


def test_rehearsals_unfinished_stages_and_other_folders_are_no_sources(tmp_path):
    toy = make(tmp_path / "toy")
    write_json(toy / STUDY_FILE, json.loads((toy / STUDY_FILE).read_text()) | {"rehearsal": True})
    half = make(tmp_path / "half", until="base")
    write_json(half / "base" / "manifest.json", read_manifest(half / "base") | {"completed": None})
    (tmp_path / "notes").mkdir()
    broken = make(tmp_path / "broken")
    for name in FILES:
        (broken / name / "manifest.json").write_text('{"completed": "yes"}')
    make(tmp_path / "deeper" / "old")
    assert take(tmp_path / "new") == dict.fromkeys(FILES, "new")


def test_the_plan_says_what_would_be_reused_and_writes_nothing(tmp_path):
    old, new = make(tmp_path / "old", until="questions"), tmp_path / "new"
    recipe = load_recipe(SMOKE, [])
    stages = build_stages(recipe)
    assert list(plan_reuse(recipe, new, stages).sources) == ["base", "corpus", "questions"]
    plan = build_plan(recipe, stages, new, with_reuse=True)
    assert {stage.name: stage.state for stage in plan.stages if stage.name in FILES} == {
        "base": "reused", "corpus": "reused", "questions": "reused", "eval/base": "new"
    }  # fmt: skip
    assert plan.totals.on_one_machine.path[0].startswith("arms/")
    assert f"of {old}" in format_plan(plan)
    assert {stage.state for stage in build_plan(recipe, stages, new).stages} == {"new"}
    assert not new.exists()
