"""What stands in the way of a study is found before it starts, by value; and what a whole study needs, by hand."""

from pathlib import Path

import pytest

from eval.questions.suite_size import evaluation_responses
from eval.scorers import sandbox
from launch.doctor import study as doctor
from launch.hardware import gpu_models
from launch.planning import findings as module
from launch.planning import fit, node
from launch.planning.disk import disk_needed, side_by_side
from launch.planning.findings import Finding, disk_of_studies, disk_text, findings
from launch.planning.hours import checkpoint_hours, plan_context, run_parts, stage_hours
from launch.planning.plan import build_plan
from launch.run import check_recipe, check_tasks, require
from launch.site_file import SiteSpec, hours_of
from launch.stages import build_stages, stage_inputs
from launch.tasks import tasks_of_study
from recipes.errors import UserError
from recipes.loading import load_recipe
from recipes.manifest import finish_stage, start_stage
from tests.paths import RECIPES
from train.accounting.cost import model_shape
from train.accounting.memory import checkpoint_bytes, memory_of_arm, size_text
from train.arms import resolve_arm

BIG = "recipes/qwen3-14b/matched.yaml"
SMOKE = "recipes/pocket/smoke.yaml"
EIGHT = [str(number) for number in range(8)]
ENDLESS = 10**18


@pytest.fixture
def machine(monkeypatch):
    """A machine on which everything is installed and the disk is endless; tests take something away."""
    there = {
        "vllm": True,
        "bwrap": True,
        "free": ENDLESS,
        "attention": None,
        "offline": None,
        "models": ["NVIDIA H200"],
    }
    monkeypatch.setattr(module, "find_spec", lambda name: object() if there.get(name, True) else None)
    monkeypatch.setattr(sandbox.shutil, "which", lambda name: name if there["bwrap"] else None)
    monkeypatch.setattr(
        node, "require_sandbox", lambda: None if there["bwrap"] else sandbox.require_sandbox.__wrapped__()
    )
    monkeypatch.setattr(module, "free_bytes", lambda folder: there["free"])
    monkeypatch.setattr(module, "missing", lambda model, offline: there["offline"] if offline else there["attention"])
    monkeypatch.setattr(module, "memory_of_machine", lambda: ENDLESS)
    monkeypatch.setattr(module, "gpu_models", lambda: there["models"])
    return there


def found(*overrides, recipe=BIG, site=None, gpus=EIGHT, elsewhere=False, folder=Path("/nowhere/study")):
    loaded = load_recipe(recipe, ["corpus.teacher.base_url=http://node17:8000/v1", *overrides])
    stages = build_stages(loaded)
    disk = disk_of_studies([(loaded, stages, folder)], site, gpus, elsewhere)
    return [*findings(loaded, stages, folder, site, gpus, elsewhere), *disk]


def test_nothing_is_said_of_a_machine_that_has_everything(machine):
    assert found() == []
    assert found(site=SiteSpec(gpus_per_node=8, gpu_type="h200", time_limit="30-00:00:00")) == []
    assert findings(load_recipe(SMOKE), build_stages(load_recipe(SMOKE)), Path("/nowhere"), None, []) == []


def test_missing_flash_attention_is_an_error_or_what_the_recipe_allows(machine):
    machine["attention"] = "neither flash-attn nor kernels is installed"
    (error,) = found()
    assert error.severity == "error"
    assert error.sentence == (
        "model.attention=flash_attention_2 cannot be used: neither flash-attn nor kernels is installed"
    )
    assert error.remedy.startswith("run pip install -e '.[flash]'")
    with pytest.raises(UserError, match=r"^model.attention=flash_attention_2 cannot be used: neither"):
        require([error])
    (allowed,) = found("model.attention_fallback=sdpa")
    assert (allowed.severity, allowed.remedy) == ("warning", "")
    assert allowed.sentence.endswith("sdpa is used instead, as model.attention_fallback says")
    require([allowed])
    (planned,) = found(gpus=[], elsewhere=True)
    assert (planned.severity, planned.sentence[:40]) == ("warning", "on this machine model.attention=flash_at")


