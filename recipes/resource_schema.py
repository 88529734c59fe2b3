"""The sections of a recipe about resources and tracking."""

from collections.abc import Iterable, Iterator
from typing import Literal

from pydantic import Field

from recipes.errors import UserError
from recipes.spec import Spec


class VllmSpec(Spec):
    """vLLM for sampling during training."""

    mode: Literal["colocate", "server"] = "colocate"
    """colocate: on the training GPUs, alternating with training. server: a separate `vllm serve`, which runs at
    `server_url` or, on a cluster, is started by every job on `server_nodes` further nodes."""
    memory_share: float | None = Field(None, gt=0, lt=1)
    """Share of a GPU's memory that vLLM takes for weights and cache. Beside a colocated one the training states must
    fit; with `sleep`, without activations. null: derived from the batch, see `transfer plan`."""
    tensor_parallel: int = Field(1, ge=1)
    """GPUs per copy of the model."""
    server_url: str | None = None
    """Address of a running server, for `mode: server`, for instance http://node17:8000. null: `server_nodes`."""
    server_nodes: int = Field(0, ge=0, le=1)
    """Nodes of a cluster job for the server, besides those that train. 0: the server is at `server_url`."""
    sleep: bool | None = None
    """Whether a colocated vLLM frees its memory during training. null: unless it fits beside the training."""

    def checks(self) -> Iterable[Iterator[str]]:
        """That a server has one address."""
        return (self._server_has_address(),)

    def _server_has_address(self) -> Iterator[str]:
        addresses = [self.server_url is not None, self.server_nodes > 0]
        if sum(addresses) != (self.mode == "server"):
            yield "`mode: server` needs either `server_url` or `server_nodes: 1`, and `colocate` neither"


class ResourceSpec(Spec):
    """Resources of a study. They change results only by rounding (`threads`, `zero_stage`) and by the random numbers of
    sampling (`ranks`, `vllm`).
    """

    workers: int | None = Field(None, ge=1)
    """Most stages at the same time on the local machine. null: with GPUs as many as there are free ones for (training
    uses `ranks`, most other stages one), on a CPU two."""
    threads: int = Field(1, ge=1)
    """Arithmetic threads of a training or evaluation stage."""
    base_threads: int = Field(2, ge=1)
    """Arithmetic threads of the base stage, which runs alone."""
    ranks: int = Field(1, ge=1)
    """Processes that train one arm together, each with a GPU, or on a CPU."""
    nodes: int = Field(1, ge=1)
    """Nodes of a cluster; the ranks divide evenly among them."""
    evaluation_replicas: int = Field(1, ge=1)
    """Cluster jobs that share the evaluation of one model."""
    silence_minutes: float = Field(60.0, gt=0)
    """A training stage is ended if no rank has sent a heartbeat for this long: sampled a token, begun a micro-batch or
    finished a step. The longest silence of a healthy run is a checkpoint written to a slow file system."""
    zero_stage: Literal[0, 1, 2, 3] = 0
    """DeepSpeed's ZeRO stage: what is sharded over the ranks. 1: optimizer states; 2: and gradients; 3: and weights.
    0: no DeepSpeed."""
    offload: bool = False
    """Whether DeepSpeed keeps optimizer states (and at stage 3 weights) in the memory of the CPU."""
    vllm: VllmSpec | None = None
    """vLLM for sampling during training and for drift. null: transformers generates."""
    gpu: Literal["A100-40GB", "A100-80GB", "H100-80GB", "H200-141GB"] | None = None
    """GPU for the plan's memory and hours. null: no GPU; hours are those of CPU cores."""
    expected_completion_tokens: int | None = Field(None, ge=1)
    """Mean length of completions and responses that the plan's hours assume, in tokens. null: half of the limit in
    training, a quarter of it in the evaluation."""

    def checks(self) -> Iterable[Iterator[str]]:
        """That ranks divide evenly, and that something can be offloaded."""
        return self._offload_needs_deepspeed(), self._nodes_divide_ranks(), self._vllm_divides_ranks()

    def _offload_needs_deepspeed(self) -> Iterator[str]:
        if self.offload and self.zero_stage < 2:
            yield "`offload: true` needs `zero_stage` 2 or 3"

    def _nodes_divide_ranks(self) -> Iterator[str]:
        if self.ranks % self.nodes:
            yield f"resources.nodes {self.nodes} does not divide resources.ranks {self.ranks}"

    def _vllm_divides_ranks(self) -> Iterator[str]:
        if self.vllm is not None and self.vllm.mode == "colocate" and self.ranks % self.vllm.tensor_parallel:
            yield f"vllm.tensor_parallel {self.vllm.tensor_parallel} does not divide resources.ranks {self.ranks}"

    def require_vllm(self) -> VllmSpec:
        """The settings of vLLM. Raises UserError if there are none."""
        if self.vllm is None:
            raise UserError("the recipe has no `resources.vllm`, which a vLLM server needs")
        return self.vllm

    @property
    def launched(self) -> bool:
        """Whether training is started by torchrun or accelerate."""
        return self.ranks > 1 or self.zero_stage > 0


class WandbSpec(Spec):
    """Weights & Biases: one group per study, one run per arm and seed. `metrics.jsonl` stays the source of truth."""

    project: str = "transfer-lab"
    """Project the runs belong to."""
    entity: str | None = None
    """Team or user. null: the account's default."""
    mode: Literal["auto", "online", "offline"] = "auto"
    """auto: online with a key, otherwise offline for a later `wandb sync`."""
    completions_every_steps: int = Field(20, ge=1)
    """Updates between tables of sampled completions."""
