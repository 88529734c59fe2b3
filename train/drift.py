"""Stages `drift/base` and `drift/<arm>/seed-<n>`: how far each checkpoint of a run has moved from the base.

One job for every arm, from saved weights alone, because SFT logs no KL term. Each checkpoint answers a fixed set of
held-out problems, and both models score the answers: its own for KL(policy || base), the base's for KL(base || policy).
KL and entropy are exact over the vocabulary, in nats, means over the tokens of the completions.

Two models whose weights differ at all round differently. In bfloat16 that alone is a KL, which the base's row has as
`rounding_kl`: the KL between the base and itself with a few weights moved by their last bit.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data.attention import usable_attention
from data.corpus.rows import read_problems
from data.grading.grader import Grader, Outcome
from data.language_model import device_name, generate_ids, load_model, on_cpu, stop_ids, to_device
from data.prompts.prompt import load_tokenizer, render_prompt
from data.sampling.engine import sample_with_engine
from recipes.diagnostics_schema import LOGITS_TOKENS
from recipes.files import hash_files, read_json_lines, write_json, write_json_lines
from recipes.layout import run_folder
from recipes.manifest import finish_stage
from recipes.progress import Progress
from recipes.schema import Recipe
from train.models.directory import checkpoints_of_run

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

DRIFT, SAMPLES = "drift.jsonl", "samples.json"
Engine = dict[str, str | None]
"""What sampled completions: its name, version, device and dtype."""


def run(
    recipe: Recipe, study_dir: Path, stage_dir: Path, resume: bool, arm: str | None = None, seed: int | None = None
) -> None:
    """Measure the base (without `arm`), or every checkpoint of a run; writes one row each to `drift.jsonl`."""
    meter = DriftMeter(recipe, study_dir)

    # The base's own answers, which all arms are scored on
    if arm is None or seed is None:
        row, samples, engine = meter.measure(study_dir / "base")
        meter.grader.close()
        write_json(stage_dir / SAMPLES, samples)
        _finish(stage_dir, [{"step": 0} | row], [SAMPLES], engine)
        return
    base_samples = json.loads((study_dir / "drift" / "base" / SAMPLES).read_text())

    # Every checkpoint; rows of an interrupted stage are read from disk
    run_dir = run_folder(study_dir, arm, seed)
    checkpoints = checkpoints_of_run(run_dir)
    progress = Progress(stage_dir, len(checkpoints), "checkpoints")
    rows = read_json_lines(stage_dir / DRIFT) if resume else []
    last: Engine | None = None
    for step, directory in checkpoints.items():
        if step not in {row["step"] for row in rows}:
            row, _, last = meter.measure(directory, base_samples)
            rows.append({"step": step} | row)
            write_json_lines(stage_dir / DRIFT, rows)
        progress.update(len(rows))
    meter.grader.close()
    _finish(stage_dir, rows, [], last)


class DriftMeter:
    """The held-out problems, and the base that all checkpoints are compared with."""

    def __init__(self, recipe: Recipe, study_dir: Path) -> None:
        self.recipe, self.spec, model = recipe, recipe.require_drift(), recipe.require_model()
        self.dtype = self.spec.dtype or model.dtype
        self.attention = usable_attention(model, self.dtype)
        self.tokenizer = load_tokenizer(str(study_dir / "base"))
        self.problems = sorted(read_problems(study_dir / "corpus", "heldout"))[: self.spec.problems]
        self.prompts = [render_prompt(self.tokenizer, problem.problem, recipe.prompt) for problem in self.problems]
        self.prompt_ids = [self.tokenizer(prompt)["input_ids"] for prompt in self.prompts]
        self.base = load_model(study_dir / "base", self.dtype, self.attention)
        self.grader = Grader()

    def measure(
        self, directory: Path, base_samples: list[list[int]] | None = None
    ) -> tuple[dict[str, Any], list[list[int]], Engine]:
        """The row of a checkpoint, its completions as token ids, and what sampled them.

        `base_samples`: the base's completions; None for the base itself.
        """
        with_vllm = self.recipe.resources.vllm is not None
        if with_vllm:
            samples, engine = self._sample_with_vllm(directory)
        policy = self.base if base_samples is None else load_model(directory, self.dtype, self.attention)
        for model in (policy, self.base):
            to_device(model)
        if not with_vllm:
            samples, engine = self._sample(policy)
        stops = stop_ids(policy)
        grades = self.grader.grade_many(
            [self.tokenizer.decode(ids, skip_special_tokens=True) for ids in samples],
            [problem.reference_answer for problem in self.problems],
            self.recipe.corpus.answer_form,
        )
        pairs, tokens = list(zip(self.prompt_ids, samples, strict=True)), sum(map(len, samples))
        if base_samples is None:
            own = [rounding_divergence(self.base, *pair) for pair in pairs]
            kl = {"kl_to_base": 0.0, "kl_from_base": 0.0, "rounding_kl": sum(kl for kl, _ in own) / tokens}
        else:
            own = [divergence(policy, self.base, *pair) for pair in pairs]
            theirs = [divergence(self.base, policy, *pair) for pair in zip(self.prompt_ids, base_samples, strict=True)]
            kl = {
                "kl_to_base": sum(kl for kl, _ in own) / tokens,
                "kl_from_base": sum(kl for kl, _ in theirs) / sum(map(len, base_samples)),
            }
        row = kl | {
            "entropy": sum(entropy for _, entropy in own) / tokens,
            "mean_tokens": tokens / len(samples),
            "truncated": sum(ids[-1] not in stops for ids in samples) / len(samples),
            "no_answer": sum(grade.outcome is Outcome.NO_ANSWER for grade in grades) / len(samples),
            "correct": sum(grade.correct for grade in grades) / len(samples),
            "completions": len(samples),
        }
        return row, samples, engine

    def _sample_with_vllm(self, directory: Path) -> tuple[list[list[int]], Engine]:
        """A checkpoint's completions, and the engine.

        Transformers keeps the cache of a whole batch at its longest; with long completions that is more than a GPU has.
        """
        if not on_cpu():  # the engine needs the GPU's memory
            import torch

            self.base.to("cpu")
            torch.cuda.empty_cache()
        return sample_with_engine(
            directory,
            self.prompt_ids,
            max_prompt_tokens=self.recipe.prompt.max_prompt_tokens,
            max_new_tokens=self.recipe.prompt.max_completion_tokens,
            temperature=1.0,
            stop_ids=(self.tokenizer.eos_token_id, self.tokenizer.pad_token_id),
            seeds=[self.spec.seed + index for index in range(len(self.prompts))],
            dtype=self.recipe.require_model().dtype,
        )

    def _sample(self, policy: "PreTrainedModel") -> tuple[list[list[int]], Engine]:
        """The same by transformers."""
        samples: list[list[int]] = []
        for start in range(0, len(self.prompts), self.spec.batch_size):
            samples += generate_ids(
                policy,
                self.tokenizer,
                self.prompts[start : start + self.spec.batch_size],
                max_new_tokens=self.recipe.prompt.max_completion_tokens,
                temperature=1.0,
                top_p=1.0,
                top_k=0,
                seed=self.spec.seed + start,
            )
        library = version("transformers")
        return samples, {"name": "transformers", "version": library, "device": device_name(), "dtype": self.dtype}


def divergence(
    model: "PreTrainedModel", other: "PreTrainedModel", prompt: list[int], completion: list[int]
) -> tuple[float, float]:
    """Sum over the tokens of a completion of KL(model || other) and of the model's entropy, in nats, exact."""
    states, others = (_states(one, prompt, completion) for one in (model, other))
    return _kl_and_entropy(_logprobs(model, states), _logprobs(other, others))


