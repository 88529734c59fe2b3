"""The report as a Markdown summary for an appendix, from `transfer.json`."""

from collections.abc import Sequence

from eval.drawing import label
from eval.forgetting.schema import Trajectory
from eval.report.schema import Transfer
from eval.report.verdict import certainty, headline, method_of
from eval.report.wording import bounded_text, index_text, interval_text, points
from eval.shifts.schema import Shifts


def render_summary(transfer: Transfer) -> str:
    """Status, gains, differences, index, equal-gain comparison, token shift and budget."""
    groups, arms = list(transfer.groups), transfer.arms
    lines = [f"# {transfer.title or transfer.study}", ""]
    lines += [f"Study `{transfer.study}`, {transfer.status}. {' '.join(certainty(transfer))}", ""]
    lines += [f"- {text}" for text in [*headline(transfer), *transfer.differences]]
    lines += [f"- {warning.message}" for warning in transfer.warnings]
    lines += [
        "",
        "## Arms",
        "",
        *_table(["arm", "method"], [[label(a), method_of(transfer.settings[a])] for a in arms]),
    ]
    gains = [[label(arm), *(points(result.groups[g]) for g in groups)] for arm, result in arms.items()]
    gains += [
        [f"{label(pair.first)} − {label(pair.second)}", *(points(pair.groups[g]) for g in groups)]
        for pair in transfer.contrasts
    ]
    lines += [
        "",
        "## Gains over the base, and their differences, in points",
        "",
        *_table(["arm", *map(label, groups)], gains),
    ]
    scores = [
        [name, f"{transfer.base.benchmarks[name].score.estimate:.1f}"]
        + [interval_text(result.benchmarks[name].score, ".1f") for result in arms.values()]
        for names in transfer.groups.values()
        for name in names
    ]
    lines += ["", "## Scores", "", *_table(["benchmark", "base", *map(label, arms)], scores)]
    trained = transfer.trained_group
    others = [group for group in groups if group != trained]
    index = [[label(arm), *(index_text(r, transfer.definition, g, trained) for g in others)] for arm, r in arms.items()]
    if others:
        heading = f"## Transfer index ({transfer.definition}), % of the gain on {label(trained)}"
        lines += ["", heading, "", *_table(["arm", *map(label, others)], index)]
    if transfer.trajectory is not None:
        lines += _equal_gain(transfer.trajectory)
    if transfer.diagnostics is not None:
        lines += _shifts(transfer.diagnostics)
    if transfer.budget:
        rows = [
            [label(arm)]
            + [f"{getattr(rows[0], key):,}" for key in ("exposures", "generated_tokens", "trained_tokens")]
            + [f"{rows[0].flops / 1e12:.2f}"]
            for arm, rows in transfer.budget.items()
        ]
        head = ["arm", "exposures", "tokens generated", "tokens trained on", "TFLOPs"]
        lines += ["", "## Budget of one run (first seed)", "", *_table(head, rows)]
    lines += [
        "",
        "## Versions",
        "",
        ", ".join(f"{name} {version}" for name, version in transfer.versions.items()),
        "",
    ]
    return "\n".join(lines)


def _equal_gain(trajectory: Trajectory) -> list[str]:
    groups = trajectory.groups
    lines = ["", "## At equal held-out gain, in points", ""]
    if not trajectory.equal_gain:
        return [*lines, "The arms have no held-out gain in common that can be told from zero."]
    rows = []
    for target in trajectory.equal_gain:
        for arm, result in target.arms.items():
            cells = (
                [bounded_text(result.groups[g]) for g in groups] if result.groups is not None else ["–"] * len(groups)
            )
            rows.append([label(arm), f"{target.heldout_gain:+.1f}", *cells])
    lines += _table(["arm", "held-out gain", *map(label, groups)], rows)
    fit = trajectory.razor
    if fit is not None and fit.r2 is not None:
        lines += [
            "",
            f"Forgetting on KL(base || model), one quadratic over {fit.points} checkpoints: R² {fit.r2:.2f}.",
        ]
    return lines


def _shifts(shifts: Shifts) -> list[str]:
    rows = []
    for arm, shift in shifts.arms.items():
        share = f"{100 * shift.shifted.tokens / max(1, shift.own_tokens):.2f} %"
        for group, measures in shift.tokens["own_samples"].items():
            values = [interval_text(measures[name].per_token, ".3f") for name in ("kl_to_base", "rank_shift")]
            rows.append([label(arm), label(group), *values, share])
            share = ""  # of all prompts together
    head = ["arm", "prompts", "KL(model, base), nats a token", "rank shift", "tokens shifted, of all prompts"]
    return ["", "## Token shift on own samples", "", *_table(head, rows)]


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"

    return [line(head), "|" + "---|" * len(head), *map(line, rows)]
