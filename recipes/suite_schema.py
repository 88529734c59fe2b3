"""The sections of a recipe about evaluation: benchmarks, decoding, statistics, analysis."""

from collections.abc import Iterable, Iterator
from typing import Annotated, Literal, NamedTuple

from pydantic import Field

from recipes.corpus_schema import DataFiles
from recipes.errors import UserError
from recipes.spec import Spec

NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"  # safe as a file name and in a figure
Name = Annotated[str, Field(pattern=NAME)]

Scoring = Literal[
    "boxed", "plain", "exact", "last_box_text", "first_line",
    "choice", "choice_box", "choice_anywhere", "yes_no", "yes_no_first_line", "strict_yes_no", "f1_yes_no",
    "span_em", "span_f1", "span_em_first_line", "span_f1_first_line",
    "instructions_strict", "instructions_loose", "each_instruction_strict", "each_instruction_loose", "code",
    "likelihood", "likelihood_per_byte", "strict_likelihood", "f1_likelihood",
]  # fmt: skip


class RuleTraits(NamedTuple):
    """What a scoring rule compares with, and what it judges. The functions are in `eval/scorers/rules.py`."""

    references: Literal["text", "letter", "yes_no", "span", "instructions", "tests"] = "text"
    """Kind of the references that it can find right."""
    likelihoods: bool = False
    """Whether it judges likelihoods of the given answers, not texts."""

    @property
    def runs_code(self) -> bool:
        """Whether it runs what the model wrote."""
        return self.references == "tests"


_RULES: dict[RuleTraits, tuple[Scoring, ...]] = {
    RuleTraits(): ("boxed", "plain", "exact", "last_box_text", "first_line"),
    RuleTraits("letter"): ("choice", "choice_box", "choice_anywhere"),
    RuleTraits("yes_no"): ("yes_no", "yes_no_first_line", "strict_yes_no", "f1_yes_no"),
    RuleTraits("span"): ("span_em", "span_f1", "span_em_first_line", "span_f1_first_line"),
    RuleTraits("instructions"): (
        "instructions_strict", "instructions_loose", "each_instruction_strict", "each_instruction_loose",
    ),
    RuleTraits("tests"): ("code",),
    RuleTraits(likelihoods=True): ("likelihood", "likelihood_per_byte", "strict_likelihood", "f1_likelihood"),
}  # fmt: skip
READINGS = ("paper", "robust")
"""The readings of every benchmark; further ones are named as a prompting or a scoring."""
TRAITS: dict[Scoring, RuleTraits] = {rule: traits for traits, rules in _RULES.items() for rule in rules}
Form = Literal[
    "fields", "gpqa", "coqa", "halueval", "mc_taco", "acpbench", "headqa", "ifeval", "olympiadbench", "livecodebench",
    "humaneval",
]  # fmt: skip


class BenchmarkData(DataFiles):
    """The questions of a benchmark and the meaning of their columns."""

    kind: Literal["file", "hub"]
    """file: JSON, JSONL, CSV, TSV or Parquet. hub: such files of a hub dataset, resolved by `transfer fetch`."""
    name: str = ""
    """Name in the lock file. Empty: the benchmark's."""
    form: Form = "fields"
    """Format of the rows. fields: the columns below. Others: the format in which that benchmark is published."""
    fields: dict[str, str] = Field(default_factory=dict)
    """For form `fields`: name in the task file -> column, dotted path into its value, or template over columns."""
    id_field: str | None = None
    """Column with the id of a question. null: a hash of its fields."""
    reference_field: str = "answer"
    """Field with the reference answer, for form `fields`: a column, a dotted path, or a template over columns such as
    "{{ 'ABCD'[label | int] }}"."""
    cluster_field: str | None = None
    """Column with the id of a shared context; questions with equal values are resampled together. null: none."""
    rows: int | None = Field(None, ge=2)
    """Number of questions, chosen by their hashes. null: all."""
    published_rows: int | None = Field(None, ge=1)
    """Number of questions stated by the publisher; plans use it until `transfer fetch` has counted."""
    restricted: bool = False
    """Whether the publisher asks not to copy the questions. Their prompts are then not stored with the responses, and
    reports show no responses."""


# Form -> kind of its references, where only the rules for that kind can read them.
_REFERENCES_OF_FORM = {"ifeval": "instructions", "livecodebench": "tests", "humaneval": "tests", "coqa": "span"}


def _judges(rule: Scoring, form: str) -> bool:
    """Whether a scoring rule can read the references of rows of a form. Those of spans take a text, or several."""
    kind, of_form = TRAITS[rule].references, _REFERENCES_OF_FORM.get(form)
    if kind == "span" and form == "fields":
        return True
    return kind == of_form if of_form is not None else kind not in _REFERENCES_OF_FORM.values()


