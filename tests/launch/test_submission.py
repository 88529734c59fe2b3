"""Submitting, against stand-ins for Slurm's programs that note how they were called: refusals and interruptions."""

import json
import sys

import pytest

from launch.commands.main import main
from launch.run import show_jobs
from launch.site_file import SiteSpec
from launch.slurm import submit as slurm
from launch.slurm.step import _no_progress
from launch.slurm.submit import active_ids, ask_queue, known_jobs, read_jobs, submit
from launch.stages import Stage, build_stages
from launch.tasks import tasks_of_study
from recipes.errors import UserError
from recipes.files import locked, write_json
from recipes.loading import load_recipe
from recipes.manifest import StageState
from tests.paths import RECIPES, SMOKE

PROGRAM = """#!{python}
import json, os, re, sys
folder = {folder!r}
name, words = os.path.basename(sys.argv[0]), sys.argv[1:]
path = os.path.join(folder, "state.json")
state = json.load(open(path)) if os.path.exists(path) else {{"queue": {{}}, "cancelled": [], "calls": 0}}
if name == "sbatch":
    state["calls"] += 1
    state["variables"] = sorted(name for name in os.environ if name.startswith(("SLURM_", "SRUN_")))
    if state["calls"] == {refuse}:
        json.dump(state, open(path, "w"))
        sys.exit("sbatch: error: invalid partition specified: gpu")
    number = str(100 + state["calls"])
    state["queue"][number] = re.search("--comment=(\\S+)", open(words[-1]).read())[1]
    print(number)
elif name == "scancel":
    state["cancelled"] += words
    state["queue"] = {{key: value for key, value in state["queue"].items() if key not in words}}
elif name == "squeue":
    for number, comment in state["queue"].items():
        print(number + "|PENDING|Dependency|" + comment)
json.dump(state, open(path, "w"))
"""


