"""A rehearsal of a large recipe keeps vLLM wherever the recipe has it, also without a GPU."""

import json
import math

import pytest

from recipes.files import read_json_lines
from recipes.manifest import read_manifest

pytestmark = pytest.mark.engines

RECIPE = "recipes/qwen3-1.7b/matched.yaml"


def test_vllm_samples_in_training_drift_trajectories_and_evaluation(transfer, tmp_path):
    result = transfer("rehearse", RECIPE, "--synthetic-data", "--out", tmp_path / "out", "arms.on_policy_sft=null",
                      "trajectory.questions=4", "diagnostics=null")  # fmt: skip
    assert result.returncode == 0, result.stdout[-6000:]
    outcome = json.loads((tmp_path / "out/rehearsal.json").read_text())
    ran = {row["stage"]: row["engine"] for row in outcome["stages"]}
    on_vllm = {name for name, engine in ran.items() if "vllm" in engine and "cpu bfloat16" in engine}
    assert on_vllm == {
        "arms/grpo/seed-0",
        *(f"drift/{run}" for run in ("base", "off_policy_sft/seed-0", "grpo/seed-0")),
        *(f"trajectory/{run}" for run in ("base", "off_policy_sft/seed-0", "grpo/seed-0")),
        *(f"eval/{model}" for model in ("base", "off_policy_sft-seed0-final", "grpo-seed0-final")),
    }
    assert ran["arms/off_policy_sft/seed-0"].startswith("1 rank, stored")
    assert not [text for text in outcome["not_rehearsed"] if "transformers" in text]
    assert any(text.startswith("resources.vllm.sleep") for text in outcome["not_rehearsed"])
    run = tmp_path / "out/study/arms/grpo/seed-0"
    for row in read_json_lines(run / "metrics.jsonl"):  # sampler and trainer agree after every update
        assert math.isclose(row["mismatch/ratio_median"], 1.0, abs_tol=0.02), row
        assert row["mismatch/clipped_share"] < 0.05
    assert read_manifest(run)["facts"]["engine"]["name"] == "vllm"
