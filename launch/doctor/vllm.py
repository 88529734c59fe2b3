"""The check of vLLM, on GPUs or, with its CPU build, on a CPU."""

import os
import tempfile
from importlib import metadata
from pathlib import Path

from launch.doctor.process import last_line, run_smoke
from launch.doctor.verdict import Verdict
from recipes.files import read_json_lines

_COLD_SECONDS = 600.0  # vLLM compiles kernels when it is started for the first time
# All attention kernels of vLLM support bfloat16 and head_dim 64; the smoke study's model has float32 and 16.
_MODEL = [
    "model.pocket={hidden_size: 256, num_layers: 2, documents: 6000, learning_rate: 3.0e-3}",
    "model.dtype=bfloat16",
]


def vllm(gpus: list[str], required: bool) -> Verdict:
    """Steps of GRPO with a colocated vLLM: loading, stop tokens, weight sync, sampler/trainer mismatch."""
    try:
        version = metadata.version("vllm")
    except metadata.PackageNotFoundError:
        return Verdict(
            "fail" if required else "skipped", "vllm is not installed",
            "pip install -r requirements-gpu.lock; for a CPU: make setup-engines",
        )  # fmt: skip
    if not gpus and "cpu" not in version:
        return Verdict("fail" if required else "skipped", f"vllm {version} needs a GPU")
    # Sleep mode frees GPU memory; the CPU build does not have it.
    engine = "{mode: colocate, memory_share: 0.3}" if gpus else "{mode: colocate, memory_share: 0.3, sleep: false}"
    if not gpus:
        os.environ.setdefault("TORCH_COMPILE_DISABLE", "1")
    with tempfile.TemporaryDirectory(prefix="transfer-doctor-") as folder:
        settings = ["arms.on_policy_sft=null", "arms.off_policy_sft=null", "train.steps=3", "resources.workers=1"]
        settings += [f"resources.vllm={engine}", *_MODEL]
        code, output = run_smoke(Path(folder) / "study", settings, "arms", _COLD_SECONDS)
        if code:
            lock = "requirements-gpu.lock" if gpus else "requirements-engines.lock"
            return Verdict("fail", f"vllm {version}: {last_line(output)}", f"install the versions of {lock}")
        run = Path(folder) / "study" / "arms/grpo/seed-0"
        rows = read_json_lines(run / "metrics.jsonl")
    clipped = max(row.get("mismatch/clipped_share", 0.0) for row in rows)
    truncated = min(row.get("completions/clipped_ratio", 0.0) for row in rows)
    where = "" if gpus else " on the CPU"
    text = f"vllm {version}{where}: {clipped:.1%} of ratios clipped, {truncated:.0%} of completions truncated"
    if clipped > 0.05:
        return Verdict("fail", text, "vLLM and the trainer disagree: compare their dtype and attention")
    if truncated == 1.0:
        return Verdict("fail", text, "vLLM does not stop at the end of a turn; check model.eos_token")
    return Verdict("ok", text)
