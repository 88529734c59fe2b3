"""How a stage failed: a message and an exit status, recorded beside the stage."""

import errno
import re
import traceback
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple, assert_never

from launch.stages import Stage
from recipes.errors import UserError
from recipes.files import read_json, write_json
from recipes.manifest import finished_manifest
from recipes.schema import Recipe
from train.arms import ResolvedArm, resolve_arm

_FOLDER = ".failures"
_RESERVE_BYTES = 1 << 16  # freed before a failure is recorded, so that it can be on a full disk
_KEEPS = (
    "The arm resumes from its checkpoint with another train.micro_batch_tokens, and starts over with another "
    "resources.zero_stage, resources.offload or resources.ranks"
)
CRASHED, MISTAKE, STOPPED = 1, 2, 75  # 75: EX_TEMPFAIL of sysexits.h
INTERRUPTED = 130  # as shells report Ctrl-C


class RanksEndedError(Exception):
    """The ranks of a stage ended without finishing; the message is for the user."""


class Failure(NamedTuple):
    """Why a stage did not finish."""

    message: str
    status: int
    """CRASHED, MISTAKE (the user can fix it) or STOPPED (on a signal, after saving)."""


def lost_connection(error: BaseException) -> bool:
    """Whether an error of a rank is a lost connection to another rank.

    NCCL's errors have a class; those of gloo are plain RuntimeErrors, recognised by the name of its source folder.
    """
    from torch.distributed import DistError

    return isinstance(error, DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error))


def explain(error: Exception, recipe: Recipe, study_dir: Path, stage: Stage) -> Failure:
    """The failure of an exception; prints the traceback of unexpected errors."""
    import torch

    from train.runtime.ranks import PreemptedError

    if isinstance(error, PreemptedError):
        return Failure(str(error), STOPPED)
    if isinstance(error, UserError):
        return Failure(str(error), MISTAKE)
    if isinstance(error, RanksEndedError):
        return Failure(str(error), CRASHED)
    with suppress(OSError):  # the log may be on a full disk
        traceback.print_exc()
    if isinstance(error, torch.OutOfMemoryError):
        return Failure(out_of_memory(recipe, stage), MISTAKE)
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return Failure(f"no space left on the disk of {study_dir}; free some and run the same command again", MISTAKE)
    return Failure(f"{type(error).__name__}: {_first_line(str(error))}", CRASHED)


def _first_line(message: str) -> str:
    """The first line of an error, with the second one if the first only counts validation errors (pydantic)."""
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    if len(lines) > 1 and re.match(r"\d+ validation errors? for ", lines[0]):
        return f"{lines[0]}: {lines[1]}"
    return lines[0] if lines else "no message"


