"""The stage graph of a study: what runs, in which order, from which inputs. Starts nothing, needs no torch.

base -> corpus -> arms/<arm>/seed-<n> -> drift/<arm>/seed-<n>, eval/<model> -> report. A stage's inputs are the
recipe values it reads and the output hashes of the stages it needs, as one flat mapping; their hash decides whether it
must run.
"""

from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

from eval.task_files import task_folder
from recipes.code_version import code_version
from recipes.errors import UserError
from recipes.manifest import StageState, hash_file, hash_json, read_manifest, stage_state
from recipes.schema import Recipe

KINDS = ("base", "corpus", "arms", "drift", "eval", "report")
_ARM_MODULES = ("train.sft", "train.grpo")


@dataclass(frozen=True)
class Stage:
    """One step of a study. Its directory is `<study>/<name>`."""

    name: str
    module: str
    """Module whose `run(recipe, study_dir, stage_dir, resume, **arguments)` does the work."""
    reads: dict[str, Any]
    """Recipe values it depends on, flat: dotted key -> JSON value."""
    needs: tuple[str, ...] = ()
    """Stages whose outputs it reads."""
    arguments: dict[str, Any] = field(default_factory=dict)
    """Further arguments of `run`."""
    threads: int = 1
    """Arithmetic threads."""

    @property
    def kind(self) -> str:
        """The first part of the name: base, corpus, arms, drift, eval or report."""
        return self.name.split("/")[0]

    @property
    def code(self) -> str:
        """Version of the code behind it; one for all arms, so that equal versions mean comparable arms."""
        return code_version(*(_ARM_MODULES if self.module in _ARM_MODULES else (self.module,)))


def build_stages(recipe: Recipe) -> list[Stage]:
    """The stages of a study in an order in which each comes after those it needs.

    Raises:
        UserError: an arm cannot be trained yet, or a task file is missing.
    """
    from train.arms import resolve_arm

    values = recipe.dump()
    threads = recipe.resources.threads
    stages = []
    with_base = recipe.model is not None and _needs_base(recipe)
    if recipe.model is not None and with_base:
        module = "train.pocket_base" if recipe.model.pocket else "train.prepared_base"
        reads = flatten({"model": values["model"], "base_threads": recipe.resources.base_threads})
        source_dir = Path(recipe.model.path or "")
        if recipe.model.path is not None and source_dir.is_dir():
            # Hashing gigabytes of weights would take longer than planning may; size and time tell enough.
            listing = sorted((p.name, p.stat().st_size, p.stat().st_mtime_ns) for p in source_dir.iterdir())
            reads[f"content of {source_dir}"] = hash_json(listing)
        if recipe.model.path is not None:  # the tokenizer and the contract with every prompt
            prompts = [values["prompt"], *(arm["prompt"] for arm in values["arms"].values() if arm["prompt"])]
            reads |= flatten({"lock": {"models": values["lock"].get("models", {}).get(recipe.model.path)}})
            reads["prompts"] = hash_json(prompts)
            if str(recipe.model.chat_template).endswith(".jinja"):
                reads["content of the chat template"] = _content(Path(str(recipe.model.chat_template)))
        stages.append(Stage("base", module, reads, threads=recipe.resources.base_threads))
    asked = ("tasks", "benchmarks", "questions", "seed")
    suite_questions = {key: values["suite"][key] for key in asked} if recipe.suite else {}
    reads = flatten({"corpus": values["corpus"], "prompt": values["prompt"], "suite": suite_questions})
    reads |= flatten({"lock": {"sources": values["lock"].get("sources", {})}})
    for source in recipe.corpus.all_files():
        if source.path is not None:
            reads[f"content of {source.path}"] = _content(Path(source.path))
    if not with_base:  # then the tokenizer of the model itself is read
        reads |= flatten({"model": values["model"]})
    reads |= flatten({"lock": {"models": values["lock"].get("models", {})}})
    stages.append(Stage("corpus", "data.corpus", reads, ("base",) if with_base else ()))
    models = {"base": "base"}
    for arm in recipe.arms:
        resolved = resolve_arm(recipe, arm)
        for seed in recipe.seeds:
            name = f"arms/{arm}/seed-{seed}"
            reads = flatten({"arm": resolved.matched_on(), "seed": seed, "threads": threads})
            reads["answer_form"] = recipe.corpus.answer_form
            topology = ("ranks", "zero_stage", "offload")
            reads |= {key: values["resources"][key] for key in topology if recipe.resources.launched}
            if resolved.module == "train.sft":
                reads["demonstrations"] = recipe.corpus.demonstrations
            elif resolved.sampling != "teacher":  # vLLM's samples are weighted for its probabilities
                reads["sampler"] = recipe.resources.vllm.mode if recipe.resources.vllm else "transformers"
            before = [f"arms/{resolved.start_from}/seed-{seed}"] if resolved.start_from else []
            needs = ("base", "corpus", *before)
            stages.append(Stage(name, resolved.module, reads, needs, {"arm": arm, "seed": seed}, threads))
            models[f"{arm}-seed{seed}-final"] = name
    stages += _probes(recipe, values, threads)
    tasks = None
    if recipe.suite is not None:
        files = [path for path in task_folder(recipe.suite).iterdir() if path.is_file()]  # not __pycache__
        tasks = hash_json({path.name: hash_file(path) for path in files})
    for label, name in models.items() if recipe.suite is not None else ():
        folder = name if name == "base" else f"{name}/final"
        heldout = any(benchmark.name == "heldout" for benchmark in recipe.suite.benchmarks) if recipe.suite else False
        needs = tuple(dict.fromkeys((name, "corpus"))) if heldout else (name,)
        prompt = {key: values["prompt"][key] for key in ("system", "suffix", "thinking")}
        reads = flatten({"suite": values["suite"], "dtype": values["model"]["dtype"], "prompt": prompt, "label": label})
        reads["content of the task files"] = tasks
        stages.append(
            Stage(f"eval/{label}", "eval.generate", reads | {"threads": threads}, needs, {"model_dir": folder}, threads)
        )
    if recipe.suite:
        reads = flatten({key: value for key, value in values.items() if key != "resources"})
        stages.append(Stage("report", "eval.report", reads, tuple(stage.name for stage in stages)))
    return stages


