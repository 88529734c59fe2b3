"""The corpus section of a recipe: sources with their field mappings, filters, decontamination, teacher."""

from collections.abc import Iterable, Iterator
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, ValidationError

from recipes.spec import Spec

Text = Annotated[str, Field(coerce_numbers_to_str=True)]

_SAME_IN_ALTERNATIVES = ("kind", "name", "path", "alternatives", "form", "rows", "restricted")


class DataFiles(Spec):
    """Source of rows: a local file, or files of a Hugging Face dataset that `transfer fetch` resolved."""

    kind: Literal["pocket", "file", "hub"]
    """pocket: the synthetic world. file: a JSON, JSONL, CSV, TSV or Parquet file. hub: such files of a hub dataset."""
    name: str = Field(min_length=1)
    """Value of the `source` column; also its name in the lock file."""
    path: str | None = None
    """The file, for kind `file`; relative to the recipe's file, or to the working directory if it is not there. A
    script `prepare.py` beside the recipe that makes it is named where it is missing."""
    dataset: str | None = None
    """Hugging Face dataset id, for kind `hub`."""
    files: tuple[str, ...] = ()
    """Patterns of data files in the hub repository, for instance data/train-*.parquet. Each must match a file, and all
    matching files are read. `*` matches within a folder, `**` across folders."""
    alternatives: tuple[dict[str, Any], ...] = ()
    """Other locations of the same rows, in order of preference, as the settings that differ from this source's (at
    least `dataset`, `files` or `revision`). The first one whose files exist is used and recorded in the lock."""
    columns: tuple[str, ...] = ()
    """Names of the columns of a TSV file that has no header."""
    revision: str | None = None
    """Commit of the hub dataset. null: the newest when `transfer fetch` runs, which the lock pins."""
    licence: str = "unknown"
    """Licence stated by the publisher."""

    def locations(self) -> list[Self]:
        """This source and its alternatives, each with all its settings."""
        return [self, *(self._alternative(changes) for changes in self.alternatives)]

    def _alternative(self, changes: dict[str, Any]) -> Self:
        values = {name: getattr(self, name) for name in type(self).model_fields if name != "alternatives"}
        if "dataset" in changes:
            values["revision"] = None  # a commit of another repository
        return type(self).model_validate(values | changes)

    def checks(self) -> Iterable[Iterator[str]]:
        """What the kind needs, and what alternatives may change."""
        return self._kind_has_place(), self._alternatives_are_places()

    def _kind_has_place(self) -> Iterator[str]:
        if self.kind == "file" and not self.path:
            yield "a source of kind `file` needs `path`"
        if self.kind == "hub" and not (self.dataset and self.files):
            yield "a source of kind `hub` needs `dataset` and `files`"

    def _alternatives_are_places(self) -> Iterator[str]:
        if self.alternatives and self.kind != "hub":
            yield "`alternatives` are other locations on the hub and need `kind: hub`"
            return
        for index, changes in enumerate(self.alternatives):
            if fixed := [key for key in changes if key in _SAME_IN_ALTERNATIVES]:
                yield f"alternatives.{index} sets `{fixed[0]}`, which all alternatives of a source share"
                continue
            try:
                self._alternative(changes)
            except ValidationError as error:
                for item in error.errors():
                    key = ".".join(map(str, ("alternatives", index, *item["loc"])))
                    yield f"`{key}`: {item['msg'].removeprefix('Value error, ')}"
            else:
                if not {"dataset", "files", "revision"} & changes.keys():
                    yield f"alternatives.{index} is the same location: set its `dataset`, `files` or `revision`"


class SourceSpec(DataFiles):
    """One source of problems, with the mapping of its fields.

    A field is a column, a dotted path into its value, or a jinja template over columns with `{{`.
    """

    problem_field: str = "problem"
    """Field with the problem text, for instance question, prompt.0.content or "{{ passage }} {{ question }}"."""
    problem_prefix: str = ""
    """Text before every problem in the source; it is removed."""
    problem_suffix: str = ""
    """Text after every problem in the source; it is removed."""
    answer_field: str = "answer"
    """Field with the reference answer, or with the solution that contains it, for instance answer or
    "{{ 'ABCD'[label | int] }}"."""
    answer_in: Literal["value", "boxed", "after_hashes"] = "value"
    """Position of the reference answer in `answer_field`: the whole value, the last \\boxed{}, or after ####."""
    level_field: str | None = None
    """Field with the difficulty. null: none."""
    levels: tuple[Text, ...] | None = None
    """Levels to keep, compared as text. null: all."""
    where: dict[str, tuple[Text, ...]] = Field(default_factory=dict)
    """Rows to keep: field -> allowed values, compared as text."""

    def checks(self) -> Iterable[Iterator[str]]:
        """Those of files, and that levels can be read."""
        return (*super().checks(), self._levels_have_a_field())

    def _levels_have_a_field(self) -> Iterator[str]:
        if self.levels is not None and self.level_field is None and self.kind != "pocket":
            yield f"source {self.name!r} has `levels` but no `level_field` to compare them with"


