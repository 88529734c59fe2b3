"""The outcome of a rehearsal: a row for each stage, what was scaled, what was not rehearsed, and a verdict."""

from pathlib import Path
from typing import Any, NamedTuple

from launch.execution.failures import recorded
from launch.execution.usage import read_usage
from launch.rehearsal.scale import Scaled
from launch.stages import Stage
from recipes.manifest import read_manifest

MARK = "REHEARSAL"
_LOCATION = (".kind", ".dataset", ".files", ".columns", ".alternatives", ".revision")
"""Settings that are not shown as scaled: they only say that rows and models are local files."""


class Row(NamedTuple):
    """How one stage of the rehearsal went."""

    stage: str
    seconds: float | None
    host_bytes: int | None
    gpu_bytes: int | None
    engine: str
    """What it ran on: trainer and ranks, sampler, attention; empty where there is no choice."""
    verdict: str
    """passed, failed or not run."""
    reason: str | None = None
    """Why it failed and what to do, or which failed stage it needs."""
    resumed: bool | None = None
    """Whether it was killed and resumed correctly; None: it was not killed."""


def rows_of(study_dir: Path, stages: list[Stage], resumed: dict[str, str | None]) -> list[Row]:
    """The outcome of each stage.

    `resumed`: stage that was killed -> why it did not resume correctly; None: it did.
    """
    rows: list[Row] = []
    unfinished: set[str] = set()
    for stage in stages:
        manifest, usage = read_manifest(study_dir / stage.name) or {}, read_usage(study_dir / stage.name) or {}
        measured = (usage.get("seconds"), usage.get("host_bytes"), usage.get("gpu_bytes"))
        failure = recorded(study_dir, stage.name) or {}
        reason = resumed.get(stage.name) or failure.get("message")
        needs = [name for name in stage.needs if name in unfinished]
        if manifest.get("completed") and not resumed.get(stage.name):
            verdict, reason = "passed", None
        elif reason is None and needs:
            verdict, reason, measured = "not run", f"needs {', '.join(needs)}", (None, None, None)
        else:
            verdict, reason = "failed", reason or "it ended without a message; see its log"
        if verdict != "passed":
            unfinished.add(stage.name)
        engine = engine_text(manifest.get("facts") or {}) if verdict != "not run" else ""
        killed = resumed[stage.name] is None if stage.name in resumed else None
        rows.append(Row(stage.name, *measured, engine, verdict, reason, killed))
    return rows


def engine_text(facts: dict[str, Any]) -> str:
    """What a stage ran on, from the facts of its manifest."""
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
        not_rehearsed = f"; {len(missing)} thing(s) could not be rehearsed here" if missing else ""
        killed = sum(row.resumed is True for row in rows)
        resumed = f", {killed} of them killed and resumed" if killed else ""
        return f"rehearsed: all {len(rows)} stages passed{resumed}{not_rehearsed}"
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
    """What was scaled, a line each."""
    shown = [change for change in changes if not change.key.endswith(_LOCATION)]
    width = max((len(change.key) for change in shown), default=0)
    return "\n".join(f"  {c.key:<{width}}  {_short(c.recipe)} -> {_short(c.rehearsal)}" for c in shown)


def _short(value: Any) -> str:
    text = "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
    return text if len(text) <= 60 else f"…{text[-59:]}"


def format_outcome(outcome: dict[str, Any]) -> str:
    """The table of the stages and the verdict."""
    rows = [Row(**row) for row in outcome["stages"]]
    width = max((len(row.stage) for row in rows), default=5)
    engines = max([len("engine"), *(len(row.engine) for row in rows)])
    lines = [f"{'stage':<{width}}  {'seconds':>7}  {'host GB':>7}  {'GPU GB':>6}  {'engine':<{engines}}  verdict"]
    for row in rows:
        seconds = "-" if row.seconds is None else f"{row.seconds:.0f}"
        host, gpu = (f"{size / 1e9:.1f}" if size else "-" for size in (row.host_bytes, row.gpu_bytes))
        verdict = row.verdict + (", killed and resumed" if row.resumed else "")
        lines.append(f"{row.stage:<{width}}  {seconds:>7}  {host:>7}  {gpu:>6}  {row.engine:<{engines}}  {verdict}")
    if outcome["not_rehearsed"]:
        lines += ["", "not rehearsed here:", *(f"  {text}" for text in outcome["not_rehearsed"])]
    lines += ["", f"{MARK} of {outcome['seconds']} s: {outcome['sentence']}"]
    return "\n".join(lines)
