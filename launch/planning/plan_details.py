"""The lines of a plan that `--details` adds: what its hours rest on, and the numbers behind the tables."""

from launch.planning.analysis_plan import analysis_lines
from launch.planning.plan_schema import CHANGE, Plan
from launch.planning.schedule import Schedule
from launch.planning.units import amount_text, hours_text

_DOMINATING = 3  # assumptions that are named
_NAMES = {
    "train_utilisation": "share of the peak while training",
    "decode_bandwidth": "share of the memory's bandwidth while decoding",
    "padding": "tokens computed for each one needed",
    "layer_seconds": "seconds a layer of a decoding step with transformers",
    "base_step_seconds": "seconds of a step of the toy base beside its arithmetic",
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


def detail_lines(plan: Plan) -> list[str]:
    """Assumptions, measured stages, schedules and responses."""
    lines = [f"base: about {plan.parameters:,} parameters"] if plan.parameters else []
    if plan.pretraining_tokens is not None:
        lines[-1] += f", {plan.pretraining_tokens:,} pre-training tokens"
    lines += [*_schedule_lines(plan), *_assumption_lines(plan), *_measured_lines(plan)]
    lines += _comparison_lines(plan) if plan.gpu else []
    if plan.responses_at_most:
        lines.append(f"evaluation: at most {plan.responses_at_most:,} responses")
    return [*lines, *analysis_lines(plan.analyses)]


def _schedule_lines(plan: Plan) -> list[str]:
    """The chain of stages that sets the wall clock."""
    totals = plan.totals
    if not totals.left_hours:
        return []
    lines = [f"critical path: {_path(totals.on_one_machine)}"]
    if plan.gpu:
        lines.append(f"critical path with a free node for every job: {_path(totals.with_endless_nodes)}")
    return lines


def _assumption_lines(plan: Plan) -> list[str]:
    lines = []
    named = [
        f"{_NAMES.get(item.name, item.name)} ({item.value:g}) {item.change:+.0%}"
        for item in plan.assumptions[:_DOMINATING]
        if abs(item.change) >= 0.005  # else it is shown as 0 %
    ]
    if named:
        lines.append(f"an assumption raised by {CHANGE:.0%} changes the hours that are assumed: {', '.join(named)}")
    if (lengths := plan.lengths) is not None:
        lines.append(
            f"if all completions and responses reached their limits: "
            f"{amount_text(lengths.hours_at_limits, plan.totals.unit)} in all"
        )
    return lines


def _measured_lines(plan: Plan) -> list[str]:
    """How far the hours of finished stages were off, and which stages that corrects."""
    rows, lines = list(dict.fromkeys(row.group for row in plan.stages)), []
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


def _comparison_lines(plan: Plan) -> list[str]:
    """What the arms cost beside the cheapest, with the teacher's samples on the arms that read them, and hold."""
    teacher = plan.teacher.gpu_hours if plan.teacher is not None else None
    hours = {
        name: arm.gpu_hours * arm.runs + (teacher or 0.0) * (arm.generated_tokens_at_most == 0)
        for name, arm in plan.arms.items()
        if arm.gpu_hours
    }
    lines = []
    if len(hours) > 1:
        least = min(hours.values())
        ratios = ", ".join(f"{name} {value / least:.1f}" for name, value in hours.items())
        with_teacher = "with the teacher's samples" if teacher else "without the teacher's samples"
        lines.append(f"cost beside the cheapest, all seeds, {with_teacher}: {ratios}")
    between = {name: arm.hours_between_checkpoints for name, arm in plan.arms.items()}
    if between and None not in between.values():
        listed = ", ".join(f"{name} {value:.1f}" for name, value in between.items())
        lines.append(f"hours between two checkpoints, which a failure can cost: {listed}")
    return lines