def test_an_evaluation_whose_limits_are_larger_than_the_memory_of_a_machine_without_gpus(machine, monkeypatch):
    """Qwen3-8B in float32: 36 layers with 8 key heads of 128, for keys and values of 4 bytes."""
    cache = 4000 * 36 * 2 * 8 * 128 * 4
    changes = ["model={path: Qwen/Qwen3-8B-Base}", "arms={}", "suite.engine.batch_size=200"]
    changes += ["suite.max_prompt_tokens=3000", "suite.max_response_tokens=1000"]
    alone = 4 * 8_190_735_360 + fit._LIBRARIES_BYTES
    for batches, way in (
        (200, None),
        (199, "set suite.engine.batch_size=100 or less, or lower"),
        (99, "set suite.engine.batch_size=50 or less, or lower"),
        (1, "set suite.engine.batch_size=1 or less, or lower"),
        (0.5, "lower"),
    ):
        have = alone + int(batches * cache)
        monkeypatch.setattr(module, "memory_of_machine", lambda have=have: have)
        told = found(*changes, recipe=SMOKE, gpus=[])
        if way is None:
            assert told == []
            continue
        (one,) = told
        most = size_text(alone + 200 * cache)
        assert (one.severity, one.sentence) == (
            "warning",
            f"an evaluation batch whose texts all reach their limits takes {most} and this machine has "
            f"{size_text(have)} of memory",
        )
        assert one.remedy == f"{way} suite.max_prompt_tokens and suite.max_response_tokens to what the texts need"


def test_a_model_that_is_larger_than_the_memory_of_a_machine_without_gpus(machine, monkeypatch):
    large = ["model={path: Qwen/Qwen3-8B-Base}", "resources.ranks=2", "train.micro_batch_size=8"]
    need = 2 * 8_190_735_360 * 16  # in float32: weights, gradients and the two moments of Adam
    recipe = load_recipe(SMOKE, large)
    most = 2 * memory_of_arm(recipe, resolve_arm(recipe, "grpo"), model_shape(recipe)).total
    assert most > need
    at_limits = f"a micro-batch whose texts all reach their limits takes an arm to {size_text(most)}"
    for memory, said in (
        (most, []),
        (most - 1, [("warning", at_limits)]),
        (need, [("warning", at_limits)]),
        (need - 1, [("error", "weights, gradients and optimizer of an arm take 262 GB")]),
    ):
        monkeypatch.setattr(module, "memory_of_machine", lambda memory=memory: memory)
        told = found(*large, recipe=SMOKE, gpus=[])
        assert [(one.severity, str(one).split(" and this")[0]) for one in told] == said
        if memory == most - 1:
            way = told[0].remedy.removeprefix("set ").removesuffix(" or less")
            assert found(*large, way, recipe=SMOKE, gpus=[]) == []
            tokens = int(way.partition("=")[2])
            assert found(*large, f"train.micro_batch_tokens={2 * tokens}", recipe=SMOKE, gpus=[]) != []
        if memory == need:
            assert told[0].remedy == "lower prompt.max_completion_tokens, because one row is too long"
    assert found(*large, recipe=SMOKE, gpus=[], site=SiteSpec()) == []


def test_offloaded_states_must_fit_into_the_memory_of_a_node(machine, monkeypatch):
    offload = ["resources.offload=true"]
    need = 14 * model_shape(load_recipe(BIG)).parameters()  # ZeRO-3 in bfloat16: weights 2, optimizer 12
    for memory, said in ((need, []), (need - 10, ["resources.offload keeps at least 207 GB in the memory of a node"])):
        monkeypatch.setattr(module, "memory_of_machine", lambda memory=memory: memory)
        errors = [str(error) for error in found(*offload) if "offload" in error.sentence]
        assert [error.split(" and this")[0] for error in errors] == said
    recipe = load_recipe(BIG, [*offload, "resources.zero_stage=2"])
    memory = memory_of_arm(recipe, resolve_arm(recipe, "grpo"), model_shape(recipe))
    assert memory.offloaded == 12 * model_shape(recipe).parameters() // 8  # the weights stay on each GPU


