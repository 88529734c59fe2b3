"""Adapters, padding-free batches, schedules, vLLM's arguments, warnings: each by value on the tiny model."""

import copy
import json
import math

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import TrainerCallback

from data.corpus.rows import read_demonstrations, read_problems
from data.language_model import load_model
from data.prompts.prompt import load_tokenizer, render_prompt
from launch.execution.failures import MISTAKE, explain
from launch.stages import build_stages
from recipes.errors import UserError
from recipes.loading import load_recipe
from recipes.resource_schema import VllmSpec
from recipes.training_schema import LoraSpec, PromptSpec
from tests.paths import RECIPES, SMOKE
from tests.support.trainers import gradient_of, replace, sft_trainer
from train import grpo
from train.accounting.ledger import Completion, Ledger
from train.arms import resolve_arm
from train.models.directory import save_weights
from train.rewards import Judge, RecordedReward, overlong_punishment
from train.runtime.recorder import DivergedError, RunRecorder, mismatch_warning
from train.weighted_grpo import mismatch


@pytest.fixture(scope="module")
def base(smoke_study):
    return load_tokenizer(str(smoke_study / "base")), load_model(smoke_study / "base", "float32")


@pytest.fixture(scope="module")
def rows(base, smoke_study):
    tokenizer, _ = base
    demonstrations = read_demonstrations(smoke_study / "corpus")
    return [
        {
            "prompt": render_prompt(tokenizer, problem.problem, PromptSpec()),
            "completion": demonstrations[problem.problem_id][0].completion,
        }
        for problem in read_problems(smoke_study / "corpus", "train")[:16]
    ]


def settings_for(arm="off_policy_sft", **changes):
    small = {"steps": 2, "problems_per_step": 4, "completions_per_problem": 2, "micro_batch_size": 4}
    return replace(resolve_arm(load_recipe(SMOKE), arm), **(small | changes))


def test_padding_free_batches_have_the_gradient_of_padded_ones(base, rows, tmp_path):
    tokenizer, model = base
    assert len({len(tokenizer(row["completion"])["input_ids"]) for row in rows[:4]}) > 1  # else nothing is padded
    gradients = []
    for free in (False, True):
        settings = settings_for(padding_free=free)
        trainer = sft_trainer(settings, copy.deepcopy(model), tokenizer, rows, tmp_path / str(free), 1)
        update = next(iter(trainer.get_train_dataloader()))
        assert len(trainer.micro_batch(update, [0, 1, 2])["input_ids"]) == (1 if free else 3)
        gradients.append(gradient_of(trainer))
    assert float(gradients[0].norm()) > 0
    assert float((gradients[0] - gradients[1]).norm() / gradients[0].norm()) < 1e-5


def test_adapters_train_alone_and_are_merged_into_the_saved_weights(base, rows, smoke_study, tmp_path):
    tokenizer, model = base
    torch.manual_seed(0)
    settings = settings_for(lora=LoraSpec(rank=4, alpha=8), learning_rate=0.05)
    trainer = sft_trainer(settings, copy.deepcopy(model), tokenizer, rows, tmp_path / "run", 1)
    trained = [name for name, parameter in trainer.model.named_parameters() if parameter.requires_grad]
    assert trained
    assert all("lora_" in name for name in trained)
    trainer.train()
    save_weights(trainer, tokenizer, tmp_path / "final", "float32", smoke_study / "base")
    ids = torch.tensor([tokenizer(rows[0]["prompt"])["input_ids"]])
    with torch.no_grad():
        expected = trainer.model.eval()(input_ids=ids).logits
        found = load_model(tmp_path / "final", "float32").eval()(input_ids=ids).logits
        untouched = model.eval()(input_ids=ids).logits
    assert torch.allclose(found, expected, atol=1e-4)
    assert float((found - untouched).abs().max()) > 1e-2
    assert isinstance(trainer.model, PeftModel)


