"""Has a model lost too much? The gate of a finished report, by the rules of `eval/statistics/decisions.py`."""

from eval.report.schema import Transfer
from eval.report.wording import loss_text, points
from eval.statistics.decisions import gained, refused_groups


def judge(transfer: Transfer, arm: str, max_drop: float) -> tuple[bool, list[str]]:
    """Whether no group of benchmarks may have lost more than `max_drop` points, by the lower end of each interval.

    Returns the verdict and a sentence for each group that fails, or one that says what holds.
    """
    percent = f"{100 * transfer.confidence:.0f} %"
    gains = transfer.arms[arm].groups
    # Where all responses were cut off, the score measures the limit, not the model.
    lost = [warning.message for warning in transfer.warnings_of("all_truncated", arm)]
    for group in refused_groups(gains, max_drop):
        lost.append(
            f"{arm} may have lost up to {loss_text(gains[group])} points on {group} "
            f"({points(gains[group])}, {percent}); allowed are {max_drop:g} (losses are rounded up)"
        )
    if lost:
        return False, lost
    group = min(gains, key=lambda name: gains[name].low)
    return True, [
        f"{arm} keeps every group within {max_drop:g} points of the base; the least certain is {group} with "
        f"{points(gains[group])} ({percent})"
    ]


def judged_groups(transfer: Transfer, arm: str, max_drop: float) -> dict[str, dict[str, float | str]]:
    """What `judge` decided by: of every group the gain with its interval, the limit and the verdict on it alone."""
    gains = transfer.arms[arm].groups
    refused = refused_groups(gains, max_drop)
    return {
        group: {**gain.dump(), "limit": max_drop, "verdict": "fail" if group in refused else "pass"}
        for group, gain in gains.items()
    }


def without_gain(transfer: Transfer, arm: str) -> str | None:
    """A sentence about an arm without a gain to release it for, which `judge` does not look at; None if it has one."""
    trained = transfer.arms[arm].groups.get(transfer.trained_group)
    if transfer.learned_nothing(arm):
        start = transfer.started_from(arm)
        still = "" if start is None else f", and its model is still that of {start}"
        why = f"{arm} learned nothing: none of its steps had a gradient{still}"
    elif trained is not None and gained(trained) and transfer.guesses(arm):
        why = f"{arm} has a gain on {transfer.trained_group}, but its score is not above guessing"
    elif trained is not None and not gained(trained):
        why = f"{arm} has no gain on {transfer.trained_group} that can be told from zero ({points(trained)})"
    else:
        return None
    return f"{why}; gate judges losses only"
