"""Stages `diagnostics/base` and `diagnostics/<model>`: representation shift and token shift of a final checkpoint.

One model is in memory at a time. The base writes its samples and pooled states. A tuned model then samples and writes
its states: pooled ones of prompts, and those of the last layer at every token of every completion. Then the base reads
the same completions; with both models' last states and both output layers the distributions are exact. Each set of
prompts is written when it is complete, so a killed stage loses one set at most.
"""

import io
import json
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from safetensors.numpy import save

from data.attention import usable_attention
from data.language_model import generate_ids, load_model, to_device
from data.prompts.prompt import load_tokenizer
from eval.shifts.pca_shift import MEASURES as LAYER_MEASURES
from eval.shifts.pca_shift import paper_shift, paper_states, representation_shift, shuffled_cka
from eval.shifts.prompt_sets import PromptSet, prompt_sets
from eval.shifts.states import (
    POOLINGS,
    Head,
    completion_states,
    read_pooled_states,
    require_context,
    require_same_shape,
    shape_of,
    write_pooled_states,
)
from eval.shifts.token_shift import (
    KL_EDGES,
    MEASURES,
    RANK_EDGES,
    average,
    chunked_measures,
    histogram,
    paper_kl,
    prompt_draws,
    shifted_tokens,
)
from recipes.files import hash_files, write_atomic, write_json, write_parquet
from recipes.manifest import finish_stage, read_manifest
from recipes.progress import Progress
from recipes.schema import Recipe

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

Ids = list[int]
OWN, BASE, REFERENCE, GREEDY = "own_samples", "base_samples", "references", "greedy"
AVERAGED = ("kl_to_base", "kl_from_base", "entropy_tuned", "entropy_base", "rank_shift", "log_ratio")
_PAPER_TEXTS = 100  # as in the authors' script


def run(recipe: Recipe, study_dir: Path, stage_dir: Path, resume: bool, model_dir: str) -> None:
    """Measure the model in `study_dir / model_dir`. The base only writes what other models are compared with."""
    sets = prompt_sets(recipe, study_dir)
    stage = _Stage(recipe, study_dir, stage_dir, model_dir)
    if model_dir == "base":
        stage.measure_base(sets)
    else:
        stage.measure_tuned(sets)


