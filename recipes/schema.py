"""The study recipe: one YAML file that declares a base model, a corpus, the arms and the evaluation.

What the arms share is stated once, outside `arms`, so that they cannot differ in it by accident. An arm is a
point in the unified loss of arXiv 2507.00432 (v2, Sec. 5):

    L = - E_x E_{y ~ q} [ w(x, y) log pi(y|x) ] + beta * KL(pi || pi_base)

`recipes/loading.py` reads YAML into these classes. Machine-written copies (`study.json`) hold the resolved values.
"""

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from recipes.corpus_schema import CorpusSpec, Spec


class PocketModelSpec(Spec):
    """A tiny Qwen3-architecture model, pre-trained from nothing on the synthetic world by the first stage."""

    hidden_size: int = Field(128, ge=16)
    """Width of the residual stream."""
    num_layers: int = Field(3, ge=1)
    """Number of decoder layers."""
    vocab_size: int = Field(640, ge=400)
    """Upper bound of the byte-level BPE vocabulary, special tokens included."""
    documents: int = Field(80000, ge=1)
    """Documents of the pre-training text; each is read once."""
    batch_size: int = Field(16, ge=1)
    """Rows of 128 tokens per optimizer update; a row holds about four documents."""
    learning_rate: float = Field(3e-3, gt=0)
    """Peak of the cosine schedule (5 % warm-up)."""
    seed: int = Field(0, ge=0, lt=2**32)
    """Seed of the initial weights and of the pre-training text."""
    save_every_steps: int = Field(200, ge=1)
    """Optimizer updates between resumable checkpoints."""


class ModelSpec(Spec):
    """The base model every arm and the evaluation start from: a local or hub checkpoint, or the pocket model."""

    path: str | None = None
    """Local directory or Hugging Face model id (safetensors). null: `pocket` is built instead."""
    revision: str | None = None
    """Commit of the hub repository. null for a local directory."""
    pocket: PocketModelSpec | None = None
    """Settings of the pocket model; null when `path` is given."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Number format of training arithmetic, saved weights and generation; optimizers keep float32 weights."""
    attention: Literal["sdpa", "eager", "flash_attention_2", "flash_attention_3"] = "sdpa"
    """Implementation of attention; the flash ones need their package and a GPU."""
    eos_token: str = "<|im_end|>"
    """Token that ends a turn and with it a completion; it must be in the tokenizer's vocabulary."""
    pad_token: str = "<|endoftext|>"
    """Token for padding, another one than `eos_token`; generation stops at it as well."""
    chat_template: str | None = None
    """A template that TRL ships (qwen3, llama3, ...) or a .jinja file. null: the checkpoint's own, or else qwen3."""

    @model_validator(mode="after")
    def _one_kind(self) -> "ModelSpec":
        if (self.path is None) == (self.pocket is None):
            raise ValueError("exactly one of `path` and `pocket` must be given")
        if self.eos_token == self.pad_token:
            raise ValueError(
                f"`eos_token` and `pad_token` are both {self.eos_token!r}; a model could not tell them apart"
            )
        return self


class PromptSpec(Spec):
    """How a problem becomes the text the model continues, and the length limits. The same for all arms."""

    system: str | None = None
    """System message. null: none."""
    suffix: str = ""
    """Text appended to every corpus problem and to the questions of benchmarks scored `boxed` or `plain`, for
    instance the request for a boxed answer."""
    thinking: bool | None = None
    """Thinking mode of the chat template. null: the template's default; false: Qwen3 puts an empty thinking block into
    the prompt."""
    max_prompt_tokens: int = Field(512, ge=1)
    """Corpus problems with a longer rendered prompt are rejected for every arm, in tokens."""
    max_completion_tokens: int = Field(512, ge=1)
    """Longest completion that is trained on or sampled, in tokens, end-of-turn token included."""


class LoraSpec(Spec):
    """Low-rank adapters (Hu et al. 2021, arXiv 2106.09685) on all linear layers, in place of training every weight."""

    rank: int = Field(32, ge=1)
    """Rank of the adapters."""
    alpha: int = Field(64, ge=1)
    """Scale of the adapters; what is added to a weight is multiplied by alpha / rank."""


