"""The checks of a whole recipe: what its sections must be together.

Each is a generator of sentences. One that reads a value which is itself wrong ends there (`recipes/spec.py`), so a
check of one thing is a function of its own, and a loop over arms or benchmarks goes on with the next.
"""

from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import TYPE_CHECKING

from recipes.spec import WrongValueError
from recipes.suggestions import did_you_mean
from recipes.suite_schema import READINGS

if TYPE_CHECKING:
    from recipes.schema import Recipe


def recipe_checks(recipe: "Recipe") -> Iterable[Iterator[str]]:
    """The checks, in the order in which their sentences are shown."""
    return (
        _arms_have_a_base(recipe),
        _training_has_settings(recipe),
        _training_has_problems(recipe),
        _seeds_differ(recipe),
        _arms_have_names(recipe),
        _demonstrations_have_a_teacher(recipe),
        _arms_start_somewhere(recipe),
        _solvable_by_a_teacher(recipe),
        _scripted_teacher_knows_the_sources(recipe),
        _drift_has_problems(recipe),
        _samplers_have_a_base(recipe),
        _heldout_has_problems(recipe),
        _reward_and_score_agree(recipe),
        _trajectory_has_problems(recipe),
        _trajectory_has_an_engine(recipe),
        _reading_exists(recipe),
        _reading_fits(recipe),
        _trained_group_exists(recipe),
        _claims_name_arms(recipe),
        _claims_name_groups(recipe),
    )


def _arms_have_a_base(recipe: "Recipe") -> Iterator[str]:
    if recipe.arms and recipe.model is None:
        yield "a study with arms needs `model`"


def _training_has_settings(recipe: "Recipe") -> Iterator[str]:
    if recipe.train is None and recipe.trained:
        yield "a study that trains arms needs `train`"


def _training_has_problems(recipe: "Recipe") -> Iterator[str]:
    if not recipe.corpus.sources and recipe.trained:
        yield "a study that trains arms needs `corpus.sources`"


def _seeds_differ(recipe: "Recipe") -> Iterator[str]:
    if not recipe.seeds:
        yield "`seeds` is empty; give at least one, for instance seeds=[0]"
    if len(set(recipe.seeds)) != len(recipe.seeds):
        yield "a seed is listed twice"


def _arms_have_names(recipe: "Recipe") -> Iterator[str]:
    for name in recipe.arms:
        if not name.replace("_", "").isalnum() or name == "base":
            yield f"arm name {name!r} must be letters, digits and _, and not `base`"


def _demonstrations_have_a_teacher(recipe: "Recipe") -> Iterator[str]:
    for name, arm in recipe.arms.items():
        with suppress(WrongValueError):
            if arm.sampling == "teacher" and recipe.corpus.teacher is None:
                yield f"arm {name!r} samples from the teacher but `corpus.teacher` is missing"


def _arms_start_somewhere(recipe: "Recipe") -> Iterator[str]:
    for name, arm in recipe.arms.items():
        with suppress(WrongValueError):
            if arm.start_from is not None and arm.start_from not in recipe.trained:
                yield (
                    f"arm {name!r} starts from {arm.start_from!r}, which is not an arm this study trains; "
                    f"{did_you_mean(arm.start_from, recipe.trained, 'it trains')}"
                )
            if _starts_in_a_circle(recipe, name):
                yield f"arm {name!r} starts from itself, by `start_from` of {arm.start_from!r}"


def _starts_in_a_circle(recipe: "Recipe", arm: str) -> bool:
    seen: set[str] = set()
    at = arm
    while at in recipe.arms and at not in seen:
        seen.add(at)
        at = recipe.arms[at].start_from or ""
    return at == arm


def _solvable_by_a_teacher(recipe: "Recipe") -> Iterator[str]:
    if any(arm.sampling == "teacher" for arm in recipe.trained.values()):
        return  # without a teacher, that is the mistake
    solvable_only = [recipe.corpus.problem_set, *(arm.problem_set for arm in recipe.trained.values())]
    if recipe.corpus.teacher is None and recipe.trained and "teacher_solvable" in solvable_only:
        yield "`problem_set: teacher_solvable` needs `corpus.teacher`; say `problem_set: all`"


def _scripted_teacher_knows_the_sources(recipe: "Recipe") -> Iterator[str]:
    corpus = recipe.corpus
    real = [source.name for source in corpus.sources if source.kind != "pocket"]
    if real and corpus.teacher is not None and corpus.teacher.kind == "scripted":
        yield (
            f"the scripted teacher cannot solve source {real[0]!r}; it knows the synthetic world only, "
            "so choose `kind: endpoint` or `transformers`, or leave `corpus.teacher` out"
        )


