"""When each stage would start and end: on one machine as the local scheduler starts them, or with endless nodes.

Needs no torch.
"""

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from launch.execution.gpus import Pool, request_of
from launch.stages import Stage
from recipes.schema import Recipe


@dataclass(frozen=True)
class Schedule:
    """Wall clock of the stages that are left, those of unknown hours left out, and their critical path."""

    hours: float
    path: tuple[str, ...]
    """The critical path: stages of which each started when the one before it ended."""


def nodes_of_run(recipe: Recipe) -> int:
    """Nodes that one training run occupies at the most, with those of its vLLM server."""
    vllm = recipe.resources.vllm
    return recipe.resources.nodes + (vllm.server_nodes if vllm is not None else 0)


def on_one_machine(recipe: Recipe, stages: Sequence[Stage], hours: Mapping[str, float | None], gpus: int) -> Schedule:
    """As `transfer run` starts them on a machine with so many GPUs (0: a CPU).

    For a run on several nodes: on as many nodes as it occupies, with `gpus` GPUs each. `stages`: what is to run, in
    order; what else they need is done.
    """
    nodes = nodes_of_run(recipe)
    gpus *= nodes
    names = [str(index) for index in range(gpus)]
    pool, waiting = Pool(names, recipe.resources.workers), {stage.name: stage for stage in stages}
    running: list[tuple[float, int, str]] = []
    began_after: dict[str, str | None] = {}
    now, last = 0.0, None
    while waiting or running:
        unmet = {*waiting, *(name for _, _, name in running)}
        ready = [stage for stage in waiting.values() if not unmet & set(stage.needs)]
        requests = [request_of(recipe, stage, names) for stage in ready]
        if nodes > 1:
            requests = [
                request._replace(gpus=whole * gpus // nodes) if (whole := whole_nodes(recipe, stage)) else request
                for request, stage in zip(requests, ready, strict=True)
            ]
        for name, _ in pool.start(requests):
            stage = waiting.pop(name)
            began_after[name] = last
            heapq.heappush(running, (now + (hours[stage.name] or 0.0), len(began_after), name))
        if not running:
            break  # more GPUs are needed than there are, which is refused elsewhere
        now, _, last = heapq.heappop(running)
        pool.end(last)
    return Schedule(now, _back(last, began_after))


def whole_nodes(recipe: Recipe, stage: Stage) -> int:
    """Nodes that a run has to itself, with those that serve its completions; 0: the stage shares its node."""
    if stage.kind != "arms" or not recipe.resources.launched:
        return 0
    return nodes_of_run(recipe) if stage.trainer == "grpo" else recipe.resources.nodes


def with_endless_nodes(stages: Sequence[Stage], hours: Mapping[str, float | None]) -> Schedule:
    """Every stage as soon as those it needs are done: the longest path through the graph, without any queue."""
    ends: dict[str, float] = {}
    after: dict[str, str | None] = {}
    for stage in stages:
        after[stage.name] = max(
            (name for name in stage.needs if name in ends), key=lambda name: ends[name], default=None
        )
        before = after[stage.name]
        ends[stage.name] = (ends[before] if before is not None else 0.0) + (hours[stage.name] or 0.0)
    last = max(ends, key=lambda name: ends[name], default=None)
    return Schedule(ends[last] if last is not None else 0.0, _back(last, after))


def _back(last: str | None, after: Mapping[str, str | None]) -> tuple[str, ...]:
    path = []
    while last is not None:
        path.append(last)
        last = after[last]
    return tuple(reversed(path))