def record(study_dir: Path, stage: str, failure: Failure | None) -> None:
    """Record why a stage failed; None: it is starting, an earlier record is removed."""
    path, reserve = _path(study_dir, stage), _path(study_dir, stage).with_suffix(".reserve")
    if failure is None:
        path.unlink(missing_ok=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        reserve.write_bytes(bytes(_RESERVE_BYTES))
        return
    reserve.unlink(missing_ok=True)
    write_json(path, failure._asdict() | {"at": datetime.now(UTC).isoformat(timespec="seconds")})


def _path(study_dir: Path, stage: str) -> Path:
    return study_dir / _FOLDER / f"{stage.replace('/', '--')}.json"


def recorded(study_dir: Path, stage: str) -> dict[str, Any] | None:
    """The recorded failure of a stage (message, status, at); None if there is none or the stage has finished since."""
    if finished_manifest(study_dir / stage) is not None:
        return None
    failure = read_json(_path(study_dir, stage))
    return failure if failure is not None and "message" in failure else None


def out_of_memory(recipe: Recipe, stage: Stage) -> str:
    """Message for a stage that ran out of GPU memory, with settings that need less and their predicted memory."""
    if stage.kind != "arms":
        return f"{stage.name} ran out of GPU memory; {_less_memory(recipe, stage)}"
    from train.accounting.cost import model_shape
    from train.accounting.memory import memory_of_arm

    name = stage.arm
    arm, shape = resolve_arm(recipe, name), model_shape(recipe)
    now = memory_of_arm(recipe, arm, shape)
    if now is None:
        return f"{stage.name} ran out of GPU memory; lower train.micro_batch_tokens or prompt.max_completion_tokens"
    resources = recipe.resources
    tokens = arm.tokens_per_micro_batch(resources.ranks)
    longest = arm.prompt.max_prompt_tokens + arm.prompt.max_completion_tokens
    fewer = max(tokens // 2, longest)
    advice = []

    def propose(text: str, changed: Recipe, changed_arm: ResolvedArm) -> None:
        predicted = memory_of_arm(changed, changed_arm, shape)
        if predicted is not None and predicted.total < now.total:
            advice.append(f"{text} would need about {predicted.total / 1e9:.1f} GB")

    if fewer < tokens:
        own = "micro_batch_tokens" in recipe.arms[name].train
        key = f"arms.{name}.train.micro_batch_tokens" if own else "train.micro_batch_tokens"
        propose(f"{key}={fewer}", recipe, arm.model_copy(update={"micro_batch_tokens": fewer}))
    changes: dict[str, dict[str, object]] = {}
    if resources.zero_stage < 3:
        changes["resources.zero_stage=3"] = {"zero_stage": 3}
    if not resources.offload:
        changes["resources.zero_stage=3 resources.offload=true"] = {"zero_stage": 3, "offload": True}
    changes[f"resources.ranks={2 * resources.ranks}"] = {"ranks": 2 * resources.ranks}
    for text, change in changes.items():
        changed = recipe.model_copy(update={"resources": resources.model_copy(update=change)})
        propose(text, changed, resolve_arm(changed, name))
    parts = [f"the cost model expects {now.total / 1e9:.1f} GB per rank, without the memory of libraries"]
    parts += ["; ".join(advice)] if advice else []
    if fewer >= tokens:
        parts.append(
            f"A micro-batch has at most {longest} tokens already, a row at the length limits, so a lower "
            "train.micro_batch_tokens needs a lower prompt.max_completion_tokens"
        )
    return f"{stage.name} ran out of GPU memory; {'. '.join([*parts, _KEEPS])}"


def _less_memory(recipe: Recipe, stage: Stage) -> str:
    """What to change so that a stage that trains no arm needs less memory, with the keys of the recipe."""
    model = recipe.model
    local = [name for name, sampler in recipe.corpus.samplers.items() if sampler.kind == "transformers"]
    match stage.kind:
        case "base" if model is not None and model.pocket is not None:
            return "lower model.pocket.batch_size"
        case "corpus" if local:
            return f"lower {' or '.join(f'corpus.{name}.concurrency' for name in local)}"
        case "eval" | "trajectory":
            if recipe.require_suite().engine.kind == "vllm":
                return "lower suite.engine.memory_share, or raise suite.engine.tensor_parallel"
            return "lower suite.engine.batch_size or suite.max_response_tokens"
        case "drift":
            section, dtype = "drift", recipe.require_drift().dtype
            remedy = "lower drift.batch_size or prompt.max_completion_tokens"
            if recipe.resources.vllm is not None:
                remedy = "lower prompt.max_completion_tokens"
        case "diagnostics":
            section, dtype = "diagnostics", recipe.require_diagnostics().dtype
            remedy = "lower diagnostics.batch_tokens or diagnostics.batch_size"
        case "base" | "corpus" | "arms" | "external" | "questions" | "report":  # arms have a message of their own
            return "use a GPU with more memory"
        case _:
            assert_never(stage.kind)
    if dtype == "float32" and model is not None and model.dtype == "bfloat16":
        return f"set {section}.dtype=null to load the models in bfloat16, or {remedy}"
    return remedy