class _Stage:
    def __init__(self, recipe: Recipe, study_dir: Path, stage_dir: Path, model_dir: str) -> None:
        self.recipe, self.spec, self.model_spec = recipe, recipe.require_diagnostics(), recipe.require_model()
        self.study_dir, self.stage_dir = study_dir, stage_dir
        self.model_dir, self.label = study_dir / model_dir, stage_dir.name
        self.base_dir = stage_dir.parent / "base"
        self.tokenizer = load_tokenizer(str(study_dir / "base"))

    def load(self, directory: Path) -> "PreTrainedModel":
        dtype = self.spec.dtype or self.model_spec.dtype
        return load_model(directory, dtype, usable_attention(self.model_spec, dtype))

    def measure_base(self, sets: Sequence[PromptSet]) -> None:
        """Samples and pooled states of the base."""
        progress = Progress(self.stage_dir, len(sets), "sets of prompts")
        model = self.load(self.model_dir)
        for done, item in enumerate(sets, start=1):
            self.sample_and_pool(model, item, {OWN})
            progress.update(done, item.name)
        names = [path.name for item in sets for path in self.kept_of_base(item)]
        facts = {"shape": shape_of(model, self.tokenizer), "sets": [item.name for item in sets]}
        finish_stage(self.stage_dir, hash_files(self.stage_dir, names), facts)

    def kept_of_base(self, item: PromptSet) -> list[Path]:
        paper = [self.stage_dir / f"paper-{item.name}.npy"] if self.spec.paper else []
        return [self.stage_dir / f"samples-{item.name}.json", self.stage_dir / f"states-{item.name}.npy", *paper]

    def sample_and_pool(self, model: "PreTrainedModel", item: PromptSet, kinds: set[str]) -> dict[str, list[Ids]]:
        """A model's completions of a set by kind; writes files of them and of its pooled states."""
        spec = self.spec
        require_context(model, [len(ids) for ids in item.prompt_ids], spec.max_completion_tokens, item.name)
        path = self.stage_dir / f"samples-{item.name}.json"
        if not path.exists():
            write_json(path, {kind: self.sample(model, item, kind) for kind in sorted(kinds)})
        states = self.stage_dir / f"states-{item.name}.npy"
        if not states.exists():
            write_pooled_states(model, item.prompt_ids, states, spec.batch_tokens, f"{self.label} on {item.name}")
        paper = self.stage_dir / f"paper-{item.name}.npy"
        if spec.paper and not paper.exists():
            texts = item.paper_texts[:_PAPER_TEXTS]
            _write_array(paper, paper_states(model, self.tokenizer, texts, spec.batch_tokens))
        return dict(json.loads(path.read_text()))

    def sample(self, model: "PreTrainedModel", item: PromptSet, kind: str) -> list[Ids]:
        """One completion of each prompt: at temperature 1 from the whole distribution, or greedy."""
        rows: list[Ids] = []
        for start in range(0, len(item.prompts), self.spec.batch_size):
            rows += generate_ids(
                model,
                self.tokenizer,
                item.prompts[start : start + self.spec.batch_size],
                max_new_tokens=self.spec.max_completion_tokens,
                temperature=0.0 if kind == GREEDY else 1.0,
                top_p=1.0,
                top_k=0,
                seed=(self.spec.seed + zlib.crc32(f"{item.name} {start}".encode())) % 2**32,
            )
        return rows

    def measure_tuned(self, sets: Sequence[PromptSet]) -> None:
        """All measures of a tuned model against the base."""
        progress = Progress(self.stage_dir, 2 * len(sets), "sets of prompts, read twice")
        waiting = [item for item in sets if not self.result(item).exists()]
        done = len(sets) - len(waiting)
        read = [item for item in waiting if not self.hidden_marker(item).exists()]

        # The tuned model writes its samples and states.
        head_path = self.stage_dir / "head.safetensors"
        if read or (waiting and not head_path.exists()):
            model = self.load(self.model_dir)
            base_manifest = read_manifest(self.base_dir)
            assert base_manifest is not None
            shape = shape_of(model, load_tokenizer(str(self.model_dir)))
            require_same_shape(base_manifest["facts"]["shape"], shape, self.label)
            Head(model, self.label).write(head_path)
            for count, item in enumerate(read, start=1):
                self.write_tuned(model, item)
                progress.update(2 * done + len(waiting) - len(read) + count, item.name)
            del model

        # The base reads the same completions.
        base = self.load(self.study_dir / "base") if waiting else None
        for count, item in enumerate(waiting, start=1):
            assert base is not None
            self.compare(base, item, head_path)
            progress.update(2 * done + len(waiting) + count, item.name)
        for path in [head_path, *self.stage_dir.glob("hidden-*"), *self.stage_dir.glob("states-*")]:
            path.unlink(missing_ok=True)  # also those left by a kill after the result was written
        names = [name for item in sets for name in self.outputs(item)]
        finish_stage(self.stage_dir, hash_files(self.stage_dir, names), {"sets": [item.name for item in sets]})

    def result(self, item: PromptSet) -> Path:
        return self.stage_dir / f"shift-{item.name}.json"

    def outputs(self, item: PromptSet) -> list[str]:
        return [f"{kind}-{item.name}.{end}" for kind, end in OUTPUTS]

    def hidden_marker(self, item: PromptSet) -> Path:
        return self.stage_dir / f"hidden-{item.name}.complete"

    def completions(self, item: PromptSet, own: Mapping[str, list[Ids]]) -> dict[str, list[Ids]]:
        """The completions that both models read, by kind."""
        base = json.loads((self.base_dir / f"samples-{item.name}.json").read_text())
        texts = {OWN: own[OWN], BASE: base[OWN]}
        texts |= {} if item.references is None else {REFERENCE: item.references}
        return texts | ({GREEDY: own[GREEDY]} if self.spec.paper else {})

    def write_tuned(self, model: "PreTrainedModel", item: PromptSet) -> None:
        own = self.sample_and_pool(model, item, {OWN, GREEDY} if self.spec.paper else {OWN})
        for kind, rows in self.completions(item, own).items():
            pairs = list(zip(item.prompt_ids, rows, strict=True))
            ends = np.cumsum([len(row) for row in rows])
            path = self.stage_dir / f"hidden-{item.name}-{kind}.npy"
            stored = None
            for row, states in completion_states(model, pairs, self.spec.batch_tokens, f"{self.label}, {item.name}"):
                values = _as_numpy(states)
                if stored is None:
                    shape = (int(ends[-1]), values.shape[1])
                    stored = np.lib.format.open_memmap(path, mode="w+", dtype=values.dtype, shape=shape)
                stored[ends[row] - len(values) : ends[row]] = values
            assert stored is not None
            stored.flush()
        write_atomic(self.hidden_marker(item), "")

    def compare(self, base: "PreTrainedModel", item: PromptSet, head_path: Path) -> None:
        """Compute the measures of one set from both models' states, then remove the stored states."""
        own = json.loads((self.stage_dir / f"samples-{item.name}.json").read_text())
        count = len(item.prompts)
        draw_DR = prompt_draws(count, self.spec.draws, (self.spec.seed, zlib.crc32(item.name.encode())))
        tuned_head, base_head = Head.read(head_path, to_device(base)), Head(base, "base")
        draws: dict[str, np.ndarray] = {}
        tables, texts = [], {}
        for kind, rows in self.completions(item, own).items():
            measures_TM, response_T = self.token_table(base, item, kind, rows, tuned_head, base_head)
            ids_T = np.concatenate([np.array(row) for row in rows])
            texts[kind] = self.summarise(measures_TM, response_T, draw_DR, rows, draws, kind)
            if kind == OWN:
                words = {int(token): self.tokenizer.decode([int(token)]) for token in np.unique(ids_T)}
                texts[kind]["shifted"] = shifted_tokens(measures_TM, ids_T, words)
            tables.append(_table(kind, measures_TM, response_T, ids_T))
        layers, draws["layers"] = self.layers(item, draw_DR)
        paper: dict[str, Any] = {}
        if self.spec.paper:
            pair = [read_pooled_states(folder / f"paper-{item.name}.npy") for folder in (self.base_dir, self.stage_dir)]
            paper = paper_shift(*pair) | {"kl": texts[GREEDY].pop("paper_kl")}
        write_parquet(self.stage_dir / f"tokens-{item.name}.parquet", pa.concat_tables(tables).unify_dictionaries())
        arrays = {name: np.ascontiguousarray(values, dtype=np.float32) for name, values in draws.items()}
        write_atomic(self.stage_dir / f"draws-{item.name}.safetensors", save(arrays))
        write_json(
            self.result(item),
            {"set": item.name, "group": item.group, "prompts": count}
            | {"layers": layers, "texts": texts, "paper": paper, "drawn": list(draws)},
        )
        for path in [*self.stage_dir.glob(f"hidden-{item.name}-*.npy"), self.hidden_marker(item)]:
            path.unlink()
        for name in ("states", "paper"):
            (self.stage_dir / f"{name}-{item.name}.npy").unlink(missing_ok=True)

    def token_table(
        self, base: "PreTrainedModel", item: PromptSet, kind: str, rows: list[Ids], tuned_head: Head, base_head: Head
    ) -> tuple[np.ndarray, np.ndarray]:
        """Measures of every token, [tokens, measures], and the response each belongs to."""
        import torch

        device = to_device(base)
        hidden = np.load(self.stage_dir / f"hidden-{item.name}-{kind}.npy", mmap_mode="r", allow_pickle=False)
        ends = np.cumsum([len(row) for row in rows])
        measures_TM = np.empty((int(ends[-1]), len(MEASURES)))
        pairs = list(zip(item.prompt_ids, rows, strict=True))
        for row, states in completion_states(base, pairs, self.spec.batch_tokens, f"base, {item.name}"):
            part = slice(ends[row] - len(rows[row]), ends[row])
            tuned = _as_torch(np.array(hidden[part]), states.dtype).to(device)
            ids = torch.tensor(rows[row], device=device)
            measures_TM[part] = chunked_measures(tuned, states, tuned_head, base_head, ids)
        return measures_TM, np.repeat(np.arange(len(rows)), [len(row) for row in rows])

    def summarise(
        self,
        measures_TM: np.ndarray,
        response_T: np.ndarray,
        draw_DR: np.ndarray,
        rows: list[Ids],
        draws: dict[str, np.ndarray],
        kind: str,
    ) -> dict[str, Any]:
        """Averages and histograms of one kind of text; their draws go into `draws`."""
        column = {name: measures_TM[:, index] for index, name in enumerate(MEASURES)}
        column["rank_shift"] = column["rank_base"] - column["rank_tuned"]
        column["log_ratio"] = column["logprob_tuned"] - column["logprob_base"]
        averages = {}
        for name in AVERAGED:
            averaged = average(column[name], response_T, draw_DR)
            averages[name] = {"per_token": averaged.per_token, "per_response": averaged.per_response}
            draws[f"{kind}/{name}/per_token"] = averaged.per_token_D
            draws[f"{kind}/{name}/per_response"] = averaged.per_response_D
        result: dict[str, Any] = {
            "tokens": len(response_T),
            "responses": len(rows),
            "empty": sum(len(row) == 1 and row[0] == self.tokenizer.eos_token_id for row in rows),
            "averages": averages,
            "kl_histogram": histogram(column["kl_to_base"], KL_EDGES),
            "rank_histogram": histogram(column["rank_base"], RANK_EDGES),
        }
        if kind == GREEDY:
            first, second = (
                [column[name][response_T == response] for response in range(len(rows))]
                for name in ("logprob_tuned", "logprob_base")
            )
            result["paper_kl"] = paper_kl(first, second)
        return result

    def layers(self, item: PromptSet, draw_DN: np.ndarray) -> tuple[dict[str, Any], np.ndarray]:
        """Layer measures by pooling, and their draws, [poolings, draws, levels, measures]."""
        base, tuned = (read_pooled_states(f / f"states-{item.name}.npy") for f in (self.base_dir, self.stage_dir))
        rng = np.random.default_rng([self.spec.seed, zlib.crc32(item.name.encode()), 1])
        measures: dict[str, Any] = {}
        drawn = []
        for index, pooling in enumerate(POOLINGS):
            levels = [
                representation_shift(base[level, index], tuned[level, index], draw_DN, self.spec.components)
                for level in range(len(base))
            ]
            measures[pooling] = {
                name: [_or_none(estimate[column]) for estimate, _ in levels]
                for column, name in enumerate(LAYER_MEASURES)
            }
            measures[pooling]["shuffled_cka"] = [
                _or_none(shuffled_cka(np.array(base[level, index]), np.array(tuned[level, index]), rng))
                for level in range(len(base))
            ]
            drawn.append(np.stack([draws for _, draws in levels], axis=1))
        return measures, np.stack(drawn)


