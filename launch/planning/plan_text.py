"""A plan as text."""

import json
from collections.abc import Sequence
from pathlib import Path

from launch.planning.findings import disk_text
from launch.planning.plan_details import detail_lines
from launch.planning.plan_schema import ArmPlan, Plan, StagePlan
from launch.planning.teacher import TeacherPlan
from launch.planning.units import amount_text, count_text, flops_text, hours_text
from train.accounting.matching import REMEDY
from train.accounting.memory import size_text

_NAMED = 4  # arms in a label, at most while others are fewer
_MEMORY_TITLE = "memory per rank, without libraries"


def format_plan(plan: Plan, *, commands: bool = False, stages: bool = False, details: bool = False) -> str:
    """The plan as text.

    `commands`: with the processes of the stages that are left, and a command for those that run alike. `stages`: with a
    line for every stage, not one for every kind; with `commands` also its command, files, inputs and outputs.
    `details`: with what the hours rest on and the numbers behind the tables.
    """
    lines = [f"{plan.study} -> {plan.directory}", ""]
    lines += _stage_lines(plan, commands) if stages else _group_lines(plan)
    lines += _command_lines(plan) if commands and not stages else []
    lines += _hours_lines(plan)
    lines += _arm_lines(plan)
    lines += _teacher_lines(plan.teacher, plan.gpu)
    if plan.disk is not None and plan.disk.total:
        lines.append(f"disk at its fullest: {disk_text(plan.disk)}")
    lines += ["", *detail_lines(plan)] if details else []
    if plan.arms:
        which = "the trained arms" if plan.external else "the arms"
        lines += ["", "UNMATCHED:" if plan.differences else f"matched: {which} differ only in what the study varies"]
    lines += [*(f"  {text}" for text in plan.differences), *([REMEDY] if plan.differences else [])]
    lines += [f"trained elsewhere, lineage unknown: {', '.join(plan.external)}"] if plan.external else []
    lines += [f"note: {text}" for text in plan.notes]
    lines += [f"warning: {text}" for text in plan.warnings]
    lines += [f"missing: {text}" for text in plan.unresolved]
    lines += [f"cannot work: {text}" for text in plan.errors]  # last, where it is seen
    return "\n".join(lines)


def _stage_lines(plan: Plan, commands: bool) -> list[str]:
    lines = []
    shown: set[str] = set()
    for stage in plan.stages:
        reasons = f"  ({'; '.join(stage.reasons)})" if stage.reasons else ""
        hours = stage.taken_hours if stage.state == "done" else stage.expected_hours
        took = "" if hours is None else f"  {hours_text(hours)}" + (f" on {stage.gpus} GPU(s)" if stage.gpus else "")
        lines.append(f"  {stage.state:<8} {stage.name}{took}{reasons}")
        if commands:
            lines += [f"           {stage.topology}", f"           {stage.command}"]
            for path, content in stage.files.items():
                text = json.dumps({key: value for key, value in content.items() if key != "main_process_port"})
                lines.append(f"           {path}" + ("" if Path(path).name in shown else f": {text}"))
                shown.add(Path(path).name)
            lines += [f"           reads {', '.join(stage.reads)}"] if stage.reads else []
            lines.append(f"           writes {stage.writes}")
    return lines


def _group_lines(plan: Plan) -> list[str]:
    """A row for every arm and every other kind of stage, and why stages change."""
    groups: dict[str, list[StagePlan]] = {}
    for stage in plan.stages:
        groups.setdefault(stage.group, []).append(stage)
    width = max([5, *(len(name) for name in groups)])
    together = "GPU-hours" if plan.gpu else "all"
    head = f"  {'stage':<{width}}{'stages':>8}{'GPUs':>6}{'each':>11}{together:>13}{'memory':>12}  state"
    lines = [head]
    for name, members in groups.items():
        known = [stage for stage in members if stage.expected_hours is not None]
        hours = [stage.expected_hours or 0.0 for stage in known]
        longest = "?" if not known else hours_text(max(hours))
        held = [max(stage.gpus, 0 if plan.gpu else 1) for stage in known]
        total = sum(count * hour for count, hour in zip(held, hours, strict=True))
        shown = "?" if not known else count_text(total) if plan.gpu else hours_text(total)
        memory = max((stage.memory_bytes or 0 for stage in members), default=0)
        gpus = max((stage.requested_gpus or stage.gpus for stage in members), default=0)
        lines.append(
            f"  {name:<{width}}{len(members):>8}{gpus or '-':>6}{longest:>11}{shown:>13}"
            f"{size_text(memory) if memory else '-':>12}  {_states(members)}"
        )
        for reason in dict.fromkeys(reason for stage in members for reason in stage.reasons):
            lines.append(f"      {reason}")
    return lines


