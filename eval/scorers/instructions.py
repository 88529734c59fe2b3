"""IFEval (Zhou et al. 2023, arXiv 2311.07911) by the checkers of lm-evaluation-harness, without their download.

The checkers split sentences with a tokenizer whose data nltk downloads when they are imported, and load as a pickle.
Here nltk's own untrained Punkt takes its place; on the published GPT-4 responses it gives the published prompt-level
accuracy to within one prompt. Two of the 541 prompts draw random numbers while they are checked, so the generator is
seeded by the prompt's key: a response always gets the same score.
"""

import io
import random
from contextlib import redirect_stdout
from functools import lru_cache
from typing import Any

from data.prompts.thinking import strip_thinking
from eval.scorers.score import NO_ANSWER, Reference, Score, fraction, judged


@lru_cache(maxsize=1)
def _checkers() -> Any:
    import nltk

    download = nltk.download
    nltk.download = lambda *arguments, **options: True
    try:
        with redirect_stdout(io.StringIO()):  # it says that it has downloaded something, which it has not
            from lm_eval.tasks.ifeval import instructions_util, utils
    finally:
        nltk.download = download
    from langdetect import DetectorFactory
    from nltk.tokenize import NLTKWordTokenizer
    from nltk.tokenize.punkt import PunktSentenceTokenizer

    DetectorFactory.seed = 0
    sentences, words = PunktSentenceTokenizer(), NLTKWordTokenizer()

    class Nltk:
        """What the checkers use of nltk, with nothing to load."""

        tokenize = nltk.tokenize

        @staticmethod
        def word_tokenize(text: str, **_: Any) -> list[str]:
            return [word for sentence in sentences.tokenize(text) for word in words.tokenize(sentence)]

    instructions_util._get_sentence_tokenizer = lambda: sentences
    instructions_util.nltk = Nltk
    return utils


def score_instructions(response: str, reference: Reference, loose: bool, each: bool) -> Score:
    """Whether all instructions of a prompt are followed; `each` counts the share that is, weighted by their number.

    `loose`: also without first and last line and without asterisks. Thinking is not part of the response.
    """
    followed = followed_instructions(response, reference, loose)
    if followed is None:
        return NO_ANSWER._replace(weight=float(len(reference["instructions"])) if each else 1.0)
    failed = ", ".join(name for name, met in zip(reference["instructions"], followed, strict=True) if not met) or None
    if each:
        return fraction(sum(followed) / len(followed), failed, float(len(followed)))
    return judged(all(followed), failed)


def followed_instructions(response: str, reference: Reference, loose: bool) -> list[bool] | None:
    """Of each instruction whether it is followed; None if there is no response after the thinking."""
    text = strip_thinking(response)  # the blank lines after it would count as a first paragraph
    if not text.strip():
        return None
    checkers = _checkers()
    state = random.getstate()
    random.seed(reference["key"])
    try:
        example = checkers.InputExample(
            reference["key"], reference["instructions"], reference["prompt"], reference["arguments"]
        )
        check = checkers.test_instruction_following_loose if loose else checkers.test_instruction_following_strict
        return list(check(example, text).follow_instruction_list)
    finally:
        random.setstate(state)
