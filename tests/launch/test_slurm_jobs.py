"""From stages to jobs and scripts: what is one array, what waits for what; no name reaches a shell unquoted."""

import shutil
import string
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from launch.planning.hours import checkpoint_seconds, plan_context, update_seconds
from launch.run import check_tasks, require
from launch.site_file import SiteSpec, find_site, load_site
from launch.slurm.jobs import Needed, make_jobs
from launch.slurm.script import render, signal_seconds
from launch.slurm.vllm_server import server_command
from launch.stages import build_stages
from launch.tasks import tasks_of_study
from recipes.errors import UserError
from recipes.loading import load_recipe
from tests.paths import RECIPES, SMOKE
from train.accounting.cost import model_shape


def jobs_of(*overrides, recipe=SMOKE, submitted=None, folder=Path("/studies/a")):
    loaded = load_recipe(recipe, list(overrides))
    return {job.name + "+" * job.replica: job for job in
            make_jobs(tasks_of_study(loaded, folder, build_stages(loaded)), submitted or {})}  # fmt: skip


def names(jobs, needed):
    order = list(jobs)
    return [f"{order[item.job]}[{item.task}]" for item in needed]


def test_seeds_are_one_array_and_their_evaluations_follow_task_by_task():
    jobs = jobs_of("seeds=[0,1,2]", "arms.on_policy_sft=null")
    order = list(jobs)
    assert order == ["base", "corpus", "arms/off_policy_sft", "arms/grpo", "questions", "eval/base",
                     "eval/off_policy_sft", "eval/grpo", "report"]  # fmt: skip
    grpo, scored = jobs["arms/grpo"], jobs["eval/grpo"]
    assert [task.stage.name for task in grpo.tasks] == [f"arms/grpo/seed-{seed}" for seed in (0, 1, 2)]
    assert (names(jobs, grpo.after), grpo.corresponding) == (["base[0]", "corpus[0]"], ())
    assert names(jobs, scored.after) == ["questions[0]"]
    assert [order[place] for place in scored.corresponding] == ["arms/grpo"]
    assert len(jobs["report"].after) == 1 + 1 + 6 + 1 + 1 + 6


def test_an_arm_that_starts_from_another_waits_for_the_same_seed():
    start = "arms.later={sampling: current, credit: advantage, negatives: true, start_from: off_policy_sft}"
    jobs = jobs_of("seeds=[0,1]", start, "varies=[sampling,credit,negatives,start_from]")
    later = jobs["arms/later"]
    assert [list(jobs)[place] for place in later.corresponding] == ["arms/off_policy_sft"]


def test_what_is_left_of_an_array_still_waits_for_the_right_run():
    """Two of three evaluations are missing and one run is in the queue: the tasks no longer need alike things."""
    recipe = load_recipe(SMOKE, ["seeds=[0,1,2]", "arms.on_policy_sft=null", "arms.off_policy_sft=null"])
    folder = Path("/studies/a")
    left = ("eval/grpo-seed0-final", "eval/grpo-seed1-final", "report")
    tasks = [task for task in tasks_of_study(recipe, folder, build_stages(recipe)) if task.stage.name in left]
    jobs = make_jobs(tasks, {(str(folder), "arms/grpo/seed-1"): ["77_1"]})
    assert [job.name for job in jobs] == ["eval/grpo/0", "eval/grpo/1", "report"]
    assert [job.running for job in jobs] == [(), ("77_1",), ("77_1",)]
    assert jobs[2].after == (Needed(0, 0), Needed(1, 0))


def test_replicas_of_an_evaluation_are_jobs_beside_it():
    jobs = jobs_of("resources.evaluation_replicas=3", "arms.on_policy_sft=null", "arms.off_policy_sft=null")
    assert [name for name in jobs if name.startswith("eval/grpo")] == ["eval/grpo", "eval/grpo+", "eval/grpo++"]
    assert sum(names(jobs, [item])[0].startswith("eval/grpo") for item in jobs["report"].after) == 3


def test_nodes_and_gpus_of_the_14b_study():
    overrides = ["resources.ranks=16", "resources.nodes=2", "resources.vllm={mode: server, server_nodes: 1}"]
    jobs = jobs_of(*overrides, recipe=RECIPES / "qwen3-14b" / "matched.yaml")
    site = SiteSpec(gpus_per_node=8, gpu_type="h200", account="x", max_running=2)
    found = {name: render(job, site, "c", "") for name, job in jobs.items()}
    assert "#SBATCH --nodes=3\n" in found["arms/grpo"]
    assert "srun --nodes=1 --ntasks=1 --relative=2 --gres=gpu:h200:8" in found["arms/grpo"]
    assert "#SBATCH --nodes=2\n" in found["arms/sft_think"]
    assert "vllm" not in found["arms/sft_think"]
    assert "#SBATCH --gres=gpu:h200:8\n" in found["arms/sft_think"]
    assert "#SBATCH --array=0-2%2\n" in found["arms/sft_think"]
    assert "#SBATCH --gres=gpu:h200:1\n" in found["eval/grpo"]
    assert "--gres" not in found["corpus"] + found["report"] + found["base"]


