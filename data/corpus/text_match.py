"""Texts that are nearly the same: duplicates within a corpus, and corpus problems that a benchmark asks too.

Texts are compared as sequences of words and numbers in lower case, without the LaTeX commands that only set type.
Similarity is Jaccard's of the sets of three-word sequences; candidates come from MinHash with locality-sensitive
hashing (Broder 1997; the datasketch library) and every candidate is then compared exactly.
"""

import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import xxhash

_TYPESETTING = re.compile(
    r"\\(?:left|right|text(?:bf|it|rm)?|mathrm|mathbf|displaystyle|quad|qquad|big|Big|[,;!:> ])(?![a-z])"
)
_WORD = re.compile(r"[^\W\d_]+|\d+")
_SHINGLE_WORDS = 3
_PERMUTATIONS = 128
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


def words(text: str) -> list[str]:
    """The words and numbers of a text, in lower case."""
    plain = _TYPESETTING.sub(" ", text).replace("\\dfrac", "\\frac").replace("\\tfrac", "\\frac")
    return _WORD.findall(plain.casefold())


def shingles(sequence: Sequence[str], length: int = _SHINGLE_WORDS) -> set[int]:
    """Hashes of all runs of `length` words; of the whole sequence if it is shorter."""
    runs = range(max(1, len(sequence) - length + 1))
    return {_hash(sequence[start : start + length]) for start in runs}


def _hash(run: Sequence[str]) -> int:
    return xxhash.xxh3_64_intdigest(" ".join(run).encode())


def jaccard(left: set[int], right: set[int]) -> float:
    """Size of the intersection over size of the union; 0 for two empty sets."""
    union = len(left | right)
    return len(left & right) / union if union else 0.0


def near_duplicates(texts: Sequence[str], threshold: float) -> Iterator[tuple[int, int, float]]:
    """Pairs (later, earlier, similarity) of texts at least `threshold` similar, by the number of the later one.

    Of a text's candidates only the fifty earliest are compared.
    """
    # Hashing misses some pairs near its own threshold, so that is set lower, and missing counts more than a candidate
    # too many, which costs one exact comparison.
    from datasketch import MinHash, MinHashLSH  # with scipy, which takes half a second that a plan does not have

    index = MinHashLSH(threshold=max(0.1, threshold - 0.15), num_perm=_PERMUTATIONS, weights=(0.2, 0.8))
    # Sets are made again for the few candidates: those of a quarter of a million problems would need gigabytes.
    sets = (shingles(words(text)) for text in texts)
    # An integer is a hash already; datasketch only has to take 32 bits of it.
    signatures = MinHash.generator(sets, num_perm=_PERMUTATIONS, hashfunc=lambda value: value & 0xFFFFFFFF)
    for position, signature in enumerate(signatures):
        own = shingles(words(texts[position]))
        for earlier in sorted(index.query(signature))[:_MOST_CANDIDATES]:
            similarity = jaccard(own, shingles(words(texts[earlier])))
            if similarity >= threshold:
                yield position, earlier, similarity
        index.insert(position, signature, check_duplication=False)


class BenchmarkIndex:
    """The questions of all benchmarks, to look problems up in.

    Args:
        benchmarks: name -> questions.
        ngram_words: a problem and a question are compared if they share a run of this many words.
    """

    def __init__(self, benchmarks: dict[str, list[str]], ngram_words: int) -> None:
        self.ngram_words = ngram_words
        self.questions: list[tuple[str, int]] = []
        self._words: list[list[str]] = []
        self._by_run: dict[int, list[int]] = {}
        for name, questions in benchmarks.items():
            for index, question in enumerate(questions):
                sequence = words(question)
                for run in shingles(sequence, ngram_words):
                    self._by_run.setdefault(run, []).append(len(self._words))
                self.questions.append((name, index))
                self._words.append(sequence)

    def find(self, problem: str, coverage: float, similarity: float) -> Contamination | None:
        """The closest question at or above either threshold; None if there is none."""
        sequence = words(problem)
        runs = shingles(sequence, self.ngram_words)
        candidates = {position for run in runs for position in self._by_run.get(run, ())}
        best = None
        for position in sorted(candidates):
            other = self._words[position]
            shorter, longer = (sequence, other) if len(sequence) <= len(other) else (other, sequence)
            covered = self._coverage(shorter, shingles(longer, self.ngram_words))
            alike = jaccard(shingles(sequence), shingles(other))
            if covered >= coverage or alike >= similarity:
                overlap = Contamination(*self.questions[position], round(covered, 3), round(alike, 3))
                if best is None or max(overlap[2:]) > max(best[2:]):
                    best = overlap
        return best

    def _coverage(self, sequence: list[str], runs: set[int]) -> float:
        """Share of the words of `sequence` that lie in one of `runs`."""
        length = self.ngram_words
        if len(sequence) < length:
            return float(shingles(sequence, length) <= runs)
        covered = 0
        end = 0
        for start in range(len(sequence) - length + 1):
            if _hash(sequence[start : start + length]) in runs:
                covered += start + length - max(start, end)
                end = start + length
        return covered / len(sequence)