class TrainSpec(Spec):
    """Budget and optimizer, the same for all arms (learning rates may differ if the study `varies` them)."""

    steps: int = Field(ge=1)
    """Optimizer updates."""
    problems_per_step: int = Field(ge=1)
    """Problems presented per optimizer update."""
    completions_per_problem: int = Field(8, ge=1)
    """Completions per presented problem: GRPO's group size (2 at least), and the demonstrations an SFT arm reads."""
    micro_batch_size: int | None = Field(None, ge=1)
    """Completions per forward pass. null: a whole update at once."""
    learning_rate: float = Field(gt=0)
    """Peak learning rate of arms that do not set their own."""
    schedule: Literal["constant", "linear", "cosine", "warmup_stable_decay"] = "constant"
    """Learning-rate schedule after warm-up. warmup_stable_decay: constant until the last `decay_steps` updates."""
    decay_steps: int = Field(0, ge=0)
    """Optimizer updates in which warmup_stable_decay falls to zero, at the end."""
    warmup_steps: int = Field(0, ge=0)
    """Optimizer updates of linear warm-up."""
    weight_decay: float = Field(0.0, ge=0)
    """AdamW weight decay."""
    adam_beta2: float = Field(0.999, gt=0, lt=1)
    """AdamW second-moment decay."""
    max_grad_norm: float = Field(1.0, gt=0)
    """Gradient clipping threshold (L2)."""
    loss_normalisation: Literal["weighted_tokens", "all_tokens"] = "weighted_tokens"
    """What the loss of an update is divided by: its completion tokens whose weight is not zero, the same for SFT and
    for samples; or all completion tokens, as TRL does, so that an update shrinks with every uniform group."""
    temperature: float = Field(1.0, gt=0)
    """Sampling temperature of completions drawn while training."""
    save_every_steps: int = Field(50, ge=1)
    """Optimizer updates between resumable checkpoints, of which the newest two are kept."""
    snapshots: int = Field(0, ge=0)
    """Further checkpoints with weights alone, evenly spaced in the logarithm of the update; the last is the end."""
    lora: LoraSpec | None = None
    """Train adapters and merge them into the saved weights. null: train every weight."""
    padding_free: bool = False
    """Join the rows of an SFT micro-batch into one sequence that does not see across rows, in place of padding them."""
    overlong_tokens: int = Field(0, ge=0)
    """Soft overlong punishment (DAPO, arXiv 2503.14476, Eq. 13): the reward falls by up to 1 over this many tokens
    before the length limit. 0: off."""
    clip_low: float = Field(0.2, gt=0, lt=1)
    """How far below 1 the importance ratio of a sample counts, where several updates share a batch."""
    clip_high: float = Field(0.2, gt=0)
    """How far above 1."""
    importance_sampling: Literal["token_truncate", "token_mask", "sequence_truncate", "sequence_mask", "off"] = (
        "token_truncate"
    )
    """With vLLM: how completions are reweighted for its probabilities being a little other than the trainer's. The
    sequence modes multiply over all tokens, which empties long completions of weight."""
    importance_clip: float = Field(2.0, gt=1)
    """Largest importance ratio with vLLM."""

    @model_validator(mode="after")
    def _schedule_fits(self) -> "TrainSpec":
        if self.schedule == "warmup_stable_decay" and not self.decay_steps:
            raise ValueError("`schedule: warmup_stable_decay` needs `decay_steps` above 0")
        if self.decay_steps and self.schedule != "warmup_stable_decay":
            raise ValueError(f"`decay_steps` belongs to `schedule: warmup_stable_decay`, not to {self.schedule}")
        if self.decay_steps and self.warmup_steps + self.decay_steps > self.steps:
            raise ValueError(
                f"warmup_steps {self.warmup_steps} and decay_steps {self.decay_steps} are more than the "
                f"{self.steps} steps"
            )
        if self.snapshots and self.schedule not in ("constant", "warmup_stable_decay"):
            raise ValueError(
                f"`snapshots` need `schedule: constant` or `warmup_stable_decay`: a checkpoint in the middle of a "
                f"{self.schedule} schedule is not a shorter run"
            )
        return self

    @model_validator(mode="after")
    def _micro_batch_divides(self) -> "TrainSpec":
        rows = self.problems_per_step * self.completions_per_problem
        if self.micro_batch_size and rows % self.micro_batch_size:
            raise ValueError(
                f"micro_batch_size {self.micro_batch_size} does not divide the {rows} completions of an update "
                "(problems_per_step x completions_per_problem)"
            )
        return self