def test_jobs_that_run_offline_need_the_kernel_in_the_cache(machine):
    machine["offline"] = "it runs with the hub offline and the kernel is not there"
    assert found() == found(site=SiteSpec(gpus_per_node=8, offline=False)) == []
    (error,) = found(site=SiteSpec(gpus_per_node=8))
    assert (error.severity, error.sentence.partition(": ")[2]) == ("error", machine["offline"])


def test_flash_attention_on_a_cpu_is_refused_also_where_its_package_is_installed(machine):
    assert [str(finding).partition("; ")[0] for finding in found(gpus=[])] == [
        "flash_attention_2 needs a GPU and none is visible here"
    ]
    assert found("model.attention_fallback=sdpa", gpus=[]) == []
    assert found("model.attention=sdpa", gpus=[]) == []


def test_engines_and_sandbox(machine):
    machine |= {"vllm": False, "bwrap": False}
    assert [str(finding) for finding in found()] == [
        "vllm is not installed; it is needed for arms, drift, eval, trajectory; run pip install -r "
        "requirements-gpu.lock",
        "code of models is run in a sandbox only, and bubblewrap (bwrap) is not installed: install it (apt install "
        "bubblewrap), or insist on running that code with your files and your network by "
        "suite.allow_unsandboxed_code=true",
    ]
    (only,) = found("suite.engine={kind: hf}", "suite.allow_unsandboxed_code=true")
    assert only.sentence == "vllm is not installed; it is needed for arms, drift"
    assert found("suite.engine={kind: hf}", "suite.allow_unsandboxed_code=true", "resources.vllm=null") == []
    image = SiteSpec(gpus_per_node=8, container={"image": "lab.sif"})
    assert found(site=image) == [], "what is installed here says nothing about an image"
    (template,) = found("model.chat_template=nosuch", "suite=null", "resources.vllm=null")
    assert template.sentence.startswith(
        "model.chat_template 'nosuch' is no .jinja file and TRL ships none of that name; there are "
    )


def test_disk_of_the_whole_study_by_hand(machine):
    recipe = load_recipe(BIG)
    shape, stages = model_shape(recipe), build_stages(recipe)
    weights = 2 * shape.parameters()
    need = disk_needed(recipe, shape, stages, 8)
    assert need.base == weights
    assert need.runs == 12 * 8 * weights  # eight snapshots, of which `final` is the last; four arms, three seeds
    assert need.while_training == checkpoint_bytes(shape, 0, True) == 3 * 14 * shape.parameters()
    # The base and twelve runs, with all responses at their limit.
    assert need.responses == evaluation_responses(recipe, 13) * 24576 * 5
    assert need.total == need.base + need.corpus + need.runs + need.responses + need.while_training
    everywhere = disk_needed(recipe, shape, stages, 8, SiteSpec())
    assert everywhere.while_training == 12 * need.while_training
    # Three checkpoints of 14 bytes for each of 14.8 billion parameters: 620 GB of one run, 7,443 GB of twelve.
    assert ", checkpoints of 1 run at a time 620 GB or later hidden states of 8 models at a time " in disk_text(need)
    text = disk_text(everywhere)
    assert ", checkpoints of 12 runs at a time 7,443 GB or later hidden states of 13 models at a time " in text
    two = disk_needed(recipe, shape, stages, 8, SiteSpec(max_running=2))
    assert two.while_training == 4 * 2 * need.while_training
    machine["free"] = need.total
    assert found() == []
    machine["free"] = need.total - 1
    assert [planned.severity for planned in found(gpus=[], elsewhere=True)] == ["warning"]
    machine["free"] = need.total
    assert found(gpus=[], elsewhere=True) == [], "a plan made elsewhere is for the recipe's GPUs"
    machine["free"] = need.total - 1
    (error,) = found()
    assert error.severity == "error"
    assert error.sentence.startswith("the study needs up to 3,548 GB of disk and ")
    assert error.sentence.endswith("and /nowhere/study has 3,548 GB free")


