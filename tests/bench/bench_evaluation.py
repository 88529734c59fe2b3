"""The evaluation of a long-tailed suite with vLLM beside plain lm-evaluation-harness: seconds and engine steps.

TORCH_COMPILE_DISABLE=1 OMP_NUM_THREADS=1 python tests/bench/bench_evaluation.py

It needs vLLM (on a CPU: make setup-engines).

All ways use one engine, loaded once, and alternate in one process:

  ours              the stage `eval` of a study's first model: requests, chunk files, scores
  ours, next model  the same for the next model, when the lengths of another model's responses are known
  chunks            chunks of 100 questions one after the other, each waiting for its longest response
  lm-eval           `simple_evaluate` with all requests at once

The model is a chain: its greedy response to a prompt that ends with token n is the tokens n - 1, n - 2, ... 1 and the
end of the text. So the length of every response is known, all ways must generate the same texts, and the layers cost
what those of a trained model cost. Lengths are log-normal, with a mean of a third of the benchmark's limit and one in
fifty at the limit. A step is one forward pass of the engine; their number does not depend on the load of the machine.
"""

import argparse
import copy
import json
import os
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from datasets import Dataset
from lm_eval import simple_evaluate
from lm_eval.models.vllm_causallms import VLLM
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from eval.questions import build
from eval.questions.build import load_questions
from eval.responses import engines, generate
from eval.responses.harness import generate_chunk, render
from eval.responses.units import open_units
from eval.responses.vllm_engine import VLLMEngine
from recipes.loading import load_recipe
from recipes.manifest import finish_stage, start_stage
from recipes.schema import Recipe
from tests.bench.bench_padding import long_tailed

ROOT = Path(__file__).resolve().parent.parent.parent
BENCHMARKS = {"short": (600, 64), "middle": (300, 192), "long": (300, 512)}  # questions, longest response in tokens
LIMIT, PROMPT_TOKENS = 512, 24
CHUNK_QUESTIONS = 100
EOS, PAD = "</s>", "<pad>"


class Run(NamedTuple):
    seconds: float
    steps: int
    underfilled: float
    """Share of the steps with fewer requests than the engine can run while others were missing."""
    texts: dict[str, list[str]]
    """Responses by benchmark, in the order of the questions."""


def save_chain(directory: Path, hidden: int = 256) -> None:
    """A float32 Qwen3 whose likeliest token after token n is n - 1, and the end of the text after token 1."""
    vocabulary = {EOS: 0} | {f"t{n}": n for n in range(1, LIMIT + 1)} | {PAD: LIMIT + 1, "<unk>": LIMIT + 2}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, eos_token=EOS, pad_token=PAD, unk_token="<unk>")
    tokenizer.chat_template = "{% for message in messages %}{{ message.content }} {% endfor %}"
    tokenizer.save_pretrained(directory)
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=len(vocabulary), hidden_size=hidden, intermediate_size=3 * hidden, num_hidden_layers=4,
        num_attention_heads=8, num_key_value_heads=4, head_dim=32, max_position_embeddings=2 * LIMIT,
        tie_word_embeddings=False, eos_token_id=0, pad_token_id=LIMIT + 1,
    )  # fmt: skip
    model = Qwen3ForCausalLM(config)
    with torch.no_grad():
        for layer in model.model.layers:  # computed, and added as zero
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        table = torch.nn.functional.normalize(torch.randn(len(vocabulary), hidden), dim=1)
        model.model.embed_tokens.weight.copy_(table)
        model.lm_head.weight.zero_()
        model.lm_head.weight[:LIMIT] = table[1 : LIMIT + 1]
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = 0, LIMIT + 1
    model.save_pretrained(directory)


def expected(question: str) -> str:
    """The response to a question."""
    return " ".join(f"t{n}" for n in range(int(question.rsplit("t", 1)[1]) - 1, 0, -1))