class ArmSpec(Spec):
    """One training method: who wrote the completions, how they are weighted, how far it may leave the base."""

    sampling: Literal["teacher", "base_once", "round", "current"] | None = None
    """q: the teacher; the base model once; the policy, refreshed every round; the policy of this very step."""
    credit: Literal["uniform", "advantage"] = "uniform"
    """w: 1 for every correct completion, or GRPO's group-normalised advantage."""
    negatives: bool = False
    """Whether completions with negative weight push the policy away. Needs `credit: advantage`."""
    beta: float = Field(0.0, ge=0)
    """Weight of the KL term towards the base model. 0: none, and no reference model is loaded."""
    reward: Literal["correct", "random", "format"] = "correct"
    """What a completion is rewarded for. Negative controls: random (a coin), format (a final answer in the wanted form,
    right or wrong)."""
    round_steps: int | None = Field(None, ge=1)
    """Updates between refreshes of the samples, for `sampling: round`. null for the others."""
    updates_per_batch: int = Field(1, ge=1)
    """Optimizer updates that share one sampling, which then covers the problems of all of them; above 1 the samples are
    of a slightly older policy, and the importance ratio, clipped, makes up for it."""
    learning_rate: float | None = Field(None, gt=0)
    """Peak learning rate. null: `train.learning_rate`."""
    start_from: str | None = None
    """Name of the arm whose final checkpoint this one starts from. null: the base model."""
    external: str | None = None
    """Directory of a checkpoint trained elsewhere; it is scored like the others, its lineage is unknown."""
    prompt: PromptSpec | None = None
    """A prompt of this arm alone. null: the study's. Makes the study unmatched."""
    problem_set: Literal["all", "teacher_solvable"] | None = None
    """A problem set of this arm alone. null: the corpus's. Makes the study unmatched."""
    steps: int | None = Field(None, ge=1)
    """Optimizer updates of this arm alone. null: `train.steps`. Makes the study unmatched."""
    train: dict[str, Any] = Field(default_factory=dict)
    """Other settings of `train` for this arm alone, for instance {schedule: cosine}. Makes the study unmatched."""
    dynamic_sampling: int = Field(0, ge=0)
    """DAPO's dynamic sampling: problems whose samples were all rewarded alike are replaced by others, of which up to so
    many batches are drawn per update. 0: off. Makes the study unmatched: samples then decide what is presented."""
    strip_thinking: bool = False
    """Whether a teacher's completions are read without their thinking: one of the two readings of no-think SFT."""

    @model_validator(mode="after")
    def _coherent(self) -> "ArmSpec":
        if (self.sampling is None) == (self.external is None):
            raise ValueError("an arm needs either `sampling` or `external`")
        if self.negatives and self.credit == "uniform":
            raise ValueError("`negatives: true` needs `credit: advantage`; uniform weights are never negative")
        if (self.sampling == "round") != (self.round_steps is not None):
            raise ValueError("`sampling: round` and `round_steps` belong together")
        if self.sampling == "teacher" and self.credit == "uniform":
            if self.reward != "correct":
                raise ValueError(
                    "`reward` belongs to arms that are rewarded; SFT on a teacher reads the correct samples"
                )
            if self.beta > 0:
                raise ValueError("`beta` above 0 needs samples or `credit: advantage`; SFT on a teacher has no KL term")
        fits = self.sampling == "current" and self.credit == "advantage" and self.reward != "random"
        if self.dynamic_sampling and not fits:
            raise ValueError(
                "`dynamic_sampling` needs `sampling: current`, `credit: advantage` and a reward that means something"
            )
        if self.updates_per_batch > 1 and (self.sampling != "current" or self.dynamic_sampling):
            raise ValueError("`updates_per_batch` above 1 needs `sampling: current` without `dynamic_sampling`")
        if self.strip_thinking and self.sampling != "teacher":
            raise ValueError("`strip_thinking` belongs to arms with `sampling: teacher`")
        if self.start_from is not None and self.beta > 0:
            raise ValueError("`start_from` and `beta` above 0: the KL term would be towards the arm it starts from")
        return self

    def missing_feature(self) -> str | None:
        """Why this arm cannot run yet, as a sentence; None if it can."""
        if self.external is not None:
            return "external checkpoints cannot be scored yet"
        return None


