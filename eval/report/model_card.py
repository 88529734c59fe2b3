"""The model card of a trained model: the README.md that the hub shows, made from recipe and report."""

from pathlib import Path
from typing import NamedTuple

import yaml

from eval.drawing import label
from eval.forgetting.trajectory import HELDOUT
from eval.report.certificate import NO_REPOSITORY
from eval.report.page import page_templates
from eval.report.schema import Transfer
from eval.report.wording import lost_points
from eval.statistics.decisions import may_lose
from eval.statistics.values import Estimate
from recipes.schema import Recipe

_OF_FINAL_RESPONSES = ("all_truncated", "many_truncated", "kl_near_rounding")
"""Warnings that, where they name an arm, are about the responses of its final model."""


class PushedModel(NamedTuple):
    """Which model of a study a card is about."""

    arm: str
    seed: int
    step: int | None
    """Update of a checkpoint; None: the final model."""


def model_card(recipe: Recipe, transfer: Transfer, model: PushedModel, licence: str | None) -> str:
    """The card as Markdown with the hub's metadata on top.

    `licence`: an id of the hub; None: the card names none.
    """
    step = "" if model.step is None else f", step {model.step}"
    warnings = [warning for warning in transfer.warnings if warning.model in (None, "base", model.arm)]
    if model.step is not None:
        warnings = [w for w in warnings if w.model != model.arm or w.code not in _OF_FINAL_RESPONSES]
    cautions = [warning.message for warning in warnings]
    gains = transfer.arms[model.arm].groups if model.step is None else _gains_on_slice(transfer, model)
    if model.step is not None and gains:
        cautions.append(
            f"It is one of {len(_steps(transfer, model.arm)) - 1} checkpoints of this method with scores on the same "
            "questions. If it was chosen by these gains, they look better than they are on other questions."
        )
    if transfer.status == "UNMATCHED":
        cautions.append("The arms of the study differ in more than the method.")
    template = page_templates().get_template("model_card.md.j2")
    return _metadata(recipe, model, licence) + template.render(
        t=transfer,
        model=model,
        what=f"{label(model.arm)}, seed {model.seed}{step}",
        base=_base_name(recipe),
        sources=[source.dataset or source.name for source in recipe.corpus.sources],
        result=transfer.arms[model.arm],
        gains=gains,
        slice=(sizes := _slice_sizes(transfer)),
        slice_questions=sum(sum(names.values()) for names in sizes.values()),
        may_have_lost=_may_have_lost(gains, any(w.code == "all_truncated" for w in warnings)),
        cautions=cautions,
        training=_training(transfer, model.arm),
    )


def _steps(transfer: Transfer, arm: str) -> list[int]:
    """The steps of an arm with scores on the slice; the first is what it started from."""
    return [] if transfer.trajectory is None else transfer.trajectory.arms[arm].steps


def _gains_on_slice(transfer: Transfer, model: PushedModel) -> dict[str, Estimate]:
    """The gains of a checkpoint by group; empty where it was not scored."""
    steps = _steps(transfer, model.arm)[1:]
    if transfer.trajectory is None or model.step not in steps:
        return {}
    at = 1 + steps.index(model.step)
    return {group: transfer.trajectory.arms[model.arm].gains[group][at] for group in transfer.trajectory.groups}


def _slice_sizes(transfer: Transfer) -> dict[str, dict[str, int]]:
    """How many questions the slice has of every benchmark, by group."""
    if transfer.trajectory is None:
        return {}
    own = {name: count for name, count in transfer.trajectory.questions.items() if name != HELDOUT}
    return {
        group: {name: own[name] for name in transfer.groups[group] if name in own}
        for group in transfer.trajectory.groups
    }


def _may_have_lost(gains: dict[str, Estimate], cut_off: bool) -> str:
    """The smallest limit that `transfer gate` passes; which limit is acceptable is the reader's to say.

    `cut_off`: whether all responses to a benchmark were.
    """
    if not gains:
        return ""
    if cut_off:
        return "What it may have lost cannot be said: every response to a benchmark was cut off."
    group = min(gains, key=lambda name: gains[name].low)
    if may_lose(gains[group]) == 0:
        return "No interval of a group contains a loss."
    lost = f"no group lost more than {lost_points(gains[group])}"
    return f"By the lower ends of these intervals {lost}; the least certain is {label(group)}."


def _base_name(recipe: Recipe) -> str:
    """The base for readers elsewhere: of a local checkpoint the folder's name alone."""
    path = recipe.require_model().path
    if path is None:
        return "A miniature pre-trained from nothing on a synthetic world"
    on_hub = path.count("/") == 1 and path[0] not in "./~" and not Path(path).is_dir()
    return path if on_hub else f"A local checkpoint, `{Path(path).resolve().name}`"


def _training(transfer: Transfer, arm: str) -> dict[str, object]:
    """The settings of an arm: those it shares with the others, then its own.

    Without the hash of the code where the versions name the commit.
    """
    if transfer.certificate is None:
        return dict(transfer.settings[arm])
    own = {key: values[arm] for key, values in transfer.certificate.differs.items() if arm in values}
    settings: dict[str, object] = {k: v for k, v in {**transfer.certificate.shared, **own}.items() if v is not None}
    if transfer.versions.get("commit", NO_REPOSITORY) != NO_REPOSITORY:
        settings.pop("code", None)
    return settings


def _metadata(recipe: Recipe, model: PushedModel, licence: str | None) -> str:
    """The YAML block; only ids of the hub are named as base and datasets."""
    base = recipe.require_model()
    values = {
        "license": licence,
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "base_model": base.path if base.revision is not None else None,
        "datasets": [source.dataset for source in recipe.corpus.sources if source.dataset] or None,
        "tags": ["transfer-lab", model.arm.replace("_", "-")],
    }
    dumped = yaml.safe_dump({k: v for k, v in values.items() if v is not None}, sort_keys=False, allow_unicode=True)
    return f"---\n{dumped}---\n\n"