def test_pyxis_mounts_the_study_and_its_server_runs_in_the_image_too():
    overrides = ["resources.vllm={mode: server, server_nodes: 1}"]
    jobs = jobs_of(*overrides, recipe=RECIPES / "qwen3-14b" / "matched.yaml", folder=Path("/data/my study"))
    site = SiteSpec(gpus_per_node=8, container={"image": "lab", "runtime": "pyxis", "binds": ["/hf"]})
    script = render(jobs["arms/grpo"], site, "c", "")
    folders = ",".join([*sorted(["/data/my study", str(RECIPES.parent)]), "/hf"])  # a folder before what is in it
    inside = f"--container-image=lab '--container-mounts={folders}'"
    (where,) = [line for line in script.splitlines() if line.startswith("where=")]
    assert where.endswith(f" {inside})")
    assert f"  srun --nodes=1 --ntasks=1 --relative=1 --gres=gpu:8 {inside} " in script


def chosen(script, tmp_path, **variables):
    """The task, its id for scontrol, and the port of its server, as bash computes them from Slurm's variables."""
    head = script.partition("# The stage of this task.")[2].partition("study=${studies")[0]
    port = next((line for line in script.splitlines() if line.startswith("port=")), "port=")
    (tmp_path / "head.sh").write_text(f'set -eu\n#{head}\n{port}\necho "$task $self $port"')
    return subprocess.run(["bash", str(tmp_path / "head.sh")], capture_output=True, text=True, check=True,
                          env={"PATH": "/usr/bin:/bin", **variables}).stdout.split()  # fmt: skip


def test_a_task_names_itself_and_not_its_array(tmp_path):
    """Slurm gives one task of an array the array's own id: `scontrol requeue` with it starts all tasks again."""
    array = render(jobs_of("seeds=[0,1,2]")["arms/grpo"], SiteSpec(), "c", "")
    variables = {"SLURM_JOB_ID": "70", "SLURM_ARRAY_JOB_ID": "70", "SLURM_ARRAY_TASK_ID": "2"}
    assert chosen(array, tmp_path, **variables) == ["2", "70_2"]
    single = render(jobs_of()["arms/grpo"], SiteSpec(), "c", "")
    assert chosen(single, tmp_path, SLURM_JOB_ID="71") == ["0", "71"]
    assert "SLURM_JOB_ID" not in array.partition("child=$!")[2]


def test_offline_jobs_keep_wandb_offline_unless_it_is_chosen(tmp_path):
    """A key in the environment would make every arm wait for a server that a compute node cannot reach."""

    def mode(site, **variables):
        script = render(jobs_of()["arms/grpo"], site, "c", "")
        lines = [line for line in script.splitlines() if "WANDB_MODE" in line]
        command = "\n".join(["set -eu", *lines, 'echo "${WANDB_MODE:-unset}"'])
        return subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True,
                              env={"PATH": "/usr/bin:/bin", **variables}).stdout.strip()  # fmt: skip

    assert mode(SiteSpec()) == "offline"
    assert mode(SiteSpec(), WANDB_MODE="online") == "online"
    assert mode(SiteSpec(environment={"WANDB_MODE": "disabled"}), WANDB_MODE="online") == "disabled"
    assert mode(SiteSpec(offline=False)) == "unset"


def test_servers_of_two_jobs_on_one_node_have_ports_of_their_own(tmp_path):
    served = "resources={vllm: {mode: server, server_nodes: 1}}"
    script = render(jobs_of(served)["arms/grpo"], SiteSpec(gpus_per_node=8), "c", "")
    ports = [chosen(script, tmp_path, SLURM_JOB_ID=number)[2] for number in ("8123456", "8123457")]
    assert ports == ["13456", "13457"]
    assert '"$study" "$stage" "$port" \\\n' in script