def test_plan_run_and_doctor_look_at_the_disk(machine):
    recipe = load_recipe(SMOKE)
    stages, folder = build_stages(recipe), Path("/nowhere/study")
    machine["free"] = 0
    needed = f"the study needs up to {size_text(disk_needed(recipe, model_shape(recipe), stages, 0).total)} of disk"
    assert build_plan(recipe, stages, folder).errors[-1].startswith(f"{needed} and /nowhere/study has 0 kB free; ")
    assert str(check_tasks(tasks_of_study(recipe, folder, stages))[0]).startswith(f"cannot work: {needed} and ")
    assert (doctor.study(SMOKE, None)[0].state, doctor.study(SMOKE, None)[0].text[: len(needed)]) == ("fail", needed)


def test_what_is_done_needs_no_more_disk(machine, tmp_path):
    recipe = load_recipe(SMOKE)
    stages, shape = build_stages(recipe), model_shape(recipe)
    weights = 4 * shape.parameters()
    assert disk_needed(recipe, shape, stages, 0).runs == 3 * weights
    done = {"base", "corpus", "arms/grpo/seed-0"}
    for stage in stages:
        if stage.name in done:
            start_stage(tmp_path / stage.name, stage.name, stage_inputs(stage, tmp_path))
            finish_stage(tmp_path / stage.name, {})
    after = disk_needed(recipe, shape, [stage for stage in stages if stage.name not in done], 0)
    assert (after.base, after.corpus, after.runs) == (0, 0, 2 * weights)
    machine["free"] = after.total
    assert disk_of_studies([(recipe, stages, tmp_path)], None, []) == []
    machine["free"] -= 1
    assert len(disk_of_studies([(recipe, stages, tmp_path)], None, [])) == 1
    # Of an ablation's point only the stages that are its own are asked about; they need others.
    own = [stage for stage in stages if stage.kind in ("arms", "eval")]
    (error,) = disk_of_studies([(recipe, own, tmp_path / "point")], None, [])
    assert error.sentence.startswith("the study needs up to ")


def test_gpus_of_this_machine(machine):
    (ranks,) = found(gpus=EIGHT[:4])
    assert str(ranks) == (
        "arms need 8 GPUs (resources.ranks) and this machine has 4; set resources.ranks=4, or use a machine with more"
    )
    two = ["resources.ranks=2", "train.save_every_steps=1"]
    parallel = found("suite.engine={kind: vllm, tensor_parallel: 4}", *two, gpus=EIGHT[:2])
    assert [finding.sentence for finding in parallel] == [
        f"{kind} need 4 GPUs (suite.engine.tensor_parallel) and this machine has 2" for kind in ("trajectory", "eval")
    ]
    machine["models"] = ["NVIDIA H100 80GB HBM3"] * 8
    (other,) = found()
    assert str(other).startswith("the plan is for an H200-141GB and this machine has NVIDIA H100 80GB HBM3; set ")
    machine["models"] = ["NVIDIA Graphics Device"]
    assert found() == []
    (teacher,) = found("corpus.teacher.base_url=http://127.0.0.1:8000/v1")
    assert teacher.severity == "warning"
    assert teacher.remedy == "make the corpus first (--until corpus), stop the server, then run the rest"


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]", "0.0.0.0"])
def test_a_job_does_not_find_the_teacher_on_its_own_loopback(machine, host, tmp_path):
    """The recipes of one node name it so; a job asks from a node of its own."""
    address = f"http://{host}:8000/v1"
    for gpus in (8, 0):
        first, *_ = found(f"corpus.teacher.base_url={address}", "resources.gpu=null", site=SiteSpec(gpus_per_node=gpus))
        assert str(first) == (
            f"corpus.teacher.base_url is {address}, and no server is there on the node that a job runs on; "
            "set corpus.teacher.base_url to the server's node, as http://NODE:8000/v1"
        )
        assert first.severity == "error"
    assert found("resources.gpu=null", site=SiteSpec(gpus_per_node=8)) == []  # on another node
    recipe = load_recipe(BIG, [f"corpus.teacher.base_url={address}"])
    for stage in build_stages(recipe)[:2]:
        start_stage(tmp_path / stage.name, stage.name, stage_inputs(stage, tmp_path))
        finish_stage(tmp_path / stage.name, {})
    assert found(f"corpus.teacher.base_url={address}", site=SiteSpec(gpus_per_node=8), folder=tmp_path) == []