class BenchmarkSpec(Spec):
    """One benchmark of the suite: its questions, promptings and scorings."""

    name: Name
    """Its task file is `<name>.yaml` for the prompting `native`, else `<name>-<prompting>.yaml`."""
    group: Name
    """Group for gains and the transfer index. `analysis.trained_group` names the one that was trained on."""
    data: BenchmarkData | None = None
    """Its questions. null: a task of the synthetic world, or `heldout`, the held-out problems of the corpus."""
    promptings: tuple[Name, ...] = Field(("native",), min_length=1)
    """Wordings of the questions; responses are generated for each."""
    likelihood: tuple[Name, ...] = ()
    """Promptings that store likelihoods of the given answers instead of responses."""
    scorings: dict[Name, Scoring] = Field(min_length=1)
    """Ways to judge stored responses: name -> rule (docs/evaluation.md). `paper` and `robust` are readings."""
    samples: int | None = Field(None, ge=1)
    """Responses to each question. null: `suite.samples_per_question`."""
    temperature: float | None = Field(None, ge=0)
    """Sampling temperature. null: `suite.temperature`. 0: greedy, one response."""

    @property
    def restricted(self) -> bool:
        """Whether the publisher asks not to spread the questions."""
        return self.data is not None and self.data.restricted

    @property
    def runs_code(self) -> bool:
        """Whether a scoring runs what the model wrote."""
        return any(TRAITS[rule].runs_code for rule in self.scorings.values())

    def require_data(self) -> BenchmarkData:
        """Its data. Raises UserError for a benchmark of the synthetic world or `heldout`, which has none."""
        if self.data is None:
            raise UserError(f"benchmark {self.name!r} has no `data`")
        return self.data

    def cell(self, reading: str) -> tuple[str, str]:
        """The prompting and the scoring of a reading: those of its name, otherwise the last ones."""
        prompting = reading if reading in self.promptings else self.promptings[-1]
        return prompting, reading if reading in self.scorings else list(self.scorings)[-1]

    def cells(self) -> list[tuple[str, str]]:
        """Every prompting with every scoring that can judge what it stores."""
        return [(p, s) for p in self.promptings for s in self.scorings if self.fits(p, s)]

    def checks(self) -> Iterable[Iterator[str]]:
        """That its rules can read its references and what its promptings store."""
        return self._rules_fit_the_form(), self._promptings_are_judged(), self._readings_fit()

    def _rules_fit_the_form(self) -> Iterator[str]:
        form = self.data.form if self.data is not None else "fields"
        for name, rule in self.scorings.items():
            forms = [f for f, kind in _REFERENCES_OF_FORM.items() if kind == TRAITS[rule].references]
            if not _judges(rule, form):
                yield (
                    f"scoring {name!r} of {self.name!r} is {rule!r}, which judges rows of the form "
                    f"{' or '.join(map(repr, forms)) or 'with a text as reference'}, not {form!r}; rules for {form!r} "
                    f"are {', '.join(other for other in TRAITS if _judges(other, form))}"
                )

    def _promptings_are_judged(self) -> Iterator[str]:
        judged = {prompting for prompting, _ in self.cells()}
        for prompting in self.promptings:
            if prompting in judged:
                continue
            stores = "likelihoods" if prompting in self.likelihood else "responses"
            remedy = "add one, or leave the prompting out"
            if stores == "responses" and any(TRAITS[rule].likelihoods for rule in self.scorings.values()):
                listed = ", ".join((*self.likelihood, prompting))
                remedy = f"add one, or `likelihood: [{listed}]` if it is to store likelihoods"
            yield f"no scoring of {self.name!r} can judge the {stores} to its prompting {prompting!r}; {remedy}"

    def _readings_fit(self) -> Iterator[str]:
        judged = {prompting for prompting, _ in self.cells()}
        for reading in READINGS:
            prompting, scoring = self.cell(reading)
            if prompting in judged and not self.fits(prompting, scoring):  # one that no rule judges has its own check
                yield (
                    f"reading {reading!r} of {self.name!r} would judge {prompting!r} by {scoring!r}, which cannot read "
                    "it; give it one of its own"
                )

    def fits(self, prompting: str, scoring: str) -> bool:
        """Whether a scoring can judge what a prompting stores: text, or likelihoods of given answers."""
        return TRAITS[self.scorings[scoring]].likelihoods == (prompting in self.likelihood)


class EngineSpec(Spec):
    """What generates the responses."""

    kind: Literal["hf", "vllm", "endpoint"] = "hf"
    """hf: transformers in this process. vllm: vLLM in this process (the `gpu` extra). endpoint: an OpenAI-compatible
    completions server that serves the model being scored."""
    batch_size: int = Field(200, ge=1)
    """Responses generated at once by `hf`. Changes the samples, because random numbers are drawn per batch."""
    tensor_parallel: int = Field(1, ge=1)
    """GPUs per copy of the model, for `vllm`."""
    memory_share: float = Field(0.85, gt=0, lt=1)
    """Share of a GPU's memory that `vllm` takes."""
    eager: bool = False
    """Run `vllm` without CUDA graphs and compilation: slower, but it starts sooner (vLLM's enforce_eager)."""
    base_url: str | None = None
    """Address of the server's /v1/completions, for `endpoint`."""
    model: str | None = None
    """Name of the model on the server, for `endpoint`; `{label}` is replaced by the model's label."""
    concurrent: int = Field(16, ge=1)
    """Requests to a server at the same time."""
    timeout_seconds: int = Field(3600, ge=1)
    """Timeout of a request to a server."""

    def checks(self) -> Iterable[Iterator[str]]:
        """That a server has an address."""
        return (self._server_has_address(),)

    def _server_has_address(self) -> Iterator[str]:
        if self.kind == "endpoint" and (self.base_url is None or self.model is None):
            yield "`kind: endpoint` needs `base_url` (…/v1/completions) and `model`"


