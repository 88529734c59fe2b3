"""The sections of a recipe about why scores move: representation and token shift, and what every checkpoint does."""

from pydantic import Field

from recipes.corpus_schema import Spec

LOGITS_TOKENS = 512  # tokens whose distributions over the vocabulary exist at the same time


class DiagnosticsSpec(Spec):
    """How hidden states and token distributions of every final model differ from the base's, on the same prompts."""

    prompts: int = Field(100, ge=4, le=4000)
    """Prompts of each benchmark, and of the corpus, chosen once by their hashes; all, where there are fewer."""
    max_completion_tokens: int = Field(512, ge=2)
    """Longest completion that is sampled and read, in tokens."""
    batch_size: int = Field(32, ge=1)
    """Completions sampled at once; part of the result, because it decides which random numbers one gets."""
    batch_tokens: int = Field(8192, ge=1)
    """Tokens of one forward pass, padding included; a longer sequence is read alone. Bounds memory, not the result."""
    components: int = Field(8, ge=2)
    """Dimensions of the subspaces whose principal angles are taken (fewer, where prompts or widths are fewer)."""
    draws: int = Field(200, ge=50)
    """Bootstrap draws of the prompts."""
    paper: bool = True
    """Whether the two measures of arXiv 2507.00432 are computed as its authors' code does, beside these."""
    seed: int = Field(0, ge=0)
    """Seed of the samples and of the bootstrap."""


class TrajectorySpec(Spec):
    """Every checkpoint of every arm on a small fixed slice of the suite and on held-out problems of the corpus."""

    questions: int = Field(40, ge=4)
    """Questions of each benchmark, chosen once by their hashes; all, where there are fewer."""
    samples: int = Field(1, ge=1)
    """Responses to each of them, and to each held-out problem; one where decoding is greedy."""
    heldout_problems: int = Field(100, ge=4)
    """Held-out problems of the corpus, on which equal math gain is located; all, where there are fewer."""
    draws: int = Field(1000, ge=100)
    """Bootstrap draws of the questions."""
    seed: int = Field(0, ge=0)
    """Seed of the responses and of the bootstrap."""