def test_a_node_with_too_few_gpus_is_refused_with_the_number_of_nodes():
    recipe = load_recipe(RECIPES / "qwen3-14b" / "matched.yaml")
    tasks = tasks_of_study(recipe, Path("/studies/a"), build_stages(recipe))
    with pytest.raises(
        UserError, match=r"8 ranks on 1 node\(s\) are 8 GPUs a node, but the site has 4; set resources.nodes=2"
    ):
        require(check_tasks(tasks, SiteSpec(gpus_per_node=4)))


SHARED = """
partition: gpu
memory: '0'
cpus_per_task: 64
gpus_per_node: 8
memory_per_gpu: 200G
cpus_per_gpu: 12
directives: ['--constraint=h200', '--exclusive']
stages: {corpus: {memory: 64G}, drift: {cpus_per_gpu: 2}}
"""


def asked(script):
    """Memory, cores, GPUs and directives of a script."""
    lines = [line.removeprefix("#SBATCH ") for line in script.splitlines() if line.startswith("#SBATCH ")]
    return [line for line in lines if line.startswith(("--mem", "--cpus", "--gres", "--excl", "--constr"))]


def test_a_job_of_one_gpu_asks_for_its_share_of_a_node_and_training_for_all_of_it(tmp_path):
    path = tmp_path / "site.yaml"
    path.write_text(SHARED)
    site = load_site(path)
    big = RECIPES / "qwen3-14b" / "matched.yaml"
    found = {name: asked(render(job, site, "c", "")) for name, job in jobs_of(recipe=big).items()}
    whole = ["--mem=0", "--cpus-per-task=64", "--gres=gpu:8", "--constraint=h200", "--exclusive"]
    assert found["arms/grpo"] == found["arms/sft_think"] == whole
    one = ["--mem=200G", "--cpus-per-task=12", "--gres=gpu:1", "--constraint=h200"]
    assert found["eval/grpo"] == found["trajectory/grpo"] == found["diagnostics/grpo"] == one
    assert found["drift/grpo"] == ["--mem=200G", "--cpus-per-task=2", "--gres=gpu:1", "--constraint=h200"]
    assert found["report"] == ["--mem=200G", "--cpus-per-task=12", "--constraint=h200"]
    assert found["corpus"] == ["--mem=64G", "--cpus-per-task=12", "--constraint=h200"]
    half = jobs_of("resources.ranks=4", "suite.engine={kind: vllm, tensor_parallel: 2}", recipe=big)
    assert asked(render(half["arms/grpo"], site, "c", "")) == [
        "--mem=800G", "--cpus-per-task=48", "--gres=gpu:4", "--constraint=h200",
    ]  # fmt: skip
    assert asked(render(half["eval/grpo"], site, "c", ""))[:3] == ["--mem=400G", "--cpus-per-task=24", "--gres=gpu:2"]


def test_without_shares_in_the_site_file_slurm_decides_and_a_word_for_one_kind_stays():
    site = SiteSpec(gpus_per_node=8, memory="0", cpus_per_task=64, directives=["--exclusive"],
                    stages={"eval": {"directives": ["--exclusive=user"]}})  # fmt: skip
    assert asked(render(jobs_of()["arms/grpo"], site, "c", "")) == ["--cpus-per-task=64", "--gres=gpu:1"]
    assert asked(render(jobs_of()["eval/grpo"], site, "c", ""))[-1] == "--exclusive=user"
    cpus = SiteSpec(memory="0", cpus_per_task=64, directives=["--exclusive"])
    assert asked(render(jobs_of()["arms/grpo"], cpus, "c", "")) == ["--mem=0", "--cpus-per-task=64", "--exclusive"]


def test_how_long_before_its_limit_a_job_is_told():
    """An update and a checkpoint of the plan, the site's own number, and what is neither."""
    big = RECIPES / "qwen3-14b" / "matched.yaml"
    recipe = load_recipe(big)
    shape = model_shape(recipe)
    context = plan_context(recipe, shape)
    jobs = jobs_of(recipe=big)
    assert checkpoint_seconds(context, "grpo") == pytest.approx(14 * shape.parameters() / 1e9)
    update = update_seconds(context, "grpo")
    wanted = round(update + 14 * shape.parameters() / 1e9 + 30)
    assert 600 < wanted < 1800
    assert signal_seconds(jobs["arms/grpo"], SiteSpec()) == wanted
    script = render(jobs["arms/grpo"], SiteSpec(), "c", "")
    assert f"#SBATCH --signal=B:USR1@{wanted}\n" in script
    assert f"\nexport TRANSFER_SIGNAL_SECONDS={wanted}  #" in script
    assert f"\n      sleep {wanted - 30}\n" in script
    assert signal_seconds(jobs["eval/grpo"], SiteSpec()) == 120
    assert signal_seconds(jobs["arms/grpo"], SiteSpec(signal_seconds=60)) == 60
    assert "\n      sleep 40\n" in render(jobs["arms/grpo"], SiteSpec(signal_seconds=60), "c", "")
    assert signal_seconds(jobs_of()["arms/grpo"], SiteSpec()) == 300
    four = jobs_of(recipe=RECIPES / "qwen3-14b" / "paper.yaml")  # can stop after four updates only
    assert signal_seconds(four["arms/grpo"], SiteSpec()) == 1800