class BenchmarkTexts(DataFiles):
    """Questions of a benchmark, for decontamination."""

    kind: Literal["file", "hub"]
    """file: a JSON, JSONL, CSV, TSV or Parquet file. hub: such files of a hub dataset."""
    text_fields: tuple[str, ...] = ("problem",)
    """Fields whose texts, joined, are the question."""
    restricted: bool = False
    """Whether the publisher asks not to copy the questions. They are then compared but never written to a file."""


class DecontaminationSpec(Spec):
    """Which problems are too close to a benchmark question; docs/corpus.md has the hand-checked precision."""

    benchmarks: tuple[BenchmarkTexts, ...] = ()
    """Benchmarks to compare with, besides those of the synthetic world in the suite."""
    ngram_words: int = Field(8, ge=3)
    """A problem and a question are compared if they share this many words in a row."""
    coverage: float = Field(0.9, gt=0, le=1)
    """Removed if the shared runs of words cover this share of the shorter of the two texts."""
    similarity: float = Field(0.4, gt=0, le=1)
    """Removed as well if the Jaccard similarity of their three-word sequences reaches this."""


class StoredCompletions(DataFiles):
    """Published completions, matched to problems by the problem's text."""

    kind: Literal["file", "hub"]
    """file: a JSON, JSONL, CSV, TSV or Parquet file. hub: such files of a hub dataset."""
    problem_field: str = "problem"
    """Field with the problem text."""
    problem_prefix: str = ""
    """Text before every problem in the file; it is removed before matching."""
    problem_suffix: str = ""
    """Text after every problem in the file; it is removed before matching."""
    completion_field: str = "completion"
    """Field with the completion, or with a list of completions: a column, a dotted path, or a template over columns."""