def rounding_divergence(model: "PreTrainedModel", prompt: list[int], completion: list[int]) -> tuple[float, float]:
    """`divergence` of a model from itself when it rounds differently, and its entropy."""
    states = _states(model, prompt, completion)
    with _other_rounding(model):
        others = _states(model, prompt, completion)
    return _kl_and_entropy(_logprobs(model, states), _logprobs(model, others))


@contextmanager
def _other_rounding(model: "PreTrainedModel") -> Iterator[None]:
    """One weight in each row of a matrix of the first layer moved by its last bit, which no float32 model notices."""
    import torch

    layers = next(module for module in model.get_decoder().modules() if isinstance(module, torch.nn.ModuleList))
    weight = [parameter for parameter in layers[0].parameters() if parameter.dim() > 1][-1].detach()
    kept = weight.clone()
    bits = weight.view(torch.int16 if weight.element_size() == 2 else torch.int32).flatten(0, -2)
    rows = torch.arange(len(bits), device=bits.device)
    bits[rows, rows % bits.shape[1]] ^= 1
    try:
        yield
    finally:
        weight.copy_(kept)


def _kl_and_entropy(left: "Iterator[torch.Tensor]", right: "Iterator[torch.Tensor]") -> tuple[float, float]:
    kl = entropy = 0.0
    for logprobs, others in zip(left, right, strict=True):
        probabilities = logprobs.exp()
        kl += float((probabilities * (logprobs - others)).sum())
        entropy -= float((probabilities * logprobs).sum())
    return kl, entropy


def _states(model: "PreTrainedModel", prompt: list[int], completion: list[int]) -> "torch.Tensor":
    """The last layer's states that predict each token of the completion, [positions, width]."""
    import torch

    with torch.no_grad():
        ids = torch.tensor([prompt + completion], device=model.device)
        return model.get_decoder()(input_ids=ids, use_cache=False).last_hidden_state[0, len(prompt) - 1 : -1]


def _logprobs(model: "PreTrainedModel", states: "torch.Tensor") -> "Iterator[torch.Tensor]":
    """Log-probabilities of all tokens at each position, [positions, vocabulary], in chunks."""
    import torch

    for start in range(0, len(states), LOGITS_TOKENS):
        with torch.no_grad():  # left before every yield: a suspended generator would keep gradients off elsewhere
            logprobs = model.get_output_embeddings()(states[start : start + LOGITS_TOKENS]).float().log_softmax(-1)
        yield logprobs


def _finish(stage_dir: Path, rows: list[dict[str, Any]], others: list[str], engine: Engine | None) -> None:
    """`engine`: what sampled the completions; None if all rows were read from disk."""
    write_json_lines(stage_dir / DRIFT, rows)
    finish_stage(stage_dir, hash_files(stage_dir, [DRIFT, *others]), {"checkpoints": len(rows), "engine": engine})
