"""The synthetic world: right answers, disjoint splits, a teacher that is wrong as often as it says."""

import random

import pytest

from data.grading.grader import Grader
from data.pocket_world import (
    DIRECT_CORRECT_SHARE,
    MATH,
    TASKS,
    TEACHER_CORRECT_SHARE,
    WORKING_SHARE,
    base_completion,
    benchmark_questions,
    corpus_problems,
    draw_questions,
    pretraining_documents,
    split_of,
    teacher_completion,
)
from eval.scorers.rules import score


def true_answer(task: str, problem: str) -> str:
    """Solve a problem by other means than the generator did."""
    if task in ("sum", "subtract"):
        return str(eval(problem.removesuffix("=?")))
    if task == "story":
        return str(sum(int(word.rstrip(".")) for word in problem.split() if word.rstrip(".").isdigit()))
    if task == "sort":
        return " ".join(sorted(problem.split()[1:]))
    if task == "logic":
        # The world reads from left to right; Python would bind `and` closer.
        words = problem.rstrip("?").split()
        value = words[0] == "true"
        for operator, word in zip(words[1::2], words[2::2], strict=True):
            value = (value and word == "true") if operator == "and" else (value or word == "true")
        return "true" if value else "false"
    if task == "copy":
        return problem.removeprefix("write ")
    _, word, times, _ = problem.split()
    return " ".join([word] * int(times))


@pytest.mark.parametrize("task", [name for name in TASKS if name != "fact"])
def test_reference_answers_are_right(task):
    for question in draw_questions(3, task, "test", 50):
        assert question.reference_answer == true_answer(task, question.problem)
        if question.steps:
            assert question.steps[-1].split("=")[-1].strip() == question.reference_answer


def test_no_text_is_in_two_splits():
    pretraining = {problem for problem, _ in pretraining_documents(0, 20000)}
    corpus = {question.problem for question in corpus_problems(0, "train", 1000)}
    heldout = {question.problem for question in corpus_problems(0, "heldout", 200)}
    for task in TASKS:
        dev = {q.problem for q in benchmark_questions(1234, task, "dev", 200)}
        test = {q.problem for q in benchmark_questions(1234, task, "test", 200)}
        assert len(test) >= 40
        assert not test & dev
        assert not (test | dev) & (corpus | heldout)
        if task not in ("fact", "repeat"):  # knowledge, and a task with few texts: pre-training has them all
            assert not (test | dev) & pretraining
    assert not corpus & heldout
    assert not heldout & pretraining


def test_corpus_is_math_only_and_seeded():
    questions = corpus_problems(7, "train", 100)
    assert {TASKS[question.task].group for question in questions} == {MATH}
    assert questions == corpus_problems(7, "train", 100)
    assert questions != corpus_problems(8, "train", 100)
    assert {split_of(question) for question in questions} == {"train"}


def test_base_text_has_the_declared_shares():
    rng = random.Random(0)
    questions = draw_questions(0, "subtract", "train", 2000)
    texts = [base_completion(rng, question) for question in questions]
    worked = [text for text in texts if not text.startswith("\\boxed")]
    assert len(worked) / len(texts) == pytest.approx(WORKING_SHARE, abs=0.04)
    correct = [score(text, q.reference_answer, "boxed").correct for text, q in zip(texts, questions, strict=True)]
    assert all(ok for ok, text in zip(correct, texts, strict=True) if not text.startswith("\\boxed"))
    direct = [ok for ok, text in zip(correct, texts, strict=True) if text.startswith("\\boxed")]
    assert sum(direct) / len(direct) == pytest.approx(DIRECT_CORRECT_SHARE, abs=0.05)


def test_teacher_is_graded_right_as_often_as_declared_and_writes_differently():
    rng, grader = random.Random(0), Grader()
    questions = corpus_problems(0, "train", 1000)
    texts = [teacher_completion(rng, question) for question in questions]
    correct = [grader.grade(text, q.reference_answer).correct for text, q in zip(texts, questions, strict=True)]
    assert sum(correct) / len(correct) == pytest.approx(TEACHER_CORRECT_SHARE, abs=0.02)
    base_texts = {base_completion(rng, question) for question in questions for _ in range(4)}
    assert not base_texts & set(texts)
