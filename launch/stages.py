"""The stage graph of a study: which stages there are, in which order they run, and what each reads. Runs nothing.

base -> corpus -> arms/<arm>/seed-<n> -> drift/<arm>/seed-<n>; with questions and external/<arm>:
-> trajectory/<arm>/seed-<n>, eval/<model>, diagnostics/<model> -> report.
A stage's inputs are the recipe values it reads and the output hashes of the stages it needs, as one flat mapping; their
hash decides whether it must run.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from eval.questions.task_files import task_hashes
from eval.scorers.version import SCORING
from launch.stage_kinds import KINDS, STAGE_KINDS, KindFacts, StageKind, kind_of
from recipes.code_version import code_version
from recipes.errors import UserError
from recipes.files import folder_state, hash_file, hash_json
from recipes.layout import run_name
from recipes.manifest import OUTPUT_OF, StageState, read_manifest, stage_state
from recipes.schema import Recipe, without_later_defaults
from recipes.suggestions import nearest
from train.arms import TRAINER_MODULES, Trainer, resolve_arm


@dataclass(frozen=True)
class Stage:
    """One stage of a study. Its directory is `<study>/<name>`."""

    name: str
    reads: dict[str, Any]
    """Recipe values it depends on, flat: dotted key -> JSON value."""
    needs: tuple[str, ...] = ()
    """Stages whose outputs it reads."""
    arguments: dict[str, Any] = field(default_factory=dict)
    """Further arguments of `run`."""
    threads: int = 1
    """Arithmetic threads."""
    chosen_module: str | None = None
    """Which module of its kind does its work; None: the first."""

    @property
    def kind(self) -> StageKind:
        """The first part of its name."""
        return kind_of(self.name)

    @property
    def facts(self) -> KindFacts:
        """What holds for every stage of its kind."""
        return STAGE_KINDS[self.kind]

    @property
    def module(self) -> str:
        """The module that does its work."""
        return self.chosen_module or self.facts.modules[0]

    @property
    def arm(self) -> str:
        """The arm that it trains or looks at. KeyError: it has none."""
        return str(self.arguments["arm"])

    @property
    def code(self) -> str:
        """Version of the code behind it; one for all arms, so that equal versions mean comparable arms.

        An evaluation records the version of its scoring rules by itself, because its responses can be judged again.
        """
        modules = self.facts.modules if self.kind == "arms" else (self.module,)
        return code_version(*modules, without=SCORING if self.kind == "eval" else ())

    @property
    def trainer(self) -> Trainer | None:
        """What trains the arm of this stage; None for other stages."""
        return next((trainer for trainer, module in TRAINER_MODULES.items() if module == self.module), None)


def build_stages(recipe: Recipe) -> list[Stage]:
    """The stages of a study in an order in which each comes after those it needs.

    Raises:
        UserError: an arm cannot be trained yet, or a task file is missing.
    """
    settings = without_later_defaults(recipe.dump())
    if settings["model"] is not None:  # what it falls back to depends on the machine; runs record what they used
        del settings["model"]["attention_fallback"]
    threads = recipe.resources.threads
    stages = []
    with_base = recipe.model is not None and _needs_base(recipe)
    if recipe.model is not None and with_base:
        module = "train.models.pocket_base" if recipe.model.pocket else None
        reads = flatten({"model": settings["model"], "base_threads": recipe.resources.base_threads})
        if recipe.model.path is not None:  # the stage also checks the tokenizer with every prompt setting
            reads |= _folder_content(Path(recipe.model.path))
            prompts = [settings["prompt"], *(arm["prompt"] for arm in settings["arms"].values() if arm["prompt"])]
            reads |= flatten({"lock": {"models": recipe.lock_of_model(recipe.model.path, recipe.model.revision)}})
            checked = {"thinking": recipe.suite.thinking} if recipe.suite and recipe.suite.thinking is not None else {}
            checked |= {"trained": True} if recipe.trained else {}
            reads["prompts"] = hash_json([*prompts, checked] if checked else prompts)
            reads |= _template_content(recipe.model.chat_template)
        stages.append(Stage("base", reads, threads=recipe.resources.base_threads, chosen_module=module))
    if recipe.corpus.sources:
        stages.append(_corpus_stage(recipe, settings, with_base))
    models = {"base": "base"}
    for arm in _trained_in_order(recipe):
        resolved = resolve_arm(recipe, arm)
        for seed, label in zip(recipe.seeds, recipe.labels(arm), strict=True):
            name = f"arms/{run_name(arm, seed)}"
            reads = flatten({"arm": without_later_defaults(resolved.matched_on()), "seed": seed, "threads": threads})
            reads["answer_form"] = recipe.corpus.answer_form
            topology = ("ranks", "zero_stage", "offload")
            reads |= {key: settings["resources"][key] for key in topology if recipe.resources.launched}
            if resolved.trainer == "sft":
                reads["demonstrations"] = recipe.corpus.demonstrations
            elif resolved.sampling != "teacher":  # samples of vLLM are reweighted for the sampler/trainer mismatch
                reads["sampler"] = recipe.resources.vllm.mode if recipe.resources.vllm else "transformers"
            before = [f"arms/{run_name(resolved.start_from, seed)}"] if resolved.start_from else []
            needs = ("base", "corpus", *before)
            stages.append(
                Stage(name, reads, needs, {"arm": arm, "seed": seed}, threads, TRAINER_MODULES[resolved.trainer])
            )
            models[label] = name
    stages += _drifts(recipe, settings)
    for arm, external in recipe.external.items():
        reads = flatten({"external": settings["arms"][arm]["external"], "prompt": settings["prompt"]})
        reads |= flatten({"lock": {"models": recipe.lock_of_model(external.path, external.revision)}})
        reads |= _folder_content(Path(external.path)) | _template_content(external.chat_template)
        if recipe.suite is not None and recipe.suite.thinking is not None:
            reads["thinking"] = recipe.suite.thinking
        stages.append(Stage(f"external/{arm}", reads, ("base",), {"arm": arm}))
        models[arm] = f"external/{arm}"
    if recipe.suite is not None and recipe.model is not None:
        stages += _evaluation(recipe, settings, models)
        stages += _diagnostics(recipe, settings, models)
        reads = flatten({key: value for key, value in settings.items() if key != "resources"})
        stages.append(Stage("report", reads, tuple(stage.name for stage in stages)))
    return stages


def _trained_in_order(recipe: Recipe) -> list[str]:
    """The arms as the recipe has them, but none before the arm it starts from."""
    ordered: list[str] = []

    def add(name: str) -> None:
        before = recipe.trained[name].start_from
        if before is not None:
            add(before)
        if name not in ordered:
            ordered.append(name)

    for name in recipe.trained:
        add(name)
    return ordered


def _folder_content(folder: Path) -> dict[str, Any]:
    """The state of a local checkpoint; nothing for a model of the hub."""
    return {f"content of {folder}": folder_state(folder)} if folder.is_dir() else {}


def _template_content(name: str | None) -> dict[str, Any]:
    """The content of a chat template that is a file."""
    return {"content of the chat template": _content(Path(str(name)))} if str(name).endswith(".jinja") else {}


def _corpus_stage(recipe: Recipe, settings: dict[str, Any], with_base: bool) -> Stage:
    # Decontamination compares the corpus with the questions of the suite, whatever their prompts and scoring.
    suite = {key: settings["suite"][key] for key in ("tasks", "questions", "seed")} if recipe.suite else {}
    suite |= {"benchmarks": [benchmark.name for benchmark in recipe.suite.benchmarks]} if recipe.suite else {}
    reads = flatten({"corpus": settings["corpus"], "prompt": settings["prompt"], "suite": suite})
    reads |= flatten({"lock": {key: settings["lock"].get(key, {}) for key in ("sources", "models")}})
    for source in recipe.corpus.all_files():
        if source.path is not None:
            reads[f"content of {source.path}"] = _content(Path(source.path))
    for sampler in recipe.corpus.samplers.values():
        if sampler.kind == "transformers" and sampler.model != "base":
            reads |= _folder_content(Path(str(sampler.model)))
    if not with_base:  # then the stage loads the tokenizer of the model itself
        reads |= flatten({"model": settings["model"]})
        if recipe.model is not None:
            reads |= _folder_content(Path(str(recipe.model.path))) | _template_content(recipe.model.chat_template)
    return Stage("corpus", reads, ("base",) if with_base else ())


def _evaluation(recipe: Recipe, settings: dict[str, Any], models: dict[str, str]) -> list[Stage]:
    """The questions of the suite, and the evaluation of every model on them."""
    spec = recipe.require_suite()
    suite = settings["suite"]
    chosen = {key: suite[key] for key in ("questions", "split", "seed")}
    data = {item["name"]: item["data"] for item in suite["benchmarks"]}
    reads = flatten({"suite": chosen, "data": data, "lock": settings["lock"].get("benchmarks", {})})
    for item in spec.benchmarks:
        if item.data is not None and item.data.path is not None:
            reads[f"content of {item.data.path}"] = _content(Path(item.data.path))
    heldout = any(item.name == "heldout" and item.data is None for item in spec.benchmarks)
    stages = [Stage("questions", reads, ("corpus",) if heldout else ())]
    prompt = {key: settings["prompt"][key] for key in ("system", "suffix", "thinking")}
    common = flatten({"dtype": settings["model"]["dtype"], "prompt": prompt}) | _asking(recipe)
    stages += _trajectories(recipe, settings, common)
    for label, name in models.items():
        reads = common | flatten({"suite": suite, "label": label})
        needs, arguments = (name, "questions"), {"model_dir": _weights_of(name)}
        stages.append(Stage(f"eval/{label}", reads, needs, arguments, recipe.resources.threads))
    return stages


def _asking(recipe: Recipe) -> dict[str, Any]:
    """What everything that asks the questions of the suite reads."""
    tasks = hash_json(task_hashes(recipe.require_suite()))
    reading, threads = recipe.analysis.reading, recipe.resources.threads
    return {"content of the task files": tasks, "reading": reading, "threads": threads}


def _weights_of(stage: str) -> str:
    """Folder of the weights that a stage produces."""
    return stage if STAGE_KINDS[kind_of(stage)].makes_model else f"{stage}/final"


def _trajectories(recipe: Recipe, settings: dict[str, Any], common: dict[str, Any]) -> list[Stage]:
    """The trajectories of the base and of every run."""
    if not recipe.with_trajectories:
        return []
    suite = {key: value for key, value in settings["suite"].items() if key not in ("samples_per_question", "questions")}
    reads = common | flatten({"trajectory": settings["trajectory"], "suite": suite})
    return _of_base_and_runs(recipe, "trajectory", reads, ("base", "corpus", "questions"))


def _of_base_and_runs(
    recipe: Recipe, kind: StageKind, reads: dict[str, Any], needs: tuple[str, ...], of_base: tuple[str, ...] = ()
) -> list[Stage]:
    """A stage for the base and one for the checkpoints of each run, which needs `of_base` too."""
    threads = recipe.resources.threads
    reads = reads | {"answer_form": recipe.corpus.answer_form, "threads": threads}
    stages = [Stage(f"{kind}/base", reads, needs, {}, threads)]
    for arm in recipe.trained:
        resolved = resolve_arm(recipe, arm)  # snapshots are not part of the run's output hash
        own = reads | {"steps": resolved.steps, "snapshots": resolved.snapshots}
        for seed in recipe.seeds:
            run, arguments = run_name(arm, seed), {"arm": arm, "seed": seed}
            stages.append(Stage(f"{kind}/{run}", own, (*needs, *of_base, f"arms/{run}"), arguments, threads))
    return stages


def _diagnostics(recipe: Recipe, settings: dict[str, Any], models: dict[str, str]) -> list[Stage]:
    """Representation and token shift of every final model."""
    if not recipe.with_diagnostics:
        return []
    suite = {key: settings["suite"][key] for key in ("tasks", "thinking", "benchmarks")}
    reads = flatten({"diagnostics": settings["diagnostics"], "suite": suite, "prompt": settings["prompt"]})
    reads |= flatten({"dtype": settings["model"]["dtype"], "attention": settings["model"]["attention"]})
    reads |= _asking(recipe)
    before = ("corpus", "questions") if recipe.corpus.sources else ("questions",)
    stages = []
    for label, name in models.items():
        needs = (name, *before, *(() if label == "base" else ("base", "diagnostics/base")))
        arguments = {"model_dir": _weights_of(name)}
        stages.append(Stage(f"diagnostics/{label}", reads, needs, arguments, recipe.resources.threads))
    return stages


def _drifts(recipe: Recipe, settings: dict[str, Any]) -> list[Stage]:
    """Drift of the base and of every run."""
    if recipe.drift is None or not recipe.trained:
        return []
    # `probe` is the section's earlier name; the hashes of finished stages have it.
    reads = flatten({"probe": settings["drift"], "prompt": settings["prompt"], "dtype": settings["model"]["dtype"]})
    return _of_base_and_runs(recipe, "drift", reads, ("base", "corpus"), ("drift/base",))


def _needs_base(recipe: Recipe) -> bool:
    """Whether the base's weights are needed. A recipe that only builds a corpus needs at most its tokenizer."""
    rate = recipe.corpus.pass_rate
    samples_base = rate is not None and rate.sampler.model == "base"
    return bool(recipe.arms or recipe.suite or samples_base or (recipe.model and recipe.model.pocket))