OUTPUTS = (("shift", "json"), ("draws", "safetensors"), ("tokens", "parquet"), ("samples", "json"))


def _or_none(value: float) -> float | None:
    """A value for JSON, which has no NaN."""
    return float(value) if np.isfinite(value) else None


def _as_numpy(states: "torch.Tensor") -> np.ndarray:
    """A tensor as an array; bfloat16, which numpy lacks, as 16-bit integers with the same bits."""
    import torch

    states = states.cpu().contiguous()
    return states.view(torch.uint16).numpy() if states.dtype == torch.bfloat16 else states.numpy()


def _as_torch(values: np.ndarray, dtype: "torch.dtype") -> "torch.Tensor":
    import torch

    tensor = torch.from_numpy(values)
    return tensor.view(dtype) if dtype == torch.bfloat16 else tensor


def _write_array(path: Path, values: np.ndarray) -> None:
    buffer = io.BytesIO()
    np.save(buffer, values, allow_pickle=False)
    write_atomic(path, buffer.getvalue())


def _table(kind: str, measures_TM: np.ndarray, response_T: np.ndarray, ids_T: np.ndarray) -> pa.Table:
    columns: dict[str, Any] = {
        "kind": pa.array([kind] * len(ids_T)).dictionary_encode(),
        "response": pa.array(response_T, pa.int32()),
        "token": pa.array(ids_T, pa.int32()),
    }
    for index, name in enumerate(MEASURES):
        whole = name.startswith("rank")
        columns[name] = pa.array(measures_TM[:, index].astype(np.int64 if whole else np.float32))
    return pa.table(columns)