class ProbeSpec(Spec):
    """How far every checkpoint has moved from the base, on held-out problems of the corpus; the same for all arms."""

    problems: int = Field(64, ge=1)
    """Held-out problems that each checkpoint answers once, at temperature 1."""
    batch_size: int = Field(32, ge=1)
    """Completions generated at once; part of the result, because it decides which random numbers one gets."""
    seed: int = Field(0, ge=0)
    """Seed of the completions."""


_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"  # safe as a file name and in a figure


class BenchmarkSpec(Spec):
    """One benchmark of the suite: an lm-evaluation-harness task and how its responses are scored."""

    name: str = Field(pattern=_NAME)
    """Name of the task file under the suite's task folder, without `.yaml`."""
    group: str = Field(pattern=_NAME)
    """Group the transfer index averages over. One group must be called `math`."""
    scoring: Literal["boxed", "plain", "exact"]
    """boxed, plain: graded by `data/grading.py` in that form. exact: the text after thinking equals the reference."""


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
    """Sampling temperature. 0: greedy."""
    max_response_tokens: int = Field(96, ge=1)
    """Longest response, in tokens; longer ones count as truncated."""
    batch_size: int = Field(200, ge=1)
    """Responses generated at once; part of the result, because it decides which random numbers a response gets."""
    seed: int = 1234
    """Seed of the questions and of sampling."""

    @model_validator(mode="after")
    def _groups(self) -> "SuiteSpec":
        names = [benchmark.name for benchmark in self.benchmarks]
        if len(set(names)) != len(names):
            raise ValueError("a benchmark is listed twice")
        if "math" not in {benchmark.group for benchmark in self.benchmarks}:
            raise ValueError("no benchmark is in the group `math`, which the transfer index divides by")
        return self


class StatisticsSpec(Spec):
    """How intervals are computed."""

    draws: int = Field(10000, ge=100)
    """Bootstrap draws of the questions, shared by all models."""
    confidence: float = Field(0.95, gt=0.5, lt=1)
    """Coverage of every interval."""
    seed: int = Field(0, ge=0)
    """Seed of the bootstrap."""


class VllmSpec(Spec):
    """vLLM for the completions drawn while training."""

    mode: Literal["colocate", "server"] = "colocate"
    """colocate: on the training GPUs, in turn with training. server: a `vllm serve` of its own."""
    memory_share: float = Field(0.3, gt=0, lt=1)
    """Share of a GPU's memory that a colocated vLLM takes for weights and cache."""
    tensor_parallel: int = Field(1, ge=1)
    """GPUs that hold one copy of the model."""
    server_url: str | None = None
    """Address of the server, for `mode: server`, for instance http://node17:8000."""
    sleep: bool = True
    """Whether a colocated vLLM gives its memory back while the weights are trained."""

    @model_validator(mode="after")
    def _server_has_address(self) -> "VllmSpec":
        if (self.mode == "server") != (self.server_url is not None):
            raise ValueError("`mode: server` and `server_url` belong together")
        return self


