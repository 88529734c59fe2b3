"""Stage `eval/<model>`: one checkpoint answers every question of the suite, through lm-evaluation-harness.

Each benchmark is a unit of its own, written once: `samples.jsonl.zst` with every prompt and response, and
`scores-<scoring>.parquet`. A killed stage loses at most the benchmark it was working on. Random numbers are
seeded per model and benchmark, so a unit does not depend on which others ran before it.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import zstandard
from lm_eval import simple_evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from data.language_model import load_model, on_cpu
from data.prompt import load_tokenizer
from eval.scoring import score
from eval.task_files import task_folder
from recipes.manifest import Progress, finish_stage, hash_files, read_manifest, stage_state, start_stage, write_atomic
from recipes.schema import BenchmarkSpec, Recipe, SuiteSpec

SAMPLES = "samples.jsonl.zst"


def run(recipe: Recipe, study_dir: Path, stage_dir: Path, resume: bool, model_dir: str) -> None:
    """Generate and score all benchmarks for the checkpoint in `study_dir / model_dir`."""
    assert recipe.suite is not None and recipe.model is not None
    suite, label = recipe.suite, stage_dir.name
    folder = task_folder(suite)
    progress = Progress(stage_dir, len(suite.benchmarks), "benchmarks")

    # Model: one instance for all benchmarks.
    tokenizer = load_tokenizer(str(study_dir / model_dir))
    harness_model = HFLM(
        pretrained=load_model(study_dir / model_dir, recipe.model.dtype),
        tokenizer=tokenizer,
        batch_size=suite.batch_size,
        chat_template_args={} if recipe.prompt.thinking is None else {"enable_thinking": recipe.prompt.thinking},
        device="cpu" if on_cpu() else "cuda",
    )
    weights = (read_manifest((study_dir / model_dir).parent) or read_manifest(study_dir / model_dir) or {})[
        "output_hash"
    ]

    # Benchmarks
    outputs: dict[str, str] = {}
    accuracies: dict[str, float] = {}
    for done, benchmark in enumerate(suite.benchmarks):
        name = f"{benchmark.name}-native"
        unit_dir = stage_dir / name
        prompt = {key: getattr(recipe.prompt, key) for key in ("system", "suffix", "thinking")}
        asked = {"benchmark": benchmark.model_dump(mode="json"), "suite": _decoding(suite), "prompt": prompt}
        inputs = {"model": weights, **asked}
        if stage_state(unit_dir, inputs).state != "done":
            start_stage(unit_dir, f"eval/{label}/{name}", inputs)
            rows = _generate(harness_model, tokenizer, suite, benchmark, folder, recipe, label, study_dir / "corpus")
            _write_unit(unit_dir, benchmark, rows)
        manifest = read_manifest(unit_dir) or {}
        outputs |= {f"{name}/{file}": digest for file, digest in manifest["outputs"].items()}
        accuracies[benchmark.name] = manifest["facts"]["accuracy"]
        progress.update(done + 1, f"{benchmark.name} {100 * accuracies[benchmark.name]:.1f} %")
    finish_stage(stage_dir, outputs, {"accuracy": accuracies, "model": model_dir})


def _decoding(suite: SuiteSpec) -> dict[str, Any]:
    return suite.model_dump(mode="json", exclude={"benchmarks"})


def unit_seed(suite: SuiteSpec, label: str, benchmark: str) -> int:
    """Seed of the random numbers of one (model, benchmark)."""
    digest = hashlib.sha256(f"{suite.seed} {label} {benchmark}".encode()).digest()
    return int.from_bytes(digest[:4], "big")


def _generate(
    harness_model: HFLM,
    tokenizer: Any,
    suite: SuiteSpec,
    benchmark: BenchmarkSpec,
    folder: Path,
    recipe: Recipe,
    label: str,
    corpus_dir: Path,
) -> list[dict[str, Any]]:
    """One row per question: prompt, responses, their lengths and scores."""
    context = {
        "questions": suite.questions,
        "split": suite.split,
        "seed": suite.seed,
        "scoring": benchmark.scoring,
        "suffix": recipe.prompt.suffix,
        "corpus_dir": str(corpus_dir),
    }
    tasks = TaskManager(include_path=str(folder), include_defaults=False, metadata=context)
    task = tasks.load([benchmark.name])["tasks"][benchmark.name]
    task.set_config("repeats", suite.samples_per_question)
    seed = unit_seed(suite, label, benchmark.name)
    sampling = suite.temperature > 0
    result = simple_evaluate(
        model=harness_model,
        tasks=[task],
        task_manager=tasks,
        gen_kwargs={
            "do_sample": sampling,
            "max_gen_toks": suite.max_response_tokens,
            **({"temperature": suite.temperature, "top_p": 1.0, "top_k": 0} if sampling else {}),
        },
        system_instruction=recipe.prompt.system,
        apply_chat_template=True,
        log_samples=True,
        bootstrap_iters=0,
        random_seed=seed,
        numpy_random_seed=seed,
        torch_random_seed=seed,
        fewshot_random_seed=seed,
    )
    rows = []
    for sample in sorted(result["samples"][benchmark.name], key=lambda sample: sample["doc_id"]):
        document, responses = sample["doc"], list(sample["resps"][0])
        # The harness returns text; its length is that of the text tokenised again.
        lengths = [len(tokenizer(response)["input_ids"]) for response in responses]
        scores = [
            score(response, document["reference_answer"], benchmark.scoring, length >= suite.max_response_tokens)
            for response, length in zip(responses, lengths, strict=True)
        ]
        rows.append(
            {
                "question_id": document.get("question_id", sample["doc_hash"]),
                "prompt": sample["arguments"][0][0],
                "reference_answer": document["reference_answer"],
                "responses": responses,
                "tokens": lengths,
                "outcomes": [item.outcome for item in scores],
            }
        )
    return rows


def _write_unit(unit_dir: Path, benchmark: BenchmarkSpec, rows: list[dict[str, Any]]) -> None:
    """Write samples and scores of one benchmark and complete its manifest."""
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    write_atomic(unit_dir / SAMPLES, zstandard.compress(text.encode()))
    scores = [
        {"question_id": row["question_id"], "sample_index": index, "correct": outcome == "correct", "outcome": outcome}
        for row in rows
        for index, outcome in enumerate(row["outcomes"])
    ]
    table = f"scores-{benchmark.scoring}.parquet"
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(scores), sink)
    write_atomic(unit_dir / table, sink.getvalue().to_pybytes())
    accuracy = sum(row["correct"] for row in scores) / len(scores)
    finish_stage(unit_dir, hash_files(unit_dir, [SAMPLES, table]), {"accuracy": accuracy, "questions": len(rows)})
