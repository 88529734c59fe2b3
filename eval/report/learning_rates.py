"""The choice of learning rates: every arm at every rate on held-out problems of the corpus, the rate to take, the page.

The rate with the highest accuracy is taken, of equal ones the lowest. Accuracies are compared as if their problems were
independent. All rates answer the same ones, so this makes differences too uncertain rather than too certain. More seeds
do not lower the error over problems, because they answer the same ones.
"""

from collections.abc import Mapping, Sequence
from math import hypot
from pathlib import Path
from typing import Any

from markupsafe import Markup
from matplotlib import pyplot as plt

from eval.drawing import BASE_COLOUR, LARGE, Drawing, colour_of, label, legend, ringed_line, styled, to_drawing
from eval.report.ablation_verdict import (
    Conclusion,
    Missing,
    conclusion_text,
    edge_text,
    join_names,
    missing_text,
    setting_text,
    take_text,
    value_text,
)
from eval.report.page import page_templates
from eval.statistics.values import Values, number_text
from recipes.files import read_json_lines
from recipes.layout import run_folder
from recipes.manifest import read_manifest
from recipes.schema import Recipe
from train.accounting.ledger import LEDGER
from train.no_gradient import runs_without_gradient
from train.runtime.recorder import CLOCK

_ERRORS = 2
"""Accuracies that differ by at most so many standard errors of the difference cannot be told apart."""


class Accuracy(Values):
    """Accuracy on held-out problems, in percent; where an arm was trained, what one run took, mean of the seeds."""

    accuracy: float
    error: float
    """Standard error: the larger of those over seeds and over problems."""
    seconds: float | None = None
    """Of training, all processes together."""
    steps: float | None = None
    completions: float | None = None
    no_gradient: tuple[str, ...] = ()
    """A sentence for each seed in which no step had a gradient."""
    learned: bool = True
    """Whether any seed had a gradient; else the accuracy is that of the model it started from."""

    def told_from(self, other: "Accuracy") -> bool:
        """Whether the two differ by more than the errors."""
        return abs(self.accuracy - other.accuracy) > _ERRORS * hypot(self.error, other.error)

    def minus(self, other: "Accuracy") -> str:
        """The difference with its standard error."""
        return f"{number_text(self.accuracy - other.accuracy)} ± {hypot(self.error, other.error):.1f}"

    def __str__(self) -> str:
        return f"{self.accuracy:.1f} ± {self.error:.1f}"


Frontier = Mapping[str, Mapping[str, Accuracy]]
"""Arm -> learning rate -> its accuracy, where that is finished."""


class RateChoice(Values):
    """All accuracies and what follows from them."""

    rates: list[float]
    """All that are tried, ascending."""
    frontier: dict[str, dict[str, Accuracy]]
    base: Accuracy | None
    chosen: dict[str, float]
    common: float | None
    """The rate for a comparison of all arms at one; None where no rate is finished for all."""
    overrides: list[str]
    conclusion: Conclusion
    missing: list[Missing]


def read_accuracy(recipe: Recipe, study_dir: Path, arm: str) -> Accuracy | None:
    """The held-out accuracy of an arm, or of `base`; None if a seed is not evaluated."""
    values = []
    for name in recipe.labels(arm):
        manifest = read_manifest(study_dir / "eval" / name)
        if manifest is None or not manifest["completed"]:
            return None
        values.append(100 * float(next(iter(manifest["facts"]["accuracy"].values()))))
    mean = sum(values) / len(values)
    over_seeds = (sum((value - mean) ** 2 for value in values) / max(len(values) - 1, 1) / len(values)) ** 0.5
    error = max(over_seeds, binomial_error(mean, recipe.corpus.heldout_problems))
    accuracy = Accuracy(accuracy=round(mean, 3), error=round(error, 3))
    if arm == "base":
        return accuracy
    runs = [run_folder(study_dir, arm, seed) for seed in recipe.seeds]
    taken = {"seconds": (CLOCK, "process_seconds"), "steps": (LEDGER, "step"), "completions": (LEDGER, "completions")}
    measured: dict[str, Any] = {
        name: _mean_of_last([run / file for run in runs], key) for name, (file, key) in taken.items()
    }
    if idle := runs_without_gradient(recipe, study_dir, [arm]):
        measured |= {"no_gradient": tuple(map(str, idle)), "learned": len(idle) < len(recipe.seeds)}
    return accuracy.model_copy(update=measured)