def test_saving_in_bfloat16_leaves_the_trained_weights_alone(base, rows, smoke_study, tmp_path):
    tokenizer, model = base
    trainer = sft_trainer(settings_for(), copy.deepcopy(model), tokenizer, rows, tmp_path / "run", 1)
    save_weights(trainer, tokenizer, tmp_path / "final", "bfloat16", smoke_study / "base")
    saved = load_model(tmp_path / "final", "bfloat16")
    for (name, parameter), (_, kept) in zip(saved.named_parameters(), trainer.model.named_parameters(), strict=True):
        assert kept.dtype == torch.float32
        assert torch.equal(parameter, kept.to(torch.bfloat16)), name
    assert json.loads((tmp_path / "final" / "config.json").read_text())["dtype"] == "bfloat16"


@pytest.mark.parametrize("shared", [True, False])
def test_a_tied_embedding_is_stored_once(base, rows, smoke_study, tmp_path, monkeypatch, shared):
    """Also where the gathered tensors no longer share storage, as DeepSpeed's clones do under ZeRO-1 and 2."""
    tokenizer, model = base
    trainer = sft_trainer(settings_for(), copy.deepcopy(model), tokenizer, rows, tmp_path / "run", 1)
    gathered = {k: v if shared else v.clone() for k, v in trainer.model.state_dict().items()}
    monkeypatch.setattr(trainer.accelerator, "get_state_dict", lambda model: gathered)
    save_weights(trainer, tokenizer, tmp_path / "final", "float32", smoke_study / "base")
    assert gathered.keys() - load_file(tmp_path / "final" / "model.safetensors").keys() == {"lm_head.weight"}
    saved = load_model(tmp_path / "final", "float32")
    assert saved.get_output_embeddings().weight is saved.get_input_embeddings().weight


def test_warmup_stable_decay_by_hand(base, rows, tmp_path):
    tokenizer, model = base
    settings = settings_for(
        steps=8, schedule="warmup_stable_decay", warmup_steps=2, decay_steps=4, learning_rate=1.0, problems_per_step=1,
        completions_per_problem=1, micro_batch_size=1,
    )  # fmt: skip
    trainer = sft_trainer(settings, copy.deepcopy(model), tokenizer, rows, tmp_path, 1)
    trainer.create_optimizer_and_scheduler(8)
    rates = []
    for _ in range(8):
        rates.append(trainer.lr_scheduler.get_last_lr()[0])
        trainer.optimizer.step()
        trainer.lr_scheduler.step()
    decay = [(1 + math.cos(math.pi * place / 4)) / 2 for place in range(4)]
    assert rates == pytest.approx([0.0, 0.5, 1.0, 1.0, *decay])


def test_snapshot_steps_are_even_in_the_logarithm():
    assert settings_for(steps=100, snapshots=4).snapshot_steps() == [3, 10, 32]  # 100^(1/4), 100^(2/4), 100^(3/4)
    assert settings_for(steps=2, snapshots=8).snapshot_steps() == [1]
    assert settings_for(steps=100, snapshots=0).snapshot_steps() == []


