"""The site file: what a cluster wants to be told, outside every recipe.

Its values end up in batch scripts. Directives may hold only characters that mean nothing to a shell or to sbatch's own
parser, and everything else is quoted, so no value can become a command; only `setup` is shell, and says so.
"""

import os
import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, ValidationError, field_validator

from recipes.corpus_schema import Spec
from recipes.errors import UserError
from recipes.loading import read_yaml, sentences

Word = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_@%+=:,./\[\]*&|!-]*$")]
"""A value of an sbatch option."""
_DURATION = re.compile(r"^(\d+-)?\d+(:\d\d){0,2}$")


class ContainerSpec(Spec):
    """An image that the stages run in (containers/ has definitions)."""

    image: str
    """Apptainer image (.sif), or the name of a Docker image for pyxis."""
    runtime: Literal["apptainer", "pyxis"] = "apptainer"
    """apptainer: `apptainer exec` on every node. pyxis: srun's `--container-image`."""
    binds: tuple[str, ...] = ()
    """Folders of the host that are visible inside, as PATH or HOST:INSIDE. The source tree and the study always are."""
    gpu: bool = True
    """Whether the container gets the GPUs (`--nv`)."""


class JobSpec(Spec):
    """What one kind of job asks for. null: what the site's own top level says, or Slurm's default."""

    partition: Word | None = None
    """Partition."""
    account: Word | None = None
    """Account to charge."""
    qos: Word | None = None
    """Quality of service."""
    time_limit: str | None = None
    """Longest run of one job as Slurm writes it (minutes, HH:MM:SS, D-HH:MM:SS); longer stages continue themselves."""
    memory: Word | None = None
    """Memory of a node for one job, for instance 200G; 0: all of it."""
    cpus_per_task: int | None = Field(None, ge=1)
    """Cores of a task; null: not asked for."""
    memory_per_gpu: Annotated[str, Field(pattern=r"^[1-9][0-9]*[KMGT]?$")] | None = None
    """Memory for each GPU of a job that does not take a whole node, for instance 200G; null: Slurm's default."""
    cpus_per_gpu: int | None = Field(None, ge=1)
    """Cores for each GPU of such a job."""
    directives: tuple[str, ...] = ()
    """Further sbatch options, for instance --constraint=h200 or --exclusive (for jobs that take whole nodes)."""

    @field_validator("time_limit", mode="before")
    @classmethod
    def _as_slurm_writes_it(cls, value: object) -> object:
        # YAML 1.1 reads 12:00:00 as a number in base 60.
        if isinstance(value, int) and not isinstance(value, bool):
            raise ValueError(f"{value} is how YAML reads an unquoted time; write it in quotes, such as '24:00:00'")
        if value is not None and not _DURATION.match(str(value)):
            raise ValueError(f"{value!r} is not a time as Slurm writes it, such as '90', '24:00:00' or '2-00:00:00'")
        return value

    @field_validator("directives")
    @classmethod
    def _harmless(cls, values: tuple[str, ...]) -> tuple[str, ...]:
        own = ("job-name", "comment", "output", "error", "array", "dependency", "signal", "nodes", "ntasks", "requeue")
        for value in values:
            if not re.fullmatch(r"--[a-z][a-z-]*(=[A-Za-z0-9_@%+=:,./\[\]*&|!-]+)?", value):
                raise ValueError(f"{value!r} is not an option such as --constraint=h200 (no spaces, quotes or $)")
            if value[2:].split("=")[0] in own:
                raise ValueError(f"{value!r} is decided by the recipe and the stage; leave it out")
        return values