def test_the_server_of_a_job_uses_all_gpus_of_its_node():
    recipe = load_recipe(RECIPES / "qwen3-14b" / "matched.yaml",
                         ["resources.vllm={mode: server, server_nodes: 1, tensor_parallel: 2}"])  # fmt: skip
    command = server_command(recipe, Path("/studies/a"), "grpo", 0, 8000, 8)
    words = dict(zip(command[3::2], command[4::2], strict=True))
    assert command[:3] == ["vllm", "serve", "/studies/a/base"]
    assert words["--tensor-parallel-size"] == "2"
    assert words["--data-parallel-size"] == "4"
    assert words["--max-model-len"] == str(2048 + 14336)
    assert words["--gpu-memory-utilization"] == "0.9"
    assert words["--max-num-seqs"] == str(256 * 8 // 4)  # every copy answers a quarter of the batch
    assert words["--port"] == "8000"
    seeds = [server_command(recipe, Path("/a"), "grpo", seed, 8000, 8) for seed in (0, 3)]
    assert [words[words.index("--seed") + 1] for words in seeds] == ["0", "3000009"]  # as of a colocated first rank
    assert server_command(recipe, Path("/a"), "grpo", 0, 8000, 3)[9:11] == ["--data-parallel-size", "1"]
    with pytest.raises(UserError, match=r"tensor_parallel is 2 and the server's node has 1 GPU\(s\); lower it"):
        server_command(recipe, Path("/a"), "grpo", 0, 8000, 1)


HOSTILE = [
    "a b",
    "it's",
    'say "x"',
    "$(touch x)",
    "`touch x`",
    "a;touch x",
    "line\nbreak",
    "tab\tx",
    "-n",
    "*",
    "\\",
    "é",
]


def checked(script, tmp_path):
    """The arrays `studies` and `stages`, and a variable, as bash reads them; nothing else of the script runs."""
    head = script.partition("# The stage of this task.")[0]
    path = tmp_path / "script.sh"
    path.write_text(head.replace("set -eo pipefail", "set -eo pipefail; module() { :; }")
                    + 'printf "%s\\0" "${studies[@]}" "${stages[@]}" "${HOSTILE-}" "${run[@]}"')  # fmt: skip
    result = subprocess.run(["bash", str(path)], capture_output=True, cwd=tmp_path, check=False)
    assert result.returncode == 0, result.stderr
    assert {found.name for found in tmp_path.iterdir()} <= {"script.sh"}, "a name was run"
    return result.stdout.decode().split("\0")[:-1]


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_folders_and_values_arrive_as_they_are(name, tmp_path):
    folder = Path("/studies") / name.strip("/")
    (tmp_path / "work").mkdir()
    job = jobs_of(folder=folder)["arms/grpo"]
    site = SiteSpec(environment={"HOSTILE": name}, container={"image": name, "binds": [name]}, modules=["cuda/12"])
    found = checked(render(job, site, "c", ""), tmp_path / "work")
    assert found[:3] == [str(folder.resolve()), "arms/grpo/seed-0", name]
    assert found[-2:] == [name, "python3"]
    assert found.count(name) == 3  # the variable, the bind, the image


KEYS = "partition account qos memory gpu_type modules directives time_limit setup environment name binds".split()


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(KEYS),
    st.text(st.sampled_from(string.printable + "é\x00\x7f"), min_size=1, max_size=20),
)  # fmt: skip
def test_no_site_value_becomes_a_line_or_a_command(key, text):
    values = {"modules": [text], "directives": [f"--{text}"], "setup": [text], "environment": {"NAME": text}}
    values |= {"name": {text: "x"}, "binds": {"image": "i", "binds": [text]}}
    field = {"name": "environment", "binds": "container"}.get(key, key)
    try:
        site = SiteSpec.model_validate({field: values.get(key, text)})
    except ValueError:
        return
    plain = render(jobs_of()["arms/grpo"], SiteSpec(), "c", "")
    script = render(jobs_of()["arms/grpo"], site, "c", "")
    before, after = plain.splitlines(), script.splitlines()
    directives = [line for line in after if line.startswith("#SBATCH")]
    assert len(directives) - sum(line.startswith("#SBATCH") for line in before) in (0, 1)
    if key not in ("setup", "environment", "binds"):
        added = [line for line in after if line not in before]
        assert not any(set(line) & set("`$;\"'\\<>()\x00") for line in added), added


