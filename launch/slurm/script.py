"""The batch script of a job. Everything that comes from a user is either checked (`site_file.py`) or quoted."""

import re
import sys
from pathlib import Path
from shlex import join, quote

from launch.planning.hours import checkpoint_seconds, setting_of, update_seconds
from launch.slurm.jobs import Job
from launch.slurm.site_file import ContainerSpec, JobSpec, SiteSpec
from train.accounting.cost import model_shape

ROOT = Path(__file__).resolve().parents[2]
SERVER_PORT = 8000

_LEAD_SECONDS = 30  # before the time limit, for Slurm to requeue what has not stopped by itself
_SIGNAL_SECONDS = (120, 1800)  # what is derived stays between these
_UNKNOWN_SECONDS = 300

_BODY = r"""
# The stage of this task. Every node runs `launch.slurm.step`; the first one decides, the others join its ranks.
task=${SLURM_ARRAY_TASK_ID:-0}
study=${studies[$task]} stage=${stages[$task]}
mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
address() { scontrol show node --oneliner "$1" | grep -o ' NodeAddr=[^ ]*' | cut -d= -f2; }
TRANSFER_HEAD=$(address "${nodes[0]}")
export TRANSFER_HEAD
@SERVER@
srun "${where[@]}" "${run[@]}" -m launch.slurm.step "$study" "$stage" &
child=$!

# USR1 comes before the time limit, TERM with a preemption or cancellation: both mean to save. Then, unless it was
# cancelled, the job goes back to the queue under the same number, so that what depends on it still does. (Slurm itself
# requeues a preempted job only if it has to kill it; one that ends by itself in time would count as failed. One that is
# killed by its time limit counts as failed too: so what has not stopped shortly before is requeued as it stands, which
# kills it, and goes on from its last checkpoint. launch.slurm.step gives up after two without a new one.)
again=
trap 'again=yes; kill -USR1 "$child" 2> /dev/null || true' USR1
trap 'kill -TERM "$child" 2> /dev/null || true' TERM
status=
deadline=
while [ -z "$status" ]; do
  wait "$child" && status=0 || status=$?
  # A signal ends `wait` before the child has ended.
  if [ "$status" -gt 128 ] && kill -0 "$child" 2> /dev/null; then status=; fi
  if [ -z "$status" ] && [ -n "$again" ] && [ -z "$deadline" ]; then
    {
      sleep @LAST@
      echo "not saved in time before the time limit; requeued, to go on from the last checkpoint"
      scontrol requeue "$SLURM_JOB_ID"
    } &
    deadline=$!
  fi
done
if [ -n "$deadline" ]; then kill "$deadline" 2> /dev/null || true; fi
preempted() { scontrol show job --oneliner "$SLURM_JOB_ID" | grep -q ' PreemptTime=[0-9]'; }
# srun's own status is that of whichever task ended worst, so the stage's record says whether it saved and stopped.
saved() { grep -q '"status": @STOPPED@' "$study/.failures/${stage//\//--}.json" 2> /dev/null; }
if [ "$status" -ne 0 ] && saved && { [ -n "$again" ] || preempted; }; then
  scontrol requeue "$SLURM_JOB_ID" && sleep 60
fi
exit "$status"
"""

_SERVER = """
# The vLLM server has the last node to itself and lives as long as this job.
TRANSFER_VLLM_URL="http://$(address "${nodes[-1]}"):@PORT@"
TRANSFER_SERVER_ENDED="$jobs/server-$SLURM_JOB_ID.ended"
export TRANSFER_VLLM_URL TRANSFER_SERVER_ENDED
rm -f "$TRANSFER_SERVER_ENDED"
{
  srun --nodes=1 --ntasks=1 --relative=@TRAIN@ @GPUS@"${run[@]}" -m launch.slurm.vllm_server "$study" "$stage" @PORT@ \\
    >> "$jobs/$SLURM_JOB_NAME.server.log" 2>&1 || true
  touch "$TRANSFER_SERVER_ENDED"
} &
"""