def _probes(recipe: Recipe, values: dict[str, Any], threads: int) -> list[Stage]:
    """The probes of the base and of every run."""
    if recipe.probe is None or not recipe.arms:
        return []
    from train.arms import resolve_arm

    reads = flatten({"probe": values["probe"], "prompt": values["prompt"], "dtype": values["model"]["dtype"]})
    reads |= {"answer_form": recipe.corpus.answer_form, "threads": threads}
    probes = [Stage("drift/base", "train.drift", reads, ("base", "corpus"), {}, threads)]
    for arm in recipe.arms:
        for seed in recipe.seeds:
            needs = ("base", "corpus", "drift/base", f"arms/{arm}/seed-{seed}")
            arguments = {"arm": arm, "seed": seed}
            resolved = resolve_arm(recipe, arm)  # its snapshots are no part of the run's output hash
            own = reads | {"steps": resolved.steps, "snapshots": resolved.snapshots}
            probes.append(Stage(f"drift/{arm}/seed-{seed}", "train.drift", own, needs, arguments, threads))
    return probes


def _needs_base(recipe: Recipe) -> bool:
    """Whether weights are needed; a recipe that only builds a corpus needs the tokenizer of its model at most."""
    rate = recipe.corpus.pass_rate
    asked = rate is not None and rate.sampler.model == "base"
    return bool(recipe.arms or recipe.suite or asked or (recipe.model and recipe.model.pocket))


def _content(path: Path) -> str | None:
    """sha256 of a file; None for what is not one (a missing source is reported before anything runs)."""
    return hash_file(path) if path.is_file() else None


def flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one mapping with dotted keys; lists stay values."""
    if isinstance(value, dict) and value:
        return {key: leaf for name, inner in value.items() for key, leaf in flatten(inner, f"{prefix}{name}.").items()}
    return {prefix.rstrip("."): value}


def stage_inputs(stage: Stage, study_dir: Path) -> dict[str, Any]:
    """The stage's recipe values plus the output hashes of what it needs; None for outputs not there yet."""
    inputs = dict(stage.reads)
    for name in stage.needs:
        manifest = read_manifest(study_dir / name)
        inputs[f"output of {name}"] = manifest.get("output_hash") if manifest else None
    return inputs


def stage_states(stages: list[Stage], study_dir: Path) -> dict[str, StageState]:
    """What would happen to each stage now; a stage after one that must run is "changed" or "new" as well."""
    states: dict[str, StageState] = {}
    for stage in stages:
        state = stage_state(study_dir / stage.name, stage_inputs(stage, study_dir))
        rerun = [name for name in stage.needs if states[name].state != "done"]
        if rerun and state.state in ("done", "resume"):
            state = StageState("changed", tuple(f"{name} will be made again" for name in rerun))
        states[stage.name] = state
    return states


def made_by_other_code(stage: Stage, study_dir: Path) -> bool:
    """Whether a finished stage was made, in part or as a whole, by code that says something else now."""
    manifest = read_manifest(study_dir / stage.name)
    return manifest is not None and manifest.get("code") != stage.code


def select_until(stages: list[Stage], until: str | None) -> list[Stage]:
    """The stages up to and including all of kind `until` (or the stage of that name and what it needs)."""
    if until is None:
        return stages
    if until in KINDS:
        selected = [stage for stage in stages if KINDS.index(stage.kind) <= KINDS.index(until)]
        if not selected:
            raise UserError(
                f"--until {until}: this recipe has no such stage; it has {', '.join(s.name for s in stages)}"
            )
        return selected
    by_name = {stage.name: stage for stage in stages}
    if until not in by_name:
        raise UserError(
            f"--until {until!r} is neither a stage kind ({', '.join(KINDS)}) nor one of {', '.join(by_name)}"
        )
    wanted, pending = set(), [until]
    while pending:
        name = pending.pop()
        wanted.add(name)
        pending += by_name[name].needs
    return [stage for stage in stages if stage.name in wanted]


def run_stage(recipe: Recipe, study_dir: Path, stage: Stage) -> None:
    """Execute one stage in this process."""
    from recipes.manifest import locked, start_stage

    with locked(study_dir / ".locks" / stage.name.replace("/", "--")):
        stage_dir = study_dir / stage.name
        resume = start_stage(stage_dir, stage.name, stage_inputs(stage, study_dir), stage.code)
        if stage.kind == "arms" and recipe.resources.launched:
            from launch.ranks import launch_ranks

            launch_ranks(recipe.resources, study_dir, stage, resume)
        else:
            import_module(stage.module).run(recipe, study_dir, stage_dir, resume, **stage.arguments)