def test_secrets_and_yaml_times_are_refused_with_a_sentence(tmp_path):
    path = tmp_path / "site.yaml"
    for text, message in (
        ("environment: {WANDB_API_KEY: x}", "WANDB_API_KEY looks like a secret"),
        ("time_limit: 24:00:00", "write it in quotes, such as '24:00:00'"),
        ("time_limit: soon", "'soon' is not a time in Slurm's format"),
        ("directives: [--nodes=3]", "is set from the recipe"),
        ("directives: ['--comment=a b']", "is not an option such as"),
        ("partitoin: gpu", "did you mean `partition`"),
        ("partition: a b", "`partition` is 'a b', but string should match pattern"),
        ("- a", "site file"),
        ("stages: {eval: {gpus: 2}}", "`stages.eval.gpus` is not a setting"),
        ("stages: {server: {partition: gpu}}", "`stages` has the key 'server'; allowed are base, corpus"),
    ):
        path.write_text(text)
        with pytest.raises(UserError) as error:
            load_site(path)
        assert message in str(error.value), str(error.value)


def test_the_example_is_a_site_and_a_missing_one_names_it(monkeypatch, tmp_path):
    example = RECIPES.parent / "launch" / "site.example.yaml"
    site = load_site(example)
    assert (site.job("corpus").partition, site.job("eval").partition) == ("cpu", "gpu")
    assert site.job("corpus").account == "my-project"
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("TRANSFER_SITE", raising=False)
    with pytest.raises(UserError, match=r"copy launch/site.example.yaml"):
        find_site(None)


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
def test_shellcheck_has_nothing_to_say(tmp_path):
    server = ["resources.vllm={mode: server, server_nodes: 1}", "seeds=[0,1]", "resources.ranks=2", "resources.nodes=2"]
    example = load_site(RECIPES.parent / "launch" / "site.example.yaml")
    values = example.model_dump() | {"container": {"image": "/images/lab.sif"}, "setup": ()}
    sites = (SiteSpec(), SiteSpec.model_validate(values),
             SiteSpec(container={"image": "lab", "runtime": "pyxis"}))  # fmt: skip
    for number, site in enumerate(sites):
        for name, job in jobs_of(*server, folder=Path("/it's a study")).items():
            (tmp_path / f"{number}-{name.replace('/', '-')}.sh").write_text(render(job, site, "c", "afterok:1"))
    result = subprocess.run(
        ["shellcheck", *map(str, tmp_path.glob("*.sh"))], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout


def test_a_cluster_that_does_not_answer_leaves_nothing_behind(tmp_path):
    """No squeue on the path: a sentence, and no folder."""
    site = tmp_path / "site.yaml"
    site.write_text("partition: gpu\n")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "git").symlink_to(shutil.which("git"))
    command = [sys.executable, "-m", "launch", "run", str(SMOKE), "--on", "slurm", "--site", str(site)]
    result = subprocess.run([*command, "--out", str(tmp_path / "s")], capture_output=True, text=True, check=False,
                            env={"PATH": str(tmp_path / "bin"), "PYTHONPATH": str(RECIPES.parent)})  # fmt: skip
    assert result.returncode == 2
    assert "squeue is not installed here; run this on a login node of the cluster, or --on local" in result.stderr
    assert not (tmp_path / "s").exists()


def test_dry_run_writes_scripts_and_submits_nothing(tmp_path):
    site = tmp_path / "site.yaml"
    site.write_text("partition: gpu\n")
    command = [sys.executable, "-m", "launch", "run", str(SMOKE), "--on", "slurm", "--site", str(site), "--dry-run"]
    result = subprocess.run([*command, "--out", str(tmp_path / "s")], capture_output=True, text=True, check=False,
                            env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(RECIPES.parent)})  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert "eval/grpo: 1 task(s) x 1 node(s)  after afterok:<arms/grpo>,afterok:<questions>" in result.stdout
    assert {path.name for path in (tmp_path / "s").iterdir()} == {"slurm"}
    assert not (tmp_path / "s" / "slurm" / "jobs.json").exists()
    assert len(list((tmp_path / "s" / "slurm" / "dry-run").glob("*.sh"))) == 11
