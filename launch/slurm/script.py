"""The batch script of a job, from `job.sh.j2`. Values of the user are either checked (`site_file.py`) or quoted."""

import re
import sys
from functools import lru_cache
from pathlib import Path
from shlex import join, quote
from typing import TYPE_CHECKING

from launch.execution.failures import STOPPED
from launch.planning.hours import checkpoint_seconds, plan_context, update_seconds
from launch.site_file import ContainerSpec, JobSpec, SiteSpec
from launch.slurm.jobs import Job
from train.accounting.cost import model_shape

if TYPE_CHECKING:
    from jinja2 import Template

ROOT = Path(__file__).resolve().parents[2]

_REQUEUE_SECONDS = 30  # before the time limit; a job still running then is requeued by force
_MIN_SIGNAL_SECONDS, _MAX_SIGNAL_SECONDS = 120, 1800
_UNKNOWN_SIGNAL_SECONDS = 300  # where the plan cannot predict the time of a step
_OPTIONS = {
    "partition": "partition",
    "account": "account",
    "qos": "qos",
    "time_limit": "time",
    "memory": "mem",
    "cpus_per_task": "cpus-per-task",
}
"""Setting of the site file -> option of sbatch."""


def render(job: Job, site: SiteSpec, comment: str, dependency: str) -> str:
    """The script of a job.

    `comment` identifies the job in Slurm's queue. `dependency`: value of sbatch's --dependency; empty: none.
    """
    request = site.job(job.kind, job.gpus_per_node)
    seconds = signal_seconds(job, site)
    environment = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"} if site.offline else {}
    environment |= {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"} | site.environment
    study_dirs = [str(task.study_dir.resolve()) for task in job.tasks]
    folders = sorted({str(ROOT), *study_dirs})
    inside = _pyxis(site.container, folders)
    step_options = [f"--nodes={job.nodes}", f"--ntasks={job.nodes}", "--ntasks-per-node=1", "--kill-on-bad-exit=1"]
    server_options = ["--nodes=1", "--ntasks=1", f"--relative={job.nodes}", *_gpu_options(site, job.gpus_per_node)]
    return _template().render(
        job=job,
        site=site,
        root=str(ROOT),
        options=_sbatch_options(job, site, request, comment, dependency),
        environment=environment,
        signal_seconds=seconds,
        requeue_after_seconds=seconds - min(_REQUEUE_SECONDS, seconds // 3),
        cpus_per_task=request.cpus_per_task,
        studies=study_dirs,
        stages=[task.stage.name for task in job.tasks],
        step_options=[*step_options, *inside],
        server_options=[*server_options, *inside],
        interpreter=_interpreter(site.container, folders),
        stopped_status=STOPPED,
    )


@lru_cache(maxsize=1)
def _template() -> "Template":
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,
    )
    environment.filters |= {"quote": quote, "join_quoted": join}
    return environment.get_template("job.sh.j2")


def signal_seconds(job: Job, site: SiteSpec) -> int:
    """Seconds before its time limit at which a job is told to save.

    From the site file, or as long as the slowest of its tasks needs for a step and a checkpoint.
    """
    if site.signal_seconds is not None:
        return site.signal_seconds
    if job.kind != "arms":  # these stages write as they go and have nothing to save
        return _MIN_SIGNAL_SECONDS
    context = plan_context(job.recipe, model_shape(job.recipe), site.gpus_per_node)
    longest = 0.0
    for arm in {task.stage.arm for task in job.tasks}:
        seconds = update_seconds(context, arm)
        if seconds is None or context is None:
            return _UNKNOWN_SIGNAL_SECONDS
        longest = max(longest, seconds + checkpoint_seconds(context, arm) + _REQUEUE_SECONDS)
    return min(max(round(longest), _MIN_SIGNAL_SECONDS), _MAX_SIGNAL_SECONDS)


def _sbatch_options(job: Job, site: SiteSpec, request: JobSpec, comment: str, dependency: str) -> list[str]:
    label = re.sub(r"[^A-Za-z0-9_.-]+", "-", f"{job.recipe.study}-{job.name}")
    label += f"-{job.replica}" if job.replica else ""
    options = [
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
        options.append(f"--array=0-{len(job.tasks) - 1}{limit}")
    if dependency:
        options.append(f"--dependency={dependency}")
    values = {option: getattr(request, setting) for setting, option in _OPTIONS.items()}
    options += [f"--{option}={value}" for option, value in values.items() if value is not None]
    return [*options, *_gpu_options(site, job.gpus_per_node), *request.directives]


def _gpu_options(site: SiteSpec, count: int) -> list[str]:
    if not site.gpus_per_node or not count:
        return []
    kind = f"{site.gpu_type}:" if site.gpu_type else ""
    return [f"--gres=gpu:{kind}{count}" if site.gpu_request == "gres" else f"--gpus-per-node={kind}{count}"]


def _interpreter(container: ContainerSpec | None, folders: list[str]) -> list[str]:
    """The command that starts Python: this interpreter, or the one of the container's image."""
    if container is None:
        return [sys.executable]
    if container.runtime == "pyxis":
        return ["python3"]
    binds = [word for folder in (*folders, *container.binds) for word in ("--bind", folder)]
    return ["apptainer", "exec", *(["--nv"] if container.gpu else []), *binds, container.image, "python3"]


def _pyxis(container: ContainerSpec | None, folders: list[str]) -> list[str]:
    if container is None or container.runtime != "pyxis":
        return []
    mounts = ",".join([*folders, *container.binds])
    return [f"--container-image={container.image}", f"--container-mounts={mounts}"]
