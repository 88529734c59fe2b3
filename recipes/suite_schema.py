"""The sections of a recipe about evaluation: benchmarks, decoding, statistics and what was decided beforehand."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from recipes.corpus_schema import DataFiles, Spec

NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"  # safe as a file name and in a figure
Name = Annotated[str, Field(pattern=NAME)]

Scoring = Literal[
    "boxed",
    "plain",
    "exact",
    "last_box_text",
    "first_line",
    "choice",
    "choice_box",
    "choice_anywhere",
    "yes_no",
    "yes_no_first_line",
    "span_em",
    "span_f1",
    "span_em_first_line",
    "span_f1_first_line",
    "instructions_strict",
    "instructions_loose",
    "each_instruction_strict",
    "each_instruction_loose",
    "code",
    "likelihood",
    "likelihood_per_byte",
    "strict_yes_no",
    "f1_yes_no",
    "strict_likelihood",
    "f1_likelihood",
]


class BenchmarkData(DataFiles):
    """Where the questions of a benchmark are, and which of their columns are what."""

    kind: Literal["file", "hub"]
    """file: JSON, JSONL, CSV, TSV or Parquet. hub: such files of a hub dataset, resolved by `transfer fetch`."""
    name: str = ""
    """Name in the lock file; empty: the benchmark's."""
    form: Literal[
        "fields",
        "gpqa",
        "coqa",
        "halueval",
        "mc_taco",
        "acpbench",
        "headqa",
        "ifeval",
        "olympiadbench",
        "livecodebench",
    ] = "fields"
    """How a row becomes a question. fields: by the columns below. Others: as that benchmark publishes its rows."""
    fields: dict[str, str] = Field(default_factory=dict)
    """For form `fields`: name in the task file -> column. A dot steps into a value."""
    id_field: str | None = None
    """Column with the identity of a question. null: a hash of its fields."""
    reference_field: str = "answer"
    """Column with the reference answer, for form `fields`."""
    cluster_field: str | None = None
    """Column that is equal for questions which share a context; they are resampled together. null: none do."""
    rows: int | None = Field(None, ge=2)
    """How many questions to take, chosen once by their hashes and the same for all models. null: all."""
    published_rows: int | None = Field(None, ge=1)
    """How many there are by the publisher's word; plans use it until `transfer fetch` has counted."""
    restricted: bool = False
    """True where the publisher asks not to spread the questions: no prompt of theirs is written with the responses, and
    no response appears in a report."""


# Forms whose references only their own rules read, by a word in the names of those rules.
_FORM_OF_RULE = {"ifeval": ("instruction",), "livecodebench": ("code",), "coqa": ("span",)}


class BenchmarkSpec(Spec):
    """One benchmark of the suite: its questions, how they are asked (promptings) and judged (scorings)."""

    name: Name
    """Its task file is `<name>.yaml` for the prompting `native`, else `<name>-<prompting>.yaml`."""
    group: Name
    """Group the transfer index averages over. `analysis.trained_group` names the one that was trained on."""
    data: BenchmarkData | None = None
    """Its questions. null: a task of the synthetic world, or `heldout`, the held-out problems of the corpus."""
    promptings: tuple[Name, ...] = Field(("native",), min_length=1)
    """Ways of asking; each is generated on its own."""
    likelihood: tuple[Name, ...] = ()
    """Promptings that store the likelihoods of the given answers instead of a response."""
    scorings: dict[Name, Scoring] = Field(min_length=1)
    """Ways of judging a stored response: name -> rule (docs/evaluation.md). `paper` and `robust` are two readings."""
    samples: int | None = Field(None, ge=1)
    """Responses to each question. null: `suite.samples_per_question`."""
    temperature: float | None = Field(None, ge=0)
    """Sampling temperature. null: `suite.temperature`. 0: greedy, one response."""

    def cell(self, reading: str) -> tuple[str, str]:
        """The prompting and the scoring a reading takes; the last of them where it has none of that name."""
        prompting = reading if reading in self.promptings else self.promptings[-1]
        return prompting, reading if reading in self.scorings else list(self.scorings)[-1]

    def cells(self) -> list[tuple[str, str]]:
        """Every prompting with every scoring that can judge what it stores."""
        return [(p, s) for p in self.promptings for s in self.scorings if self.fits(p, s)]

    @model_validator(mode="after")
    def _rules_fit_the_form(self) -> "BenchmarkSpec":
        form = self.data.form if self.data is not None else "fields"
        for name, rule in self.scorings.items():
            needed = next((f for f, words in _FORM_OF_RULE.items() if any(word in rule for word in words)), None)
            own = form if form in _FORM_OF_RULE else None
            if needed != own:
                raise ValueError(
                    f"scoring {name!r} of {self.name!r} is {rule!r}, which judges rows of the form "
                    f"{needed or 'with a text as reference'!r}, not {form!r}"
                )
        return self

    def fits(self, prompting: str, scoring: str) -> bool:
        """Whether a scoring reads what a prompting stores: text, or the likelihoods of given answers."""
        return ("likelihood" in self.scorings[scoring]) == (prompting in self.likelihood)


