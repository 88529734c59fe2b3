"""What came of a rehearsal: a row for each stage, what was scaled, what was not rehearsed, and one sentence."""

from pathlib import Path
from typing import Any, NamedTuple

from launch.execution.failures import recorded
from launch.execution.usage import read_usage
from launch.rehearsal.scale import Scaled
from launch.stages import Stage
from recipes.manifest import read_manifest

MARK = "REHEARSAL"
_PLACE = (".kind", ".dataset", ".files", ".columns", ".alternatives", ".revision")  # the path says the same


class Row(NamedTuple):
    """One stage."""

    stage: str
    seconds: float | None
    host_bytes: int | None
    gpu_bytes: int | None
    engine: str
    """What really ran: trainer and ranks, sampler, attention; empty where there is nothing to choose."""
    verdict: str
    """passed, failed or not run."""
    reason: str | None = None
    """Why it failed and what to do, or what it waits for."""
    resumed: bool | None = None
    """Whether it was killed and continued; None: it was not killed."""


def rows_of(study_dir: Path, stages: list[Stage], resumed: dict[str, str | None]) -> list[Row]:
    """What became of each stage.

    Args:
        study_dir: of the rehearsal.
        stages: in their order.
        resumed: stage that was killed -> why its continuation is not right; None: it is.
    """
    rows: list[Row] = []
    bad: set[str] = set()
    for stage in stages:
        manifest, usage = read_manifest(study_dir / stage.name), read_usage(study_dir / stage.name) or {}
        measured = (usage.get("seconds"), usage.get("host_bytes"), usage.get("gpu_bytes"))
        engine = engine_text((manifest or {}).get("facts") or {})
        killed = None if stage.name not in resumed else resumed[stage.name] is None
        blocked = [name for name in stage.needs if name in bad]
        if manifest is not None and manifest["completed"] and killed is not False:
            rows.append(Row(stage.name, *measured, engine, "passed", None, killed))
            continue
        bad.add(stage.name)
        failure = recorded(study_dir, stage.name)
        reason = resumed.get(stage.name) or (failure["message"] if failure else None)
        if reason is not None:
            rows.append(Row(stage.name, *measured, engine, "failed", reason, killed))
        elif blocked:
            rows.append(Row(stage.name, None, None, None, "", "not run", f"needs {', '.join(blocked)}"))
        else:
            rows.append(
                Row(stage.name, *measured, engine, "failed", "it ended without a word; its log has more", killed)
            )
    return rows


def engine_text(facts: dict[str, Any]) -> str:
    """What a stage's manifest says it ran on."""
    parts = []
    if topology := facts.get("topology"):
        zero = f" ZeRO-{topology['zero_stage']}" if topology["zero_stage"] else ""
        parts.append(f"{topology['ranks']} rank{'s' * (topology['ranks'] > 1)}{zero}")
    if engine := facts.get("engine"):
        parts.append(" ".join(str(engine[key]) for key in ("name", "version", "device", "dtype") if engine.get(key)))
    if attention := facts.get("attention"):
        parts.append(str(attention))
    return ", ".join(parts)


def first_failure(rows: list[Row]) -> Row | None:
    """The first stage that did not pass."""
    return next((row for row in rows if row.verdict != "passed"), None)


def sentence(rows: list[Row], missing: list[str] | tuple[str, ...]) -> str:
    """The verdict of the whole rehearsal."""
    failed = first_failure(rows)
    if failed is None:
        left = f"; {len(missing)} thing(s) could not be rehearsed here" if missing else ""
        killed = sum(row.resumed is True for row in rows)
        again = f", {killed} of them killed and continued" if killed else ""
        return f"rehearsed: all {len(rows)} stages passed{again}{left}"
    passed = sum(row.verdict == "passed" for row in rows)
    return f"not rehearsed: {failed.stage} failed after {passed} of {len(rows)} stages: {failed.reason}"


def as_json(rows: list[Row], changes: tuple[Scaled, ...], missing: tuple[str, ...], seconds: float) -> dict[str, Any]:
    """The outcome as JSON values."""
    return {
        "rehearsal": True,
        "passed": first_failure(rows) is None,
        "sentence": sentence(rows, missing),
        "seconds": round(seconds),
        "stages": [row._asdict() for row in rows],
        "scaled": [change._asdict() for change in changes],
        "not_rehearsed": list(missing),
    }


def format_scaled(changes: tuple[Scaled, ...]) -> str:
    """What was scaled, a line each; where rows and models lie is left out."""
    shown = [
        change
        for change in changes
        if not change.key.endswith((".kind", ".dataset", ".files", ".columns", ".alternatives", ".revision"))
    ]
    width = max((len(change.key) for change in shown), default=0)
    return "\n".join(f"  {c.key:<{width}}  {_short(c.recipe)} -> {_short(c.rehearsal)}" for c in shown)


def _short(value: Any) -> str:
    text = "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
    return text if len(text) <= 60 else f"…{text[-59:]}"


def format_outcome(outcome: dict[str, Any]) -> str:
    """The table and the sentence."""
    rows = [Row(**row) for row in outcome["stages"]]
    width = max((len(row.stage) for row in rows), default=5)
    engines = max([len("engine"), *(len(row.engine) for row in rows)])
    lines = [f"{'stage':<{width}}  {'seconds':>7}  {'host GB':>7}  {'GPU GB':>6}  {'engine':<{engines}}  verdict"]
    for row in rows:
        cells = (
            "-" if row.seconds is None else f"{row.seconds:.0f}",
            "-" if not row.host_bytes else f"{row.host_bytes / 1e9:.1f}",
            "-" if not row.gpu_bytes else f"{row.gpu_bytes / 1e9:.1f}",
        )
        verdict = row.verdict + (", killed and continued" if row.resumed else "")
        lines.append(
            f"{row.stage:<{width}}  {cells[0]:>7}  {cells[1]:>7}  {cells[2]:>6}  {row.engine:<{engines}}  {verdict}"
        )
    if outcome["not_rehearsed"]:
        lines += ["", "not rehearsed here:", *(f"  {text}" for text in outcome["not_rehearsed"])]
    lines += ["", f"{MARK} of {outcome['seconds']} s: {outcome['sentence']}"]
    return "\n".join(lines)
