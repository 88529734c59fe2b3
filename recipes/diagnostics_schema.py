"""The sections of a recipe about representation and token shift, and about trajectories of checkpoints."""

from typing import Literal

from pydantic import Field

from recipes.spec import Spec

LOGITS_TOKENS = 512  # tokens whose logits over the vocabulary are in memory at the same time


class DiagnosticsSpec(Spec):
    """Differences between every final model and the base, on the same prompts: hidden states, token distributions."""

    prompts: int = Field(100, ge=4, le=4000)
    """Prompts of each benchmark, and of the corpus, chosen by their hashes; all, if there are fewer."""
    max_completion_tokens: int = Field(512, ge=2)
    """Longest sampled completion, in tokens."""
    batch_size: int = Field(32, ge=1)
    """Completions sampled at once. Changes the samples, because random numbers are drawn per batch."""
    batch_tokens: int = Field(8192, ge=1)
    """Tokens per forward pass, padding included; a longer sequence has its own. Bounds memory, not the result."""
    components: int = Field(8, ge=2)
    """Dimensions of the subspaces for principal angles; fewer, if there are fewer prompts or hidden units."""
    draws: int = Field(200, ge=50)
    """Bootstrap draws of the prompts."""
    paper: bool = True
    """Whether to compute also the two measures of arXiv 2507.00432, as in its authors' code."""
    seed: int = Field(0, ge=0)
    """Seed of the samples and of the bootstrap."""
    dtype: Literal["float32", "bfloat16"] | None = None
    """Number format in which all models are loaded; null: `model.dtype`. See `drift.dtype`."""


class TrajectorySpec(Spec):
    """Every snapshot of every arm (`train.snapshots`) on a slice of the suite and on the corpus's held-out problems."""

    questions: int = Field(40, ge=4)
    """Questions of each benchmark, chosen by their hashes; all, if there are fewer."""
    samples: int = Field(1, ge=1)
    """Responses to each question and held-out problem; one if decoding is greedy."""
    heldout_problems: int = Field(100, ge=4)
    """Held-out problems of the corpus, which define equal gain; all, if there are fewer."""
    draws: int = Field(1000, ge=100)
    """Bootstrap draws of the questions."""
    seed: int = Field(0, ge=0)
    """Seed of the responses and of the bootstrap."""