class ResourceSpec(Spec):
    """Where it runs. Nothing here may change a result, except by rounding (`threads`, `zero_stage`) and by the random
    numbers of samples (`ranks`).
    """

    workers: int = Field(2, ge=1)
    """Stages that run at the same time on the local machine."""
    threads: int = Field(1, ge=1)
    """Arithmetic threads of a training or evaluation stage."""
    base_threads: int = Field(2, ge=1)
    """Arithmetic threads of the base stage, which runs alone."""
    ranks: int = Field(1, ge=1)
    """Processes that train one arm together: GPUs, or CPU processes where there is none."""
    zero_stage: Literal[0, 1, 2, 3] = 0
    """DeepSpeed's ZeRO stage: what is divided among the ranks. 1: optimizer states; 2: and gradients; 3: and weights.
    0: no DeepSpeed."""
    offload: bool = False
    """Whether DeepSpeed keeps optimizer states (and at stage 3 weights) in the memory of the CPU."""
    vllm: VllmSpec | None = None
    """vLLM for completions drawn while training. null: transformers generates them."""
    gpu: Literal["A100-40GB", "A100-80GB", "H100-80GB", "H200-141GB"] | None = None
    """GPU that the plan's memory and hours are for. null: no GPU, and no hours."""
    expected_completion_tokens: int | None = Field(None, ge=1)
    """Mean length of completions that the plan's hours assume. null: the length limit."""

    @model_validator(mode="after")
    def _offload_needs_deepspeed(self) -> "ResourceSpec":
        if self.offload and self.zero_stage < 2:
            raise ValueError("`offload: true` needs `zero_stage` 2 or 3")
        if self.vllm is not None and self.vllm.mode == "colocate" and self.ranks % self.vllm.tensor_parallel:
            raise ValueError(
                f"vllm.tensor_parallel {self.vllm.tensor_parallel} does not divide resources.ranks {self.ranks}"
            )
        return self

    @property
    def launched(self) -> bool:
        """Whether training needs a launcher of its own."""
        return self.ranks > 1 or self.zero_stage > 0


class WandbSpec(Spec):
    """Weights & Biases: one group per study, one run per arm and seed. `metrics.jsonl` stays the source of truth."""

    project: str = "transfer-lab"
    """Project the runs belong to."""
    entity: str | None = None
    """Team or user. null: the account's default."""
    mode: Literal["auto", "online", "offline"] = "auto"
    """auto: online if a key is at hand, else offline, to be sent later with `wandb sync`."""
    completions_every_steps: int = Field(20, ge=1)
    """Updates between tables of sampled completions."""