class SiteSpec(JobSpec):
    """One cluster."""

    gpus_per_node: int = Field(0, ge=0)
    """GPUs of a node; 0: a cluster without any, where ranks are CPU processes."""
    gpu_request: Literal["gres", "gpus-per-node"] = "gres"
    """Which sbatch option asks for them: --gres=gpu:N or --gpus-per-node=N."""
    gpu_type: Word | None = None
    """Type in that option, for instance h200; null: any."""
    modules: tuple[Word, ...] = ()
    """Environment modules that are loaded first."""
    setup: tuple[str, ...] = ()
    """Shell lines that are run as they stand before a stage, for instance `source /opt/conda/bin/activate lab`."""
    environment: dict[Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")], str] = Field(default_factory=dict)
    """Variables, for instance NCCL_SOCKET_IFNAME: ib0. Not for secrets: scripts are kept with the study."""
    container: ContainerSpec | None = None
    """Image to run in; null: the environment this command was installed in."""
    offline: bool = True
    """Whether jobs are told not to ask the hub; what they need was brought by `transfer fetch`."""
    max_running: int | None = Field(None, ge=1)
    """Tasks of one array that run at the same time. null: no limit."""
    signal_seconds: int | None = Field(None, ge=10)
    """How long before its time limit a job is told to save and continue itself. null: as long as an update and a
    checkpoint of its arm take by the plan's hours, between 2 and 30 minutes; 5 where the plan knows no hours."""
    requeue: bool = True
    """Whether Slurm may start a preempted job, or one whose node was lost, again by itself."""
    stages: dict[
        Literal[
            "base",
            "corpus",
            "arms",
            "drift",
            "external",
            "questions",
            "trajectory",
            "eval",
            "diagnostics",
            "report",
            "server",
        ],
        JobSpec,
    ] = Field(default_factory=dict)
    """What a kind of stage asks for instead, for instance a CPU partition for `corpus`."""

    @field_validator("environment")
    @classmethod
    def _no_secrets(cls, values: dict[str, str]) -> dict[str, str]:
        for name, value in values.items():
            if re.search(r"TOKEN|SECRET|PASSWORD|API_?KEY", name.upper()):
                raise ValueError(
                    f"{name} looks like a secret, and scripts are kept with the study; export it before "
                    "`transfer run`, Slurm passes it on"
                )
            if "\0" in value:
                raise ValueError(f"the value of {name} contains a zero byte")
        return values

    @field_validator("setup")
    @classmethod
    def _one_line_each(cls, values: tuple[str, ...]) -> tuple[str, ...]:
        for value in values:
            if "\n" in value or "\0" in value:
                raise ValueError(f"{value!r} is more than one line; list the lines one by one")
        return values

    def job(self, kind: str, gpus: int | None = None) -> JobSpec:
        """What a job of this kind asks for: the site's top level, with what `stages` says instead.

        `gpus`: GPUs of a node that the job uses. With fewer than a node has it leaves the rest of the node to others:
        no --exclusive and not all memory, but a share of memory and cores for each GPU (for one, where it uses none).
        """
        own = {name: getattr(self, name) for name in JobSpec.model_fields}
        special = self.stages.get(kind)  # type: ignore[call-overload]
        said: dict[str, object] = {}
        if special is not None:
            said = {name: value for name in JobSpec.model_fields if (value := getattr(special, name)) not in (None, ())}
        if gpus is not None and gpus < self.gpus_per_node:
            both = own | said
            own["directives"] = tuple(word for word in self.directives if not word.startswith("--exclusive"))
            memory, cores = both["memory_per_gpu"], both["cpus_per_gpu"]
            if memory:
                own["memory"] = _times(str(memory), max(1, gpus))
            elif own["memory"] == "0":
                own["memory"] = None
            own["cpus_per_task"] = int(str(cores)) * max(1, gpus) if cores else own["cpus_per_task"]
        return JobSpec(**(own | said))


def _times(memory: str, count: int) -> str:
    """An amount of memory as Slurm writes it, so many times."""
    digits = memory.rstrip("KMGT")
    return f"{int(digits) * count}{memory[len(digits) :]}"


def hours_of(duration: str) -> float:
    """Hours in a duration as Slurm writes it: MM, MM:SS, HH:MM:SS, D-HH, D-HH:MM or D-HH:MM:SS."""
    days, dash, rest = duration.rpartition("-")
    parts = [int(part) for part in rest.split(":")]
    if dash:
        hours, minutes, seconds = (*parts, 0, 0)[:3]
    else:
        hours, minutes, seconds = (0, *parts, 0)[:3] if len(parts) < 3 else parts
    return int(days or 0) * 24 + hours + minutes / 60 + seconds / 3600


def find_site(option: Path | None) -> Path:
    """The site file: the one named, or TRANSFER_SITE, or ~/.config/transfer/site.yaml.

    Raises:
        UserError: there is none.
    """
    usual = Path.home() / ".config" / "transfer" / "site.yaml"
    named = option or (Path(os.environ["TRANSFER_SITE"]) if os.environ.get("TRANSFER_SITE") else None)
    path = named or usual
    if not path.is_file():
        what = f"the site file {path} does not exist" if named else f"there is no site file at {usual}"
        raise UserError(f"{what}; copy launch/site.example.yaml, fill in your cluster, and name it with --site FILE")
    return path


def load_site(path: Path) -> SiteSpec:
    """Read a site file. Raises UserError, with every mistake as a sentence."""
    values = read_yaml(path, "site file")
    try:
        return SiteSpec.model_validate(values)
    except ValidationError as error:
        raise UserError("\n".join(f"{path}: {text}" for text in sentences(error, SiteSpec))) from None


def load_site_copy(path: Path) -> SiteSpec:
    """The site as it was when a study was submitted. Raises UserError if the copy is gone or damaged."""
    try:
        return SiteSpec.model_validate_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}); submit again with `transfer run --on slurm`") from None
