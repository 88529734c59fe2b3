"""Demonstrations: what a teacher wrote for the training problems, every sample graded and kept, right or wrong."""

import random
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data.corpus.printed import is_empty
from data.corpus.rows import Demonstration, problem_id
from data.corpus.sources import RawRow, bare_problem
from data.corpus.stored import PassedOver, stored_rows
from data.corpus.values import repaired
from data.grading.grader import Grader
from data.hub import chosen, locate_model
from data.pocket_world import corpus_problems, teacher_completion
from data.prompts.prompt import completion_ids, control_tokens
from data.prompts.thinking import THINK_CLOSE, THINK_OPEN, split_thinking, strip_thinking
from data.sampling.completions import sample_from_endpoint, sample_locally
from data.sampling.store import Sample, SampleStore, sampling_config, shared_folder, store_path, whole_characters
from recipes.corpus_schema import SamplerSpec
from recipes.errors import UserError
from recipes.files import folder_state
from recipes.manifest import read_manifest
from recipes.progress import Progress
from recipes.schema import Recipe

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_FORWARD_FLOPS_PER_PARAMETER = 2  # a multiplication and an addition (Kaplan et al. 2020, arXiv 2001.08361)


def draw_samples(
    spec: SamplerSpec,
    recipe: Recipe,
    study_dir: Path,
    problems: Sequence[tuple[str, str]],
    progress: Progress,
    phase: str,
) -> tuple[dict[str, list[Sample]], dict[str, Any]]:
    """The samples of `problems`, (problem id, text) pairs, by id; only what is not on disk yet is sampled.

    Also the row of the ledger: what they cost. Prompt tokens are left out, as they are read once per problem and are
    few; FLOPs are null where the number of parameters is not known.

    Raises:
        UserError: the model or the server is not there, or problems remain without an answer.
    """
    model_dir, weights, parameters = str(spec.model), None, spec.parameters
    if spec.kind == "transformers":
        if spec.model == "base":
            manifest = read_manifest(study_dir / "base")
            if manifest is None:
                raise UserError("a sampler with `model: base` needs a recipe with `model` and arms or a suite")
            model_dir, weights = str(study_dir / "base"), manifest["output_hash"]
            parameters = parameters or manifest["facts"].get("parameters")
        else:
            lock = recipe.lock_of_model(spec.model, spec.revision)
            located = locate_model(model_dir, lock, spec.revision)
            weights = lock["revision"] if lock else None
            if located == Path(model_dir):  # a local folder, which may be written again
                weights = folder_state(located)
            model_dir = str(located)
    config = sampling_config(spec, recipe.prompt, weights)
    store = SampleStore(store_path(shared_folder(study_dir), config), config["max_completion_tokens"])
    try:
        if spec.kind == "endpoint":
            sample_from_endpoint(spec, recipe.prompt, problems, store, progress)
        else:
            dtype = recipe.model.dtype if recipe.model is not None else "bfloat16"
            sample_locally(spec, recipe.prompt, problems, store, model_dir, dtype, progress)
        samples_of = {identity: store.of(identity, spec.samples_per_problem) for identity, _ in problems}
    finally:
        store.close()
    drawn = [sample for samples in samples_of.values() for sample in samples]
    tokens = round(sum(sample.generated_tokens for sample in drawn))
    flops = None if parameters is None else round(_FORWARD_FLOPS_PER_PARAMETER * parameters * tokens)
    cost = {"phase": phase, "model": str(spec.model), "samples": len(drawn), "generated_tokens": tokens}
    return samples_of, cost | {"generate_flops": flops}


def graded_demonstrations(
    recipe: Recipe,
    study_dir: Path,
    rows: list[tuple[str, RawRow]],
    grader: Grader,
    tokenizer: "PreTrainedTokenizerBase | None",
    progress: Progress | None,
    passed_over: PassedOver | None = None,
) -> tuple[list[Demonstration], list[dict[str, Any]]]:
    """Let the recipe's teacher answer `rows`, (problem id, row) pairs, and grade every sample; also what it cost.

    `progress`: of the stage; None where the teacher is a script or a file. `passed_over`: counts the rows of stored
    completions that have none.

    Raises:
        UserError: the teacher cannot be reached or cannot answer, or a scripted demonstration is too long.
    """
    spec = recipe.corpus.teacher
    if spec is None:
        return [], []
    costs = []
    if spec.kind == "scripted":
        samples = {identity: _scripted(spec, recipe.corpus.seed, identity, row) for identity, row in rows}
    elif spec.kind == "stored":
        end = str(tokenizer.eos_token) if tokenizer is not None else ""
        samples = _stored(recipe, [identity for identity, _ in rows], end, passed_over or PassedOver())
    else:
        assert progress is not None
        problems = [(identity, row.problem) for identity, row in rows]
        samples, cost = draw_samples(spec, recipe, study_dir, problems, progress, "teacher")
        costs.append(cost)
    flat = [sample for identity, _ in rows for sample in samples[identity]]
    texts, golds = [sample.completion for sample in flat], {identity: row.reference_answer for identity, row in rows}
    grades = grader.grade_many(texts, [golds[sample.problem_id] for sample in flat], recipe.corpus.answer_form)
    lengths = _token_counts(tokenizer, texts)
    limit = recipe.prompt.max_completion_tokens
    # As tokens they would end or forge a turn in the middle of a completion.
    control = [] if tokenizer is None else [t for t in control_tokens(tokenizer) if t not in (THINK_OPEN, THINK_CLOSE)]
    if spec.kind == "scripted":
        check_longest(max(lengths, default=0), recipe)
    name = str(spec.model or spec.kind)
    return [
        Demonstration(
            sample.problem_id,
            sample.completion,
            split_thinking(sample.completion)[0] or "",
            name,
            sample.sample_index,
            grade.outcome.value,
            tokens,
            sample.finished and tokens <= limit and not any(token in sample.completion for token in control),
        )
        for sample, grade, tokens in zip(flat, grades, lengths, strict=True)
    ], costs