def test_vllm_gets_stop_ids_lengths_and_the_importance_mode(base, tmp_path, monkeypatch):
    monkeypatch.setattr("train.runtime.sampler.on_cpu", lambda: False)  # where vLLM can sleep
    tokenizer, _ = base
    vllm = VllmSpec(mode="colocate", memory_share=0.4, tensor_parallel=1, sleep=True)
    found = grpo.vllm_arguments(settings_for("grpo", importance_clip=3.0), tokenizer, vllm)
    assert found["generation_kwargs"] == {"stop_token_ids": [tokenizer.eos_token_id, tokenizer.pad_token_id]}
    assert (found["vllm_max_model_length"], found["vllm_gpu_memory_utilization"]) == (128, 0.4)
    assert found["vllm_importance_sampling_mode"] == "token_truncate"
    assert (found["vllm_importance_sampling_clip_max"], found["vllm_enable_sleep_mode"]) == (3.0, True)
    assert found["vllm_importance_sampling_correction"] is True
    # TRL accepts them; it asks for vLLM only when a trainer is made.
    arguments = grpo.arguments(settings_for("grpo"), tokenizer, tmp_path, 0, vllm)
    assert (arguments.use_vllm, arguments.vllm_mode) == (True, "colocate")
    assert arguments.ddp_timeout > 2 * 3600  # of a rank that waits while the first one asks a server
    # Jobs on one node have servers with ports of their own, and so the senders of their weights.
    served = [VllmSpec(mode="server", server_url=f"http://n1:{port}", memory_share=0.9) for port in (13456, 13457)]
    ports = [grpo.vllm_arguments(settings_for("grpo"), tokenizer, one)["vllm_group_port"] for one in served]
    assert ports == [23456, 23457]
    # Stored samples have no log-probabilities of their own, a teacher's are not drawn at all.
    stored = replace(settings_for("grpo"), sampling="base_once")
    assert grpo.vllm_arguments(stored, tokenizer, vllm)["vllm_importance_sampling_correction"] is False
    teacher = replace(settings_for("grpo"), sampling="teacher")
    assert grpo.arguments(teacher, tokenizer, tmp_path, 0, vllm).use_vllm is False


def test_mismatch_by_hand():
    trained = torch.tensor([[0.0, -1.0, -2.0], [-1.0, -1.0, -9.0]])
    sampled = torch.tensor([[0.0, -1.0 - math.log(3), -2.0], [-1.0, float("nan"), 0.0]])
    mask = torch.tensor([[1, 1, 1], [1, 1, 0]])
    found = mismatch(trained, sampled, mask, 2.0)  # ratios 1, 3, 1, 1, 1: one is nan and counts as 1, one is masked
    assert found["clipped_share"] == pytest.approx(0.2)
    assert mismatch(trained, sampled, mask, None)["clipped_share"] == 0
    whole = mismatch(trained, sampled, mask, 2.0, by_sequence=True)  # 1 x 3 x 1 and 1 x 1
    assert (whole["clipped_share"], whole["ratio_p99"]) == pytest.approx((0.5, 3.0))
    assert mismatch(trained, sampled, mask * 0, 2.0)["clipped_share"] == 0
    assert (found["ratio_median"], found["ratio_p01"]) == pytest.approx((1.0, 1.0))
    assert found["ratio_p99"] == pytest.approx(3.0)
    warning = mismatch_warning({"mismatch/clipped_share": 0.25})
    assert warning.headline == "vLLM and the trainer disagree about the completions"
    assert "more than 5% of the importance ratios were cut" in warning.detail
    assert mismatch_warning({"mismatch/clipped_share": 0.26}) == warning  # so that it is said once
    assert mismatch_warning({"mismatch/clipped_share": 0.01}) is None


def test_overlong_punishment_by_hand():
    """DAPO's Eq. 13 with a limit of 100 and a buffer of 20: nothing to 80, then down to -1."""
    assert [overlong_punishment(length, 100, 20) for length in (1, 80, 85, 90, 100)] == [0, 0, -0.25, -0.5, -1]
    assert overlong_punishment(100, 100, 0) == 0


class FixedGrader:
    def __init__(self, correct):
        self.correct = correct

    def grade_many(self, completions, references, form, limit_seconds):
        from data.grading.grader import Grade, Outcome

        outcome = Outcome.CORRECT if self.correct else Outcome.WRONG
        return [Grade(outcome, "1") for _ in completions]


def rewarded(grader, tmp_path, updates, begun=0, **settings):
    told = []
    arm = settings_for("grpo", problems_per_step=1, completions_per_problem=2, **settings)
    ledger = Ledger(tmp_path, 10, write=False)
    ledger.last_step = begun
    reward = RecordedReward(Judge(grader, "boxed", arm, 0, stop_ids={0}), ledger, lambda *parts: told.append(parts))
    found = [reward(["p"] * 2, ["x"] * 2, [[1] * 3, [1] * 60], ["1"] * 2, ["id"] * 2, [4] * 2) for _ in range(updates)]
    return told, found