class SuiteSpec(Spec):
    """The evaluation: benchmarks and decoding, the same for every model."""

    tasks: str = "pocket"
    """Folder of task files: a name under eval/tasks, or a path relative to the recipe's file. Task files missing in
    such a folder are taken from the shipped ones."""
    benchmarks: tuple[BenchmarkSpec, ...] = Field(min_length=1)
    """The benchmarks, each in one group."""
    questions: int = Field(200, ge=2)
    """Questions per benchmark of the synthetic world; all, if it has fewer. `heldout` always has all."""
    split: Literal["dev", "test"] = "test"
    """dev: questions for choosing hyperparameters. test: questions that are reported."""
    samples_per_question: int = Field(4, ge=1)
    """Responses sampled for each question."""
    temperature: float = Field(1.0, ge=0)
    """Sampling temperature. 0: greedy, one response."""
    top_p: float = Field(1.0, gt=0, le=1)
    """Nucleus sampling: the smallest set of tokens with this much probability."""
    top_k: int = Field(0, ge=0)
    """Sampling among the most probable tokens. 0: among all."""
    max_response_tokens: int = Field(96, ge=1)
    """Longest response, in tokens; longer ones are truncated."""
    max_prompt_tokens: int = Field(4096, ge=1)
    """Longest prompt, in tokens; a longer one is an error, because a truncated prompt is another question."""
    thinking: bool | None = None
    """Thinking mode of the chat template in the evaluation. null: that of `prompt`."""
    chunk_questions: int = Field(500, ge=1)
    """Questions per chunk: what a killed evaluation loses at most, and the unit that workers share."""
    engine: EngineSpec = EngineSpec()
    """What generates the responses."""
    allow_unsandboxed_code: bool = False
    """Run code of models without bubblewrap, with access to your files and network."""
    seed: int = 1234
    """Seed of the questions and of sampling."""

    def samples(self, benchmark: BenchmarkSpec) -> int:
        """Responses to each question of a benchmark; one where decoding is greedy."""
        wanted = self.samples_per_question if benchmark.samples is None else benchmark.samples
        return wanted if self.temperature_of(benchmark) > 0 else 1

    def temperature_of(self, benchmark: BenchmarkSpec) -> float:
        """Sampling temperature of a benchmark."""
        return self.temperature if benchmark.temperature is None else benchmark.temperature

    def with_samples(self, count: int) -> "SuiteSpec":
        """The suite with so many responses to each question of every benchmark."""
        benchmarks = tuple(item.model_copy(update={"samples": count}) for item in self.benchmarks)
        return self.model_copy(update={"samples_per_question": count, "benchmarks": benchmarks})

    def checks(self) -> Iterable[Iterator[str]]:
        """That benchmarks can be told apart."""
        return (self._names_differ(),)

    def _names_differ(self) -> Iterator[str]:
        names = [benchmark.name for benchmark in self.benchmarks]
        for name in dict.fromkeys(names):
            if names.count(name) > 1:
                yield f"the benchmark {name!r} is listed twice; give each a name of its own, or remove one"


class ClaimSpec(Spec):
    """A primary claim, stated before the evaluation: the gain of a group is higher for one arm than for another."""

    group: Name
    """Group of benchmarks."""
    first: str
    """Arm whose gain is claimed to be higher."""
    second: str = "base"
    """Arm it is compared with; `base` has gain 0."""


class AnalysisSpec(Spec):
    """Definitions of the report's conclusions, written to `analysis.lock` before the evaluation."""

    reading: Name = "robust"
    """The reading of the first tables and the claims."""
    definition: Literal["points", "relative", "literal", "paper"] = "points"
    """The definition of the transfer index in the first tables (docs/statistics.md)."""
    trained_group: Name = "math"
    """Group of the benchmarks in the domain that the arms are trained on; the transfer index divides by its gain."""
    claims: tuple[ClaimSpec, ...] = ()
    """Primary claims. Their p-values are adjusted jointly (Holm)."""


class StatisticsSpec(Spec):
    """How intervals are computed."""

    draws: int = Field(10000, ge=100)
    """Bootstrap draws of the questions, the same for all models."""
    confidence: float = Field(0.95, gt=0.5, lt=1)
    """Coverage of every interval."""
    seed: int = Field(0, ge=0)
    """Seed of the bootstrap."""
