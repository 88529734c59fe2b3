"""The samples that models generated before training: one store for all studies beside each other.

A file holds the samples of one configuration: model, prompt, decoding, seed. The length limit is left out, because a
sample that finished within a limit is the sample of every longer one. Several studies may append at the same time.
"""

import hashlib
import json
import os
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from recipes.corpus_schema import SamplerSpec
from recipes.errors import UserError
from recipes.files import hash_json
from recipes.training_schema import PromptSpec

FOLDER_VARIABLE = "TRANSFER_SAMPLES"


class Sample(NamedTuple):
    """One completion of one problem."""

    problem_id: str
    sample_index: int
    completion: str
    """The whole text after the prompt, thinking included, without the end-of-turn token."""
    finished: bool
    """False if it was cut off by the length limit."""
    generated_tokens: float
    """Tokens the model generated for it; where the server reports only a request's sum, its share by characters."""
    limit: int | None = None
    """Longest completion of the request, in tokens. null: that of the reader."""
    seed: int | None = None
    """Seed of the request that brought it. null: it came in a batch of a local model."""
    choices: int = 1
    """Completions of that request."""
    choice: int = 0
    """Its index among them."""


def sampling_config(spec: SamplerSpec, prompt: PromptSpec, weights: str | None = None) -> dict[str, Any]:
    """Everything that decides what a sampler would generate, as JSON values. `weights`: state of a local model."""
    values = spec.model_dump(
        mode="json", include={"model", "revision", "thinking", "temperature", "top_p", "top_k", "seed"}
    )
    shown, is_local = shown_prompt(spec, prompt), spec.kind == "transformers"
    return values | {
        "system": shown.system,
        "suffix": shown.suffix,
        "max_completion_tokens": shown.max_completion_tokens,
        # Batches of a local model share random numbers, so their size is part of the result.
        "local": {"weights": weights, "batch": spec.concurrency} if is_local else None,
        "thinking_mode": shown.thinking if is_local else None,
    }


def shown_prompt(spec: SamplerSpec, prompt: PromptSpec) -> PromptSpec:
    """The prompt of a study with what its sampler sets otherwise."""
    own = spec.model_dump(include={"system", "suffix", "max_completion_tokens"}, exclude_none=True)
    return prompt.model_copy(update=own | ({"thinking": spec.thinking != "off"} if spec.thinking else {}))


def shared_folder(study_dir: Path) -> Path:
    """Where studies share their samples: `samples` beside them, or what the environment variable names."""
    return Path(os.environ.get(FOLDER_VARIABLE) or study_dir.parent / "samples")


def store_path(folder: Path, config: dict[str, Any]) -> Path:
    """The file of one configuration, whatever the length limit."""
    key = {name: value for name, value in config.items() if name != "max_completion_tokens"}
    stem = "".join(letter if letter.isalnum() else "-" for letter in str(config["model"]).rpartition("/")[2])
    return folder / f"{stem}-{hash_json(key)[:12]}.jsonl"


def sample_seed(seed: int, problem_id: str, index: int) -> int:
    """Seed of a request, from its problem and sample index alone: 31 bits."""
    digest = hashlib.sha256(f"{seed} {problem_id} {index}".encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1


def whole_characters(text: str) -> str:
    """A text whose surrogate pairs are characters; half of a pair, which no file can hold, becomes U+FFFD."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


class SampleStore:
    """The samples on disk of one configuration, as they are under a length limit, and appending to them.

    A file lock is held while lines are appended, and what others appended is read before; a sample that two processes
    drew at the same time is kept once, the first of them. A line that a kill cut off is dropped by the next writer.

    Args:
        path: JSON lines, one per sample.
        limit: longest completion, in tokens. None: every sample is taken as it is.
    """

    def __init__(self, path: Path, limit: int | None = None) -> None:
        from filelock import FileLock

        self.path, self.limit = path, limit
        path.parent.mkdir(parents=True, exist_ok=True)
        self._samples: dict[str, dict[int, Sample]] = defaultdict(dict)
        self._read = 0  # bytes
        self._lock = FileLock(path.with_suffix(".lock"))
        self._file = path.open("ab")
        self.refresh()

    def refresh(self) -> None:
        """Read the lines that were appended since the last time.

        Raises:
            UserError: one of them is not a sample.
        """
        if os.fstat(self._file.fileno()).st_size <= self._read:
            return
        with self.path.open("rb") as file:
            file.seek(self._read)
            for line in file:
                if not line.endswith(b"\n"):  # another process is writing it, or was killed
                    break
                try:
                    sample = Sample(*json.loads(line))
                except (ValueError, TypeError):
                    raise UserError(f"{self.path} is damaged; delete it to draw these samples again") from None
                self._read += len(line)
                self._take(sample)

    def _take(self, sample: Sample) -> bool:
        """Keep a sample in a free place, or in that of one that was cut off, if it is finished or has a longer limit.

        Returns whether it was kept.
        """
        known = self._samples[sample.problem_id].get(sample.sample_index)
        if known is not None and (known.finished or not _longer(sample, known)):
            return False
        self._samples[sample.problem_id][sample.sample_index] = sample
        return True

    def missing(self, problem_id: str, count: int) -> list[int]:
        """Sample indices below `count` that are not there yet, or were cut off by a shorter limit."""
        known = self._samples[problem_id]
        return [index for index in range(count) if index not in known or self._is_cut_short(known[index])]

    def cut_short(self, problem_id: str, index: int) -> Sample | None:
        """A sample that was cut off by a shorter limit than this; None if there is none."""
        known = self._samples[problem_id].get(index)
        return known if known is not None and self._is_cut_short(known) else None

    def _is_cut_short(self, sample: Sample) -> bool:
        shorter = self.limit is not None and sample.limit is not None and sample.limit < self.limit
        return shorter and not sample.finished

    def add(self, samples: Sequence[Sample]) -> None:
        """Append samples and hand them to the operating system, so that a killed process loses none."""
        with self._lock:
            self.refresh()
            if os.fstat(self._file.fileno()).st_size > self._read:  # the rest of a line whose writer was killed
                os.ftruncate(self._file.fileno(), self._read)
            kept = [sample for sample in samples if self._take(sample)]
            lines = "".join(json.dumps(sample) + "\n" for sample in kept).encode()  # ASCII: whatever a server says
            self._file.write(lines)
            self._file.flush()
            self._read += len(lines)

    def of(self, problem_id: str, count: int) -> list[Sample]:
        """The first `count` samples of a problem, by index, as they are under the limit."""
        return [under_limit(self._samples[problem_id][index], self.limit) for index in range(count)]

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _longer(sample: Sample, known: Sample) -> bool:
    return sample.finished or (sample.limit or 0) > (known.limit or 0)


def under_limit(sample: Sample, limit: int | None) -> Sample:
    """What a sample of a longer limit would have been under `limit`: cut off, its text in proportion to its tokens."""
    if limit is None or sample.generated_tokens <= limit:
        return sample
    kept = sample.completion[: int(len(sample.completion) * limit / sample.generated_tokens)]
    return sample._replace(completion=kept, finished=False, generated_tokens=float(limit))
