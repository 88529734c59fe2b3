"""One of several given answers: a letter, yes or no, or the likeliest."""

import re
from collections.abc import Sequence

from data.grading.extraction import last_boxed
from data.prompts.thinking import answer_text
from eval.questions.forms import LETTERS
from eval.scorers.letters import read_choice
from eval.scorers.score import NO_ANSWER, Reference, Score, first_line, fraction, judged

# "No" is an answer in front of punctuation, the end of a line, a pronoun or a conjunction ("No it is not"). In front of
# any other word it is a determiner ("no mention of it"), and the sentence may well mean yes.
_PRONOUN = r"because|since|as|but|and|it|its|this|that|these|those|the|there|they|he|she|i|we|you"
_NO = rf"no(?!\w|-\w|[*_]*[ \t]+[*_\"']*(?!(?:{_PRONOUN})\b)\w)"
_YES_NO = re.compile(rf"\b(yes\b|{_NO})(?!\.\s*\d)", re.IGNORECASE)
_ANOTHER = r"(?!\W{0,5}\b(?:or|and)\b\W{0,5}(?:yes|no)\b|\W{0,3}/\W{0,3}(?:yes|no)\b)"  # "yes or no"
_QUOTED = re.compile(
    r"\b(?:candidate|proposed|given|provided|suggested|possible|student's|model's)\s+(?:answer|response)\b"
    r"[\s*_]*+(?:(?:is|was|says|reads)\b|:)[^\w\n]*+(?:yes|no)\b",
    re.IGNORECASE,
)  # the answer that is judged, not the judgement
_SAID_YES_NO = re.compile(
    r"(?P<aside>\b(?:if|whether)\s+(?:\w+\s+){0,3})?\b(?:answer|judge?ment|verdict|conclusion|decision)\b[\s*_#\"']*+"
    rf"(?:(?:is|(?:would|should|must|will)\s+be)\b|:)\W*+(?P<word>yes\b|{_NO}|no(?=\s+hallucinations?\b)){_ANOTHER}",
    re.IGNORECASE,
)
_ENDING = 200  # characters of the last line in which its last sentence is looked for
_SO = r"(?:so|therefore|thus|hence|in\s+conclusion|overall|finally)\b[\s,:]*+"
_ENDS_YES_NO = re.compile(
    rf"(?:^\W*+|[.!?:;)→–—]|\s(?={_SO}))[\s*_\"'“]*+(?:{_SO})?[*_\"'“$`]*+(yes|no)\W*$", re.IGNORECASE
)
_BEGINS_YES_NO = re.compile(
    rf"[\W_]*+(?:{_SO})?[*_\"'“$`]*+(yes\b|{_NO}|no(?=\s+hallucinations?\b)){_ANOTHER}", re.IGNORECASE
)


def score_choice(response: str, reference: Reference) -> Score:
    """Whether the letter that the response settles on is the reference's."""
    letter = read_choice(response)
    return NO_ANSWER if letter is None else judged(letter == reference, letter)


def score_choice_box(response: str, reference: Reference) -> Score:
    """By the last box alone, in the whole response, which must hold the letter and nothing else."""
    boxed = last_boxed(response)
    if boxed is None:
        return NO_ANSWER
    letter = boxed.strip().strip("()").strip()
    return judged(letter == reference, letter)


def score_choice_anywhere(response: str, reference: Reference) -> Score:
    """By the last capital A to D anywhere, be it the first letter of a word: ACPBench as the paper's authors run it."""
    letters = re.findall("[A-D]", response)
    return judged(letters[-1] == reference, letters[-1]) if letters else NO_ANSWER


def read_yes_no(response: str) -> str | None:
    """The yes or no a response settles on after its thinking.

    In this order: the box, the last line or sentence if it is the word alone, the last sentence that states the answer
    or judgement, the word that the first line begins with, the one that the last line begins with, the only "yes" or
    "no" of the text. A "no" in front of a noun ("no mention of it") is no answer, nor is the answer that is judged
    ("the candidate answer is no").
    """
    text = answer_text(response)
    if text is None:
        return None
    boxed = last_boxed(text)
    if boxed is not None:  # whatever it opened with, this is the answer
        begins = _BEGINS_YES_NO.match(re.sub(r"\\[a-z]+\s*\{", "", boxed))
        return _only_word(boxed) or (begins[1].lower() if begins else None)
    text = _QUOTED.sub("", text.strip())
    lines = [line.strip() for line in text.split("\n") if line.strip()]
    if not lines:
        return None
    if ends := _ENDS_YES_NO.search(lines[-1][-_ENDING:]):
        return ends[1].lower()
    said = [match["word"] for match in _SAID_YES_NO.finditer(text) if match["aside"] is None]
    if said:
        return str(said[-1]).lower()
    for line in (lines[0], lines[-1]):
        if begins := _BEGINS_YES_NO.match(line):
            return begins[1].lower()
    return _only_word(text)


def _only_word(text: str) -> str | None:
    words = {word.lower() for word in _YES_NO.findall(text)}
    return words.pop() if len(words) == 1 else None


def score_yes_no(response: str, reference: Reference) -> Score:
    """Whether the yes or no that the response settles on is the reference's."""
    word = read_yes_no(response)
    return NO_ANSWER if word is None else judged(word == reference, word)


def score_yes_no_first_line(response: str, reference: Reference) -> Score:
    """By the first line, thinking included: it must have exactly one of "Yes" and "No", in this case and spelling.

    HaluEval as the paper's authors judge it: a response that opens with its thinking is lost whatever it concludes.
    """
    line = first_line(response)
    words = [word for word in ("Yes", "No") if word in line]
    return judged(words[0].lower() == reference, words[0].lower()) if len(words) == 1 else NO_ANSWER


def score_likelihood(answers: Sequence[str], likelihoods: Sequence[float], reference: Reference) -> Score:
    """By the likeliest of the given answers; the reference is the letter of one of them, or its text.

    A reference that can be a letter is read as one: with the answers O, A, B and AB, "B" is the second of them, A.
    """
    best = max(range(len(answers)), key=lambda index: likelihoods[index])
    letters = LETTERS[: len(answers)]
    right = letters.find(reference) == best if reference in tuple(letters) else reference == answers[best].strip()
    return judged(right, answers[best].strip())


def score_likelihood_per_byte(answers: Sequence[str], likelihoods: Sequence[float], reference: Reference) -> Score:
    """By the given answer with the highest likelihood per byte, so that long ones are not disfavoured.

    The reference is the letter of one of them, or its text. As lm-evaluation-harness's `acc_bytes`: the blank between
    prompt and answer is not part of the answer.
    """
    rates = [value / max(1, len(text.strip().encode())) for text, value in zip(answers, likelihoods, strict=True)]
    return score_likelihood(answers, rates, reference)


def all_right(scores: Sequence[Score], references: Sequence[Reference]) -> Score:
    """MC-TACO's strict accuracy of a question: every candidate answer judged right (Zhou et al. 2019, Sec. 5)."""
    return judged(all(score.correct for score in scores), None)


def yes_f1(scores: Sequence[Score], references: Sequence[Reference]) -> Score:
    """MC-TACO's F1 of a question: of the candidates called plausible; 1 where there are none on either side."""
    said = [score.answer == "yes" for score in scores]
    right = sum(word and reference == "yes" for word, reference in zip(said, references, strict=True))
    plausible = sum(reference == "yes" for reference in references)
    precision = right / sum(said) if any(said) else 1.0
    recall = right / plausible if plausible else 1.0
    return fraction(2 * precision * recall / (precision + recall) if precision + recall > 0 else 0.0, None)
