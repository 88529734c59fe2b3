"""The stage graph: order, early cut-off, names of what changed."""

import json
from pathlib import Path

import pytest

from eval.questions.analysis_lock import declared
from launch.stages import build_stages, furthest_until, select_until, stage_inputs, stage_states
from recipes.errors import UserError
from recipes.files import hash_json
from recipes.loading import load_recipe
from recipes.manifest import finish_stage, start_stage
from tests.paths import POCKET


def finish_all(recipe, study_dir):
    for stage in build_stages(recipe):
        start_stage(study_dir / stage.name, stage.name, stage_inputs(stage, study_dir))
        (study_dir / stage.name / "result").touch()
        finish_stage(study_dir / stage.name, {"result": stage.name})


def states(recipe, study_dir):
    return {name: state.state for name, state in stage_states(build_stages(recipe), study_dir).items()}


def test_inputs_hold_the_output_of_everything_a_stage_needs(tmp_path):
    recipe = load_recipe(POCKET)
    finish_all(recipe, tmp_path)
    for stage in build_stages(recipe):
        inputs = stage_inputs(stage, tmp_path)
        for name in stage.needs:
            expected = json.loads((tmp_path / name / "manifest.json").read_text())["output_hash"]
            assert inputs[f"output of {name}"] == expected


def test_an_arm_stands_after_the_arm_it_starts_from(tmp_path):
    late = "arms={third: {sampling: current, credit: advantage, negatives: true, start_from: second}, " \
           "second: {sampling: current, credit: uniform, start_from: first}, " \
           "first: {sampling: teacher, credit: uniform}, free: {sampling: teacher, credit: uniform}}"  # fmt: skip
    stages = build_stages(load_recipe(POCKET, [late, "varies=[sampling,credit,negatives,start_from]"]))
    names = [stage.name for stage in stages if stage.kind == "arms"]
    assert names == ["arms/first/seed-0", "arms/second/seed-0", "arms/third/seed-0", "arms/free/seed-0"]
    assert set(stage_states(stages, tmp_path)) == {stage.name for stage in stages}


def test_order_and_names():
    recipe = load_recipe(POCKET, ["seeds=[0,1]"])
    stages = build_stages(recipe)
    assert [stage.name for stage in stages[:4]] == [
        "base",
        "corpus",
        "arms/off_policy_sft/seed-0",
        "arms/off_policy_sft/seed-1",
    ]
    # Base, corpus, questions and report; six runs; four things that are done with the base and every run.
    assert len(stages) == 4 + 3 * 2 + 4 * (1 + 3 * 2)
    assert [stage.name for stage in stages if stage.name.endswith(("grpo/seed-1", "grpo-seed1-final"))] == [
        "arms/grpo/seed-1", "drift/grpo/seed-1", "trajectory/grpo/seed-1", "eval/grpo-seed1-final",
        "diagnostics/grpo-seed1-final",
    ]  # fmt: skip
    place = {stage.name: number for number, stage in enumerate(stages)}
    assert all(place[needed] < place[stage.name] for stage in stages for needed in stage.needs)


def of_run(arm, seed):
    """The stages of one run and of what is done with it."""
    run, model = f"{arm}/seed-{seed}", f"{arm}-seed{seed}-final"
    return {f"arms/{run}", f"drift/{run}", f"trajectory/{run}", f"eval/{model}", f"diagnostics/{model}"}


def test_change_of_one_arm_touches_that_arm_alone(tmp_path):
    finish_all(load_recipe(POCKET), tmp_path)
    assert set(states(load_recipe(POCKET), tmp_path).values()) == {"done"}
    changed = load_recipe(POCKET, ["arms.grpo.beta=0.1"])
    found = {name for name, state in states(changed, tmp_path).items() if state != "done"}
    assert found == {"report", *of_run("grpo", 0)}
    reasons = stage_states(build_stages(changed), tmp_path)["arms/grpo/seed-0"].reasons
    assert reasons == ("arm.beta: 0.0 -> 0.1",)