def _command_lines(plan: Plan) -> list[str]:
    """The processes of the stages that are left, and of those that run alike the first one's command."""
    alike: dict[str, list[StagePlan]] = {}
    for stage in plan.stages:
        if stage.state not in ("done", "reused"):
            alike.setdefault(stage.topology, []).append(stage)
    lines = ["", "how they run, with the command of the first (--stages: of every stage, with files)"]
    for topology, stages in alike.items():
        groups = dict.fromkeys(stage.group for stage in stages)
        lines += [f"  {', '.join(groups)}: {topology}", f"      {stages[0].command}"]
    return lines if alike else []


def _states(members: Sequence[StagePlan]) -> str:
    counts: dict[str, int] = {}
    for stage in members:
        counts[stage.state] = counts.get(stage.state, 0) + 1
    return ", ".join(state if count == len(members) else f"{count} {state}" for state, count in counts.items())


def _hours_lines(plan: Plan) -> list[str]:
    """Hours of the whole study, the wall clock, and the lengths they assume."""
    totals = plan.totals
    if not totals.hours:
        return []
    said = f"in all about {amount_text(totals.hours, totals.unit)}"
    if totals.taken_hours:
        said += f", of which {count_text(totals.taken_hours) if plan.gpu else hours_text(totals.taken_hours)} are spent"
    lines = ["", said + (f" ({plan.gpu}; a stage counts every GPU it holds)" if plan.gpu else "")]
    if totals.left_hours:
        where = "this machine"
        if plan.on_cluster and not plan.gpu:
            where = "one node of the cluster at the speed of a CPU (resources.gpu names a GPU)"
        if plan.gpu:
            several = totals.nodes > 1
            where = f"{totals.nodes if several else 'one'} node{'s' * several} with {totals.node_gpus} GPU(s)"
            where += " each" if several else ""
        clock = f"wall clock on {where}: {hours_text(totals.on_one_machine.hours)}"
        if plan.gpu:
            clock += f"; with a free node for every job: {hours_text(totals.with_endless_nodes.hours)}"
        lines.append(clock)
    unknown = sorted({stage.group for stage in plan.stages if stage.left_hours is None})
    if unknown:
        counts = " (`transfer fetch` counts the questions)" if "eval" in unknown else ""
        lines.append(f"not counted, because it is not known yet: {', '.join(unknown)}{counts}")
    if (lengths := plan.lengths) is not None:
        lines.append(
            f"assumed: completions of {lengths.completion_share:.0%} of their limit and responses of "
            f"{lengths.response_share:.0%} (`resources.expected_completion_tokens` sets another length)"
        )
    if plan.calibration and totals.left_hours:
        lines.append("hours of stages to come are corrected by what finished stages took (--details)")
    return lines


def _arm_lines(plan: Plan) -> list[str]:
    if not plan.arms:
        return []
    width = max([20, *(len(name) + 2 for name in plan.arms)])
    lines = [
        "",
        f"{'arm':<{width}}{'runs':>6}{'steps':>9}{'exposures':>11}{'completions':>13}{'generated tokens':>20}"
        f"{'FLOPs':>16}{'learning rate':>15}" + (f"{'GPU-hours':>12}{'disk, GB':>10}" if plan.gpu else ""),
    ]
    for name, arm in plan.arms.items():
        flops = "?" if arm.flops_at_most is None else flops_text(arm.flops_at_most)
        lines.append(
            f"{name:<{width}}{arm.runs:>6}{arm.updates:>9,}{arm.exposures:>11,}{arm.completions:>13,}"
            f"{arm.generated_tokens_at_most:>20,}{flops:>16}{arm.learning_rate:>15.1e}" + _hours_and_disk(plan, arm)
        )
    lines.append("for one run, at most: every problem with all completions, and these at their limit")
    return [*lines, "", *_memory_lines(plan)]


def _hours_and_disk(plan: Plan, arm: ArmPlan) -> str:
    if not plan.gpu:
        return ""
    hours = "?" if arm.gpu_hours is None else f"{arm.gpu_hours:,.0f}"
    return f"{hours:>12}" + (f"{arm.disk_bytes / 1e9:>10,.0f}" if arm.disk_bytes else f"{'?':>10}")