class AlternatingGrader(FixedGrader):
    def grade_many(self, *args):
        self.correct = not self.correct
        return super().grade_many(*args)


def test_a_run_without_weights_says_so_early(tmp_path):
    told, _ = rewarded(FixedGrader(False), tmp_path, 9)
    ((headline, detail),) = told
    assert headline == "no completion of the first 5 steps has a weight"
    assert detail.startswith("rewards are 0, so nothing is learned: is the answer in the required form")
    ((headline, detail),), _ = rewarded(AlternatingGrader(False), tmp_path, 9, updates_per_batch=2)
    assert headline == "no completion of the first 10 steps has a weight"
    assert detail.startswith("rewards are 0 to 1, so")
    assert rewarded(FixedGrader(True), tmp_path, 4)[0] == []
    # With the punishment of 60 of 64 tokens the two completions differ, so there is something to learn.
    told, found = rewarded(FixedGrader(True), tmp_path, 9, overlong_tokens=8)
    assert (told, found[0]) == ([], [1.0, 0.5])
    # Uniform weights learn from completions that are all correct.
    uniform = {"credit": "uniform", "negatives": False}
    assert rewarded(FixedGrader(True), tmp_path, 9, **uniform)[0] == []
    assert len(rewarded(FixedGrader(False), tmp_path, 9, **uniform)[0]) == 1
    # A resumed run is not at its beginning.
    assert rewarded(FixedGrader(True), tmp_path, 9, begun=500)[0] == []


