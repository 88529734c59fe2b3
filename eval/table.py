"""The terminal table of a transfer report. Needs nothing but `transfer.json`."""

from typing import Any

_MATH = "math"


def format_report(transfer: dict[str, Any]) -> str:
    """The terminal table: gains in points with intervals, and the index by points."""
    groups = list(transfer["groups"])
    width = max(18, 2 + max(map(len, transfer["arms"]), default=0))
    percent = f"{100 * transfer['confidence']:.0f} %"
    lines = [
        f"{transfer['study']}: {transfer['status']}; {len(transfer['seeds'])} seed(s); "
        f"gains in points, {percent} intervals",
        "",
    ]
    head = f"{'arm':<{width}}" + "".join(f"{group:>28}" for group in groups)
    lines += [head, "-" * len(head)]
    for arm, result in transfer["arms"].items():
        cells = [interval_text(result["groups"][group], "+.1f") for group in groups]
        lines.append(f"{arm:<{width}}" + "".join(f"{cell:>28}" for cell in cells))
    lines += ["", "transfer index, percent of the math gain (definition: points)"]
    for arm, result in transfer["arms"].items():
        cells = ["100" if group == _MATH else index_text(result, "points", group) for group in groups]
        lines.append(f"{arm:<{width}}" + "".join(f"{cell:>28}" for cell in cells))
    lines += ["", f"{'benchmark':<14}{'base':>8}" + "".join(f"{arm:>{width}}" for arm in transfer["arms"])]
    for names in transfer["groups"].values():
        for name in names:
            values = [result["benchmarks"][name]["score"]["estimate"] for result in transfer["arms"].values()]
            base = transfer["base"]["benchmarks"][name]["score"]["estimate"]
            lines.append(f"{name:<14}{base:>8.1f}" + "".join(f"{value:>{width}.1f}" for value in values))
    lines += [f"UNMATCHED  {text}" for text in transfer["differences"]]
    return "\n".join(lines)


def index_text(result: dict[str, Any], definition: str, group: str) -> str:
    """One cell of the index of an arm (an entry of `arms`), or why it has none.

    Where math fell, the ratio exists but would read as transfer what is a common loss; it stays in `transfer.json`.
    """
    cell = result["index"][definition][group]
    if result["groups"][_MATH]["high"] < 0:
        return "math fell"
    return interval_text(cell["interval"], "+.0f") if cell["interval"] else str(cell["method"]).split(":")[0]


def interval_text(value: dict[str, float], form: str) -> str:
    """An estimate with its interval, each number in the format `form`."""
    return f"{value['estimate']:{form}} [{value['low']:{form}}, {value['high']:{form}}]"