def test_gpus_of_the_site(machine):
    def sentences(*overrides, **site):
        return [(item.severity, item.sentence) for item in found(*overrides, site=SiteSpec(**site))]

    assert sentences(gpus_per_node=8, gpu_type="a100") == [
        ("error", "the plan is for an H200-141GB and the site file requests gpu_type a100")
    ]
    assert sentences(gpus_per_node=8, gpu_type="nvidia_h200_141gb") == []
    assert sentences(gpus_per_node=8, gpu_type="gh200") == [
        ("error", "the plan is for an H200-141GB and the site file requests gpu_type gh200")
    ]
    assert sentences(gpus_per_node=8, gpu_type="big") == []
    assert sentences(gpus_per_node=0) == [
        ("error", "the recipe is for an H200-141GB and the site file says gpus_per_node: 0")
    ]
    assert sentences(gpus_per_node=4) == [("error", "8 ranks on 1 node(s) are 8 GPUs a node, but the site has 4")]
    assert sentences("suite.engine={kind: vllm, tensor_parallel: 4}", "resources.nodes=4", gpus_per_node=2) == [
        ("error", "an evaluation needs 4 GPUs and a node of the site has 2")
    ]


@pytest.mark.parametrize(
    ("text", "hours"),
    [("90", 1.5), ("90:30", 1.508333), ("24:00:00", 24), ("2-12", 60), ("1-06:30", 30.5), ("2-00:00:36", 48.01)],
)
def test_durations_as_slurm_writes_them(text, hours):
    assert hours_of(text) == pytest.approx(hours, abs=1e-5)


def test_time_limits_against_hours(machine):
    recipe = load_recipe(BIG)
    context = plan_context(recipe, model_shape(recipe), 8)
    grpo = next(stage for stage in build_stages(recipe) if stage.name == "arms/grpo/seed-0")
    hours, parts = stage_hours(context, grpo).hours, run_parts(context, "grpo")
    first = checkpoint_hours(context, "grpo")
    working = sum(parts.values()) - parts["start"] - parts["checkpoints"]
    assert first == pytest.approx((parts["start"] + working * 4 / 140) / 3600)

    def told(limit, **stages):
        return found(site=SiteSpec(gpus_per_node=8, time_limit=limit, stages=stages))

    minutes = int(60 * hours)
    notes = told(str(minutes - 60), eval={"time_limit": "30-0"})
    assert [note.severity for note in notes] == ["note", "note"]  # two arms that sample; SFT and the rest fit
    assert notes[1].sentence == (
        f"arms/grpo takes about {hours:.1f} h and a job has {minutes - 60}: it goes back to the queue 1 time"
    )
    many = told(str(int(minutes / 10.5)), eval={"time_limit": "30-0"})
    assert ("note", "10 times") in [(one.severity, one.sentence[-8:]) for one in many]
    more = told(str(int(minutes / 11.5)), eval={"time_limit": "30-0"})
    again = [one for one in more if one.sentence.startswith("arms/grpo") and one.sentence.endswith("queue 11 times")]
    assert [(one.severity, one.remedy) for one in again] == [
        ("warning", "give stages.arms.time_limit more in the site file")
    ]
    ended = found(site=SiteSpec(gpus_per_node=8, time_limit=str(minutes - 60), stages={"eval": {"time_limit": "30-0"}},
                                requeue=False))  # fmt: skip
    assert [finding.severity for finding in ended] == ["error", "error"]
    assert str(ended[1]) == (
        f"arms/grpo takes about {hours:.1f} h, a job has {minutes - 60}, and requeue: false makes it fail "
        "then; set requeue: true in the site file, or give stages.arms.time_limit more"
    )
    short = told("30-0", arms={"time_limit": str(int(60 * first) - 1)})
    assert ("error", "lower train.save_every_minutes") in [(f.severity, f.remedy.partition(", or ")[2]) for f in short]
    refused = [f.sentence for f in short if f.severity == "error"]
    limit, after = int(60 * first) - 1, f"{first:.1f} h"
    assert f"a job of arms/grpo has {limit} and its first checkpoint comes after about {after}" in refused
    assert told("30-00:00:00") == []
    # A run's stages of these kinds are the longest; those of the base, which come first, would fit.
    base, run = (
        stage_hours(context, next(one for one in build_stages(recipe) if one.name == f"trajectory/{name}")).hours
        for name in ("base", "grpo/seed-0")
    )
    assert 60 * base < 120 < 60 * run < 240
    brief = [one.sentence for one in told("30-0", trajectory={"time_limit": "02:00:00"})]
    assert brief == ["trajectory takes about 3.2 h and a job has 02:00:00: it goes back to the queue 1 time"]


