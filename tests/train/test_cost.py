"""The cost model against the real models it describes and against hand counts."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM, Qwen3Config, Qwen3ForCausalLM
from trl.trainer.utils import compute_flops_per_token

from launch.planning.fit import fit_mistakes
from launch.planning.hours import plan_context, run_parts
from launch.planning.plan import _arm_plan
from launch.planning.preflight import warnings
from launch.planning.teacher import teacher_plan
from recipes.errors import UserError
from recipes.loading import load_recipe
from recipes.manifest import finish_stage, start_stage
from tests.paths import RECIPES, SMOKE
from train.accounting.cost import (
    GPUS,
    KNOWN_SHAPES,
    ModelShape,
    model_shape,
    shape_from_config,
    with_article,
)
from train.accounting.memory import (
    checkpoint_bytes,
    memory_of_arm,
    resolve_vllm,
    sampling_memory,
    sequences_of_copy,
)
from train.accounting.rates import Rates, Sampling, engine_seconds
from train.arms import completions_of_problem, resolve_arm

QWEN3_14B = ModelShape(151936, 5120, 17408, 40, 40, 8, 128, tied_embeddings=False, head_norms=True)


@pytest.mark.parametrize(
    ("config", "model"),
    [(Qwen3Config, Qwen3ForCausalLM), (Qwen2Config, Qwen2ForCausalLM), (LlamaConfig, LlamaForCausalLM)],
)
@pytest.mark.parametrize("tied", [True, False])
def test_parameters_are_those_of_the_real_model(config, model, tied):
    settings = config(
        vocab_size=331, hidden_size=48, intermediate_size=112, num_hidden_layers=3, num_attention_heads=6,
        num_key_value_heads=2, tie_word_embeddings=tied,
    )  # fmt: skip
    with torch.device("meta"):
        expected = model(settings).num_parameters()
    assert shape_from_config(settings.to_dict()).parameters() == expected


def test_qwen3_14b_by_the_published_size():
    assert QWEN3_14B.parameters() == 14_768_307_200  # "14.8B" on its card
    assert QWEN3_14B.kv_cache_bytes_per_token() == 160 * 1024


def test_published_shapes_by_their_published_sizes():
    sizes = {name: shape.parameters() for name, shape in KNOWN_SHAPES.items()}
    assert sizes == {
        "Qwen/Qwen3-1.7B-Base": 1_720_574_976,
        "Qwen/Qwen3-8B-Base": 8_190_735_360,
        "Qwen/Qwen3-8B": 8_190_735_360,
        "Qwen/Qwen3-14B-Base": 14_768_307_200,
        "Qwen/Qwen3-32B": 32_762_123_264,  # "32.8B" on its card
        "meta-llama/Llama-3.1-8B": 8_030_261_248,
    }


@pytest.mark.parametrize("length", [4096, 16384])
def test_flops_agree_with_trl(length):
    """TRL counts forward and backward (3 x) and scores of the whole square; ours are causal, half of it."""
    config = Qwen3Config(
        vocab_size=151936, hidden_size=5120, intermediate_size=17408, num_hidden_layers=40, num_attention_heads=40,
        num_key_value_heads=8, head_dim=128, tie_word_embeddings=False,
    )  # fmt: skip
    expected = compute_flops_per_token(config, length // 2)
    assert 3 * QWEN3_14B.forward_flops_with_attention(1, length) == pytest.approx(expected, rel=1e-3)


def test_disk_of_a_run_by_hand():
    # Three resumable checkpoints of 2 + 8 + 4 bytes a parameter, the end and two snapshots of 2.
    assert checkpoint_bytes(QWEN3_14B, 3, bfloat16=True) == 14_768_307_200 * (3 * 14 + 3 * 2)
    # Rank 8 on the rows and columns of every projection: q and o, k and v, three of the MLP; in 40 layers.
    adapters = 8 * 40 * (2 * 10_240 + 2 * 6_144 + 3 * 22_528)
    assert checkpoint_bytes(QWEN3_14B, 3, True, 8) == adapters * 3 * 14 + 14_768_307_200 * 3 * 2


def test_no_arm_reads_a_teachers_sample_twice_in_a_step():
    recipe = load_recipe(SMOKE, [
        "corpus.teacher.samples_per_problem=2", "arms.rl={sampling: teacher, credit: advantage, negatives: true}",
    ])  # fmt: skip
    read = {name: completions_of_problem(recipe, resolve_arm(recipe, name)) for name in recipe.trained}
    assert read == {"off_policy_sft": 2, "on_policy_sft": 4, "grpo": 4, "rl": 2}
    chosen = load_recipe(SMOKE, ["corpus.demonstrations=first", "arms.rl={sampling: teacher, credit: advantage}"])
    arms = {name: resolve_arm(chosen, name) for name in ("off_policy_sft", "rl")}
    # The choice is among correct demonstrations; RL reads wrong ones too.
    assert {name: completions_of_problem(chosen, arm) for name, arm in arms.items()} == {"off_policy_sft": 1, "rl": 4}


@pytest.mark.parametrize(
    ("recipe", "settings", "message"),
    [
        ("qwen3-14b/matched.yaml", [], None),
        ("qwen3-14b/paper.yaml", [], None),
        ("qwen3-8b/ablation.yaml", [], None),
        ("qwen3-1.7b/matched.yaml", [], None),
        ("llama-3.1-8b/matched.yaml", [], None),
        # 29.5 GB of weights and 2.7 GB of cache do not fit into 0.3 of 80 GiB.
        (
            "qwen3-14b/matched.yaml",
            ["resources.gpu=H100-80GB", "resources.vllm.memory_share=0.3"],
            "vLLM's share of 26 GB cannot hold 29.5 GB of weights and the cache of one sequence of 16,384 tokens "
            "(2.7 GB); the nearest setting that works: resources.vllm.memory_share=null",
        ),
        # Undivided weights and gradients leave vLLM less than its copy of the weights.
        (
            "qwen3-14b/matched.yaml",
            ["resources.zero_stage=2", "resources.gpu=H100-80GB"],
            "vLLM's share of 21 GB cannot hold 29.5 GB of weights and the cache of one sequence of 16,384 tokens "
            "(2.7 GB); the nearest setting that works: resources.zero_stage=3",
        ),
        (
            "qwen3-14b/matched.yaml",
            ["resources.ranks=1"],
            "GB per rank while training, an H200-141GB has 141, of which about 133 without the margin",
        ),
        # 256 x 8 completions, 7 ranks: 2048 = 7 * 292 + 4.
        (
            "qwen3-14b/matched.yaml",
            ["resources.ranks=7"],
            "a step has 2048 completions, which 7 ranks do not divide; the nearest setting that works: "
            "resources.ranks=8",
        ),
        # 2,048 completions have no divisor nearer to 6 than 4 and 8.
        ("qwen3-14b/matched.yaml", ["resources.ranks=6"], "the nearest setting that works: resources.ranks=4"),
        # 16 and 32 ranks do not divide among 3 nodes; 255 problems x 8 = 24 x 85.
        (
            "qwen3-14b/matched.yaml",
            ["resources.ranks=24", "resources.nodes=3"],
            "24 ranks do not divide; the nearest setting that works: train.problems_per_step=255",
        ),
        # 2,048 + 32,768 tokens; the model was made for 32,768.
        (
            "qwen3-14b/matched.yaml",
            ["prompt.max_completion_tokens=32768"],
            "training allows sequences of 34,816 tokens (prompt and completion), the model's context is 32,768; lower "
            "prompt.max_completion_tokens to 30,720 or less; the nearest setting that works: "
            "prompt.max_completion_tokens=30720",
        ),
        (
            "qwen3-14b/matched.yaml",
            ["suite.max_response_tokens=32768", "suite.max_prompt_tokens=4096"],
            "the evaluation allows sequences of 36,864 tokens (prompt and completion), the model's context is 32,768; "
            "lower suite.max_response_tokens to 28,672 or less",
        ),
        # A prompt of the whole context leaves no response, so lowering one limit alone helps nothing; with any engine.
        (
            "qwen3-14b/matched.yaml",
            ["suite.max_response_tokens=32768", "suite.max_prompt_tokens=32768", "suite.engine.kind=hf"],
            "the evaluation allows sequences of 65,536 tokens (prompt and completion), the model's context is 32,768; "
            "lower suite.max_prompt_tokens to 8,192 and suite.max_response_tokens to 24,576; the nearest setting that "
            "works: suite.max_prompt_tokens=8192 suite.max_response_tokens=24576",
        ),
        (
            "qwen3-14b/matched.yaml",
            ["diagnostics.max_completion_tokens=32768"],
            "the section diagnostics allows sequences of 34,816 tokens (prompt and completion), the model's context is "
            "32,768; lower diagnostics.max_completion_tokens to 30,720 or less",
        ),
    ],
)
def test_what_cannot_work_is_refused_with_what_would(recipe, settings, message):
    resolved = load_recipe(RECIPES / recipe, settings)
    found = fit_mistakes(resolved, model_shape(resolved))
    if message is None:
        assert found == []
    else:
        assert any(message in text for text in found), found
        proposed = found[-1].partition("the nearest setting that works: ")[2]
        assert proposed, "nothing was proposed"
        changed = load_recipe(RECIPES / recipe, [*settings, *proposed.split()])
        assert fit_mistakes(changed, model_shape(changed)) == []


def test_no_proposal_where_three_changes_do_not_help():
    settings = ["resources.ranks=1", "resources.zero_stage=0", "resources.gpu=A100-40GB"]
    recipe = load_recipe(RECIPES / "qwen3-14b" / "matched.yaml", settings)
    (*_, last) = fit_mistakes(recipe, model_shape(recipe))
    assert "nearest setting" not in last


MATCHED, PAPER = RECIPES / "qwen3-14b" / "matched.yaml", RECIPES / "qwen3-14b" / "paper.yaml"


def test_cache_of_a_colocated_vllm_by_hand():
    """0.65 of 141e9 bytes, less 2 bytes a parameter, in tokens of 2 * 40 layers * 8 heads * 128 * 2 bytes."""
    recipe = load_recipe(MATCHED, ["resources.vllm.memory_share=0.65"])
    found = sampling_memory(recipe, resolve_arm(recipe, "grpo"), QWEN3_14B)
    cache = 91_650_000_000 - 2 * 14_768_307_200
    assert (found.memory_share, found.sleep, found.derived) == (0.65, True, ("sleep",))
    assert (found.weights, found.kv_cache, found.cached_tokens) == (29_536_614_400, cache, cache // 163_840)
    # A sequence: a quarter of 2,048 prompt tokens and 5,000 expected ones. A rank has an eighth of 256 x 8 completions.
    assert (found.sequences_at_once, found.sequences_asked) == (cache // 163_840 // 5512, 256) == (68, 256)
    assert sampling_memory(recipe, resolve_arm(recipe, "sft_think"), QWEN3_14B) is None
    paper = load_recipe(PAPER, ["resources.vllm.tensor_parallel=2"])
    # Four updates share a sampling of 4 x 128 x 16 completions; two GPUs hold one copy of the model.
    assert sampling_memory(paper, resolve_arm(paper, "grpo"), QWEN3_14B).sequences_asked == 2048


def settled(*overrides, recipe=MATCHED):
    loaded = load_recipe(recipe, ["resources.vllm={mode: colocate}", *overrides])
    found = resolve_vllm(loaded, resolve_arm(loaded, "grpo"), QWEN3_14B)
    return found.memory_share, found.sleep


def test_vllm_beside_the_training_is_derived_from_the_batch_by_hand():
    """The batch wants 29.5 GB and 256 sequences of 5,512 tokens of 163,840 bytes, 231 GB; states leave less."""
    room = 0.94 - 18 * 14_768_307_200 / 8 / 141e9  # 33.2 GB of states a rank
    assert settled() == (int(100 * room) / 100, True) == (0.70, True)
    assert settled("resources.vllm.memory_share=0.5") == (0.5, True)  # the recipe's values win
    # Awake while training it has to leave room for 51.13 GB: states, 11.34 of activations, 6.56 of the output layer.
    assert settled("resources.vllm.sleep=false") == (0.57, False)
    # Four sequences a rank want 29.5 + 3.6 GB, less than 0.3, and stay beside the training.
    few = ["train.problems_per_step=8", "train.completions_per_problem=4"]
    assert settled(*few) == (0.3, False)
    # 56 sequences of 5,512 tokens are 50.6 GB beside the weights: 0.568 of an H200, 0.577 of which fits beside 51.13.
    assert settled("train.problems_per_step=56") == (0.56, False)
    assert settled("train.problems_per_step=56", "train.micro_batch_size=2") == (0.56, True)
    assert settled("resources.gpu=null") == (0.3, True)
    recipe = load_recipe(MATCHED, ["resources.vllm=null"])
    assert resolve_vllm(recipe, resolve_arm(recipe, "grpo")) is None


def test_a_server_uses_all_of_its_gpus():
    server = "resources.vllm={mode: server, server_nodes: 1, tensor_parallel: 2}"
    recipe = load_recipe(MATCHED, [server])
    arm = resolve_arm(recipe, "grpo")
    assert (resolve_vllm(recipe, arm).memory_share, resolve_vllm(recipe, arm).sleep) == (0.9, False)
    assert sequences_of_copy(recipe, arm, 8) == 256 * 8 / 4  # four copies of two GPUs answer 2,048
    assert sequences_of_copy(recipe, arm, 6) == 683  # three copies


def test_what_is_derived_is_what_the_trainer_uses(monkeypatch):
    """`train/grpo.py` hands TRL what the plan shows."""
    from train import grpo

    recipe = load_recipe(MATCHED, ["resources.vllm={mode: colocate}"])
    arm = resolve_arm(recipe, "grpo")
    shown = sampling_memory(recipe, arm, model_shape(recipe))
    monkeypatch.setattr("train.runtime.sampler.on_cpu", lambda: False)
    tokenizer = type("Tokenizer", (), {"eos_token_id": 1, "pad_token_id": 0})
    used = grpo.vllm_arguments(arm, tokenizer, resolve_vllm(recipe, arm))
    assert used["vllm_gpu_memory_utilization"] == shown.memory_share == 0.70
    assert used["vllm_enable_sleep_mode"] is shown.sleep is True
    # TRL lets its engine run as many sequences as a rank has in a generation batch.
    per_rank = 1 * (256 * 8 // 8) * arm.updates_per_batch
    assert per_rank * 1 == shown.sequences_asked


@pytest.mark.parametrize("share", [0.65, 0.7, 0.75])
def test_states_and_vllm_share_a_gpu_while_sampling_by_hand(share):
    """18 bytes of 14.77e9 parameters on eight ranks are 33.2 GB; an H200 has 132.5 GB that may be used."""
    recipe = load_recipe(MATCHED, [f"resources.vllm.memory_share={share}"])
    fits = 18 * 14_768_307_200 / 8 + share * 141e9 <= 0.94 * 141e9
    assert fits == (share < 0.75)
    assert (fit_mistakes(recipe, QWEN3_14B) == []) == fits
    awake = load_recipe(MATCHED, ["resources.vllm.memory_share=0.65", "resources.vllm.sleep=false"])
    (text, *_) = fit_mistakes(awake, QWEN3_14B)
    assert (
        "needs 143 GB per rank while training, an H200-141GB has 141, of which about 133 without the margin" in text
    )  # 51.1 + 91.7
    arm = resolve_arm(awake, "grpo")
    memory = memory_of_arm(awake, arm, QWEN3_14B)
    assert memory.total == memory.states + memory.activations + memory.head


def test_work_between_checkpoints_is_bounded_in_hours_and_in_updates():
    def between(*overrides):
        recipe = load_recipe(PAPER, ["train.save_every_steps=20", *overrides])
        context = plan_context(recipe, model_shape(recipe), 8)
        return {name: _arm_plan(recipe, name, context, 8) for name in recipe.trained}, context

    arms, context = between()
    parts = run_parts(context, "grpo")
    update = (sum(parts.values()) - parts["start"] - parts["checkpoints"]) / 560 / 3600
    assert 0.2 < update < 0.3
    assert arms["grpo"].hours_between_checkpoints == pytest.approx(4 * update, abs=0.01)  # one batch of 4 takes an hour
    parts = run_parts(context, "sft_think")
    sft = (sum(parts.values()) - parts["start"] - parts["checkpoints"]) / 117 / 3600
    assert arms["sft_think"].hours_between_checkpoints == pytest.approx(
        20 * sft, abs=0.01
    )  # 41 minutes, sooner than the hour
    slower = between("train.save_every_minutes=600")[0]["grpo"]
    assert slower.hours_between_checkpoints == pytest.approx(20 * update, abs=0.02)
    sooner = between("train.save_every_minutes=1")[0]["grpo"]
    assert sooner.hours_between_checkpoints == pytest.approx(4 * update, abs=0.01)


def test_another_kind_of_model_is_a_sentence():
    with pytest.raises(
        UserError, match="model_type 'bert' cannot be planned for; known are llama, mistral, qwen2, qwen3"
    ):
        shape_from_config({"model_type": "bert"})


def test_teacher_is_planned_and_then_what_it_spent_is_shown(tmp_path):
    """500 problems of four samples; hours for 5,000 tokens by a copy of 65.5 GB on one H200."""
    recipe = load_recipe(MATCHED, ["corpus.train_problems=500"])
    found = teacher_plan(recipe, tmp_path)
    tokens = 500 * 4 * 14336
    assert (found.model, found.spent, found.samples, found.tokens) == ("Qwen/Qwen3-32B", False, 2000, tokens)
    assert found.flops == 2 * 32_800_000_000 * tokens
    shape, gpu = KNOWN_SHAPES["Qwen/Qwen3-32B"], GPUS["H200-141GB"]
    weights = 2 * shape.parameters()
    cache = 0.9 * 141e9 - weights
    seconds = engine_seconds(shape, gpu, Rates(), Sampling(2000, 512, 5000, 14336), cache)
    assert found.gpu_hours == pytest.approx(32.8e9 / shape.parameters() * seconds / 3600)
    whole = load_recipe(MATCHED)
    uncounted = teacher_plan(whole, tmp_path)
    assert (uncounted.samples, uncounted.gpu_hours) == (None, None)
    assert 1.9 < uncounted.gpu_hours_per_thousand_problems / found.gpu_hours < 2.1  # the queue's end counts once
    start_stage(tmp_path / "corpus", "corpus", {})
    spent = {"phase": "teacher", "model": "m", "samples": 7, "generated_tokens": 1000, "generate_flops": None}
    finish_stage(tmp_path / "corpus", {}, {"train_problems": 5, "sampling": [spent]})
    after = teacher_plan(whole, tmp_path)
    assert (after.spent, after.samples, after.tokens) == (True, 7, 1000)
    assert teacher_plan(load_recipe(RECIPES / "pocket" / "smoke.yaml"), tmp_path) is None


def test_a_trajectory_without_snapshots_is_the_final_model_alone():
    def said(*overrides):
        return [text for text in warnings(load_recipe(SMOKE, ["trajectory={}", *overrides])) if "trajectory" in text]

    assert said("train.snapshots=2") == []
    assert said("train.snapshots=0", "suite=null") == []
    assert said("train.snapshots=0", "arms.grpo.train={snapshots: 3}") == [
        "`trajectory` of off_policy_sft, on_policy_sft: the final model alone, because train.snapshots is 0; set "
        "train.snapshots=8 for checkpoints on the way"
    ]


def test_unresolved_names_everything_by_kind():
    from launch.planning.preflight import unresolved

    recipe = load_recipe(RECIPES / "qwen3-14b" / "matched.yaml")
    entry = {"dataset": "org/other", "revision": "a" * 40, "files": {"test.jsonl": "0"}, "rows": 1}
    recipe = recipe.model_copy(update={"lock": {"sources": {"math500": entry}}})
    found = unresolved(recipe)
    kinds = [item.kind for item in found]
    assert (kinds.count("source"), kinds.count("benchmark"), kinds.count("model")) == (13, 12, 1)
    assert [(item.name, item.why) for item in found if item.why] == [("math500", "the lock is for dataset org/other")]


def test_a_gpu_has_the_article_of_its_spoken_letter():
    assert [with_article(name) for name in ("H100-80GB", "A100-40GB", "T4", "L40S", "B200")] == [
        "an H100-80GB", "an A100-40GB", "a T4", "an L40S", "a B200",
    ]  # fmt: skip
