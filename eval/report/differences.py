"""How two studies differ: settings, versions, gains."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from eval.report.schema import Transfer, read_transfer
from eval.report.wording import points
from eval.statistics.values import Estimate, Values
from recipes.manifest import changes, finished_manifest, shorten


class Results(NamedTuple):
    """Where the results of a study lie."""

    stages: Path | None
    """Its folder; None: it has not run."""
    report: Path | None
    """The folder that holds `report`; None: there is no report of its settings."""
    lacks: str = ""
    """Why there is no report of its settings, and what makes one."""


class Change(Values):
    """One setting or version that differs. A side without it has None."""

    name: str
    first: Any
    second: Any


class GainPair(Values):
    """The gain of an arm on a group in two studies, in points over each study's base."""

    arm: str
    group: str
    first: Estimate
    second: Estimate


class Differences(Values):
    """What differs between two studies."""

    settings: list[Change]
    """By dotted key of the recipe. A setting that only one recipe has shows None for the other."""
    versions: list[Change] | None
    """Commit, Python and packages of the stages each has finished. None: a study has finished none."""
    gains: list[GainPair] | None
    """Of the arms and groups that both reports have. None: a study has no report."""
    without_report: list[str]
    """Why each study without a report of its settings has none, and what makes one."""


def differences(first: Results, second: Results, settings: tuple[dict[str, Any], dict[str, Any]]) -> Differences:
    """Compare two studies. `settings`: the two recipes as nested mappings.

    Raises:
        UserError: a report is of another schema version or damaged.
    """
    reports = [None if report is None else read_transfer(report) for report in (first.report, second.report)]
    versions = _versions(first.stages), _versions(second.stages)
    return Differences(
        settings=_changes(*settings),
        versions=_changes(*versions) if all(versions) else None,
        gains=None if reports[0] is None or reports[1] is None else list(_gains(reports[0], reports[1])),
        without_report=list(dict.fromkeys(study.lacks for study in (first, second) if study.report is None)),
    )


def _changes(first: dict[str, Any], second: dict[str, Any]) -> list[Change]:
    return [Change(name=name, first=one, second=other) for name, one, other in changes(first, second)]


def _versions(folder: Path | None) -> dict[str, Any]:
    """Versions that a study was made with; those of several commits are joined."""
    versions_by_package: dict[str, set[str]] = {}
    for path in [] if folder is None else sorted(folder.glob("**/manifest.json")):
        if (manifest := finished_manifest(path.parent)) is None:
            continue
        made = manifest["environment"]
        commit = f"{made['git_commit'] or 'unknown'}{' with changes' if made['git_dirty'] else ''}"
        for name, version in {"commit": commit, "python": made["python"], **made["packages"]}.items():
            versions_by_package.setdefault(name, set()).add(version)
    return {name: ", ".join(sorted(versions)) for name, versions in versions_by_package.items()}


def _gains(first: Transfer, second: Transfer) -> Iterator[GainPair]:
    for arm in first.arms.keys() & second.arms.keys():
        for group in first.groups.keys() & second.groups.keys():
            yield GainPair(
                arm=arm, group=group, first=first.arms[arm].groups[group], second=second.arms[arm].groups[group]
            )


def differences_text(compared: Differences) -> str:
    """The differences as plain text."""
    lines = []
    for title, differing in (("settings", compared.settings), ("versions", compared.versions)):
        if differing is None:
            lines.append(f"{title}: no finished stage of both studies")
            continue
        count = len(differing)
        lines.append(f"{title}: {f'{count} differ' + 's' * (count == 1) if count else 'equal'}")
        width = max((len(change.name) for change in differing), default=0)
        lines += [
            f"  {change.name:<{width}}  {' -> '.join(shorten(_text(change.first), _text(change.second)))}"
            for change in differing
        ]
    if compared.gains is None:
        lines.append(f"gains: not compared: {'; '.join(compared.without_report)}")
    elif not compared.gains:
        lines.append("gains: the reports have no arm and group in common")
    else:
        lines.append("gains in points, with the intervals of each study")
        width = max(len(f"{pair.arm}, {pair.group}") for pair in compared.gains)
        for pair in sorted(compared.gains, key=lambda pair: (pair.arm, pair.group)):
            name = f"{pair.arm}, {pair.group}"
            lines.append(f"  {name:<{width}}  {points(pair.first):>24} -> {points(pair.second):>24}")
    return "\n".join(lines)


def _text(value: Any) -> str:
    return "none" if value is None else re.sub(r"\b([0-9a-f]{12})[0-9a-f]{28}\b", r"\1", str(value))  # commits
