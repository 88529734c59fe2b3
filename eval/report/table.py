"""The terminal table of a transfer report. Needs nothing but `transfer.json`."""

from eval.report.schema import ArmResult, IndexValue, Transfer
from eval.statistics.values import Estimate, PartialEstimate

_MATH = "math"


def format_report(transfer: Transfer) -> str:
    """The terminal table: gains in points with intervals, and the index by points."""
    groups = list(transfer.groups)
    width = max(18, 2 + max(map(len, transfer.arms), default=0))
    percent = f"{100 * transfer.confidence:.0f} %"
    seeds = f"{len(transfer.seeds)} seed(s); " if transfer.seeds else ""
    lines = [
        f"{transfer.study}: {transfer.status}; {seeds}gains in points, {percent} intervals",
        "",
    ]
    head = f"{'arm':<{width}}" + "".join(f"{group:>28}" for group in groups)
    lines += [head, "-" * len(head)]
    for arm, result in transfer.arms.items():
        cells = [interval_text(result.groups[group], "+.1f") for group in groups]
        lines.append(f"{arm:<{width}}" + "".join(f"{cell:>28}" for cell in cells))
    lines += ["", "transfer index, percent of the math gain (definition: points)"]
    for arm, result in transfer.arms.items():
        cells = ["100" if group == _MATH else index_text(result, "points", group) for group in groups]
        lines.append(f"{arm:<{width}}" + "".join(f"{cell:>28}" for cell in cells))
    lines += ["", f"{'benchmark':<14}{'base':>8}" + "".join(f"{arm:>{width}}" for arm in transfer.arms)]
    for names in transfer.groups.values():
        for name in names:
            values = [result.benchmarks[name].score.estimate for result in transfer.arms.values()]
            base = transfer.base.benchmarks[name].score.estimate
            lines.append(f"{name:<14}{base:>8.1f}" + "".join(f"{value:>{width}.1f}" for value in values))
    other = next(name for name in transfer.readings if name != transfer.reading)
    lines += ["", f"the same gains in the reading {other!r} (the first table: {transfer.reading!r})"]
    for arm, result in transfer.readings[other].arms.items():
        cells = [interval_text(result.groups[group], "+.1f") for group in groups]
        lines.append(f"{arm:<{width}}" + "".join(f"{cell:>28}" for cell in cells))
    for claim in transfer.analysis.claims:
        lines.append(
            f"claim      {claim.first} above {claim.second} on {claim.group}: {claim.verdict}, "
            f"{interval_text(claim.difference, '+.1f')}, p {claim.p_holm:.4f}"
        )
    if transfer.analysis.after:
        lines.append(f"decided after the evaluation began: {', '.join(transfer.analysis.after)}")
    lines += [f"UNMATCHED  {text}" for text in transfer.differences]
    lines += [f"warning    {text}" for text in transfer.warnings]
    return "\n".join(lines)


def index_text(result: ArmResult, definition: str, group: str) -> str:
    """One cell of the index of an arm (an entry of `arms`), or why it has none.

    Where math fell, the ratio exists but would read as transfer what is a common loss; it stays in `transfer.json`.
    """
    if result.groups[_MATH].high < 0:
        return "math fell"
    return index_cell(result.index[definition][group])


def index_cell(cell: IndexValue) -> str:
    """An index with its interval, or why it has none."""
    return interval_text(cell.interval, "+.0f") if cell.interval else cell.status


def interval_text(value: Estimate, form: str) -> str:
    """An estimate with its interval, each number in the format `form`."""
    return f"{value.estimate:{form}} [{value.low:{form}}, {value.high:{form}}]"


def bounded_text(value: PartialEstimate) -> str:
    """A gain in points with its interval, or alone where it has no bounds."""
    if value.low is None or value.high is None:
        return f"{value.estimate:+.1f}"
    return f"{value.estimate:+.1f} [{value.low:+.1f}, {value.high:+.1f}]"