def _teacher_lines(teacher: TeacherPlan | None, gpu: str | None) -> list[str]:
    if teacher is None:
        return []
    if teacher.samples is None or teacher.tokens is None:
        text = f"teacher {teacher.model}: its samples are known once the corpus has counted its problems"
        if teacher.gpu_hours_per_thousand_problems is not None:
            text += f"; a thousand problems take {teacher.gpu_hours_per_thousand_problems:,.1f} GPU-hours"
        return [text]
    how = "spent" if teacher.spent else "at most"
    text = f"teacher {teacher.model}, {how}: {teacher.samples:,} samples, {teacher.tokens:,} tokens"
    text += "" if teacher.flops is None else f", {flops_text(teacher.flops)}"
    return [text + ("" if teacher.gpu_hours is None else f"; about {teacher.gpu_hours:,.0f} GPU-hours on {gpu}")]


def _memory_lines(plan: Plan) -> list[str]:
    """Memory per rank: a row for the arms that need the same while training, then what sampling adds."""
    rows: dict[tuple[str, ...], list[str]] = {}
    sampling: dict[str, list[str]] = {}
    offloaded = 0
    for name, arm in plan.arms.items():
        memory = arm.memory_per_rank
        if memory is None:
            return ["memory: unknown until `transfer fetch` has brought the model's config.json to this machine"]
        sizes = [memory.weights, memory.gradients, memory.optimizer, memory.activations, memory.head]
        sizes += [memory.reference_model, memory.total, memory.margin]
        rows.setdefault(tuple(size_text(size) if size else "-" for size in sizes), []).append(name)
        offloaded = max(offloaded, memory.offloaded)
        if text := _sampling_text(arm):
            sampling.setdefault(text, []).append(name)
    titles = ("weights", "gradients", "optimizer", "activations", "output layer", "reference", "total", "margin")
    used = [column for column in range(len(titles)) if any(row[column] != "-" for row in rows)]
    widths = {column: max(len(titles[column]), *(len(row[column]) for row in rows)) + 3 for column in used}
    labels = {row: _label(names, plan) for row, names in rows.items()}
    width = max(len(_MEMORY_TITLE), *map(len, labels.values()))
    lines = [f"{_MEMORY_TITLE:<{width}}" + "".join(f"{titles[column]:>{widths[column]}}" for column in used)]
    for row, label in labels.items():
        lines.append(f"{label:<{width}}" + "".join(f"{row[column]:>{widths[column]}}" for column in used))
    if offloaded:
        lines.append(f"offloaded to the memory of the host, per rank: at least {size_text(offloaded)}")
    return [*lines, *(f"while sampling, {_label(names, plan)}: {text}" for text, names in sampling.items())]


def _label(names: Sequence[str], plan: Plan) -> str:
    """Arms in a table: their names, or those of the others if these are fewer."""
    others = [name for name in plan.arms if name not in names]
    if len(names) <= max(_NAMED, len(others)):
        return ", ".join(names)
    return f"all arms but {', '.join(others)}" if others else "all arms"


def _sampling_text(arm: ArmPlan) -> str:
    sampling = arm.sampling_memory
    if sampling is None:
        return ""
    given = "" if not sampling.derived else f" ({' and '.join(sampling.derived)} derived)"
    return (
        f"vLLM with {sampling.memory_share:.0%} of a GPU, {'asleep' if sampling.sleep else 'awake'} while training"
        f"{given}: weights {size_text(sampling.weights)}, KV cache {size_text(sampling.kv_cache)} "
        f"({sampling.cached_tokens:,} tokens), so {min(sampling.sequences_at_once, sampling.sequences_asked):,} of "
        f"{sampling.sequences_asked:,} sequences of the expected length at a time{_peak_text(arm)}"
    )


def _peak_text(arm: ArmPlan) -> str:
    """What the column of memory adds up where vLLM is on the GPUs that train."""
    memory, sampling = arm.memory_per_rank, arm.sampling_memory
    if memory is None or sampling is None or not sampling.colocated:
        return ""
    engine = sampling.weights + sampling.kv_cache
    peak, what, own = memory.states + engine, "while sampling", memory.states
    if not sampling.sleep:
        peak, what, own = memory.total + engine, "while training", memory.total
    elif memory.total > peak:
        return f"; at the peak, while training, the total of {size_text(memory.total)}"
    kept = "weights, gradients and optimizer" if sampling.sleep else "the total"
    return f"; at the peak, {what}, {size_text(peak)}: {kept} {size_text(own)} and vLLM {size_text(engine)}"
