"""GPUs, ranks and vLLM of a rehearsal, and what of the recipe therefore is not rehearsed."""

from contextlib import suppress
from dataclasses import dataclass, field
from importlib import metadata
from importlib.util import find_spec

from launch.hardware import visible_gpus
from launch.site_file import SiteSpec
from recipes.errors import UserError
from recipes.schema import Recipe

_CPU_RANKS = 2  # without GPUs: enough for every kind of communication between ranks


@dataclass(frozen=True)
class Hardware:
    """Where the rehearsal runs."""

    gpus: int
    """GPUs of the machine, or of all nodes of a cluster job; 0: CPU processes."""
    ranks: int
    """Processes that train one arm together."""
    nodes: int
    """Machines of the ranks."""
    vllm: str | None
    """Version of vLLM; None: not installed."""
    missing: tuple[str, ...] = field(default=())
    """What is not rehearsed for lack of hardware or packages."""


def find_hardware(recipe: Recipe, ranks: int | None, site: SiteSpec | None) -> Hardware:
    """The hardware for a recipe on this machine, or on the cluster of a site file.

    Raises:
        UserError: there are fewer GPUs than ranks, or the ranks do not divide evenly among the nodes.
    """
    resources = recipe.resources
    nodes = resources.nodes if site is not None else 1
    gpus = len(visible_gpus()) if site is None else site.gpus_per_node * nodes
    count = ranks or min(resources.ranks, gpus or max(nodes, _CPU_RANKS))
    if gpus and count > gpus:
        raise UserError(f"--ranks {count} but there are {gpus} GPU(s); use --ranks {gpus} or less")
    if count % nodes:
        raise UserError(f"--ranks {count} does not divide evenly among resources.nodes={nodes}; use --ranks {nodes}")
    vllm = None
    with suppress(metadata.PackageNotFoundError):  # a vllm module without metadata, which TRL does not accept either
        vllm = metadata.version("vllm") if find_spec("vllm") else None
    missing = []
    if not gpus:
        missing.append("GPU kernels and arithmetic, GPU memory, NCCL between GPUs")
    if count != resources.ranks and recipe.trained:
        missing.append(f"resources.ranks {resources.ranks}: {count} trained")
    if nodes != resources.nodes:
        missing.append(f"resources.nodes {resources.nodes}: one machine; --on slurm uses them")
    return Hardware(gpus, count, nodes, vllm, tuple(missing))
