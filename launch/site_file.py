"""The site file: the settings of a cluster, outside the recipes.

Its values end up in batch scripts. Directives may contain only characters without a meaning for a shell or sbatch, and
other values are quoted, so none can become a command. Only `setup` is shell code.
"""

import os
import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from launch.stage_kinds import StageKind
from recipes.errors import UserError
from recipes.loading import read_yaml
from recipes.mistakes import validated
from recipes.spec import Spec
from recipes.suggestions import similar_file

Word = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_@%+=:,./\[\]*&|!-]*$")]
"""A value of an sbatch option."""
VariableName = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
_DURATION = re.compile(r"^(\d+-)?\d+(:\d\d){0,2}$")


def _in_slurms_format(value: object) -> object:
    # YAML 1.1 reads 12:00:00 as a number in base 60.
    if isinstance(value, int) and not isinstance(value, bool):
        raise ValueError(f"{value} is how YAML reads an unquoted time; write it in quotes, such as '24:00:00'")
    if value is not None and not _DURATION.match(str(value)):
        raise ValueError(f"{value!r} is not a time in Slurm's format, such as '90', '24:00:00' or '2-00:00:00'")
    return value


def _are_options(values: tuple[str, ...]) -> tuple[str, ...]:
    own = ("job-name", "comment", "output", "error", "array", "dependency", "signal", "nodes", "ntasks", "requeue")
    for value in values:
        if not re.fullmatch(r"--[a-z][a-z-]*(=[A-Za-z0-9_@%+=:,./\[\]*&|!-]+)?", value):
            raise ValueError(f"{value!r} is not an option such as --constraint=h200 (no spaces, quotes or $)")
        if value[2:].split("=")[0] in own:
            raise ValueError(f"{value!r} is set from the recipe; leave it out")
    return values


def _without_secrets(values: dict[str, str]) -> dict[str, str]:
    for name, value in values.items():
        if re.search(r"TOKEN|SECRET|PASSWORD|API_?KEY", name.upper()):
            raise ValueError(
                f"{name} looks like a secret, and scripts are kept with the study; export it before `transfer run`, "
                "Slurm passes it on"
            )
        if "\0" in value:
            raise ValueError(f"the value of {name} contains a zero byte")
    return values


def _one_line_each(values: tuple[str, ...]) -> tuple[str, ...]:
    for value in values:
        if "\n" in value or "\0" in value:
            raise ValueError(f"{value!r} is more than one line; list the lines one by one")
    return values


class ContainerSpec(Spec):
    """An image that the stages run in (definitions are in launch/containers/)."""

    image: str
    """Apptainer image (.sif), or the name of a Docker image for pyxis."""
    runtime: Literal["apptainer", "pyxis"] = "apptainer"
    """apptainer: `apptainer exec` on every node. pyxis: srun's `--container-image`."""
    binds: tuple[str, ...] = ()
    """Folders of the host to mount, as PATH or HOST:INSIDE. The source tree and the study always are."""
    gpu: bool = True
    """Whether the container gets the GPUs (`--nv`)."""


class JobSpec(Spec):
    """Resources of one kind of job. null: those of the site file's top level, or Slurm's default."""

    partition: Word | None = None
    """Partition."""
    account: Word | None = None
    """Account to charge."""
    qos: Word | None = None
    """Quality of service."""
    time_limit: Annotated[str | None, BeforeValidator(_in_slurms_format)] = None
    """Time limit of a job in Slurm's format (minutes, HH:MM:SS, D-HH:MM:SS). Longer stages save and are requeued."""
    memory: Word | None = None
    """Memory of a node for one job, for instance 200G; 0: all of it."""
    cpus_per_task: int | None = Field(None, ge=1)
    """Cores of a task; null: Slurm's default."""
    memory_per_gpu: Annotated[str, Field(pattern=r"^[1-9][0-9]*[KMGT]?$")] | None = None
    """Memory per GPU of a job that uses a part of a node, for instance 200G; null: Slurm's default."""
    cpus_per_gpu: int | None = Field(None, ge=1)
    """Cores per GPU of such a job."""
    directives: Annotated[tuple[str, ...], AfterValidator(_are_options)] = ()
    """Further sbatch options, for instance --constraint=h200, or --exclusive (applies to jobs on whole nodes)."""