class EngineSpec(Spec):
    """What generates the responses."""

    kind: Literal["hf", "vllm", "endpoint"] = "hf"
    """hf: transformers in this process. vllm: vLLM in this process (the `gpu` extra). endpoint: an OpenAI-compatible
    completions server that serves the very model being scored."""
    batch_size: int = Field(200, ge=1)
    """Responses generated at once by `hf`; part of the result, as it decides which random numbers a response gets."""
    tensor_parallel: int = Field(1, ge=1)
    """GPUs that hold one copy of the model, for `vllm`."""
    memory_share: float = Field(0.85, gt=0, lt=1)
    """Share of a GPU's memory that `vllm` takes."""
    eager: bool = False
    """Run `vllm` without CUDA graphs and compilation: slower, but ready sooner (vLLM's enforce_eager)."""
    base_url: str | None = None
    """Address of the server's /v1/completions, for `endpoint`."""
    model: str | None = None
    """Name under which the server serves the model, for `endpoint`; `{label}` stands for the model's label."""
    concurrent: int = Field(16, ge=1)
    """Requests to a server at the same time."""
    timeout_seconds: int = Field(3600, ge=1)
    """Longest wait for one response of a server."""

    @model_validator(mode="after")
    def _server_has_address(self) -> "EngineSpec":
        if self.kind == "endpoint" and (self.base_url is None or self.model is None):
            raise ValueError("`kind: endpoint` needs `base_url` (…/v1/completions) and `model`")
        return self


class SuiteSpec(Spec):
    """The evaluation: benchmarks and decoding, the same for every model."""

    tasks: str = "pocket"
    """Folder of task files: a name under eval/tasks, or a path."""
    benchmarks: tuple[BenchmarkSpec, ...] = Field(min_length=1)
    """The benchmarks, each in one group."""
    questions: int = Field(200, ge=2)
    """Questions per benchmark drawn from the synthetic world (all, where it has fewer; `heldout` has all it holds)."""
    split: Literal["dev", "test"] = "test"
    """dev: questions for choosing hyperparameters. test: questions that are reported."""
    samples_per_question: int = Field(4, ge=1)
    """Responses sampled for each question."""
    temperature: float = Field(1.0, ge=0)
    """Sampling temperature. 0: greedy, which gives one response however many are asked for."""
    top_p: float = Field(1.0, gt=0, le=1)
    """Nucleus sampling: the smallest set of tokens with this much probability."""
    top_k: int = Field(0, ge=0)
    """Sampling among the most probable tokens. 0: among all."""
    max_response_tokens: int = Field(96, ge=1)
    """Longest response, in tokens, the same for all models and benchmarks; longer ones count as truncated."""
    max_prompt_tokens: int = Field(4096, ge=1)
    """Longest prompt, in tokens; a longer one is refused, because a cut prompt asks something else."""
    thinking: bool | None = None
    """Thinking mode of the chat template in the evaluation. null: that of `prompt`."""
    chunk_questions: int = Field(500, ge=1)
    """Questions that are asked and written together: what a killed evaluation loses at most, and what workers share."""
    engine: EngineSpec = EngineSpec()
    """What generates the responses."""
    allow_unsandboxed_code: bool = False
    """Run code of models without bubblewrap. It then runs as you do, with your files and your network."""
    seed: int = 1234
    """Seed of the questions and of sampling."""

    def samples(self, benchmark: BenchmarkSpec) -> int:
        """Responses to each question of a benchmark; one where decoding is greedy."""
        wanted = self.samples_per_question if benchmark.samples is None else benchmark.samples
        return wanted if self.temperature_of(benchmark) > 0 else 1

    def temperature_of(self, benchmark: BenchmarkSpec) -> float:
        """Sampling temperature of a benchmark."""
        return self.temperature if benchmark.temperature is None else benchmark.temperature

    @model_validator(mode="after")
    def _groups(self) -> "SuiteSpec":
        names = [benchmark.name for benchmark in self.benchmarks]
        if len(set(names)) != len(names):
            raise ValueError("a benchmark is listed twice")
        for benchmark in self.benchmarks:
            if not benchmark.cells():
                raise ValueError(f"no scoring of {benchmark.name!r} can judge what its promptings store")
            for reading in ("paper", "robust"):
                if not benchmark.fits(*benchmark.cell(reading)):
                    raise ValueError(
                        f"reading {reading!r} of {benchmark.name!r} would judge {benchmark.cell(reading)[0]!r} by "
                        f"{benchmark.cell(reading)[1]!r}, which cannot read it; give it one of its own"
                    )
        return self


class ClaimSpec(Spec):
    """One primary claim, stated before the evaluation: a group gain is higher in one model than in another."""

    group: Name
    """Group of benchmarks."""
    first: str
    """Arm whose gain is claimed to be higher."""
    second: str = "base"
    """Arm it is compared with; `base` has gain 0."""


class AnalysisSpec(Spec):
    """What the report is about. It is written to `analysis.lock` before the first question is asked."""

    reading: Name = "robust"
    """The reading (prompting and scoring of each benchmark) that the first tables and the claims use."""
    definition: Literal["points", "relative", "literal", "paper"] = "points"
    """The definition of the transfer index that counts."""
    trained_group: Name = "math"
    """Group of the benchmarks in the domain that the arms are trained on; the transfer index divides by its gain."""
    claims: tuple[ClaimSpec, ...] = ()
    """Primary claims. Their p-values are adjusted together (Holm)."""


class StatisticsSpec(Spec):
    """How intervals are computed."""

    draws: int = Field(10000, ge=100)
    """Bootstrap draws of the questions, shared by all models."""
    confidence: float = Field(0.95, gt=0.5, lt=1)
    """Coverage of every interval."""
    seed: int = Field(0, ge=0)
    """Seed of the bootstrap."""
