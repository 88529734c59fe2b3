"""Texts that are nearly the same: duplicates within a corpus, and corpus problems that a benchmark asks too.

Texts are compared as sequences of words and numbers in lower case, without the LaTeX commands that only set type.
Similarity is Jaccard's of the sets of three-word sequences; candidates come from MinHash with locality-sensitive
hashing (Broder 1997; the datasketch library) and every candidate is then compared exactly.
"""

import math
import re
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import islice
from typing import NamedTuple

import xxhash

_TYPESETTING = re.compile(
    r"\\(?:left|right|text(?:bf|it|rm)?|mathrm|mathbf|displaystyle|quad|qquad|big|Big|[,;!:> ])(?![a-z])"
)
_WORD = re.compile(r"[^\W\d_]+|\d+")
_SHINGLE_WORDS = 3
_PERMUTATIONS = 128
_FEW_WORDS = 8  # fewer say too little without the template around them: "3 5", "France"
_MOST_CANDIDATES = 50  # per text, the earliest: thousands of texts made from one template are all alike


class Contamination(NamedTuple):
    """A problem that is too close to a benchmark question."""

    benchmark: str
    question: int
    """Number of the question within its benchmark."""
    coverage: float
    """Share of the shorter text that lies in shared runs of words."""
    similarity: float
    """Jaccard similarity of the three-word sequences."""


class Text(NamedTuple):
    """A problem or a question that is compared with others."""

    whole: str
    values: tuple[str, ...] = ()
    """What a template prints into it, if it has text of its own; that text is the same in every row."""

    @property
    def compared(self) -> str:
        """The text without that of its template."""
        return "\n".join(self.values) or self.whole

    @property
    def is_little(self) -> bool:
        """Whether the values are too few words to tell two texts apart, so that the whole text counts too."""
        return bool(self.values) and len(words(self.compared)) < _FEW_WORDS

    def readings(self) -> list[str]:
        """The texts to look for in its place."""
        return [self.compared, self.whole] if self.is_little else [self.compared]

    def parts(self) -> list[str]:
        """Values that may be a question by themselves, beside options or a passage."""
        return [value for value in self.values if len(words(value)) >= _FEW_WORDS] if len(self.values) > 1 else []


def words(text: str) -> list[str]:
    """The words and numbers of a text, in lower case."""
    plain = _TYPESETTING.sub(" ", text).replace("\\dfrac", "\\frac").replace("\\tfrac", "\\frac")
    return _WORD.findall(plain.casefold())


def _runs(sequence: Sequence[str], length: int) -> list[int]:
    """Hashes of all runs of `length` words, in order; of the whole sequence if it is shorter."""
    starts = range(max(1, len(sequence) - length + 1))
    return [xxhash.xxh3_64_intdigest(" ".join(sequence[start : start + length]).encode()) for start in starts]


def shingles(sequence: Sequence[str], length: int = _SHINGLE_WORDS) -> set[int]:
    """The different hashes of all runs of `length` words."""
    return set(_runs(sequence, length))


def jaccard(left: set[int], right: set[int]) -> float:
    """Size of the intersection over size of the union; 0 for two empty sets."""
    union = len(left | right)
    return len(left & right) / union if union else 0.0