def binomial_error(percent: float, problems: int) -> float:
    """Standard error of an accuracy, in percent. At a floor or ceiling it is that of two right (or wrong) answers to
    four more problems, as in Agresti and Coull's interval (1998): twice it is then about the rule of three.
    """
    least = 2 / (problems + 4)
    share = min(max(percent / 100, least), 1 - least)
    return float(100 * (share * (1 - share) / problems) ** 0.5)


def _mean_of_last(files: Sequence[Path], key: str) -> float | None:
    """Mean of a value in the last rows of files; None where a file has none."""
    rows = [read_json_lines(file)[-1:] for file in files]
    return sum(row[0][key] for row in rows) / len(rows) if all(rows) else None


def choose(frontier: Frontier) -> dict[str, float]:
    """The learning rate with the highest accuracy of each arm that has one; of equal ones the lowest. A rate at which
    an arm learned nothing is not taken.
    """
    return {
        arm: float(max(row, key=lambda rate: (row[rate].accuracy, -float(rate))))
        for arm, row in _learned(frontier).items()
        if row
    }


def _learned(frontier: Frontier) -> Frontier:
    return {arm: {rate: value for rate, value in row.items() if value.learned} for arm, row in frontier.items()}


def common_rate(frontier: Frontier) -> float | None:
    """The learning rate with the highest mean accuracy over the arms; of equal ones the lowest. Only rates that all
    arms have, and at which all learned something, count.
    """
    frontier = _learned(frontier)
    shared = set.intersection(*(set(row) for row in frontier.values()))
    mean = {float(rate): sum(row[rate].accuracy for row in frontier.values()) for rate in shared}
    return max(mean, key=lambda rate: (mean[rate], -rate), default=None)


def choose_rates(
    frontier: Frontier, rates: Sequence[float], base: Accuracy | None, missing: Sequence[Missing], seeds: int
) -> RateChoice:
    """The choice. `rates`: all that are tried, ascending; `missing`: the unfinished points; `seeds`: their number."""
    chosen, common = choose(frontier), common_rate(frontier)
    taken = take_text({arm: setting_text(rate) for arm, rate in chosen.items()})
    answer = f"Take learning rate {taken}" if chosen else "Not identified: at no rate did a method learn anything"
    answer += "." if common is None else f"; {setting_text(common)} for a comparison at one rate."
    if lacking := [label(arm) for arm, row in frontier.items() if not row]:
        answer += f" Not finished for {join_names(lacking)}."
    if chosen and (idle := [label(arm) for arm, row in frontier.items() if row and arm not in chosen]):
        answer += f" Not identified for {join_names(idle)}."
    certainty = missing_text(missing, len(rates), list(missing[0].values)) if missing else []
    certainty.append(
        "± is one standard error, the larger of those over training seeds and over problems. A difference within "
        f"{_ERRORS} standard errors cannot be told from zero."
        + (" One training seed: another may differ by more." if seeds == 1 else "")
        + " The highest of several accuracies is as a rule too high."
    )
    reasons = {arm: _reason(_learned(frontier)[arm], rate, rates, base) for arm, rate in chosen.items()}
    for arm, row in frontier.items():
        if texts := [f"At {setting_text(float(key))}: {text}." for key in row for text in row[key].no_gradient]:
            reasons[arm] = " ".join([*([reasons[arm]] if arm in reasons else []), *texts])
    return RateChoice(
        rates=list(rates),
        frontier={arm: dict(row) for arm, row in frontier.items()},
        base=base,
        chosen=chosen,
        common=common,
        overrides=[f"arms.{arm}.learning_rate={rate:g}" for arm, rate in chosen.items()],
        conclusion=Conclusion(answer=answer, arms=reasons, certainty=certainty, choices={}),
        missing=list(missing),
    )


