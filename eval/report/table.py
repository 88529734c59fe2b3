"""The terminal table of a transfer report. Needs nothing but `transfer.json`."""

from eval.drawing import label
from eval.report.schema import Transfer
from eval.report.verdict import headline
from eval.report.wording import index_text, interval_text, p_text, points


def format_report(transfer: Transfer) -> str:
    """The terminal table: gains in points with intervals, and the index by points."""
    groups = list(transfer.groups)
    width = max(18, 2 + max(map(len, transfer.arms), default=0))
    percent = f"{100 * transfer.confidence:.0f} %"
    seeds = f"{len(transfer.seeds)} seed{'s' * (len(transfer.seeds) > 1)}; " if transfer.seeds else ""
    shown = f"{transfer.status}; {seeds}gains in points, {percent} intervals" if transfer.arms else "one model"
    lines = [f"{transfer.study}: {shown}", *headline(transfer), ""]
    lines += _gain_lines(transfer, groups, width) if transfer.arms else []
    lines += ["scores in percent" if transfer.arms else f"scores in percent, {percent} intervals"]
    lines += [
        f"{'benchmark':<14}{'base':>{8 if transfer.arms else 22}}" + "".join(f"{arm:>{width}}" for arm in transfer.arms)
    ]
    for names in transfer.groups.values():
        for name in names:
            values = [result.benchmarks[name].score.estimate for result in transfer.arms.values()]
            base = transfer.base.benchmarks[name].score
            shown = f"{base.estimate:>8.1f}" if transfer.arms else f"{interval_text(base, '.1f'):>22}"
            lines.append(f"{name:<14}{shown}" + "".join(f"{value:>{width}.1f}" for value in values))
    if transfer.guess_level and not transfer.arms:
        levels = ", ".join(f"{level:.1f} on {name}" for name, level in transfer.guess_level.items())
        lines.append(f"guessing scores {levels}")
    if transfer.readings_differ and transfer.arms:
        other = next(name for name in transfer.readings if name != transfer.reading)
        lines += ["", f"the same gains in the reading {other!r} (the first table: {transfer.reading!r})"]
        for arm, result in transfer.readings[other].arms.items():
            cells = [points(result.groups[group]) for group in groups]
            lines.append(f"{arm:<{width}}" + "".join(f"{cell:>28}" for cell in cells))
    for claim in transfer.analysis.claims:
        lines.append(
            f"claim      {claim.first} above {claim.second} on {claim.group}: {claim.verdict}, "
            f"{points(claim.difference)}, p {p_text(claim.p_holm)}"
        )
    if transfer.analysis.after:
        lines.append(f"decided after the evaluation began: {', '.join(transfer.analysis.after)}")
    lines += [f"UNMATCHED  {text}" for text in transfer.differences]
    lines += [f"warning    {warning.message}" for warning in transfer.warnings]
    return "\n".join(lines)


def _gain_lines(transfer: Transfer, groups: list[str], width: int) -> list[str]:
    head = f"{'arm':<{width}}" + "".join(f"{group:>28}" for group in groups)
    lines = [head, "-" * len(head)]
    for arm, result in transfer.arms.items():
        cells = [points(result.groups[group]) for group in groups]
        lines.append(f"{arm:<{width}}" + "".join(f"{cell:>28}" for cell in cells))
    if len(groups) > 1:
        lines += ["", f"transfer index, percent of the gain on {label(transfer.trained_group)} (definition: points)"]
        for arm, result in transfer.arms.items():
            cells = [index_text(result, "points", group, transfer.trained_group) for group in groups]
            lines.append(f"{arm:<{width}}" + "".join(f"{cell:>28}" for cell in cells))
    return [*lines, ""]