def near_duplicates(
    texts: Sequence[str], threshold: float, answers: Sequence[str] | None = None
) -> Iterator[tuple[int, int, float]]:
    """Pairs (later, earlier, similarity) of texts at least `threshold` similar, by the number of the later one.

    Of a text's candidates only the fifty earliest are compared. `answers`: texts whose answers are two different whole
    numbers are no candidates, as in thousands of problems made from one template.
    """
    # Hashing misses some pairs near its own threshold, so that is set lower, and missing counts more than a candidate
    # too many, which costs one exact comparison.
    from datasketch import MinHash, MinHashLSH  # with scipy, which takes half a second that a plan does not have

    bands = MinHashLSH(threshold=max(0.1, threshold - 0.15), num_perm=_PERMUTATIONS, weights=(0.2, 0.8))
    # Only the earliest texts of a bucket are kept, so that alike texts cost no more than others: the earliest whatever
    # their answers are, and behind these the earliest of each answer.
    buckets: dict[int | tuple[int, str | None], list[int]] = {}
    numbers = [_whole_number(answer) for answer in answers] if answers is not None else [None] * len(texts)
    # Sets are made again for the few candidates: those of a quarter of a million problems would need gigabytes.
    sets = (shingles(words(text)) for text in texts)
    # An integer is a hash already; datasketch only has to take 32 bits of it.
    signatures = MinHash.generator(sets, num_perm=_PERMUTATIONS, hashfunc=lambda value: value & 0xFFFFFFFF)
    for position, signature in enumerate(signatures):
        own, number = shingles(words(texts[position])), numbers[position]
        starts = range(0, bands.b * bands.r, bands.r)
        keys = [xxhash.xxh3_64_intdigest(signature.hashvalues[n : n + bands.r].tobytes(), seed=n) for n in starts]
        candidates = {n for key in keys for part in (key, (key, number), (key, None)) for n in buckets.get(part, ())}
        alike = (n for n in sorted(candidates) if number is None or numbers[n] in (None, number))
        for earlier in islice(alike, _MOST_CANDIDATES):
            similarity = jaccard(own, shingles(words(texts[earlier])))
            if similarity >= threshold:
                yield position, earlier, similarity
        for key in keys:
            bucket = buckets.setdefault(key, [])
            if len(bucket) == _MOST_CANDIDATES:
                bucket = buckets.setdefault((key, number), [])
            if len(bucket) < _MOST_CANDIDATES:
                bucket.append(position)


def _whole_number(answer: str) -> str | None:
    return str(int(answer)) if re.fullmatch(r"-?\d{1,18}", answer, re.ASCII) else None


class _Read(NamedTuple):
    """A text as it is compared."""

    words: int
    runs: list[int]
    """Hashes of its runs of `ngram_words` words, in order."""
    different_runs: set[int]
    shingles: set[int]


class BenchmarkIndex:
    """The questions of all benchmarks, to look problems up in.

    Args:
        benchmarks: name -> questions.
        ngram_words: a problem and a question are compared if they share a run of this many words.
    """

    def __init__(self, benchmarks: dict[str, list[Text]], ngram_words: int) -> None:
        self.ngram_words = ngram_words
        self.questions: list[tuple[str, int]] = []
        self._words: list[list[str]] = []
        self._by_run: dict[int, list[int]] = {}
        # Questions of one template are compared again and again; the sets of all would need gigabytes.
        self._question = lru_cache(maxsize=4096)(lambda position: self._read(self._words[position]))
        for name, questions in benchmarks.items():
            for index, reading in ((n, text) for n, question in enumerate(questions) for text in question.readings()):
                sequence = words(reading)
                for run in shingles(sequence, ngram_words):
                    self._by_run.setdefault(run, []).append(len(self._words))
                self.questions.append((name, index))
                self._words.append(sequence)

    def _read(self, sequence: list[str]) -> _Read:
        runs = _runs(sequence, self.ngram_words)
        return _Read(len(sequence), runs, set(runs), shingles(sequence))

    def find(self, problem: Text, coverage: float, similarity: float) -> Contamination | None:
        """The closest question at or above either threshold; None if there is none.

        The question column of a problem with options is compared by itself too, and only by similarity: an option or a
        passage that is part of a longer question is not that question.
        """
        found = [self._closest(text, coverage, similarity) for text in problem.readings()]
        found += [self._closest(text, math.inf, similarity) for text in problem.parts()]
        return max(filter(None, found), key=lambda one: max(one[2:]), default=None)

    def _closest(self, text: str, coverage: float, similarity: float) -> Contamination | None:
        own = self._read(words(text))
        candidates = {position for run in own.different_runs for position in self._by_run.get(run, ())}
        best = None
        for position in sorted(candidates):
            other = self._question(position)
            shorter, longer = (own, other) if own.words <= other.words else (other, own)
            covered = self._coverage(shorter, longer.different_runs)
            alike = jaccard(own.shingles, other.shingles)
            if covered >= coverage or alike >= similarity:
                overlap = Contamination(*self.questions[position], round(covered, 3), round(alike, 3))
                if best is None or max(overlap[2:]) > max(best[2:]):
                    best = overlap
        return best

    def _coverage(self, text: _Read, runs: set[int]) -> float:
        """Share of the words of a text that lie in one of `runs`."""
        if text.words < self.ngram_words:
            return float(text.different_runs <= runs)
        covered = 0
        end = 0
        for start, run in enumerate(text.runs):
            if run in runs:
                covered += start + self.ngram_words - max(start, end)
                end = start + self.ngram_words
        return covered / text.words