def _scripted(spec: SamplerSpec, seed: int, identity: str, row: RawRow) -> list[Sample]:
    if row.question is None:
        raise UserError(f"the scripted teacher cannot solve source {row.source!r}; it knows the synthetic world only")
    rng = random.Random(f"teacher {seed} {identity}")
    texts = [teacher_completion(rng, row.question) for _ in range(spec.samples_per_problem)]
    return [Sample(identity, index, text, True, 0.0) for index, text in enumerate(texts)]


def _stored(recipe: Recipe, identities: list[str], end: str, passed_over: PassedOver) -> dict[str, list[Sample]]:
    """Published completions of each problem, in file order; a problem without one gets an empty list.

    `end`: the end-of-turn token, which some publishers leave behind a completion; it is added again for training.
    """
    teacher = recipe.corpus.teacher
    assert teacher is not None
    assert teacher.stored is not None
    lock = recipe.lock.get("sources", {}).get(teacher.stored.name)
    spec = chosen(teacher.stored, lock)
    samples_of: dict[str, list[Sample]] = {identity: [] for identity in identities}
    for row in stored_rows(spec, lock, passed_over):
        text, _ = repaired(str(row[spec.problem_field]).replace("\r\n", "\n"))  # as in sources of problems
        identity = problem_id(bare_problem(text.strip(), spec.problem_prefix, spec.problem_suffix))
        value = row[spec.completion_field]
        for text in value if isinstance(value, list) else [value]:
            if (
                identity in samples_of
                and not is_empty(text)
                and len(samples_of[identity]) < teacher.samples_per_problem
            ):
                if not isinstance(text, str):
                    raise UserError(
                        f"corpus.teacher.stored {spec.name!r}: a completion at {spec.completion_field!r} is a "
                        f"{type(text).__name__}, not text; name the field with its text, as in "
                        f"{spec.completion_field}.0.content"
                    )
                kept = whole_characters(strip_thinking(text) if teacher.thinking == "stripped" else text)
                if end and kept.rstrip().endswith(end):
                    kept = kept.rstrip().removesuffix(end)
                # Nobody says whether a published completion was cut; one without a final answer is graded so.
                samples_of[identity].append(Sample(identity, len(samples_of[identity]), kept, True, 0.0))
    if not any(samples_of.values()):
        raise UserError(
            f"none of the problems of corpus.teacher.stored {spec.name!r} is a training problem; check its "
            "problem_field, problem_prefix and problem_suffix"
            + (f"; {passed_over}, the first: {passed_over.first}" if passed_over.rows else "")
        )
    return samples_of


def _token_counts(tokenizer: "PreTrainedTokenizerBase | None", texts: list[str]) -> list[int]:
    """Tokens of each text plus the end-of-turn token; 0 without a tokenizer."""
    if tokenizer is None:
        return [0] * len(texts)
    # A batch at a time: token lists are larger than texts.
    batches = (completion_ids(tokenizer, texts[start : start + 1000]) for start in range(0, len(texts), 1000))
    return [len(ids) for batch in batches for ids in batch]


def check_longest(tokens: int, recipe: Recipe) -> None:
    """Refuse a scripted demonstration of that many tokens if the limit is lower."""
    if tokens > recipe.prompt.max_completion_tokens:
        raise UserError(
            f"the longest demonstration has {tokens} tokens but prompt.max_completion_tokens is "
            f"{recipe.prompt.max_completion_tokens}; raise it, because a cut demonstration never learns to end"
        )


def check_scripted_demonstrations(recipe: Recipe, tokenizer: "PreTrainedTokenizerBase") -> None:
    """Refuse a length limit that the scripted teacher's longest answer of a sample of problems exceeds."""
    if recipe.corpus.teacher is not None and recipe.corpus.teacher.kind == "scripted":
        rng = random.Random("longest demonstration")
        texts = [teacher_completion(rng, question) for question in corpus_problems(recipe.corpus.seed, "train", 400)]
        check_longest(max(_token_counts(tokenizer, texts)), recipe)