def test_stages_side_by_side():
    recipe = load_recipe(BIG)
    assert side_by_side(recipe, "arms", 8, None, 12) == 1
    assert side_by_side(recipe, "eval", 8, None, 13) == 8
    assert side_by_side(recipe, "eval", 8, SiteSpec(), 13) == 13
    assert side_by_side(load_recipe(BIG, ["resources.workers=3"]), "eval", 8, None, 13) == 3
    assert side_by_side(load_recipe(SMOKE), "arms", 0, None, 3) == 2


def test_models_of_gpus_by_the_drivers_word(tmp_path):
    for number, name in enumerate(("NVIDIA H200", "NVIDIA H200")):
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / "information").write_text(f"Model: \t\t {name}\nIRQ: 1\n")
    assert gpu_models(tmp_path) == ["NVIDIA H200", "NVIDIA H200"]
    assert gpu_models(tmp_path / "none") == []


def test_run_refuses_and_plan_says_cannot_work(transfer, tmp_path):
    flash = ["model.attention=flash_attention_2", "model.dtype=bfloat16", "--out", tmp_path / "s"]
    refused = transfer("run", SMOKE, *flash)
    assert refused.returncode == 2
    assert "transfer: cannot work: model.attention=flash_attention_2 cannot be used: " in refused.stderr
    assert not (tmp_path / "s").exists()
    planned = transfer("plan", SMOKE, *flash)
    assert planned.returncode == 2
    assert "cannot work: model.attention=flash_attention_2 cannot be used: " in planned.stdout
    site = tmp_path / "site.yaml"
    site.write_text("gpus_per_node: 8\ngpu_type: a100\n")
    big = transfer("plan", BIG, "--on", "slurm", "--site", site)
    assert big.returncode == 2
    assert "cannot work: the plan is for an H200-141GB and the site file requests gpu_type a100" in big.stdout
    assert "wall clock on one node with 8 GPU(s): " in big.stdout
    assert str(Finding("note", "a", "b")) == "a; b"


def test_run_refuses_diagnostics_that_plan_finds_too_large():
    recipe = load_recipe(RECIPES / "qwen3-1.7b" / "matched.yaml", ["diagnostics.batch_tokens=4000000"])
    errors = [str(finding) for finding in check_recipe(recipe) if finding.severity == "error"]
    plan = build_plan(recipe, build_stages(recipe), Path("/none"))
    (reason,) = [text for text in plan.errors if text.startswith("diagnostics need ")]
    assert errors == [f"cannot work: {reason}"]
    with pytest.raises(UserError, match=r"that works: diagnostics.batch_tokens=500000"):
        require(check_recipe(recipe))