def _content(path: Path) -> str | None:
    """sha256 of a file; None if there is none (a missing source is reported before anything runs)."""
    return hash_file(path) if path.is_file() else None


def flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one mapping with dotted keys; lists stay values."""
    if isinstance(value, dict) and value:
        return {key: leaf for name, inner in value.items() for key, leaf in flatten(inner, f"{prefix}{name}.").items()}
    return {prefix.rstrip("."): value}


def stage_inputs(stage: Stage, study_dir: Path) -> dict[str, Any]:
    """The stage's recipe values and the output hashes of the stages it needs; None for those that have not run."""
    inputs = dict(stage.reads)
    for name in stage.needs:
        manifest = read_manifest(study_dir / name)
        inputs[f"{OUTPUT_OF}{name}"] = manifest.get("output_hash") if manifest else None
    return inputs


def stage_states(stages: list[Stage], study_dir: Path) -> dict[str, StageState]:
    """The state of each stage. A finished stage that needs one which must run is "changed" as well."""
    states: dict[str, StageState] = {}
    for stage in stages:
        state = stage_state(study_dir / stage.name, stage_inputs(stage, study_dir))
        if stage.facts.in_place and state.state == "done" and (missing := _missing_output(study_dir / stage.name)):
            state = StageState("changed", (f"{missing} is missing",))
        rerun = [name for name in stage.needs if states[name].state != "done"]
        if rerun and state.state in ("done", "resume"):
            state = StageState("changed", tuple(f"{name} will run again" for name in rerun))
        states[stage.name] = state
    return states


