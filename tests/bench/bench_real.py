"""A real language model: updates of our SFT and GRPO beside bare TRL, and answers beside plain lm-evaluation-harness.

python tests/bench/bench_real.py runs/smollm2-135m-warm-start/base

The argument is a model that the stage `base` has prepared; in TRL's hands it is an ordinary checkpoint. The benchmark
uses the data of recipes/smollm2-135m (prepare.py makes them) and that recipe's lengths. SFT: 32 worked word
problems an update, in TRL as four micro-batches of eight, which it pads to their longest row. GRPO: 8 problems with 4
sampled completions. Both in bfloat16 autocast. Answers: SVAMP's questions, greedy, with transformers, where both must
give the same texts. Ways alternate in one run; the first update of a trainer is not counted.
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from lm_eval import simple_evaluate
from lm_eval.models.huggingface import HFLM
from trl import GRPOConfig, GRPOTrainer, SFTConfig, SFTTrainer

from data.grading.grader import Grader
from data.language_model import load_model, on_cpu
from data.prompts.prompt import load_tokenizer, render_prompt
from eval.questions import build
from eval.questions.build import load_questions
from eval.responses import generate
from eval.responses.harness import render
from eval.responses.units import open_units
from recipes.loading import load_recipe
from recipes.manifest import finish_stage, start_stage
from tests.bench.bench_training import apart
from train import grpo, sft
from train.accounting.ledger import Ledger
from train.arms import resolve_arm
from train.runtime.preemption import PaceKeeper, StopOnSignal
from train.runtime.recorder import RunRecorder

RECIPE = Path(__file__).resolve().parents[2] / "recipes" / "smollm2-135m" / "matched.yaml"
PROBLEMS, GROUP, MICRO_BATCH = 8, 4, 8


def rows_of(count: int, tokenizer: Any, prompt: Any) -> list[dict[str, str]]:
    """Prompt, worked solution and answer of the study's first problems."""
    lines = (RECIPE.parent / "data" / "word_problems.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [row for row in map(json.loads, lines) if row["part"] == "study"][:count]
    return [
        {
            "prompt": render_prompt(tokenizer, row["problem"], prompt),
            "completion": row["worded"][0],
            "answer": row["answer"],
        }
        for row in rows
    ]


def trainers(kind: str, model_dir: Path, updates: int) -> tuple[Any, Any]:
    """Functions that build our trainer and TRL's in a directory."""
    tokenizer, size = load_tokenizer(str(model_dir)), PROBLEMS * GROUP
    settings = resolve_arm(
        load_recipe(RECIPE, [f"model.path={model_dir}"]), "grpo" if kind == "GRPO" else "off_policy_sft"
    )
    settings = settings.model_copy(update={"steps": updates, "save_every_steps": 1000, "snapshots": 0})
    rows = rows_of(updates * (size if kind == "SFT" else PROBLEMS), tokenizer, settings.prompt)
    pairs = [{name: row[name] for name in ("prompt", "completion")} for row in rows]
    prompts = [{name: row[name] for name in ("prompt", "answer")} for row in rows]
    grader = Grader()

    def reward(prompts: list[str], completions: list[str], answer: list[str], **columns: Any) -> list[float]:
        return [float(grader.grade(text, right).correct) for text, right in zip(completions, answer, strict=True)]

    shared = {
        "max_steps": updates, "per_device_train_batch_size": MICRO_BATCH, "learning_rate": settings.learning_rate,
        "gradient_accumulation_steps": size // MICRO_BATCH, "lr_scheduler_type": "constant_with_warmup", "bf16": True,
        "use_cpu": on_cpu(), "gradient_checkpointing": not on_cpu(), "dataloader_pin_memory": False,
        "logging_steps": 1, "report_to": [], "disable_tqdm": True, "save_strategy": "no", "seed": 0,
    }  # fmt: skip

    def ours(directory: Path) -> Any:
        ledger = Ledger(directory, 0)
        callbacks = [RunRecorder(directory, updates, 0, ledger), StopOnSignal(PaceKeeper(directory, updates))]
        model = load_model(model_dir, "float32")
        if kind == "SFT":
            return sft.build_trainer(
                settings, model, tokenizer, pairs, sft.arguments(settings, directory, 0), callbacks
            )
        arguments = grpo.arguments(settings, tokenizer, directory, 0)
        return grpo.build_trainer(settings, model, tokenizer, prompts, arguments, reward, callbacks)

    def plain(directory: Path) -> Any:
        model = load_model(model_dir, "float32")
        if kind == "SFT":
            arguments = SFTConfig(output_dir=str(directory), max_length=None, shuffle_dataset=False, **shared)
            return SFTTrainer(
                model=model, processing_class=tokenizer, train_dataset=Dataset.from_list(pairs), args=arguments
            )
        arguments = GRPOConfig(
            output_dir=str(directory), num_generations=GROUP, shuffle_dataset=False, top_k=0,
            max_completion_length=settings.prompt.max_completion_tokens, **shared,
        )  # fmt: skip
        return GRPOTrainer(
            model=model, processing_class=tokenizer, train_dataset=Dataset.from_list(prompts), reward_funcs=reward,
            args=arguments,
        )  # fmt: skip

    return ours, plain


def answers(model_dir: Path, questions: int, folder: Path) -> tuple[tuple[float, list[str]], tuple[float, list[str]]]:
    """Seconds and texts of our evaluation stage and of `simple_evaluate`, each with the model loaded by it."""
    data = {
        "kind": "file", "path": str(RECIPE.parent / "data" / "svamp.jsonl"), "fields": {"problem": "problem"},
        "id_field": "id", "rows": questions, "licence": "MIT",
    }  # fmt: skip
    benchmark = {"name": "svamp", "group": "math", "scorings": {"robust": "boxed"}, "data": data}
    recipe = load_recipe(RECIPE, [
        f"model.path={model_dir}", "arms={}", "train=null", "drift=null", "trajectory=null", "diagnostics=null",
        "analysis={}", "corpus.heldout_problems=0", f"suite.benchmarks={json.dumps([benchmark])}",
        "suite.temperature=0", "suite.samples_per_question=1",
    ])  # fmt: skip
    (folder / "base").mkdir(parents=True)
    for path in model_dir.iterdir():
        (folder / "base" / path.name).symlink_to(path)
    start_stage(folder / "base", "base", {}, in_place=True)
    finish_stage(folder / "base", {"model": "base"})
    start_stage(folder / "questions", "questions", {})
    build.run(recipe, folder, folder / "questions", False)
    stage = folder / "eval" / "base"
    start_stage(stage, "eval/base", {}, in_place=True)
    begun = time.perf_counter()
    generate.run(recipe, folder, stage, False, "base")
    ours = time.perf_counter() - begun
    (unit,) = open_units(recipe, folder, stage, "base")
    mine = [row.responses[0] for row in unit.rows()]

    tokenizer = load_tokenizer(str(model_dir))
    prompts = render(recipe, tokenizer, unit.benchmark, unit.prompting, load_questions(recipe, unit.benchmark, folder))
    suite = recipe.require_suite()
    task = {
        "task": "svamp", "custom_dataset": lambda **_: {"test": Dataset.from_list([{"text": p.text} for p in prompts])},
        "test_split": "test", "output_type": "generate_until", "doc_to_text": "{{text}}", "doc_to_target": "",
        "num_fewshot": 0,
        "generation_kwargs": {"until": [], "do_sample": False, "max_gen_toks": suite.max_response_tokens},
        "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
    }  # fmt: skip
    begun = time.perf_counter()
    engine = HFLM(pretrained=str(model_dir), dtype="bfloat16", batch_size=suite.engine.batch_size,
                  device="cpu" if on_cpu() else "cuda")  # fmt: skip
    results = simple_evaluate(engine, tasks=[task], bootstrap_iters=0)
    theirs = time.perf_counter() - begun
    samples = sorted(results["samples"]["svamp"], key=lambda one: int(one["doc_id"]))
    return (ours, mine), (theirs, [sample["resps"][0][0] for sample in samples])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--updates", type=int, default=3, help="updates of a trainer, the first of which warms up")
    parser.add_argument("--pairs", type=int, default=2)
    parser.add_argument("--questions", type=int, default=64)
    options = parser.parse_args()
    model_dir = options.model.resolve()
    device = "CPU" if on_cpu() else torch.cuda.get_device_name()
    print(f"{model_dir.name} on {device}, torch {torch.__version__}, {torch.get_num_threads()} thread(s)")
    print(f"{'':<10}{'ours, s':>10}{'other, s':>10}{'ratio of every pair':>24}{'ours, GB':>10}{'other, GB':>11}")
    for kind in ("SFT", "GRPO"):
        both = trainers(kind, model_dir, options.updates)
        taken: dict[Any, list[tuple[float, float]]] = {build: [] for build in both}
        for pair in range(options.pairs):
            for way in both if pair % 2 == 0 else both[::-1]:
                with tempfile.TemporaryDirectory() as folder:
                    taken[way].append(apart(way, Path(folder)))
        mine, theirs = (taken[way] for way in both)
        _line(kind, [one for one, _ in mine], [one for one, _ in theirs], max(mine)[1], max(theirs)[1])
    with tempfile.TemporaryDirectory() as folder:
        (ours, texts), (plain, others) = answers(model_dir, options.questions, Path(folder))
    same = sum(a.strip() == b.strip() for a, b in zip(texts, others, strict=True))
    _line("answers", [ours], [plain], None, None)
    print(f"{same} of {len(texts)} texts are the same")


def _line(kind: str, ours: list[float], other: list[float], gigabytes: float | None, others: float | None) -> None:
    ratios = ", ".join(f"{a / b:.2f}" for a, b in zip(ours, other, strict=True))
    memory = "".join(
        f"{'-' if value is None else f'{value:.1f}':>{width}}" for value, width in ((gigabytes, 10), (others, 11))
    )
    print(
        f"{kind:<10}{statistics.median(ours):>10.1f}{statistics.median(other):>10.1f}{ratios:>24}{memory}", flush=True
    )


if __name__ == "__main__":
    main()