@pytest.mark.parametrize(
    ("override", "touched"),
    [
        ("title=other", {"report"}),
        ("seeds=[0,1]", {"report", *of_run("grpo", 1), *of_run("on_policy_sft", 1), *of_run("off_policy_sft", 1)}),
        ("trajectory.samples=1", {"report", "trajectory/base",
                                  *(f"trajectory/{a}/seed-0" for a in ("grpo", "on_policy_sft", "off_policy_sft"))}),
        ("diagnostics=null", {"report"}),
        ("statistics.draws=500", {"report"}),
        ("resources.workers=1", set()),
        ("train.micro_batch_tokens=400", {"report"}),
        ("train.micro_batch_size=4", {"report"}),
        ("train.save_every_steps=5", {"report"}),
        ("train.save_every_minutes=5", {"report"}),
        ("arms.grpo.train={micro_batch_tokens: 400}", {"report"}),
        ("arms.grpo.learning_rate=0.5", {"report", *of_run("grpo", 0)}),
    ],
)  # fmt: skip
def test_what_an_override_touches(tmp_path, override, touched):
    finish_all(load_recipe(POCKET), tmp_path)
    after = states(load_recipe(POCKET, [override]), tmp_path)
    assert {name for name, state in after.items() if state != "done"} == touched


def test_an_interrupted_arm_resumes_with_other_micro_batches(tmp_path):
    recipe = load_recipe(POCKET)
    finish_all(recipe, tmp_path)
    name = "arms/grpo/seed-0"
    (stage,) = [stage for stage in build_stages(recipe) if stage.name == name]
    with_size = stage_inputs(stage, tmp_path) | {"arm.micro_batch_size": 8}  # as the input hash of earlier versions
    (tmp_path / name / "manifest.json").unlink()
    start_stage(tmp_path / name, name, with_size)
    kept = tmp_path / name / "checkpoint-25"
    kept.mkdir()
    smaller = load_recipe(
        POCKET, ["train.micro_batch_size=2", "train.micro_batch_tokens=400", "train.save_every_steps=5"]
    )
    (stage,) = [stage for stage in build_stages(smaller) if stage.name == name]
    assert states(smaller, tmp_path)[name] == "resume"
    assert start_stage(tmp_path / name, name, stage_inputs(stage, tmp_path)) is True
    assert kept.exists()
    recorded = json.loads((tmp_path / name / "manifest.json").read_text())["inputs"]
    assert (recorded["arm.micro_batch_size"], recorded["arm.micro_batch_tokens"]) == (2, 400)
    # The reasons name what is compared, alone.
    other = load_recipe(POCKET, ["train.micro_batch_tokens=500", "train.weight_decay=0.5"])
    found = stage_states(build_stages(other), tmp_path)[name]
    assert (found.state, found.reasons) == ("changed", ("arm.weight_decay: 0.0 -> 0.5",))


def test_new_base_touches_everything(tmp_path):
    finish_all(load_recipe(POCKET), tmp_path)
    after = states(load_recipe(POCKET, ["model.pocket.seed=5"]), tmp_path)
    assert {name for name, state in after.items() if state == "done"} == {"questions"}


def test_regrouped_benchmark_makes_a_new_report_even_from_equal_scores(tmp_path):
    finish_all(load_recipe(POCKET), tmp_path)
    regrouped = load_recipe(POCKET, ["suite.benchmarks.2.group=non_reasoning"])
    for stage in build_stages(regrouped):  # corpus and eval run again, with the outputs they had
        if stage.kind != "report":
            start_stage(tmp_path / stage.name, stage.name, stage_inputs(stage, tmp_path))
            (tmp_path / stage.name / "result").touch()
            finish_stage(tmp_path / stage.name, {"result": stage.name})
    after = stage_states(build_stages(regrouped), tmp_path)
    assert {name for name, state in after.items() if state.state != "done"} == {"report"}
    assert after["report"].reasons[0] == 'suite.benchmarks.subtract.group: "other_reasoning" -> "non_reasoning"'