def _drift_has_problems(recipe: "Recipe") -> Iterator[str]:
    heldout = recipe.corpus.heldout_problems
    if recipe.drift is not None and recipe.drift.problems > heldout:
        yield f"`drift.problems` is {recipe.drift.problems} but `corpus.heldout_problems` is {heldout}"


def _samplers_have_a_base(recipe: "Recipe") -> Iterator[str]:
    for name, sampler in recipe.corpus.samplers.items():
        with suppress(WrongValueError):
            of_base = sampler.kind == "transformers" and sampler.model == "base"
            if of_base and (recipe.model is None or (not recipe.arms and recipe.suite is None)):
                yield f"`corpus.{name}` has `model: base`, which needs `model` and arms or a suite"


def _heldout_has_problems(recipe: "Recipe") -> Iterator[str]:
    for benchmark in recipe.benchmarks:
        with suppress(WrongValueError):
            if benchmark.name == "heldout" and not recipe.corpus.heldout_problems:
                yield "benchmark `heldout` needs `corpus.heldout_problems` above 0"


def _reward_and_score_agree(recipe: "Recipe") -> Iterator[str]:
    form = recipe.corpus.answer_form
    for benchmark in recipe.benchmarks:
        with suppress(WrongValueError):
            if benchmark.group != recipe.analysis.trained_group or not recipe.trained:
                continue
            scored = benchmark.scorings[benchmark.cell(recipe.analysis.reading)[1]]
            if scored in ("boxed", "plain") and scored != form:
                yield (
                    f"benchmark {benchmark.name!r} is scored {scored!r} but `corpus.answer_form` is {form!r}: the "
                    "reward and this score must read an answer in the same form"
                )


def _trajectory_has_problems(recipe: "Recipe") -> Iterator[str]:
    if recipe.with_trajectories and not recipe.corpus.heldout_problems:
        yield "`trajectory` locates equal gain on `corpus.heldout_problems`, which is 0"


def _trajectory_has_an_engine(recipe: "Recipe") -> Iterator[str]:
    if recipe.with_trajectories and recipe.suite is not None and recipe.suite.engine.kind == "endpoint":
        yield "`trajectory` loads every checkpoint itself, so `suite.engine.kind` must be hf or vllm, not endpoint"


def _readings(recipe: "Recipe") -> set[str]:
    return {*READINGS, *(name for item in recipe.benchmarks for name in (*item.promptings, *item.scorings))}


def _reading_exists(recipe: "Recipe") -> Iterator[str]:
    if recipe.suite is not None and recipe.analysis.reading not in (names := _readings(recipe)):
        yield f"`analysis.reading` is {recipe.analysis.reading!r}; there are {', '.join(sorted(names))}"


def _reading_fits(recipe: "Recipe") -> Iterator[str]:
    reading = recipe.analysis.reading
    if reading in READINGS or reading not in _readings(recipe):  # checks of each benchmark, and the one above
        return
    for item in recipe.benchmarks:
        with suppress(WrongValueError):
            if not item.fits(*item.cell(reading)):
                yield (
                    f"`analysis.reading` {reading!r} would judge {item.name!r} by a rule that cannot read what "
                    f"{item.cell(reading)[0]!r} stores"
                )


def _trained_group_exists(recipe: "Recipe") -> Iterator[str]:
    if recipe.suite is None:
        return
    trained, groups = recipe.analysis.trained_group, {item.group for item in recipe.benchmarks}
    if trained not in groups:
        yield (
            f"no benchmark is in the group `{trained}`, which the transfer index divides by; "
            f"set `analysis.trained_group` to one of {', '.join(sorted(groups))}"
        )


def _claims_name_arms(recipe: "Recipe") -> Iterator[str]:
    if recipe.suite is None:
        return
    known = ["base", *recipe.arms]
    for claim in recipe.analysis.claims:
        with suppress(WrongValueError):
            for arm in (claim.first, claim.second):
                if arm not in known:
                    yield (
                        f"analysis.claims names {arm!r}, which is neither base nor an arm of this study; "
                        f"{did_you_mean(arm, known, 'those are')}"
                    )


def _claims_name_groups(recipe: "Recipe") -> Iterator[str]:
    if recipe.suite is None:
        return
    groups = {item.group for item in recipe.benchmarks}
    for claim in recipe.analysis.claims:
        with suppress(WrongValueError):
            if claim.group not in groups:
                yield f"analysis.claims names the group {claim.group!r}; there are {', '.join(sorted(groups))}"