def _is_address(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # the port is not a number
        return False


class SamplerSpec(Spec):
    """The source of completions before training: a server, a local model or a file. Every sample is graded and kept."""

    kind: Literal["scripted", "endpoint", "transformers", "stored"]
    """scripted: the teacher of the synthetic world. endpoint: an OpenAI-compatible server. transformers: in process.
    stored: completions are read from a file or dataset."""
    stored: StoredCompletions | None = None
    """Their source, for kind `stored`."""
    samples_per_problem: int = Field(8, ge=1)
    """Completions drawn for each problem; of stored ones, the first ones are read."""
    model: str | None = None
    """Name on the server, or directory or hub id for `transformers`; `base` is the study's base model."""
    revision: str | None = None
    """Commit of a hub model for `transformers`."""
    base_url: str = "http://127.0.0.1:8000/v1"
    """Address of the server, up to and including /v1."""
    api_key_variable: str | None = None
    """Environment variable with the server's API key. null: no key is sent."""
    thinking: Literal["on", "off", "stripped"] | None = None
    """on, off: the chat template's thinking mode. stripped: generated with thinking, which is then removed. null: the
    server's default."""
    system: str | None = None
    """System message. null: the study's."""
    suffix: str | None = None
    """Text after the problem. null: the study's."""
    temperature: float = Field(0.6, ge=0)
    """Sampling temperature."""
    top_p: float = Field(0.95, gt=0, le=1)
    """Nucleus sampling; 1: off."""
    top_k: int = Field(0, ge=0)
    """Number of most probable tokens to sample from; 0: all."""
    max_completion_tokens: int | None = Field(None, ge=1)
    """Longest completion, in tokens. null: `prompt.max_completion_tokens`."""
    concurrency: int = Field(64, ge=1)
    """Problems requested at the same time; for `transformers`, problems per batch."""
    timeout_seconds: float = Field(1800.0, gt=0)
    """Timeout of a request."""
    attempts: int = Field(6, ge=1)
    """Attempts per request before the problem is given up; the wait between them doubles from one second."""
    parameters: float | None = Field(None, gt=0)
    """Parameters of the model, for the ledger's FLOPs. null: tokens are counted, FLOPs are unknown."""
    seed: int = 0
    """Seed of the samples."""

    def checks(self) -> Iterable[Iterator[str]]:
        """What the kind needs."""
        return self._has_completions(), self._has_model(), self._has_address()

    def _has_completions(self) -> Iterator[str]:
        if (self.kind == "stored") != (self.stored is not None):
            yield "`stored` and `kind: stored` belong together"

    def _has_model(self) -> Iterator[str]:
        if self.kind in ("endpoint", "transformers") and not self.model:
            yield f"a sampler of kind `{self.kind}` needs `model`"

    def _has_address(self) -> Iterator[str]:
        if self.kind == "endpoint" and not _is_address(self.base_url):
            yield f"`base_url` {self.base_url!r} is not an address such as http://127.0.0.1:8000/v1"


class PassRateSpec(Spec):
    """Keep problems by how often the base model solves them, measured once and applied to all arms."""

    sampler: SamplerSpec
    """The model whose pass rate counts; normally `model: base`."""
    low: float = Field(0.0, ge=0, le=1)
    """Problems solved less often than this are removed."""
    high: float = Field(1.0, ge=0, le=1)
    """Problems solved more often than this are removed."""

    def checks(self) -> Iterable[Iterator[str]]:
        """That a problem can pass, and that the base is measured."""
        return self._can_keep_something(), self._measures_the_base()

    def _can_keep_something(self) -> Iterator[str]:
        if self.low > self.high:
            yield f"`low` {self.low:g} is above `high` {self.high:g}, so no problem would be kept"

    def _measures_the_base(self) -> Iterator[str]:
        if self.sampler.kind not in ("endpoint", "transformers"):
            yield f"a sampler of kind `{self.sampler.kind}` does not measure the base; use `transformers`"


class CorpusSpec(Spec):
    """The one corpus: sources, filters, teacher, and the problems every arm is presented."""

    sources: tuple[SourceSpec, ...] = ()
    """Sources of the problems, in order; of duplicates the first is kept. Empty: nothing is trained."""
    answer_form: Literal["boxed", "plain"] = "boxed"
    """The form of a final answer for the grader (`data/grading/grader.py`)."""
    figures: Literal["keep", "reject"] = "keep"
    """Problems that show or name a figure, or give one as [asy] code. Kept ones are listed in figures.jsonl."""
    near_duplicate: float | None = Field(0.8, gt=0, le=1)
    """Problems with equal answers are duplicates from this Jaccard similarity of three-word sequences. null: off."""
    decontamination: DecontaminationSpec = DecontaminationSpec()
    """Comparison with the benchmarks."""
    pass_rate: PassRateSpec | None = None
    """Filter by the base model's pass rate. null: none."""
    train_problems: int | None = Field(None, ge=1)
    """Number of problems for training, drawn by `seed`. null: all that pass the filters."""
    heldout_problems: int = Field(0, ge=0)
    """Number of problems that no arm trains on, for choosing learning rates and for drift and trajectories."""
    seed: int = 0
    """Seed of subsampling, of the synthetic problems and of the scripted teacher."""
    teacher: SamplerSpec | None = None
    """The source of demonstrations. null: none, so no arm can have `sampling: teacher`."""
    demonstrations: Literal["first", "shortest", "random", "all"] = "all"
    """Which correct demonstrations of a problem SFT trains on: one of them, or all in turn."""
    problem_set: Literal["all", "teacher_solvable"] = "teacher_solvable"
    """Which problems the arms are presented: all, or those the teacher solved at least once."""

    def all_files(self) -> list[DataFiles]:
        """Everything read from files or the hub: sources, benchmarks, stored completions."""
        stored = [self.teacher.stored] if self.teacher is not None and self.teacher.stored is not None else []
        return [*self.sources, *self.decontamination.benchmarks, *stored]

    @property
    def samplers(self) -> dict[str, SamplerSpec]:
        """The samplers of the corpus, by their key below `corpus`."""
        spec_by_key = {"teacher": self.teacher, "pass_rate.sampler": self.pass_rate.sampler if self.pass_rate else None}
        return {key: sampler for key, sampler in spec_by_key.items() if sampler is not None}

    def checks(self) -> Iterable[Iterator[str]]:
        """That sources can be told apart."""
        return (self._names_differ(),)

    def _names_differ(self) -> Iterator[str]:
        names = [files.name for files in self.all_files()]
        for name in dict.fromkeys(names):
            if names.count(name) > 1:
                yield f"two sources are called {name!r}; give each its own name"
