"""The synthetic world of the pocket study: eight small tasks in three groups, generated from a seed.

It stands in for web text (`pretraining_documents`), for a math corpus (`corpus_problems`), for a teacher
whose writing is not the base model's (`teacher_completion`) and for the benchmarks (`benchmark_questions`).
A text model of this world can work a reasoning problem out step by step but often answers at once and is
then mostly wrong, while plain questions are always answered at once and correctly. Nothing here knows about
training methods: what SFT or RL does to the eight tasks is measured, never written down.

Problem texts are divided by a hash of their text (`split_of`), so pre-training, corpus, held-out math, the
benchmarks that are reported ("test") and those used to choose hyperparameters ("dev") never share one. The
exceptions are the tasks `fact`, which asks for knowledge that only pre-training can have given, and `repeat`,
whose few possible texts all occur in pre-training; both still keep their dev and test questions apart.
"""

import hashlib
import random
from collections.abc import Callable, Iterator
from typing import NamedTuple

MATH, OTHER_REASONING, NON_REASONING = "math", "other_reasoning", "non_reasoning"

# How a reasoning prompt is answered in the pre-training text.
WORKING_SHARE = 0.5  # with the working, and then correctly; the rest is answered at once
DIRECT_CORRECT_SHARE = 0.4  # of the answers given at once
TEACHER_CORRECT_SHARE = 0.95  # of the teacher's samples; grading removes the others from the SFT view

_LETTERS = "abcdefghij"
_PEOPLE = ("tom", "ann", "joe", "sue", "max", "eva", "ben", "ida")
_WORDS = (
    "cat dog sun map key cup hat box pen jar bus van log net fan bag tin oak fig owl ant bee cow hen pig ram fox elk"
).split()
_THINGS = ("coins", "cards", "shells", "stamps")
_ANIMALS = (
    "wolf bear deer lynx hare mole crow dove seal crab toad newt swan gull carp pike wasp moth slug yak "
    "goat duck frog lion kiwi puma rook boar ibex orca"
).split()
_RELATIONS = {
    "food": ("what does the {} eat?", ["grass", "nuts", "fish", "worms", "bread", "corn"]),
    "home": ("where does the {} live?", ["cave", "lake", "barn", "tree", "field", "attic"]),
    "mood": ("how does the {} feel?", ["calm", "proud", "shy", "angry", "happy", "tired"]),
    "hour": ("when does the {} wake?", ["dawn", "noon", "dusk", "night", "spring", "autumn"]),
}


class Question(NamedTuple):
    """One question of the world."""

    task: str
    problem: str
    reference_answer: str
    steps: tuple[str, ...]
    """The intermediate results in the base's own notation; empty for the tasks that need none."""
    level: int


def _sum_steps(terms: list[int], sign: str) -> tuple[str, ...]:
    steps, total = [], terms[0]
    for term in terms[1:]:
        result = total + term if sign == "+" else total - term
        steps.append(f"{total}{sign}{term}={result}")
        total = result
    return tuple(steps)


def _sum(rng: random.Random) -> Question:
    terms = [rng.randint(1, 9) for _ in range(rng.randint(3, 4))]
    return Question("sum", "+".join(map(str, terms)) + "=?", str(sum(terms)), _sum_steps(terms, "+"), len(terms))


def _story(rng: random.Random) -> Question:
    terms = [rng.randint(1, 9) for _ in range(rng.randint(3, 4))]
    person, things = rng.choice(_PEOPLE), rng.choice(_THINGS)
    more = " then ".join(map(str, terms[1:]))
    problem = f"{person} has {terms[0]} {things} and gets {more}. how many?"
    return Question("story", problem, str(sum(terms)), _sum_steps(terms, "+"), len(terms))


def _subtract(rng: random.Random) -> Question:
    terms = [rng.randint(20, 50), *(rng.randint(1, 9) for _ in range(rng.randint(2, 3)))]
    answer = terms[0] - sum(terms[1:])
    return Question("subtract", "-".join(map(str, terms)) + "=?", str(answer), _sum_steps(terms, "-"), len(terms))


def _sort(rng: random.Random) -> Question:
    letters = rng.sample(_LETTERS, 4)
    steps = [" ".join(sorted(letters[: n + 1])) for n in range(1, len(letters))]
    return Question("sort", "sort " + " ".join(letters), " ".join(sorted(letters)), tuple(steps), len(letters))


def _logic(rng: random.Random) -> Question:
    values = [rng.choice(("true", "false")) for _ in range(rng.randint(3, 6))]
    operators = [rng.choice(("and", "or")) for _ in values[1:]]
    text, steps, result = values[0], [], values[0]
    for operator, value in zip(operators, values[1:], strict=True):
        text += f" {operator} {value}"
        operands = (result == "true", value == "true")
        outcome = "true" if (all(operands) if operator == "and" else any(operands)) else "false"
        steps.append(f"{result} {operator} {value} = {outcome}")
        result = outcome
    return Question("logic", text + "?", result, tuple(steps), len(values))


def _copy(rng: random.Random) -> Question:
    words = rng.sample(_WORDS, rng.randint(3, 5))
    return Question("copy", "write " + " ".join(words), " ".join(words), (), len(words))