def test_edited_files_are_inputs(tmp_path):
    source = tmp_path / "rows.jsonl"
    source.write_text('{"problem": "1+1", "answer": "2"}\n')
    tasks = tmp_path / "tasks"
    tasks.mkdir()
    (tasks / "sum.yaml").write_text("task: sum\n")
    study = tmp_path / "study"
    recipe = load_recipe(
        POCKET,
        [
            f"corpus.sources=[{{kind: file, name: rows, path: {source}}}]",
            "corpus.teacher=null",
            "corpus.problem_set=all",
            "arms={}",
            f"suite.tasks={tasks}",
            "suite.benchmarks=[{name: sum, group: math, scorings: {robust: boxed}}]",
        ],
    )
    finish_all(recipe, study)
    assert set(states(recipe, study).values()) == {"done"}
    (tasks / "__pycache__").mkdir()  # left by importing a task's functions
    assert set(states(recipe, study).values()) == {"done"}
    (tasks / "sum.yaml").write_text("task: sum\nnum_fewshot: 1\n")
    assert {name for name, state in states(recipe, study).items() if state != "done"} == {"eval/base", "report"}
    source.write_text('{"problem": "1+1", "answer": "3"}\n')
    found = stage_states(build_stages(recipe), study)
    assert found["corpus"].reasons[0] == f"content of {source} changed"
    assert found["base"].state == "done"


def test_corpus_alone_depends_on_the_tokenizer_it_reads():
    path = POCKET.parent.parent / "qwen3-14b" / "corpus.yaml"

    def reads(*overrides):
        (stage,) = build_stages(load_recipe(path, list(overrides)))
        return stage.reads

    assert reads() == reads()
    assert reads() != reads("model.path=Qwen/Qwen3-8B-Base")
    assert reads() != reads("lock={models: {Qwen/Qwen3-14B-Base: {revision: abc}}}")


def test_files_of_a_model_are_inputs_of_what_reads_them(tmp_path):
    """The template of an external checkpoint, and the tokenizer of a recipe that only builds a corpus."""
    model, template = tmp_path / "model", tmp_path / "own.jinja"
    model.mkdir()
    (model / "tokenizer.json").write_text("{}")
    template.write_text("{{ messages }}")
    external = f"arms={{x: {{external: {{path: org/m, chat_template: {template}}}}}}}"
    corpus = POCKET.parent.parent / "qwen3-14b" / "corpus.yaml"

    def reads(path, name, *overrides):
        return next(stage.reads for stage in build_stages(load_recipe(path, list(overrides))) if stage.name == name)

    def both():
        alone = reads(corpus, "corpus", f"model.path={model}", f"model.chat_template={template}")
        return reads(POCKET, "external/x", external, "analysis.claims=[]"), alone

    first = both()
    template.write_text("{{ messages[0] }}")
    second = both()
    assert first[0] != second[0] and first[1] != second[1]
    (model / "tokenizer.json").write_text("{ }")
    assert both()[1] != second[1]


def test_evaluation_that_lost_a_file_is_made_again_in_place(tmp_path):
    recipe = load_recipe(POCKET)
    finish_all(recipe, tmp_path)
    (tmp_path / "eval" / "base" / "result").unlink()
    found = stage_states(build_stages(recipe), tmp_path)
    assert {name for name, state in found.items() if state.state != "done"} == {"eval/base", "report"}
    assert found["eval/base"].reasons == ("result is missing",)


def test_until(tmp_path):
    stages = build_stages(load_recipe(POCKET))
    assert [stage.name for stage in select_until(stages, "corpus")] == ["base", "corpus"]
    assert [stage.name for stage in select_until(stages, "eval/grpo-seed0-final")] == [
        "base",
        "corpus",
        "arms/grpo/seed-0",
        "questions",
        "eval/grpo-seed0-final",
    ]
    with pytest.raises(UserError, match="neither a kind of stage nor a stage of this recipe; did you mean eval"):
        select_until(stages, "evaluation")
    corpus_only = build_stages(load_recipe(POCKET.parent.parent / "corpora" / "gsm8k_train_file.yaml"))
    with pytest.raises(UserError, match=r"'base' is neither a kind of stage nor a stage .*; there are corpus"):
        select_until(corpus_only, "base")
    heldout = build_stages(load_recipe(POCKET))
    assert [stage.name for stage in select_until(heldout, "questions")] == ["questions"]


