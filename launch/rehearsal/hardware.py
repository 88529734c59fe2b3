"""What this machine has for a rehearsal, and what of the recipe it therefore cannot show."""

from contextlib import suppress
from dataclasses import dataclass, field
from importlib import metadata
from importlib.util import find_spec

from launch.hardware import visible_gpus
from launch.site_file import SiteSpec
from recipes.errors import UserError
from recipes.schema import Recipe

_CPU_RANKS = 2  # without GPUs, unless more are asked for: enough for everything that ranks do together


@dataclass(frozen=True)
class Hardware:
    """Where the rehearsal runs."""

    gpus: int
    """GPUs of the machine, or of a cluster's nodes together; 0: CPU processes."""
    ranks: int
    """Processes that train one arm together."""
    nodes: int
    """Machines they are spread over."""
    vllm: str | None
    """Version of vLLM; None: not installed."""
    missing: tuple[str, ...] = field(default=())
    """What is not rehearsed for lack of hardware or packages, as sentences."""


def find_hardware(recipe: Recipe, ranks: int | None, site: SiteSpec | None) -> Hardware:
    """What there is for a recipe here, or on the cluster of a site file.

    Raises:
        UserError: more ranks are asked for than there are GPUs, or ranks that do not divide among the nodes.
    """
    resources = recipe.resources
    nodes = resources.nodes if site is not None else 1
    gpus = len(visible_gpus()) if site is None else site.gpus_per_node * nodes
    chosen = ranks or min(resources.ranks, gpus or max(nodes, _CPU_RANKS))
    if gpus and chosen > gpus:
        raise UserError(f"--ranks {chosen} but there are {gpus} GPU(s); say --ranks {gpus} or less")
    if chosen % nodes:
        raise UserError(f"--ranks {chosen} does not divide among resources.nodes={nodes}; say --ranks {nodes}")
    vllm = None
    with suppress(metadata.PackageNotFoundError):  # TRL and the evaluation ask for the version too
        vllm = metadata.version("vllm") if find_spec("vllm") else None
    missing = []
    if not gpus:
        missing.append("everything a GPU does: its kernels and arithmetic, its memory, NCCL between GPUs")
    if chosen != resources.ranks and recipe.trained:
        missing.append(f"resources.ranks {resources.ranks}: {chosen} trained")
    if nodes != resources.nodes:
        missing.append(f"resources.nodes {resources.nodes}: one machine; --on slurm uses them")
    return Hardware(gpus, chosen, nodes, vllm, tuple(missing))
