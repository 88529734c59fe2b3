"""An arm's own prompt and length limits, where it has some: what of the corpus is left within them."""

from transformers import PreTrainedTokenizerBase

from data.corpus.rows import Demonstration, Problem
from data.prompts.prompt import render_prompt
from recipes.training_schema import PromptSpec
from train.arms import ResolvedArm


def within_own_limits(
    settings: ResolvedArm,
    study: PromptSpec,
    problems: list[Problem],
    demonstrations: dict[str, list[Demonstration]],
    tokenizer: PreTrainedTokenizerBase,
) -> tuple[list[Problem], dict[str, list[Demonstration]]]:
    """What is left of the corpus within an arm's own prompt and limits; the study's were applied when it was built.

    Returns the problems whose prompt is short enough and, for arms that read a teacher, that have a demonstration that
    is; and the demonstrations, those that are too long marked as not fitting.
    """
    own = settings.prompt
    if own == study:
        return problems, demonstrations
    rendered = [render_prompt(tokenizer, problem.problem, own) for problem in problems]
    lengths = [len(ids) for ids in tokenizer(rendered)["input_ids"]]
    limit = own.max_completion_tokens
    fitting = {
        identity: [row._replace(fits=row.fits and row.tokens <= limit) for row in rows]
        for identity, rows in demonstrations.items()
    }
    left = [problem for problem, length in zip(problems, lengths, strict=True) if length <= own.max_prompt_tokens]
    if settings.sampling == "teacher":
        wanted = "usable" if settings.credit == "uniform" else "fits"
        left = [p for p in left if any(getattr(row, wanted) for row in fitting.get(p.problem_id, []))]
    return left, fitting
