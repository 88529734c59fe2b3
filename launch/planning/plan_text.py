"""A plan as text."""

import json
from collections.abc import Sequence
from pathlib import Path

from launch.planning.analysis_plan import analysis_lines
from launch.planning.findings import disk_text
from launch.planning.plan_schema import CHANGE, ArmPlan, Plan, StagePlan
from launch.planning.schedule import Schedule
from launch.planning.teacher import TeacherPlan
from train.accounting.matching import REMEDY
from train.accounting.memory import size_text

_DOMINATING = 3  # assumptions that are named
_NAMES = {
    "train_utilisation": "share of the peak while training",
    "decode_bandwidth": "share of the memory's bandwidth while decoding",
    "padding": "tokens computed for each one needed",
    "layer_seconds": "seconds a layer of a decoding step with transformers",
    "start_seconds": "seconds to start a stage",
    "engine_seconds": "seconds to start vLLM",
    "sync_bandwidth": "bytes a second from the trainer to vLLM",
    "disk_bandwidth": "bytes a second of the file system",
    "hours_between_failures": "GPU-hours between failures",
    "completion_share": "share of its limit that a completion reaches",
    "response_share": "share of its limit that a response reaches",
    "question_share": "share of its limit that a question reaches",
    "batch_longest": "longest completion of a batch, in mean lengths",
}


_MEMORY_TITLE = "memory per rank, without libraries"


def format_plan(plan: Plan, commands: bool = False, stages: bool = False) -> str:
    """The plan as text.

    `commands`: with the processes of the stages that are left, and a command for those that run alike. `stages`: with a
    line for every stage, not one for every kind; with `commands` also its command, files, inputs and outputs.
    """
    lines = [f"{plan.study} -> {plan.directory}", ""]
    lines += _stage_lines(plan, commands) if stages else _group_lines(plan)
    lines += _command_lines(plan) if commands and not stages else []
    lines += _hours_lines(plan)
    if plan.parameters:
        tokens = plan.pretraining_tokens
        lines += ["", f"base: about {plan.parameters:,} parameters"]
        lines[-1] += "" if tokens is None else f", {tokens:,} pre-training tokens"
    lines += _arm_lines(plan)
    lines += _teacher_lines(plan.teacher, plan.gpu)
    if plan.responses_at_most:
        lines.append(f"evaluation: at most {plan.responses_at_most:,} responses")
    lines += analysis_lines(plan.analyses)
    if plan.disk is not None and plan.disk.total:
        lines.append(f"the study at its fullest: up to {disk_text(plan.disk)}")
    if plan.certainty:
        text = f"certainty: one more training seed of every arm {plan.certainty.seed:,.0f} GPU-hours"
        if plan.certainty.response is not None:
            text += f", one more response to every question {plan.certainty.response:,.0f}"
        lines.append(f"{text}; transfer power says what differences they let you see")
    if plan.dropped_problems:
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in plan.dropped_problems.items() if count)
        lines.append(f"problems left out: {reasons}")
    used = {kind for arm in plan.arms.values() for kind in arm.attention}
    lines += [f"attention of finished runs: {', '.join(sorted(used))}"] if used else []
    if plan.arms:
        matched = "matched: the arms differ only in what the study varies"
        lines += ["", "UNMATCHED:" if plan.differences else matched]
    lines += [*(f"  {text}" for text in plan.differences), *([REMEDY] if plan.differences else [])]
    lines += [f"note: {text}" for text in plan.notes]
    lines += [f"warning: {text}" for text in plan.warnings]
    lines += [f"missing: {text}" for text in plan.unresolved]
    lines += [f"cannot work: {text}" for text in plan.errors]  # last, where it is seen
    return "\n".join(lines)


def hours_text(hours: float) -> str:
    """Hours in a readable unit."""
    if hours >= 48:
        return f"{hours / 24:,.1f} days"
    if hours >= 1 / 30:
        return f"{hours:.1f} h" if hours >= 1 else f"{hours * 60:.0f} min"
    seconds = hours * 3600
    return f"{seconds:.0f} s" if seconds >= 9.95 or not seconds else f"{seconds:.1f} s"


def flops_text(flops: float) -> str:
    """FLOPs in the unit that leaves one to three digits before the point."""
    for unit, size in (("EFLOPs", 1e18), ("PFLOPs", 1e15), ("TFLOPs", 1e12)):
        if flops >= size:
            return f"{flops / size:,.1f} {unit}"
    return f"{flops / 1e9:,.1f} GFLOPs"


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


def amount_text(hours: float, unit: str) -> str:
    """Hours of all stages together: those of GPUs as a number, others as a duration."""
    return f"{count_text(hours)} {unit}" if unit == "GPU-hours" else f"{hours_text(hours)} of stage time"


def count_text(hours: float) -> str:
    """A number of hours: whole ones from ten on."""
    return f"{hours:,.0f}" if hours >= 10 or not hours else f"{hours:,.2f}"


def _states(members: Sequence[StagePlan]) -> str:
    counts: dict[str, int] = {}
    for stage in members:
        counts[stage.state] = counts.get(stage.state, 0) + 1
    return ", ".join(state if count == len(members) else f"{count} {state}" for state, count in counts.items())