class Recipe(Spec):
    """A study: one base, one corpus, several arms, one evaluation suite."""

    study: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]*$")
    """Name of the study and of its folder under `runs/`."""
    title: str = ""
    """One line for the report."""
    seeds: tuple[Annotated[int, Field(ge=0, lt=2**32)], ...] = (0,)
    """Training seeds; every arm runs once for each."""
    model: ModelSpec | None = None
    """The base model. null: a recipe that only builds a corpus."""
    prompt: PromptSpec = PromptSpec()
    """Prompt and length limits."""
    corpus: CorpusSpec
    """The math corpus."""
    train: TrainSpec | None = None
    """Budget and optimizer; needed when there are arms."""
    lock: dict[str, Any] = Field(default_factory=dict)
    """What `transfer fetch` resolved, from the `.lock.json` beside the recipe. Never written by hand."""
    arms: dict[str, ArmSpec] = Field(default_factory=dict)
    """The training methods by name. An arm set to null is left out."""
    varies: tuple[
        Literal[
            "sampling",
            "credit",
            "negatives",
            "beta",
            "learning_rate",
            "reward",
            "round_steps",
            "start_from",
            "strip_thinking",
            "updates_per_batch",
        ],
        ...,
    ] = (
        "sampling",
        "credit",
        "negatives",
        "beta",
    )
    """What the arms may differ in. Any other difference makes the study unmatched."""
    unmatched: Literal["refuse", "stamp"] = "refuse"
    """refuse: an unmatched study does not run. stamp: it runs and its report says UNMATCHED."""
    probe: ProbeSpec | None = None
    """Distance from the base at every checkpoint. null: not measured."""
    suite: SuiteSpec | None = None
    """The evaluation. null: models are trained and not scored."""
    statistics: StatisticsSpec = StatisticsSpec()
    """Intervals."""
    resources: ResourceSpec = ResourceSpec()
    """Local resources."""
    wandb: WandbSpec | None = None
    """Where metrics are mirrored. null: nowhere."""

    @field_validator("arms", mode="before")
    @classmethod
    def _leave_out_null_arms(cls, arms: Any) -> Any:
        return {name: arm for name, arm in arms.items() if arm is not None} if isinstance(arms, dict) else arms

    @model_validator(mode="after")
    def _complete(self) -> "Recipe":
        if self.arms and (self.model is None or self.train is None):
            raise ValueError("a study with arms needs `model` and `train`")
        if self.suite is not None and self.model is None:
            raise ValueError("a study with a `suite` needs `model`")
        if not self.seeds:
            raise ValueError("`seeds` is empty; give at least one, for instance seeds=[0]")
        if len(set(self.seeds)) != len(self.seeds):
            raise ValueError("a seed is listed twice")
        for name, arm in self.arms.items():
            if not name.replace("_", "").isalnum() or name == "base":
                raise ValueError(f"arm name {name!r} must be letters, digits and _, and not `base`")
            if arm.sampling == "teacher" and self.corpus.teacher is None:
                raise ValueError(f"arm {name!r} samples from the teacher but `corpus.teacher` is missing")
            if arm.start_from is not None and arm.start_from not in self.arms:
                raise ValueError(f"arm {name!r} starts from {arm.start_from!r}, which is not an arm of this study")
            if self._starts_in_a_circle(name):
                raise ValueError(f"arm {name!r} starts from itself, by `start_from` of {arm.start_from!r}")
        solvable_only = [self.corpus.problem_set, *(arm.problem_set for arm in self.arms.values())]
        if self.corpus.teacher is None and self.arms and "teacher_solvable" in solvable_only:
            raise ValueError("`problem_set: teacher_solvable` needs `corpus.teacher`; say `problem_set: all`")
        return self

    def _starts_in_a_circle(self, name: str) -> bool:
        seen = {name}
        before = self.arms[name].start_from
        while before is not None and before in self.arms:
            if before in seen:
                return True
            seen.add(before)
            before = self.arms[before].start_from
        return False

    @model_validator(mode="after")
    def _corpus_fits(self) -> "Recipe":
        corpus = self.corpus
        real = [source.name for source in corpus.sources if source.kind != "pocket"]
        if real and corpus.teacher is not None and corpus.teacher.kind == "scripted":
            raise ValueError(
                f"the scripted teacher cannot solve source {real[0]!r}; it knows the synthetic world only, "
                "so choose `kind: endpoint` or `transformers`, or leave `corpus.teacher` out"
            )
        if self.probe is not None and self.probe.problems > corpus.heldout_problems:
            raise ValueError(
                f"`probe.problems` is {self.probe.problems} but `corpus.heldout_problems` is {corpus.heldout_problems}"
            )
        samplers = {
            "teacher": corpus.teacher,
            "pass_rate.sampler": corpus.pass_rate.sampler if corpus.pass_rate else None,
        }
        for name, sampler in samplers.items():
            of_base = sampler is not None and sampler.kind == "transformers" and sampler.model == "base"
            if of_base and (self.model is None or (not self.arms and self.suite is None)):
                raise ValueError(f"`corpus.{name}` has `model: base`, which needs `model` and arms or a suite")
        for benchmark in self.suite.benchmarks if self.suite is not None else ():
            if benchmark.name == "heldout" and not corpus.heldout_problems:
                raise ValueError("benchmark `heldout` needs `corpus.heldout_problems` above 0")
            forms = (benchmark.scoring, corpus.answer_form)
            if benchmark.group == "math" and benchmark.scoring != "exact" and forms[0] != forms[1]:
                raise ValueError(
                    f"benchmark {benchmark.name!r} is scored {forms[0]!r} but `corpus.answer_form` is {forms[1]!r}: "
                    "the reward and the math score must read an answer in the same form"
                )
        return self

    def dump(self) -> dict[str, Any]:
        """The resolved recipe as plain JSON values."""
        return self.model_dump(mode="json")
