"""The files of a model directory, and writing one. Loading is in `data/language_model.py`."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel
from transformers import PreTrainedTokenizerBase, Trainer, TrainerCallback, TrainerControl, TrainerState
from transformers import TrainingArguments as Arguments

from data.attention import attention_that_ran
from data.language_model import load_model
from recipes.files import hash_files, write_atomic, write_json
from recipes.manifest import read_manifest
from recipes.training_schema import LoraSpec
from train.accounting.arm_facts import ArmFacts
from train.runtime.ranks import barrier, rank

SNAPSHOTS, COMPLETE = "snapshots", "COMPLETE"
ATTENTION = "attention.json"
_MODEL_FILE_PATTERNS = (
    "*.safetensors",
    "*.safetensors.index.json",
    "config.json",
    "generation_config.json",
    "tokenizer*.json",
    "chat_template.jinja",
)


def model_files(directory: Path) -> list[str]:
    """Names of the files that make a model directory: weights, configurations, tokenizer, chat template."""
    return sorted({path.name for pattern in _MODEL_FILE_PATTERNS for path in directory.glob(pattern)})


def record_attention(model: torch.nn.Module, stage_dir: Path) -> str:
    """Attention implementation of the run; if it was resumed with another one, all of them in order."""
    path, now = stage_dir / ATTENTION, attention_that_ran(model)
    used = json.loads(path.read_text()) if path.exists() else []
    if not used or used[-1] != now:
        used.append(now)
        if rank() == 0:
            write_json(path, used)
    return " then ".join(used)


def adapter_config(spec: LoraSpec | None) -> LoraConfig | None:
    """PEFT's configuration of the adapters; None for training every weight."""
    if spec is None:
        return None
    return LoraConfig(r=spec.rank, lora_alpha=spec.alpha, target_modules="all-linear", task_type="CAUSAL_LM")


def save_weights(
    trainer: Trainer, tokenizer: PreTrainedTokenizerBase, directory: Path, dtype: str, start_dir: Path
) -> None:
    """Write weights in `dtype` with everything `from_pretrained` needs; the trained model is not changed.

    Every rank must call this; the first one writes. Adapters are merged into the weights of `start_dir`.
    """
    if isinstance(trainer.accelerator.unwrap_model(trainer.model), PeftModel):
        adapter = directory / "adapter"
        trainer.save_model(str(adapter))
        barrier()
        if rank() == 0:
            with _loaded_whole():
                merged: Any = PeftModel.from_pretrained(load_model(start_dir, dtype), adapter).merge_and_unload()
            merged.save_pretrained(directory)
    else:
        state = trainer.accelerator.get_state_dict(trainer.model_wrapped)  # ZeRO-3 gathers it on all ranks
        if rank() == 0:
            model = trainer.model
            stored = _tensors_to_store(state, model.all_tied_weights_keys, getattr(torch, dtype))
            model.save_pretrained(directory, state_dict=stored)
            _record_dtype(directory / "config.json", dtype)
    if rank() == 0:
        tokenizer.save_pretrained(directory)
    barrier()


def _record_dtype(path: Path, dtype: str) -> None:
    """Write the format of the stored weights to config.json; `save_pretrained` writes that of the trained ones."""
    config = json.loads(path.read_text(encoding="utf-8"))
    sections = [section for section in (config, *config.values()) if isinstance(section, dict)]
    stale = [section for section in sections if section.get("dtype") not in (None, dtype)]
    if stale:
        for section in stale:
            section["dtype"] = dtype
        write_atomic(path, json.dumps(config, indent=2, sort_keys=True) + "\n")


@contextmanager
def _loaded_whole() -> Iterator[None]:
    """Context in which a model is loaded whole on this rank; under ZeRO-3 loading would shard it over the ranks."""
    from transformers.integrations import deepspeed as integration

    reference = integration._hf_deepspeed_config_weak_ref
    integration.unset_hf_deepspeed_config()
    try:
        yield
    finally:
        integration._hf_deepspeed_config_weak_ref = reference


def _tensors_to_store(
    state: dict[str, torch.Tensor], tied: dict[str, str], dtype: torch.dtype
) -> dict[str, torch.Tensor]:
    """The tensors in another format. A tied one, such as the output embedding, is left out: loading ties it again.

    Args:
        state: name -> tensor.
        tied: name of a tied parameter -> name of the one it shares. DeepSpeed clones both, so that they no longer share
            storage and `save_pretrained` would write both.
        dtype: of floating-point tensors.
    """
    return {
        name: tensor.to(dtype) if tensor.is_floating_point() else tensor
        for name, tensor in state.items()
        if tied.get(name) not in state
    }


def save_final(
    trainer: Trainer, tokenizer: PreTrainedTokenizerBase, stage_dir: Path, dtype: str, start_dir: Path
) -> dict[str, str]:
    """Write the trained weights to `final/`; on the first rank, returns the sha256 of each file."""
    final = stage_dir / "final"
    save_weights(trainer, tokenizer, final, dtype, start_dir)
    if rank() != 0:
        return {}
    return {f"final/{name}": digest for name, digest in hash_files(final, model_files(final)).items()}


class Snapshots(TrainerCallback):
    """Weights alone after the given steps, in `snapshots/step-<n>/`; complete ones hold a marker.

    Attributes:
        trainer: a `TokenBudgetTrainer`, set once it exists.
    """

    def __init__(
        self, steps: list[int], stage_dir: Path, tokenizer: PreTrainedTokenizerBase, dtype: str, start_dir: Path
    ) -> None:
        self.steps, self.directory = set(steps), stage_dir / SNAPSHOTS
        self.tokenizer, self.dtype, self.start_dir = tokenizer, dtype, start_dir
        self.trainer: Any = None

    def on_step_end(self, args: Arguments, state: TrainerState, control: TrainerControl, **kwargs: object) -> None:
        """Save the weights after a step in `steps`, unless its loss or gradient is not finite."""
        if state.global_step not in self.steps:
            return
        if not self.trainer.is_finite():  # the recorder ends the run when the step is logged, after this
            return
        target = self.directory / f"step-{state.global_step}"
        if rank() == 0:
            shutil.rmtree(target, ignore_errors=True)  # of a run that was killed after it
        barrier()
        with self.trainer.clock.section("snapshot"):
            save_weights(self.trainer, self.tokenizer, target, self.dtype, self.start_dir)
        if rank() == 0:
            write_atomic(target / COMPLETE, "")


def complete_snapshots(stage_dir: Path) -> dict[int, Path]:
    """Step -> directory of every complete snapshot, in order."""
    directories = {int(p.name.removeprefix("step-")): p for p in (stage_dir / SNAPSHOTS).glob("step-*")}
    return {step: path for step, path in sorted(directories.items()) if (path / COMPLETE).exists()}


def checkpoints_of_run(run_dir: Path) -> dict[int, Path]:
    """Step -> weights of every complete snapshot of a finished run and, last, of its last step."""
    manifest = read_manifest(run_dir)
    assert manifest is not None
    return complete_snapshots(run_dir) | {ArmFacts.of(manifest).matched_on["steps"]: run_dir / "final"}
