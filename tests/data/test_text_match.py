"""Likeness of texts: values by hand, and the index against comparing everything with everything."""

import random

import pytest

from data.corpus.text_match import BenchmarkIndex, Text, jaccard, near_duplicates, shingles, words


def test_words_ignore_case_and_typesetting():
    assert words(r"Let $x = \dfrac{1}{2}$, then\, \left(\text{Area}\right)!") == words(r"let x = \frac 1 2 then (area)")
    assert words("Größe 12a") == ["grösse", "12", "a"]


def test_jaccard_of_three_word_runs_by_hand():
    left, right = words("a b c d e"), words("a b c d f")  # abc bcd cde / abc bcd cdf
    assert jaccard(shingles(left), shingles(right)) == pytest.approx(2 / 4)
    assert jaccard(shingles(words("a b")), shingles(words("a b"))) == 1.0
    assert jaccard(set(), set()) == 0.0


def test_index_finds_every_pair_that_comparing_all_finds():
    rng = random.Random(0)
    vocabulary = [f"w{n}" for n in range(300)]
    texts = []
    for _ in range(60):
        text = rng.choices(vocabulary, k=40)
        texts.append(" ".join(text))
        for changes in (1, 2, 4):
            copy = list(text)
            for place in rng.sample(range(40), changes):
                copy[place] = rng.choice(vocabulary)
            texts.append(" ".join(copy))
    sets = [shingles(words(text)) for text in texts]
    expected = {(a, b) for a in range(len(texts)) for b in range(a) if jaccard(sets[a], sets[b]) >= 0.8}
    found = {(a, b): similarity for a, b, similarity in near_duplicates(texts, 0.8)}
    assert len(expected) > 60
    assert set(found) <= expected
    # Hashing may miss a pair at the threshold; of all pairs, hardly any.
    assert len(found) >= 0.98 * len(expected)
    assert all(found[a, b] == pytest.approx(jaccard(sets[a], sets[b])) for a, b in found)


def test_contamination_by_hand():
    question = "one two three four five six seven eight nine ten"
    index = BenchmarkIndex(
        {"b": [Text("other words entirely, and enough of them to be a question"), Text(question)]}, 8
    )
    # Nine of the problem's twelve words lie in the shared run; 7 of 11 three-word runs are shared (10 + 8 - 7).
    problem = "zero two three four five six seven eight nine ten twelve thirteen"
    found = index.find(Text(problem), 0.9, 0.3)
    assert found is not None
    assert (found.benchmark, found.question) == ("b", 1)
    assert found.similarity == pytest.approx(7 / 11, abs=1e-3)
    assert found.coverage == pytest.approx(9 / 10)  # of the question, the shorter of the two
    assert index.find(Text(problem), 0.91, 0.7) is None
    assert index.find(Text("one two three four five six seven"), 0.1, 0.1) is None  # no run of eight words
    assert index.find(Text(question.upper()), 1.0, 1.0) is not None


def test_question_shorter_than_a_run_is_found_if_equal():
    index = BenchmarkIndex({"b": [Text("Solve for x: 2x = 4")]}, 8)
    assert index.find(Text("solve for $x$: $2x=4$"), 0.9, 0.9) is not None
    assert index.find(Text("solve for $x$: $2x=6$"), 0.9, 0.9) is None
