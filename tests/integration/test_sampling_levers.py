"""Dynamic sampling and several updates per sampling: what is chosen, what is entered in the ledger."""

import pytest

from data.grading.grader import Grade, Outcome
from data.prompts.prompt import load_tokenizer
from recipes.files import read_json_lines
from recipes.loading import load_recipe
from tests.integration.test_deepspeed import study_of
from tests.paths import SMOKE
from tests.support.trainers import replace
from train.accounting.ledger import Ledger
from train.arms import resolve_arm
from train.rollouts import DynamicSampling


def test_dynamic_sampling_replaces_uniform_groups_and_books_what_it_drew(smoke_study, tmp_path):
    """Rewards by hand: problem b varies at once, a and c never, d and e of the reserve do."""
    tokenizer = load_tokenizer(str(smoke_study / "base"))
    ids = {text: tokenizer(text)["input_ids"] for text in ("no", "yes", "maybe so")}

    def row(name):
        return {"prompt": name, "problem_id": name, "reference_answer": name, "prompt_tokens": 3}

    asked, judged = [], []

    def draw(prompts, seed):
        asked.append((tuple(prompts), seed))
        return [[ids["yes"], ids["no"]] if name in "bde" else [ids["maybe so"]] * 2 for name in prompts], None

    def judge(step, texts, completion_ids, references):
        assert completion_ids == [ids[text] for text in texts]
        judged.append("".join(references))
        return [Grade(Outcome.CORRECT if text == "yes" else Outcome.WRONG, text) for text in texts], [
            float(text == "yes") for text in texts
        ]

    ledger = Ledger(tmp_path, 1000)
    two = {"problems_per_step": 2, "completions_per_problem": 2, "dynamic_sampling": 2}
    settings = replace(resolve_arm(load_recipe(SMOKE), "grpo"), **two)
    rows, reserve = [row(n) for n in "abac"], [row(n) for n in "cdcecccc"]
    sampler = DynamicSampling(rows, reserve, judge, tokenizer, ledger, settings, seed=0)
    assert [r["problem_id"] for r in sampler.choose(0, draw)] == ["b", "d"]
    assert (sampler.completions(0, draw), sampler.log_probs()) == ([ids["yes"], ids["no"]] * 2, None)
    assert [prompts for prompts, _ in asked] == [("a", "b"), ("c", "d")]
    assert judged == ["aabb", "ccdd"]  # a batch at once: the other ranks wait, and its time is limited
    uniform = 2 * len(ids["maybe so"])  # the groups of a and c
    assert ledger.totals["generated_tokens"] == 2 * uniform
    assert (ledger.totals["exposures"], ledger.totals["completions"]) == (2, 4)
    assert ledger.totals["generate_flops"] == 2 * 1000 * (2 * uniform + 4 * 3)
    # The second update finds nothing that varies, whatever it draws, and takes uniform groups.
    assert [r["problem_id"] for r in sampler.choose(1, draw)] == ["a", "c"]
    assert [prompts for prompts, _ in asked[2:]] == [("a", "c"), ("c", "c"), ("c", "c")]
    assert len({seed for _, seed in asked}) == 5
    ledger.close_step(1)
    assert read_json_lines(ledger.path)[0]["presented"] == ["a", "c", "c", "c", "c", "c"]


def test_dynamic_sampling_in_a_run(transfer, smoke_study, tmp_path):
    study = study_of(smoke_study, tmp_path / "study")
    lever = ["arms.grpo.dynamic_sampling=2", "unmatched=stamp"]
    result = transfer("run", SMOKE, "--out", study, *lever, "--until", "arms/grpo/seed-0")
    assert result.returncode == 0, result.stdout + result.stderr
    rows = read_json_lines(study / "arms" / "grpo" / "seed-0" / "ledger.jsonl")
    plain = read_json_lines(smoke_study / "arms" / "grpo" / "seed-0" / "ledger.jsonl")
    assert rows[-1]["exposures"] > plain[-1]["exposures"] == 32
    assert rows[-1]["exposures"] == sum(len(r["presented"]) for r in rows)
    assert sum(len(r["contributed"]) for r in rows) > sum(len(r["contributed"]) for r in plain)
    check = transfer("check", SMOKE, "arms.grpo.dynamic_sampling=2")
    assert "dynamic_sampling: off_policy_sft 0, on_policy_sft 0, grpo 2" in check.stdout


def test_updates_that_share_a_batch_in_a_run(transfer, smoke_study, tmp_path):
    """Four updates, two samplings: as many problems and samples as with one update per batch."""
    study = study_of(smoke_study, tmp_path / "study")
    lever = [
        "arms.grpo.updates_per_batch=2",
        "train.save_every_steps=2",
        "varies=[sampling,credit,negatives,updates_per_batch]",
    ]
    result = transfer("run", SMOKE, "--out", study, *lever, "--until", "arms/grpo/seed-0")
    assert result.returncode == 0, result.stdout + result.stderr
    rows = read_json_lines(study / "arms" / "grpo" / "seed-0" / "ledger.jsonl")
    plain = read_json_lines(smoke_study / "arms" / "grpo" / "seed-0" / "ledger.jsonl")
    assert [row["exposures"] for row in rows] == [16, 16, 32, 32]
    assert [row["exposures"] for row in plain] == [8, 16, 24, 32]
    for name in ("exposures", "completions", "prompt_tokens"):
        assert rows[-1][name] == plain[-1][name]
    presented = [[identity for row in part for identity in row["presented"]] for part in (rows, plain)]
    assert presented[0] == presented[1]
    metrics = read_json_lines(study / "arms" / "grpo" / "seed-0" / "metrics.jsonl")
    assert all(sum(v for k, v in row.items() if k.startswith("outcomes/")) == pytest.approx(1) for row in metrics[::2])