def _missing_output(directory: Path) -> str | None:
    """The first output of a finished stage that is no longer there."""
    outputs = (read_manifest(directory) or {}).get("outputs", {})
    return next((name for name in outputs if not (directory / name).exists()), None)


def made_by_other_code(stage: Stage, study_dir: Path) -> bool:
    """Whether a finished stage was made, in part or as a whole, by an earlier version of the code."""
    manifest = read_manifest(study_dir / stage.name)
    return manifest is not None and manifest.get("code") != stage.code


def select_until(stages: list[Stage], until: str | None) -> list[Stage]:
    """The stages of kind `until`, or the stage of that name, and all that they need."""
    if until is None:
        return stages
    by_name = {stage.name: stage for stage in stages}
    pending = [stage.name for stage in stages if until in (stage.kind, stage.name)]
    if not pending:
        kinds = [kind for kind in KINDS if any(stage.kind == kind for stage in stages)]
        near = nearest(until, [*kinds, *by_name])
        hint = f"did you mean {near}?" if near else f"there are {', '.join(dict.fromkeys([*kinds, *by_name]))}"
        raise UserError(f"--until {until!r} is neither a kind of stage nor a stage of this recipe; {hint}")
    wanted = set()
    while pending:
        name = pending.pop()
        wanted.add(name)
        pending += by_name[name].needs
    return [stage for stage in stages if stage.name in wanted]


def furthest_until(stages: list[Stage], study_dir: Path, before: str | None, until: str | None) -> str | None:
    """The `until` to remember of a study that ran to `before` and is now run to `until`.

    `before`, where that goes further and a stage beyond `until` has begun: a shorter run takes nothing of the study
    away.
    """
    selected = {stage.name for stage in select_until(stages, until)}
    try:
        earlier = {stage.name for stage in select_until(stages, before)}
    except UserError:  # the recipe no longer has that stage
        return until
    begun = any(read_manifest(study_dir / name) is not None for name in earlier - selected)
    return before if selected < earlier and begun else until