def test_a_shorter_run_does_not_narrow_what_a_study_ran_to(tmp_path):
    recipe = load_recipe(POCKET)
    stages = build_stages(recipe)
    assert furthest_until(stages, tmp_path, None, "corpus") == "corpus"  # nothing has begun
    finish_all(recipe, tmp_path)
    assert furthest_until(stages, tmp_path, None, "trajectory") is None
    assert furthest_until(stages, tmp_path, "eval", "arms") == "eval"
    assert furthest_until(stages, tmp_path, "arms", "eval") == "eval"
    assert furthest_until(stages, tmp_path, "arms", None) is None
    assert furthest_until(stages, tmp_path, "arms/gone/seed-0", "arms") == "arms"


def test_gpus_are_found_without_cuda(tmp_path, monkeypatch):
    from launch.hardware import visible_gpus

    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert visible_gpus(tmp_path) == []
    for name in ("nvidia0", "nvidia1", "nvidia10", "nvidia2", "nvidiactl", "nvidia-uvm"):
        (tmp_path / name).touch()
    assert visible_gpus(tmp_path) == ["0", "1", "2", "3"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,GPU-abc")
    assert visible_gpus(tmp_path) == ["3", "GPU-abc"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert visible_gpus(tmp_path) == []


def test_study_without_a_suite_trains_and_scores_nothing():
    from launch.planning.plan import build_plan
    from launch.planning.plan_text import format_plan
    from recipes.loading import load_recipe

    recipe = load_recipe("recipes/qwen3-14b/matched.yaml", ["seeds=[0]", "suite=null", "drift=null"])
    stages = build_stages(recipe)
    assert [stage.name for stage in stages] == [
        "base", "corpus", "arms/sft_think/seed-0", "arms/sft_no_think/seed-0", "arms/on_policy_sft/seed-0",
        "arms/grpo/seed-0",
    ]  # fmt: skip
    plan = build_plan(recipe, stages, Path("runs/x"), "transfer run R")
    by_name = {stage.name: stage for stage in plan.stages}
    assert by_name["corpus"].command == "transfer run R --until corpus"
    assert by_name["corpus"].reads == ("runs/x/base",)
    grpo, sft = by_name["arms/grpo/seed-0"], by_name["arms/sft_think/seed-0"]
    assert grpo.command == (
        "python -m accelerate.commands.launch --config_file runs/x/arms/grpo/seed-0/ranks/accelerate.json "
        "-m launch.execution.ranks runs/x arms/grpo/seed-0 0"
    )
    assert grpo.topology == "8 ranks, DeepSpeed ZeRO-3, vLLM colocate (70% of each GPU, tensor parallel 1)"
    assert sft.topology == "8 ranks, DeepSpeed ZeRO-3"
    assert grpo.files["runs/x/arms/grpo/seed-0/ranks/deepspeed.json"]["zero_optimization"]["stage"] == 3
    assert "writes runs/x/arms/grpo/seed-0: final/" in format_plan(plan, commands=True, stages=True)
    grouped = format_plan(plan, commands=True)
    assert (
        "\n  arms/sft_think, arms/sft_no_think: 8 ranks, DeepSpeed ZeRO-3\n"
        f"      {sft.command}\n"
        f"  arms/on_policy_sft, arms/grpo: {grpo.topology}\n"
        f"      {by_name['arms/on_policy_sft/seed-0'].command}\n\n"
    ) in grouped
    assert "writes" not in grouped
    assert grouped.startswith(format_plan(plan).partition("\n\nin all")[0])


def test_inputs_of_the_pocket_study_are_those_of_earlier_versions():
    """A new setting that is off must not make finished studies again. What is meant to changes the golden file."""
    golden = json.loads((POCKET.parents[2] / "tests/golden/stage_inputs.json").read_text())
    stages = build_stages(load_recipe(POCKET))
    assert {stage.name: hash_json(stage.reads) for stage in stages} == golden


def test_the_analysis_of_the_pocket_study_is_that_of_earlier_versions():
    """Else finished studies would be told that their training was changed after the evaluation."""
    recorded = "3327adf9e7c1ff465c6b51a060ada6cd278671a76618663a3c0f9cc6f476055f"
    assert hash_json(declared(load_recipe(POCKET))) == recorded
    later = declared(load_recipe(POCKET, ["train.save_every_minutes=5"]))
    assert hash_json(later) != recorded
