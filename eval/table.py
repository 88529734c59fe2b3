"""The terminal table of a transfer report. Needs nothing but `transfer.json`."""

from typing import Any

_MATH = "math"


def format_report(transfer: dict[str, Any]) -> str:
    """The terminal table: gains in points with intervals, and the index by points."""
    groups = list(transfer["groups"])
    percent = f"{100 * transfer['confidence']:.0f} %"
    lines = [
        f"{transfer['study']}: {transfer['status']}; {len(transfer['seeds'])} seed(s); "
        f"gains in points, {percent} intervals",
        "",
    ]
    head = f"{'arm':<18}" + "".join(f"{group:>28}" for group in groups)
    lines += [head, "-" * len(head)]
    for arm, result in transfer["arms"].items():
        cells = [_cell(result["groups"][group], "+.1f") for group in groups]
        lines.append(f"{arm:<18}" + "".join(f"{cell:>28}" for cell in cells))
    lines += ["", "transfer index, percent of the math gain (definition: points)"]
    for arm, result in transfer["arms"].items():
        cells = []
        for group in groups:
            if group == _MATH:
                cells.append("100")
                continue
            index = result["index"]["points"][group]
            cells.append(_cell(index["interval"], "+.0f") if index["interval"] else "not identified")
        lines.append(f"{arm:<18}" + "".join(f"{cell:>28}" for cell in cells))
    lines += ["", f"{'benchmark':<14}{'base':>8}" + "".join(f"{arm:>18}" for arm in transfer["arms"])]
    for names in transfer["groups"].values():
        for name in names:
            values = [result["benchmarks"][name]["score"]["estimate"] for result in transfer["arms"].values()]
            base = transfer["base"]["benchmarks"][name]["score"]["estimate"]
            lines.append(f"{name:<14}{base:>8.1f}" + "".join(f"{value:>18.1f}" for value in values))
    lines += [f"UNMATCHED  {text}" for text in transfer["differences"]]
    return "\n".join(lines)


def _cell(value: dict[str, float], form: str) -> str:
    return f"{value['estimate']:{form}} [{value['low']:{form}}, {value['high']:{form}}]"