def _repeat(rng: random.Random) -> Question:
    word, times = rng.choice(_WORDS), rng.randint(2, 8)
    return Question("repeat", f"say {word} {times} times", " ".join([word] * times), (), times)


def _fact(rng: random.Random) -> Question:
    animal, relation = rng.choice(_ANIMALS), rng.choice(sorted(_RELATIONS))
    wording, values = _RELATIONS[relation]
    # The facts of the world are the same whatever the seed: a hash decides them.
    value = values[_hash(f"{animal} {relation}") % len(values)]
    return Question("fact", wording.format(animal), value, (), 1)


class Task(NamedTuple):
    """One task: its group and how a question is drawn."""

    group: str
    draw: Callable[[random.Random], Question]


TASKS: dict[str, Task] = {
    "sum": Task(MATH, _sum),
    "story": Task(MATH, _story),
    "subtract": Task(OTHER_REASONING, _subtract),
    "sort": Task(OTHER_REASONING, _sort),
    "logic": Task(OTHER_REASONING, _logic),
    "copy": Task(NON_REASONING, _copy),
    "repeat": Task(NON_REASONING, _repeat),
    "fact": Task(NON_REASONING, _fact),
}
# Every text of these occurs in pre-training: `fact` is knowledge, `repeat` has too few texts to set any aside.
_KNOWN_TASKS = ("fact", "repeat")


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def split_of(question: Question) -> str:
    """Where a question may appear: "train" (pre-training and corpus), "heldout", "dev" or "test"."""
    bucket = _hash(question.problem) % 10
    if question.task in _KNOWN_TASKS:
        return "dev" if bucket % 2 else "test"
    return ("test", "dev", "heldout")[bucket] if bucket < 3 else "train"


def _wrong_answer(rng: random.Random, question: Question) -> str:
    """A plausible answer that is not the reference: what a hasty reader of the problem would say."""
    answer = question.reference_answer
    if question.task == "logic":
        return "false" if answer == "true" else "true"
    if question.task == "sort":
        letters = answer.split()
        first = rng.randrange(len(letters) - 1)
        letters[first], letters[first + 1] = letters[first + 1], letters[first]
        return " ".join(letters)
    return str(max(0, int(answer) + rng.choice((-3, -2, -1, 1, 2, 3))) if int(answer) > 3 else int(answer) + 1)


def base_completion(rng: random.Random, question: Question) -> str:
    """An answer as the pre-training text gives it."""
    if not question.steps:
        return question.reference_answer
    if rng.random() < WORKING_SHARE:
        return ", ".join(question.steps) + f". \\boxed{{{question.reference_answer}}}"
    correct = rng.random() < DIRECT_CORRECT_SHARE
    return f"\\boxed{{{question.reference_answer if correct else _wrong_answer(rng, question)}}}"


def teacher_completion(rng: random.Random, question: Question) -> str:
    """One sample of the scripted teacher: a math answer in a style the base model has never seen.

    The equations are the base's, the way they are strung together is not: it opens with a connective, joins with
    "then" and never writes the comma and full stop the base always writes. A few samples slip in the last step.
    """
    steps, answer = list(question.steps), question.reference_answer
    if rng.random() >= TEACHER_CORRECT_SHARE:
        answer = _wrong_answer(rng, question)
        steps[-1] = steps[-1].rsplit("=", 1)[0] + "=" + answer
    opening = rng.choice(("then", "and then", "and"))
    return f"{opening} {' then '.join(steps)} and then \\boxed{{{answer}}}"


def draw_questions(seed: int, task: str, split: str, count: int) -> list[Question]:
    """`count` different questions of one task from one split, or all there are if the world has fewer."""
    rng = random.Random(f"{task} {split} {seed}")
    question_by_problem: dict[str, Question] = {}
    misses = 0
    while len(question_by_problem) < count and misses < 5000:
        question = TASKS[task].draw(rng)
        if split_of(question) != split or question.problem in question_by_problem:
            misses += 1
            continue
        question_by_problem[question.problem] = question
        misses = 0
    return list(question_by_problem.values())


def pretraining_documents(seed: int, count: int) -> Iterator[tuple[str, str]]:
    """`count` (problem, completion) pairs, the tasks equally often: what web text is to an LLM."""
    rng = random.Random(f"pretraining {seed}")
    tasks = list(TASKS)
    for index in range(count):
        task = tasks[index % len(tasks)]
        question = TASKS[task].draw(rng)
        while task not in _KNOWN_TASKS and split_of(question) != "train":
            question = TASKS[task].draw(rng)
        yield question.problem, base_completion(rng, question)


def corpus_problems(seed: int, split: str, count: int) -> list[Question]:
    """Up to `count` math problems, the two math tasks alternating."""
    math_tasks = [name for name, task in TASKS.items() if task.group == MATH]
    drawn = [draw_questions(seed, task, split, -(-count // len(math_tasks))) for task in math_tasks]
    return [question for pair in zip(*drawn, strict=False) for question in pair][:count]


def benchmark_questions(seed: int, task: str, split: str, count: int) -> list[Question]:
    """Questions of one task for evaluation; `split` is "dev" (choosing) or "test" (reporting)."""
    return draw_questions(seed, task, split, count)