def render(job: Job, site: SiteSpec, comment: str, dependency: str) -> str:
    """The script of a job. `comment` is how it is found again, `dependency` what sbatch's --dependency takes."""
    wanted = site.job(job.kind, job.gpus_per_node)
    seconds = signal_seconds(job, site)
    total = job.nodes + job.server_nodes
    lines = [
        "#!/bin/bash",
        f"# {job.name} of the study {job.recipe.study}. Written by `transfer run --on slurm`.",
        *(f"#SBATCH {option}" for option in options(job, site, wanted, comment, dependency)),
        "set -eo pipefail",
        *(["jobs=$PWD"] if job.server_nodes else []),
        f"cd {quote(str(ROOT))}",
    ]
    if site.modules:
        lines.append(f"module load {' '.join(site.modules)}")
    lines += site.setup
    lines.append("set -u  # only now: modules and environments read variables that are not set")
    environment = {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"} | site.environment
    if site.offline:
        environment = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"} | environment
    lines += [f"export {name}={quote(value)}" for name, value in environment.items()]
    lines.append(f"export TRANSFER_SIGNAL_SECONDS={seconds}  # between USR1 and the time limit")
    if wanted.cpus_per_task:
        lines.append(f"export SRUN_CPUS_PER_TASK={wanted.cpus_per_task}  # srun does not take it from sbatch")
    studies = " ".join(quote(str(task.study_dir.resolve())) for task in job.tasks)
    stages = " ".join(quote(task.stage.name) for task in job.tasks)
    folders = {str(ROOT), *(str(task.study_dir.resolve()) for task in job.tasks)}
    steps = [f"--nodes={job.nodes}", f"--ntasks={job.nodes}", "--ntasks-per-node=1", "--kill-on-bad-exit=1"]
    lines += [
        f"studies=({studies})",
        f"stages=({stages})",
        f"where=({join([*steps, *_pyxis(site.container)])})",
        f"run=({join([*_apptainer(site.container, sorted(folders)), _python(site.container)])})",
    ]
    server = ""
    if job.server_nodes:
        gpus = _gpu_option(site, job.gpus_per_node)
        server = _SERVER.replace("@PORT@", str(SERVER_PORT)).replace("@TRAIN@", str(job.nodes))
        server = server.replace("@GPUS@", f"{gpus} " if gpus else "")
    body = _BODY.replace("@SERVER@\n", server.lstrip("\n")).replace("@STOPPED@", "75")
    body = body.replace("@LAST@", str(seconds - min(_LEAD_SECONDS, seconds // 3)))
    assert total >= 1
    return "\n".join(lines) + body


def signal_seconds(job: Job, site: SiteSpec) -> int:
    """How long before its time limit a job is told to save: the site's word, or what the slowest of its tasks needs."""
    if site.signal_seconds is not None:
        return site.signal_seconds
    if job.kind != "arms":
        return _SIGNAL_SECONDS[0]  # what is there is kept
    setting = setting_of(job.recipe, model_shape(job.recipe), site.gpus_per_node)
    needed = []
    for arm in {str(task.stage.arguments["arm"]) for task in job.tasks}:
        update = update_seconds(setting, arm)
        if update is None or setting is None:
            return _UNKNOWN_SECONDS
        needed.append(update + checkpoint_seconds(setting, arm) + _LEAD_SECONDS)
    return min(max(round(max(needed)), _SIGNAL_SECONDS[0]), _SIGNAL_SECONDS[1])


def options(job: Job, site: SiteSpec, wanted: JobSpec, comment: str, dependency: str) -> list[str]:
    """What sbatch is told about a job."""
    label = re.sub(r"[^A-Za-z0-9_.-]+", "-", f"{job.recipe.study}-{job.name}")
    label += f"-{job.replica}" if job.replica else ""
    found = [
        f"--job-name={label}",
        f"--comment={comment}",
        f"--output={label}-%{'A_%a' if len(job.tasks) > 1 else 'j'}.log",
        "--open-mode=append",
        "--requeue" if site.requeue else "--no-requeue",
        f"--signal=B:USR1@{signal_seconds(job, site)}",
        "--kill-on-invalid-dep=yes",
        f"--nodes={job.nodes + job.server_nodes}",
        "--ntasks-per-node=1",
    ]
    if len(job.tasks) > 1:
        limit = f"%{site.max_running}" if site.max_running else ""
        found.append(f"--array=0-{len(job.tasks) - 1}{limit}")
    if dependency:
        found.append(f"--dependency={dependency}")
    names = {"partition": "partition", "account": "account", "qos": "qos", "time_limit": "time", "memory": "mem",
             "cpus_per_task": "cpus-per-task"}  # fmt: skip
    found += [f"--{option}={value}" for name, option in names.items() if (value := getattr(wanted, name)) is not None]
    gpus = _gpu_option(site, job.gpus_per_node)
    return [*found, *([gpus] if gpus else []), *wanted.directives]


def _gpu_option(site: SiteSpec, count: int) -> str:
    if not site.gpus_per_node or not count:
        return ""
    kind = f"{site.gpu_type}:" if site.gpu_type else ""
    return f"--gres=gpu:{kind}{count}" if site.gpu_request == "gres" else f"--gpus-per-node={kind}{count}"


def _python(container: ContainerSpec | None) -> str:
    """The interpreter: this one, or the image's own."""
    return sys.executable if container is None else "python3"


def _apptainer(container: ContainerSpec | None, folders: list[str]) -> list[str]:
    if container is None or container.runtime != "apptainer":
        return []
    binds = [part for folder in (*folders, *container.binds) for part in ("--bind", folder)]
    return ["apptainer", "exec", *(["--nv"] if container.gpu else []), *binds, container.image]


def _pyxis(container: ContainerSpec | None) -> list[str]:
    if container is None or container.runtime != "pyxis":
        return []
    mounts = ",".join([str(ROOT), *container.binds])
    return [f"--container-image={container.image}", f"--container-mounts={mounts}"]