def write_suite(directory: Path) -> Recipe:
    """The suite's task files and rows, and a recipe that asks them greedily."""
    draw, benchmarks = random.Random(0), []
    for name, (count, limit) in BENCHMARKS.items():
        lengths = draw.sample(long_tailed(count, limit), count)
        fillers = [" ".join(f"t{draw.randint(1, LIMIT)}" for _ in range(PROMPT_TOKENS - 1)) for _ in lengths]
        rows = [{"problem": f"{filler} t{length}"} for filler, length in zip(fillers, lengths, strict=True)]
        rows = [row | {"answer": expected(row["problem"])} for row in rows]
        (directory / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        (directory / f"{name}.yaml").write_text('doc_to_text: "{{problem}}"\nmetadata: {chat_template: false}\n')
        data = {"kind": "file", "path": str(directory / f"{name}.jsonl"), "fields": {"problem": "problem"}}
        benchmarks.append({"name": name, "group": "math", "scorings": {"robust": "exact"}, "data": data})
    return load_recipe(
        ROOT / "recipes" / "pocket" / "smoke.yaml",
        [
            "arms={}", "train=null", "model.dtype=float32", f"suite.tasks={directory}", "suite.temperature=0",
            f"suite.max_response_tokens={LIMIT}", f"suite.max_prompt_tokens={PROMPT_TOKENS}",
            f"suite.chunk_questions={CHUNK_QUESTIONS}", "suite.engine={kind: vllm, eager: true}",
            f"suite.benchmarks={json.dumps(benchmarks)}",
        ],
    )  # fmt: skip


def prepare_study(recipe: Recipe, study_dir: Path, model_dir: Path) -> None:
    """The questions of a study, and two models to evaluate."""
    for name in ("first", "next"):
        (study_dir / name).mkdir(parents=True)
        for path in model_dir.iterdir():
            (study_dir / name / path.name).symlink_to(path)
        start_stage(study_dir / name, name, {}, in_place=True)
        finish_stage(study_dir / name, {"model": name})
    start_stage(study_dir / "questions", "questions", {})
    build.run(recipe, study_dir, study_dir / "questions", False)


@contextmanager
def steps_of(engine: VLLMEngine, total: int) -> Iterator[list[int]]:
    """Counts the engine's steps: all, and those that were underfilled."""
    counts, sent = [0, 0], 0
    core = engine.model.llm_engine
    step, add_request = core.step, core.add_request

    def counted_step() -> Any:
        counts[0] += 1
        counts[1] += sent < total and core.get_num_unfinished_requests() < engine.max_num_seqs
        return step()

    def counted_request(*arguments: Any, **named: Any) -> Any:
        nonlocal sent
        sent += 1
        return add_request(*arguments, **named)

    core.step, core.add_request = counted_step, counted_request
    try:
        yield counts
    finally:
        core.step, core.add_request = step, add_request


def measure(engine: VLLMEngine, total: int, work: Callable[[], dict[str, list[str]]]) -> Run:
    with steps_of(engine, total) as counts:
        begun = time.perf_counter()
        texts = work()
        return Run(time.perf_counter() - begun, counts[0], counts[1] / counts[0], texts)


def ours(recipe: Recipe, study_dir: Path, label: str) -> dict[str, list[str]]:
    """The stage of one model, from its start to its scores."""
    start_stage(study_dir / "eval" / label, f"eval/{label}", {}, in_place=True)
    generate.run(recipe, study_dir, study_dir / "eval" / label, False, label)
    units = open_units(recipe, study_dir, study_dir / "eval" / label, label)
    return {unit.benchmark.name: [row.responses[0] for row in unit.rows()] for unit in units}


def chunks(recipe: Recipe, study_dir: Path, engine: VLLMEngine) -> dict[str, list[str]]:
    """One chunk after the other."""
    texts: dict[str, list[str]] = {}
    for unit in open_units(recipe, study_dir, study_dir / "eval" / "first", "first"):
        questions = load_questions(recipe, unit.benchmark, study_dir)
        prompts = render(recipe, engine.tokenizer, unit.benchmark, unit.prompting, questions)
        texts[unit.benchmark.name] = [
            response.responses[0]
            for chunk in range(unit.chunks)
            for response in generate_chunk(engine, engine.tokenizer, [prompts[n] for n in unit.positions(chunk)], 0)
        ]
    return texts


def lm_eval(rows: dict[str, list[dict[str, str]]], engine: VLLMEngine) -> dict[str, list[str]]:
    """The harness with its own vLLM model, around the same engine."""
    plain = copy.copy(engine)
    plain.__class__ = VLLM
    tasks = [
        {
            "task": name, "custom_dataset": lambda *, own=rows[name], **_: {"test": Dataset.from_list(own)},
            "test_split": "test",
            "output_type": "generate_until", "doc_to_text": "{{problem}}", "doc_to_target": "{{answer}}",
            "num_fewshot": 0, "generation_kwargs": {"until": [], "do_sample": False, "max_gen_toks": LIMIT},
            "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
        }
        for name in rows
    ]  # fmt: skip
    results = simple_evaluate(plain, tasks=tasks, bootstrap_iters=0)
    samples = results["samples"]
    return {
        name: [sample["resps"][0][0] for sample in sorted(samples[name], key=lambda one: int(one["doc_id"]))]
        for name in rows
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seqs", type=int, default=64, help="requests that the engine runs at the same time")
    options = parser.parse_args()
    os.environ |= {"VLLM_WORKER_MULTIPROC_METHOD": "spawn", "VLLM_LOGGING_LEVEL": "ERROR"}
    total = sum(count for count, _ in BENCHMARKS.values())
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for part in ("model", "suite"):
            (folder / part).mkdir()
        save_chain(folder / "model")
        recipe = write_suite(folder / "suite")
        rows = {
            name: [json.loads(line) for line in (folder / "suite" / f"{name}.jsonl").read_text().splitlines()]
            for name in BENCHMARKS
        }
        right = {name: [row["answer"] for row in own] for name, own in rows.items()}
        engine = VLLMEngine(
            pretrained=str(folder / "model"), dtype="float32", enforce_eager=True, gpu_memory_utilization=0.5,
            max_model_len=LIMIT + PROMPT_TOKENS, max_num_seqs=options.seqs, seed=0, batch_size="auto",
            kv_cache_memory_bytes=1 << 30,
        )  # fmt: skip
        close, engine.close = engine.close, lambda: None  # type: ignore[method-assign]
        engines.load_engine = lambda *arguments: engine
        runs: dict[str, list[Run]] = {}
        try:
            for number in range(options.rounds + 1):
                study = folder / f"study-{number}"
                prepare_study(recipe, study, folder / "model")
                ways: list[tuple[str, Callable[[], dict[str, list[str]]]]] = [
                    ("ours", lambda study=study: ours(recipe, study, "first")),  # type: ignore[misc]
                    ("ours, next model", lambda study=study: ours(recipe, study, "next")),  # type: ignore[misc]
                    ("chunks", lambda study=study: chunks(recipe, study, engine)),  # type: ignore[misc]
                    ("lm-eval", lambda: lm_eval(rows, engine)),
                ]
                for way, work in ways if number % 2 else [*ways[2:], *ways[:2]]:
                    run = measure(engine, total, work)
                    for benchmark, texts in right.items():
                        if [text.strip() for text in run.texts[benchmark]] != texts:  # vLLM's begin with a space
                            raise SystemExit(f"{way} generated other texts for {benchmark}")
                    if number:  # the first round warms up
                        runs.setdefault(way, []).append(run)
                    print(f"round {number}: {way} {run.seconds:.1f} s, {run.steps} steps", flush=True)
        finally:
            close()
        tokens = sum(len(text.split()) + 1 for own in right.values() for text in own)
        least = tokens / options.seqs
        print(f"{total} requests, {tokens} tokens, {options.seqs} at the same time: at least {least:.0f} steps")
        print(f"{'':<18}{'seconds':>9}{'steps':>8}{'underfilled':>13}{'speed-up over lm-eval, median (all)':>40}")
        for way, own in runs.items():
            ratios = sorted(other.seconds / run.seconds for run, other in zip(own, runs["lm-eval"], strict=True))
            print(
                f"{way:<18}{statistics.median(run.seconds for run in own):>9.1f}"
                f"{statistics.median(run.steps for run in own):>8.0f}"
                f"{max(run.underfilled for run in own):>13.3f}"
                f"{statistics.median(ratios):>22.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})"
            )


if __name__ == "__main__":
    main()