def _reason(row: Mapping[str, Accuracy], rate: float, rates: Sequence[float], base: Accuracy | None) -> str:
    """What the choice of an arm rests on, with its warnings."""
    taken = row[str(rate)]
    text = f"{taken} % at {setting_text(rate)}."
    others = sorted((key for key in row if float(key) != rate), key=lambda key: -row[key].accuracy)
    if equals := [key for key in others if not taken.told_from(row[key])]:
        names = [f"{setting_text(float(key))} (difference {taken.minus(row[key])})" for key in equals]
        text += f" It cannot be told from {join_names(names)}."
    elif others:
        text += f" Next comes {setting_text(float(others[0]))}; the difference is {taken.minus(row[others[0]])}."
    text += edge_text(rate, rates, "learning rate")
    if base is not None and not (taken.told_from(base) and taken.accuracy > base.accuracy):
        text += f" No gain over the base can be told from zero: {taken.minus(base)}."
    return text


def rates_text(choice: RateChoice) -> str:
    """The choice as text."""
    lines = [
        "\naccuracy on held-out corpus problems, percent, with its standard error over seeds and problems",
        f"{'arm':<28}" + "".join(f"{rate:>16g}" for rate in choice.rates),
    ]
    for arm, row in choice.frontier.items():
        marks = {rate: "*" if choice.chosen.get(arm) == rate else " " for rate in choice.rates}
        lines.append(f"{arm:<28}" + "".join(f"{row.get(str(rate), '–')!s:>15}{mark}" for rate, mark in marks.items()))
    lines += [] if choice.base is None else [f"{'base':<28}{choice.base!s:>15}"]
    if choice.overrides:
        lines.append(f"\nchosen (*, the highest; of equals the lower rate):\n  {' '.join(choice.overrides)}")
    if choice.common is not None:
        lines.append(f"for a comparison at one rate (highest mean over the arms): {choice.common:g}")
    return "\n".join([*lines, "", conclusion_text(choice.conclusion)])


@styled
def rates_figure(choice: RateChoice) -> Drawing:
    """Accuracy with standard errors against the learning rate, a line for each arm, the chosen points ringed."""
    low, high = choice.rates[0], choice.rates[-1]
    with plt.rc_context(LARGE):
        figure, axis = plt.subplots(figsize=(6.4, 4.4))
        if choice.base is not None:
            axis.axhline(choice.base.accuracy, color=BASE_COLOUR, ls="--", lw=1.4, label="base")
        for index, (arm, rate) in enumerate(choice.chosen.items()):
            row = {float(key): value for key, value in choice.frontier[arm].items()}
            beside = (high / low) ** (0.015 * (index - (len(choice.chosen) - 1) / 2))  # so that bars do not overlap
            values, errors = zip(*((value.accuracy, value.error) for value in row.values()), strict=True)
            colour = colour_of(list(choice.frontier).index(arm))
            ringed = list(row).index(rate)
            ringed_line(axis, [key * beside for key in row], values, errors, colour, label(arm), ringed)
        axis.set_xscale("log")
        axis.set_xlim(low * (low / high) ** 0.08, high * (high / low) ** 0.08)
        axis.set_xticks(choice.rates, map(setting_text, choice.rates))
        axis.set_xticks([], minor=True)
        axis.set_xlabel("learning rate")
        axis.set_ylabel("accuracy on held-out problems (%)")
        legend(figure, axis)
        return to_drawing(figure)


def render_rates(choice: RateChoice, figure: Drawing, *, recipe: Recipe, name: str, title: str) -> str:
    """The page. Everything but the figure is escaped, and its policy forbids scripts and requests."""
    template = page_templates().get_template("learning_rates.html.j2")
    return template.render(
        choice=choice,
        conclusion=choice.conclusion,
        missing=[(one, value_text(one.values, list(one.values))) for one in choice.missing],
        rate_text=setting_text,
        figure=Markup(figure.svg),
        recipe=recipe,
        rehearsal=recipe.rehearsal,
        name=name,
        title=f"Learning rates: {title or name}",
    )