@pytest.fixture
def study(tmp_path, monkeypatch):
    """A study, and Slurm's programs; sbatch refuses its third call."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("sbatch", "scancel", "squeue"):
        (programs / name).write_text(PROGRAM.format(python=sys.executable, folder=str(tmp_path), refuse=3))
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(programs))
    recipe = load_recipe(SMOKE, ["arms.on_policy_sft=null", "arms.off_policy_sft=null"])
    root = tmp_path / "study"
    return root, tasks_of_study(recipe, root, build_stages(recipe))


def state(root):
    return json.loads((root.parent / "state.json").read_text())


def test_a_refusal_takes_back_what_this_call_submitted(study):
    root, tasks = study
    with pytest.raises(UserError, match="sbatch failed: sbatch: error: invalid partition specified: gpu"):
        submit(root, tasks, SiteSpec())
    assert state(root)["cancelled"] == ["101", "102"]
    assert state(root)["queue"] == {}
    assert known_jobs(root, ask_queue()) == []
    assert submit(root, tasks, SiteSpec()) == 7
    assert submit(root, tasks, SiteSpec()) == 0


def test_a_submission_from_inside_a_job_does_not_hand_on_its_share(study, monkeypatch):
    """In a shell of salloc, or from a job: srun would take SLURM_MEM_PER_CPU beside our --mem for a contradiction."""
    root, tasks = study
    inherited = {"SLURM_MEM_PER_CPU": "100", "SLURM_ARRAY_TASK_ID": "3", "SRUN_CPUS_PER_TASK": "7"}
    for name, value in (inherited | {"SLURM_CONF": "/etc/slurm.conf", "SLURM_JWT": "x"}).items():
        monkeypatch.setenv(name, value)
    submit(root, tasks[:1], SiteSpec())
    assert state(root)["variables"] == ["SLURM_CONF", "SLURM_JWT"]


def test_a_study_that_runs_on_this_machine_keeps_its_recipe(study, capsys):
    """Its ranks read the recipe when they start; a submission with another one waits until the run has ended."""
    root, _ = study
    site = root.parent / "site.yaml"
    site.write_text("partition: gpu\n")
    root.mkdir()
    write_json(root / "study.json", load_recipe(SMOKE).dump())
    words = ["run", str(SMOKE), "train.steps=7", "--on", "slurm", "--site", str(site), "--out", str(root)]
    with locked(root):
        assert main([*words, "--no-reuse"]) == 2
        assert main(words) == 2
    assert "is being written by another process" in capsys.readouterr().err
    assert json.loads((root / "study.json").read_text()) == load_recipe(SMOKE).dump()
    assert state(root)["calls"] == 0


def test_an_interruption_loses_no_job(study, monkeypatch):
    """Ctrl-C while sbatch is answering: its job is queued, its number was never noted."""
    root, tasks = study
    real = slurm.slurm

    def interrupted(*command, cwd=None):
        answer = real(*command, cwd=cwd)
        if command[0] == "sbatch" and state(root)["calls"] == 2:
            raise KeyboardInterrupt
        return answer

    monkeypatch.setattr(slurm, "slurm", interrupted)
    with pytest.raises(KeyboardInterrupt):
        submit(root, tasks, SiteSpec())
    monkeypatch.setattr(slurm, "slurm", real)
    assert [job.job for job in read_jobs(root)] == ["101", None]
    queue = ask_queue()
    found = active_ids(root, known_jobs(root, queue), queue)
    assert sorted(identifier for identifiers in found.values() for identifier in identifiers) == ["101", "102"]
    assert state(root)["cancelled"] == []


def test_replicas_that_start_again_together_are_not_taken_for_one_that_makes_no_progress(tmp_path, monkeypatch):
    """Four jobs share an evaluation and are requeued at the same moment; then one is, three times, without a chunk."""
    stage = Stage("eval/base", {})
    for restart in ("0", "1"):
        monkeypatch.setenv("SLURM_RESTART_COUNT", restart)
        for job in ("1", "2", "3", "4"):
            monkeypatch.setenv("SLURM_JOB_ID", job)
            assert _no_progress(tmp_path, stage) is None
    monkeypatch.setenv("SLURM_JOB_ID", "1")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "2")
    assert "no response was completed in the last two starts" in _no_progress(tmp_path, stage)
    (tmp_path / "eval" / "base" / "sum-native").mkdir(parents=True)
    (tmp_path / "eval" / "base" / "sum-native" / "chunk-0000-ab.jsonl.zst").touch()
    monkeypatch.setenv("SLURM_RESTART_COUNT", "3")
    assert _no_progress(tmp_path, stage) is None


BIG = SMOKE.parent.parent / "qwen3-14b" / "matched.yaml"


def test_a_dry_run_names_what_the_run_refuses_and_fails(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))  # without Slurm
    site = tmp_path / "site.yaml"
    site.write_text("partition: gpu\ngpus_per_node: 4\ngpu_type: h200\n")
    words = ["run", str(BIG), "--on", "slurm", "--site", str(site), "--out", str(tmp_path / "s")]
    assert main([*words, "--dry-run"]) == 2
    said = capsys.readouterr().err.splitlines()
    errors = {text.removeprefix("transfer: ").removeprefix("missing: ") for text in said}
    for text in (
        "cannot work: 8 ranks on 1 node(s) are 8 GPUs a node, but the site has 4; set resources.nodes=2",
        "cannot work: corpus.teacher.base_url is http://127.0.0.1:8000/v1, and no server is there on the node that a "
        "job runs on; set corpus.teacher.base_url to the server's node, as http://NODE:8000/v1",
    ):
        assert text in errors
    assert main(words) == 2
    refused = {text.removeprefix("transfer: ") for text in capsys.readouterr().err.splitlines()}
    assert refused == errors
    (missing,) = [text for text in said if text.startswith("transfer: missing: ")]
    assert "model Qwen/Qwen3-14B-Base, source math-rl-48k" in missing and " and benchmarks math500, " in missing
    site.write_text("partition: gpu\ngpus_per_node: 8\ngpu_type: h200\n")
    assert main([*words, "--dry-run", "resources.ranks=16"]) == 2
    assert "16 ranks on 1 node(s) are 16 GPUs a node, but the site has 8" in capsys.readouterr().err
    assert main([*words, "--dry-run", "varies=[sampling]"]) == 2
    assert "are unmatched" in capsys.readouterr().err


def test_what_is_still_to_be_fetched_does_not_fail_a_dry_run(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("launch.planning.findings.free_bytes", lambda folder: 10**13)
    site = tmp_path / "site.yaml"
    site.write_text("gpus_per_node: 8\ngpu_type: h100\ncontainer: {image: lab.sif}\n")
    words = ["run", str(RECIPES / "qwen3-1.7b" / "matched.yaml"), "--on", "slurm", "--site", str(site)]
    words += ["--out", str(tmp_path / "s"), "corpus.teacher.base_url=http://node7:8000/v1"]
    assert main([*words, "--dry-run"]) == 0
    shown = capsys.readouterr()
    assert "transfer: missing: model Qwen/Qwen3-1.7B-Base, source " in shown.err
    assert " are not resolved; run `transfer fetch" in shown.err
    assert "  arms/grpo: " in shown.out
    assert main(words) == 2
    assert "model Qwen/Qwen3-1.7B-Base, source " in capsys.readouterr().err


def test_a_dry_run_lists_what_is_neither_done_nor_queued(study, capsys, monkeypatch):
    root, tasks = study
    stale = root / "slurm" / "dry-run" / "base.sh"
    stale.parent.mkdir(parents=True)
    stale.touch()
    with pytest.raises(UserError):
        submit(root, tasks, SiteSpec())
    assert submit(root, tasks[:3], SiteSpec()) == 3
    monkeypatch.setattr(
        "launch.run.states_of",
        lambda tasks: {task.key: StageState("done" if task.stage.name == "base" else "new") for task in tasks},
    )
    capsys.readouterr()
    show_jobs(root, tasks, SiteSpec())
    shown = capsys.readouterr().out
    names = [task.stage.name for task in tasks]
    assert names[:3] == ["base", "corpus", "arms/grpo/seed-0"]
    listed = [line.split(":")[0].strip() for line in shown.splitlines() if " task(s) x " in line]
    assert listed == ["questions", "eval/base", "eval/grpo", "report"]
    assert "eval/grpo: 1 task(s) x 1 node(s)  after afterok:<questions>,afterok:106\n" in shown
    assert shown.endswith("stages that would not be submitted: 1 done, 2 queued\n")
    assert not stale.exists()
    assert state(root)["calls"] == 6  # nothing was submitted