def _hours_lines(plan: Plan) -> list[str]:
    """Hours of the whole study, what they rest on, and how far earlier ones were off."""
    totals = plan.totals
    if not totals.hours:
        return []
    said = f"in all about {amount_text(totals.hours, totals.unit)}"
    if totals.taken_hours:
        said += f", of which {count_text(totals.taken_hours) if plan.gpu else hours_text(totals.taken_hours)} are spent"
    lines = ["", said + (f" (hours of {plan.gpu}, which a stage holds busy or not)" if plan.gpu else "")]
    if totals.left_hours:
        where = "this machine"
        if plan.on_cluster and not plan.gpu:
            where = "one node of the cluster at the speed of a CPU (resources.gpu names a GPU)"
        if plan.gpu:
            several = totals.nodes > 1
            where = f"{totals.nodes if several else 'one'} node{'s' * several} with {totals.node_gpus} GPU(s)"
            where += " each" if several else ""
        lines.append(f"wall clock on {where}: {_path(totals.on_one_machine)}")
        if plan.gpu:
            lines.append(f"with a free node for every job: {_path(totals.with_endless_nodes)}")
    unknown = sorted({stage.group for stage in plan.stages if stage.left_hours is None})
    if unknown:
        counts = " (`transfer fetch` counts the questions)" if "eval" in unknown else ""
        lines.append(f"not counted, because it is not known yet: {', '.join(unknown)}{counts}")
    named = [
        f"{_NAMES.get(item.name, item.name)} ({item.value:g}) {item.change:+.0%}"
        for item in plan.assumptions[:_DOMINATING]
        if abs(item.change) >= 0.005  # else it is shown as 0 %
    ]
    if named:
        lines.append(
            f"what an assumption raised by {CHANGE:.0%} does to the hours that are assumed: {', '.join(named)}"
        )
    if (lengths := plan.lengths) is not None:
        lines.append(
            f"assumed: completions of {lengths.completion_share:.0%} of their limit and responses of "
            f"{lengths.response_share:.0%}, as in the measured studies; if all reached it, "
            f"{amount_text(lengths.hours_at_limits, totals.unit)} in all (`resources.expected_completion_tokens` sets "
            "another length)"
        )
    rows = list(dict.fromkeys(row.group for row in plan.stages))
    for factor in plan.calibration:
        corrected = {row.group for row in plan.stages if row.left_hours and factor.group in row.corrected_by}
        lines.append(
            f"measured: {factor.group} took {hours_text(factor.taken_hours)} where {hours_text(factor.planned_hours)} "
            f"were planned ({factor.ratio:.2f} times, {factor.stages} stage{'s' * (factor.stages > 1)})"
            + (f"; corrects {', '.join(row for row in rows if row in corrected)}" if corrected else "")
        )
    if plan.rehearsed:
        starts = ", ".join(f"{item.kind} {item.seconds:.0f} s" for item in plan.rehearsed)
        lines.append(f"start of a stage by the rehearsal, which says nothing about work at full size: {starts}")
    return lines


def _path(schedule: Schedule) -> str:
    path = schedule.path if len(schedule.path) <= 6 else (*schedule.path[:3], "...", *schedule.path[-2:])
    return f"{hours_text(schedule.hours)} ({' -> '.join(path)})"


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
    if plan.gpu:
        lines += _comparison_lines(plan)
        between = {name: arm.hours_between_checkpoints for name, arm in plan.arms.items()}
        if None not in between.values():
            listed = ", ".join(f"{name} {value:.1f}" for name, value in between.items())
            lines.append(f"hours of work between two checkpoints, on all GPUs of a run: {listed}")
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
            text += f"; {teacher.gpu_hours_per_thousand_problems:,.1f} GPU-hours for every thousand of them"
        return [text]
    how = "spent" if teacher.spent else "at most"
    text = f"teacher {teacher.model}, {how}: {teacher.samples:,} samples, {teacher.tokens:,} tokens"
    text += "" if teacher.flops is None else f", {flops_text(teacher.flops)}"
    return [text + ("" if teacher.gpu_hours is None else f"; about {teacher.gpu_hours:,.0f} GPU-hours on {gpu}")]


def _comparison_lines(plan: Plan) -> list[str]:
    """What the arms cost beside the cheapest, with the teacher's samples on the arms that read them."""
    teacher = plan.teacher.gpu_hours if plan.teacher is not None else None
    hours = {
        name: arm.gpu_hours * arm.runs + (teacher or 0.0) * (arm.generated_tokens_at_most == 0)
        for name, arm in plan.arms.items()
        if arm.gpu_hours
    }
    if len(hours) < 2:
        return []
    least = min(hours.values())
    ratios = ", ".join(f"{name} {value / least:.1f}" for name, value in hours.items())
    with_teacher = "with the teacher's samples" if teacher else "without the teacher's samples"
    return [
        f"cost beside the cheapest, all seeds, {with_teacher}: {ratios}",
        f"a run occupies {plan.gpus.train} GPU(s) on {plan.gpus.nodes} node(s), the evaluation of a model "
        f"{plan.gpus.evaluate}",
    ]


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
    width = max(len(_MEMORY_TITLE), *(len(", ".join(names)) for names in rows.values()))
    lines = [f"{_MEMORY_TITLE:<{width}}" + "".join(f"{titles[column]:>{widths[column]}}" for column in used)]
    for row, names in rows.items():
        cells = "".join(f"{row[column]:>{widths[column]}}" for column in used)
        lines.append(f"{', '.join(names):<{width}}{cells}")
    if offloaded:
        on_node = offloaded * plan.gpus.train // plan.gpus.nodes
        lines.append(f"offloaded to the memory of each node: at least {size_text(on_node)}")
    return [*lines, *(f"while sampling, {', '.join(names)}: {text}" for text, names in sampling.items())]


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