class SiteSpec(JobSpec):
    """One cluster."""

    gpus_per_node: int = Field(0, ge=0)
    """GPUs of a node; 0: none, ranks are CPU processes."""
    gpu_request: Literal["gres", "gpus-per-node"] = "gres"
    """The sbatch option that requests them: --gres=gpu:N or --gpus-per-node=N."""
    gpu_type: Word | None = None
    """GPU type in that option, for instance h200; null: any."""
    modules: tuple[Word, ...] = ()
    """Environment modules to load."""
    setup: Annotated[tuple[str, ...], AfterValidator(_one_line_each)] = ()
    """Shell lines to run before a stage, for instance `source /opt/conda/bin/activate lab`."""
    environment: Annotated[dict[VariableName, str], AfterValidator(_without_secrets)] = Field(default_factory=dict)
    """Environment variables, for instance NCCL_SOCKET_IFNAME: ib0. No secrets: scripts are kept with the study."""
    container: ContainerSpec | None = None
    """Image to run in; null: the Python environment of this command."""
    offline: bool = True
    """Whether jobs run with the hub and Weights & Biases offline; `transfer fetch` has downloaded what they need, and
    `transfer sync` sends the metrics. WANDB_MODE, exported or in `environment`, takes precedence."""
    max_running: int | None = Field(None, ge=1)
    """Tasks of one array that run at the same time. null: no limit."""
    signal_seconds: int | None = Field(None, ge=10)
    """Seconds before its time limit at which a job is told to save. null: as long as a step and a checkpoint of its
    arm take by the plan, between 2 and 30 minutes; 5 minutes where the plan cannot predict it."""
    requeue: bool = True
    """Whether Slurm may requeue a job that was preempted, lost its node or reached its time limit. false: such a job
    has failed, and those that need it are cancelled."""
    stages: dict[StageKind, JobSpec] = Field(default_factory=dict)
    """Resources of a kind of stage, for instance a CPU partition for `corpus`."""

    def job(self, kind: StageKind, gpus: int | None = None) -> JobSpec:
        """Resources of a job of this kind: the top level of the site file, overridden by `stages`.

        `gpus`: GPUs of a node that the job uses. A job that uses fewer than the node has leaves the rest to others:
        no --exclusive and not all memory, but memory and cores per GPU (those of one GPU if it uses none).
        """
        common = {name: getattr(self, name) for name in JobSpec.model_fields}
        of_kind = self.stages.get(kind)
        own: dict[str, Any] = {}
        if of_kind is not None:
            own = {name: value for name in JobSpec.model_fields if (value := getattr(of_kind, name)) not in (None, ())}
        if gpus is not None and gpus < self.gpus_per_node:
            memory, cores = ((common | own)[name] for name in ("memory_per_gpu", "cpus_per_gpu"))
            common["directives"] = tuple(word for word in self.directives if not word.startswith("--exclusive"))
            if memory:
                common["memory"] = _times(memory, max(1, gpus))
            elif common["memory"] == "0":
                common["memory"] = None
            if cores:
                common["cpus_per_task"] = cores * max(1, gpus)
        return JobSpec(**(common | own))


def _times(memory: str, count: int) -> str:
    """`count` times an amount of memory in Slurm's format."""
    digits = memory.rstrip("KMGT")
    return f"{int(digits) * count}{memory[len(digits) :]}"


def hours_of(duration: str) -> float:
    """Hours of a duration in Slurm's format: MM, MM:SS, HH:MM:SS, D-HH, D-HH:MM or D-HH:MM:SS."""
    days, dash, rest = duration.rpartition("-")
    parts = [int(part) for part in rest.split(":")]
    if dash:
        hours, minutes, seconds = (*parts, 0, 0)[:3]
    else:
        hours, minutes, seconds = (0, *parts, 0)[:3] if len(parts) < 3 else parts
    return int(days or 0) * 24 + hours + minutes / 60 + seconds / 3600


def default_site() -> Path:
    """The site file of this user, where neither an option nor $TRANSFER_SITE names one."""
    return Path.home() / ".config" / "transfer" / "site.yaml"


def find_site(option: Path | None) -> Path:
    """The site file: that of the option, or $TRANSFER_SITE, or ~/.config/transfer/site.yaml.

    Raises:
        UserError: it does not exist.
    """
    path = option or Path(os.environ.get("TRANSFER_SITE") or default_site())
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        if option is not None and (near := similar_file(path)) is not None:
            raise UserError(f"the site file {path} {what}; did you mean {near}?")
        raise UserError(
            f"the site file {path} {what}; copy launch/site.example.yaml, fill in your cluster, and name it with "
            "--site FILE"
        )
    return path


def load_site(path: Path) -> SiteSpec:
    """Read a site file. Raises UserError that lists every mistake."""
    return validated(read_yaml(path, "site file"), SiteSpec, str(path))


def load_site_copy(path: Path) -> SiteSpec:
    """The copy of the site file that a submission keeps. Raises UserError if it cannot be read."""
    try:
        return SiteSpec.model_validate_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}); submit again with `transfer run --on slurm`") from None