def test_loss_that_is_no_number_stops_before_anything_is_saved(base, rows, tmp_path):
    tokenizer, model = base
    broken = copy.deepcopy(model)
    settings = settings_for(steps=4, problems_per_step=2, completions_per_problem=1, micro_batch_size=2)
    settings = replace(settings, save_every_steps=1)
    ledger = Ledger(tmp_path, 10)

    class Enter(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            ledger.spend(presented=[f"problem-{state.global_step}-{n}" for n in range(2)])
            if state.global_step == 2:  # the third update meets a broken weight
                with torch.no_grad():
                    broken.get_input_embeddings().weight.fill_(float("nan"))

    recorder = RunRecorder(tmp_path, 4, 0, ledger)
    trainer = sft_trainer(settings, broken, tokenizer, rows, tmp_path, 1, [Enter(), recorder])
    with pytest.raises(DivergedError) as caught:
        trainer.train()
    text = str(caught.value)
    assert "loss is nan at step 3, on the problems problem-3-0, problem-3-1; the checkpoint before it is kept" in text
    assert sorted(p.name for p in tmp_path.glob("checkpoint-*")) == ["checkpoint-1", "checkpoint-2"]


def test_out_of_memory_names_the_knobs_and_their_effect(tmp_path):
    recipe = load_recipe(
        RECIPES / "qwen3-1.7b" / "matched.yaml", ["train.micro_batch_size=8", "resources.zero_stage=0"]
    )
    (stage,) = [stage for stage in build_stages(recipe) if stage.name == "arms/grpo/seed-0"]
    failure = explain(torch.OutOfMemoryError("CUDA out of memory"), recipe, tmp_path, stage)
    assert failure.status == MISTAKE
    assert "arms/grpo/seed-0 ran out of GPU memory; the cost model expects" in failure.message
    numbers = [float(part.split(" GB")[0].rpartition(" ")[2]) for part in failure.message.split(";")[1:]]
    # Half of 8 rows of 1,024 + 3,072 tokens
    assert "train.micro_batch_tokens=16384 would need about" in failure.message
    assert all(number < numbers[0] for number in numbers[1:])


def test_more_problems_an_update_than_there_are(smoke_study):
    with pytest.raises(UserError, match=r"problems_per_step=4 problems but the set 'teacher_solvable' has only 3"):
        settings_for().require_problems(3)
    settings_for().require_problems(4)


def test_stripped_thinking_is_what_sft_reads(transfer, smoke_study, tmp_path):
    """Demonstrations with thoughts put before them, read without: the weights of the study without thoughts."""
    from tests.integration.test_deepspeed import final, study_of

    study = study_of(smoke_study, tmp_path / "study")
    path = study / "corpus" / "demonstrations.parquet"
    table = pq.read_table(path).to_pylist()
    thoughts = [row | {"completion": f"<think>\nhm 1\n</think>\n\n{row['completion']}"} for row in table]
    pq.write_table(pa.Table.from_pylist(thoughts, schema=pq.read_schema(path)), path)
    stage = ["--until", "arms/off_policy_sft/seed-0"]
    varied = "varies=[sampling,credit,negatives,beta,strip_thinking]"
    result = transfer("run", SMOKE, "--out", study, "arms.off_policy_sft.strip_thinking=true", varied, *stage)
    assert result.returncode == 0, result.stdout + result.stderr
    assert torch.equal(final(study, "off_policy_sft"), final(smoke_study, "off_policy_sft"))
    with pytest.raises(UserError, match="`strip_thinking` needs `sampling: teacher`"):
        load_recipe(SMOKE, ["arms.grpo.strip_thinking=true"])


def test_own_settings_of_an_arm_are_listed_as_unmatched(transfer):
    result = transfer("check", SMOKE, "arms.off_policy_sft.train={schedule: cosine, completions_per_problem: 1}")
    assert result.returncode == 2
    assert "schedule: off_policy_sft cosine, on_policy_sft constant, grpo constant" in result.stdout
    assert "completions_per_problem: off_policy_sft 1, on_policy_sft 4, grpo 4" in result.stdout
    result = transfer("plan", SMOKE, "arms.grpo.train={completions_per_problem: 1}")
    assert "arm 'grpo': completions_per_problem is 1 but a group needs at least 2" in result.stderr
    result = transfer("plan", SMOKE, "arms.grpo.train={schedul: cosine}")
    assert "arms.grpo.train.schedul: " in result.stderr


@pytest.mark.slow
def test_lora_under_zero_3_saves_whole_weights(transfer, smoke_study, tmp_path):
    """Merging loads the base on the first rank alone, which must not be divided among ranks that are not there."""
    from tests.integration.test_deepspeed import final, study_of, weights

    study = study_of(smoke_study, tmp_path / "study")
    settings = ["train.lora={rank: 4, alpha: 8}", "resources.ranks=2", "resources.zero_stage=3", "resources.workers=1"]
    result = transfer("run", SMOKE, "--out", study, *settings, "--until", "arms/off_policy_sft/seed-0")
    assert result.returncode == 0, result.stdout + result.stderr
    moved = final(study, "off_policy_sft") - weights(smoke_study / "base")
    assert 0 < float(moved.abs().max()) < 1


def test_own_limits_of_an_arm_leave_out_what_is_longer(base, smoke_study):
    from data.corpus.rows import read_problems as read
    from train.run import within_own_limits

    tokenizer, _ = base
    study = load_recipe(SMOKE).prompt
    problems, demonstrations = read(smoke_study / "corpus", "train"), read_demonstrations(smoke_study / "corpus")
    settings = settings_for()
    assert within_own_limits(settings, study, problems, demonstrations, tokenizer) == (problems, demonstrations)
    lengths = {p: len(tokenizer(render_prompt(tokenizer, p.problem, study))["input_ids"]) for p in problems}
    shortest = {p: min(r.tokens for r in demonstrations[p.problem_id] if r.usable) for p in problems}
    prompt_limit, limit = sorted(lengths.values())[len(lengths) // 2], sorted(shortest.values())[len(shortest) // 2]
    own = replace(settings, prompt=PromptSpec(max_prompt_tokens=prompt_limit, max_completion_tokens=limit))
    left, fitting = within_own_limits(own, study, problems, demonstrations, tokenizer)
    assert left == [p for p in problems if lengths[p] <= prompt_limit and shortest[p] <= limit]
    assert 0 < len(left) < len(problems)
    assert all(row.fits == (row.tokens <= limit) for rows in fitting.values() for row in rows)
    with pytest.raises(
        UserError, match=r"its own prompt\.max_completion_tokens is 65 but the corpus is filtered at 64"
    ):
        resolve_arm(load_recipe(SMOKE, ["arms.grpo.prompt={max_prompt_tokens: 64, max_completion_tokens: 65}"]), "grpo")


def test_own_steps_are_checked_with_the_schedule():
    settings = ["train.schedule=warmup_stable_decay", "train.decay_steps=3", "train.warmup_steps=1"]
    recipe = load_recipe(SMOKE, [*settings, "arms.grpo.steps=3"])
    with pytest.raises(UserError, match="warmup_steps 1 and decay_steps 3 are more than the 3 steps"):
        resolve_arm(recipe, "grpo")


def test_ledger_counts_the_tokens_above_the_mean_without_negatives(tmp_path):
    """Rewards 1, 0.75, 0.5, 0.25 by length: the two above 0.625 have a weight. All below zero: still the best one."""
    arm = replace(settings_for("grpo"), negatives=False, problems_per_step=1, completions_per_problem=4)
    ledger = Ledger(tmp_path, 10)
    reward = RecordedReward(Judge(FixedGrader(True), "boxed", arm, 0, stop_ids={0}), ledger)
    reward.enter([Completion("p", 4, 10 * n, True) for n in (1, 2, 3, 4)], [1.0, 0.75, 0.5, 0.25])
    assert ledger.totals["trained_tokens"] == 10 + 20
    reward.enter([Completion("p", 4, 40, False)] * 4, [-0.25, -1.0, -1.0, -1.0])
    assert ledger.totals["trained_tokens"] == 30 + 40


def test_ranks_do_not_share_coins(monkeypatch):
    arm = replace(settings_for("grpo"), reward="random")
    tossed = []
    for number in range(8):
        monkeypatch.setenv("RANK", str(number))
        tossed += Judge(FixedGrader(True), "boxed", arm, 0, stop_ids={0})(0, ["x"] * 4, [[1]] * 4, ["1"] * 4)[1]
    assert 6 < sum(tossed) < 26
    assert tossed[:4] * 8 != tossed


def test_inputs_of_base_drift_and_arms_hold_what_they_read(tmp_path):
    template = tmp_path / "t.jinja"
    template.write_text("one")
    llama = RECIPES / "llama-3.1-8b" / "matched.yaml"

    def reads(name, *settings, recipe=SMOKE):
        (stage,) = [s for s in build_stages(load_recipe(recipe, list(settings))) if s.name == name]
        return stage.reads

    chosen = f"model.chat_template={template}"
    before = reads("base", chosen, recipe=llama)
    template.write_text("two")
    assert reads("base", chosen, recipe=llama) != before
    assert reads("base", recipe=llama) != reads("base", "prompt.system=Hello", recipe=llama)
    drift = ["drift={problems: 4}", "train.schedule=constant"]
    assert reads("drift/grpo/seed-0", *drift) != reads("drift/grpo/seed-0", *drift, "train.snapshots=2")
    vllm = "resources.vllm={mode: colocate}"
    assert reads("arms/grpo/seed-0") != reads("arms/grpo/seed-0", vllm)
    assert reads("arms/off_policy_sft/seed-0") == reads("arms/off_policy_sft/seed-0", vllm)


def test_adapters_of_a_real_model_are_counted(base, rows, tmp_path):
    from train.accounting.cost import shape_from_config

    tokenizer, model = base
    trainer = sft_trainer(settings_for(lora=LoraSpec(rank=4)), copy.deepcopy(model), tokenizer, rows, tmp_path, 1)
    expected = sum(p.numel() for p in trainer.model.parameters() if p.requires_grad)
    assert shape_from_config(model.config.to_dict()).adapter_parameters(4) == expected
