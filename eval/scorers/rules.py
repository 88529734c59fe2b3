"""The rules by which stored responses are judged: pure functions of a response and the question's reference.

A rule is named in the recipe, so that `transfer score` can judge stored responses again by another one. `boxed` and
`plain` are the grader of training, so the reward and the score cannot disagree. docs/evaluation.md has every rule.
"""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

from data.prompts.thinking import THINK_OPEN
from eval.questions.records import Question
from eval.scorers import answers, choices, instructions, programs, spans
from eval.scorers.records import Response, ScoreRow
from eval.scorers.sandbox import require_sandbox
from eval.scorers.score import TRUNCATED, Reference, Score
from recipes.suite_schema import TRAITS, Scoring


@dataclass(frozen=True)
class Rule:
    """How one scoring works."""

    judge: Callable[..., Score]
    """Of a response and a reference; of answers, their likelihoods and a reference where likelihoods are stored."""
    whole_text: bool = False
    """Whether all of the text is the answer, so that a text that was cut off and is not correct counts as truncated."""
    combine: Callable[[Sequence[Score], Sequence[Reference]], Score] | None = None
    """How the parts of a question are judged together; None: each on its own."""


def _instructions(loose: bool, each: bool) -> Rule:
    return Rule(partial(instructions.score_instructions, loose=loose, each=each), whole_text=True)


RULES: dict[Scoring, Rule] = {
    "boxed": Rule(partial(answers.score_graded, form="boxed")),
    "plain": Rule(partial(answers.score_graded, form="plain")),
    "exact": Rule(answers.score_exact, whole_text=True),
    "last_box_text": Rule(answers.score_last_box_text),
    "first_line": Rule(answers.score_first_line),
    "choice": Rule(choices.score_choice),
    "choice_box": Rule(choices.score_choice_box),
    "choice_anywhere": Rule(choices.score_choice_anywhere),
    "yes_no": Rule(choices.score_yes_no),
    "yes_no_first_line": Rule(choices.score_yes_no_first_line),
    "span_em": Rule(partial(spans.score_span, metric="em")),
    "span_f1": Rule(partial(spans.score_span, metric="f1")),
    "span_em_first_line": Rule(partial(spans.score_span_first_line, metric="em")),
    "span_f1_first_line": Rule(partial(spans.score_span_first_line, metric="f1")),
    "instructions_strict": _instructions(loose=False, each=False),
    "instructions_loose": _instructions(loose=True, each=False),
    "each_instruction_strict": _instructions(loose=False, each=True),
    "each_instruction_loose": _instructions(loose=True, each=True),
    "code": Rule(programs.score_code),
    "likelihood": Rule(choices.score_likelihood),
    "likelihood_per_byte": Rule(choices.score_likelihood_per_byte),
    "strict_yes_no": Rule(choices.score_yes_no, combine=choices.all_right),
    "f1_yes_no": Rule(choices.score_yes_no, combine=choices.yes_f1),
    "strict_likelihood": Rule(choices.score_likelihood, combine=choices.all_right),
    "f1_likelihood": Rule(choices.score_likelihood, combine=choices.yes_f1),
}


def score(
    response: str, reference: Reference, scoring: Scoring, cut_off: bool = False, sandboxed: bool = True
) -> Score:
    """Score one response by the named rule; `cut_off` tells an unfinished answer from a missing or wrong one."""
    rule = RULES[scoring]
    options = {"sandboxed": sandboxed} if TRAITS[scoring].runs_code else {}
    result = rule.judge(response, reference, **options)
    unfinished = result.outcome == "no_answer" or (rule.whole_text and not result.correct)
    # The score stays as it is: instructions that an unfinished response follows count as in the published metric.
    return result._replace(outcome=TRUNCATED) if cut_off and unfinished else result


def score_rows(
    rows: Sequence[Response], questions: Sequence[Question], scoring: Scoring, limit: int, sandboxed: bool = True
) -> list[ScoreRow]:
    """The scores of stored responses, which are in the order of the questions; one for each text of each question.

    `limit`: tokens from which a response was cut off.

    Raises:
        UserError: the rule runs code in a sandbox, and there is none.
    """
    rule, runs_code = RULES[scoring], TRAITS[scoring].runs_code
    if runs_code and sandboxed:
        require_sandbox()

    def judge(row: Response, question: Question) -> list[Score]:
        if row.likelihoods:
            return [rule.judge(row.answers, row.likelihoods, question.reference)]
        opening = THINK_OPEN if row.opens_thinking else ""
        lengths = zip(row.responses, row.tokens, strict=True)
        return [
            score(opening + text, question.reference, scoring, tokens >= limit, sandboxed) for text, tokens in lengths
        ]

    if len(rows) != len(questions):
        raise ValueError(f"{len(rows)} rows for {len(questions)} questions")
    if runs_code:
        with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
            judged = list(pool.map(judge, rows, questions))
    else:
        judged = list(map(judge, rows, questions))
    if rule.combine is None:
        return [
            _row(question.question_id, question, index, item)
            for question, scores in zip(questions, judged, strict=True)
            for index, item in enumerate(scores)
        ]
    units: dict[str, list[int]] = {}
    for position, question in enumerate(questions):
        units.setdefault(question.unit or question.question_id, []).append(position)
    combined = []
    for unit, members in units.items():
        references = [questions[position].reference for position in members]
        for index in range(len(judged[members[0]])):
            part_scores = [judged[position][index] for position in members]
            whole = rule.combine(part_scores, references)
            missing = {part.outcome for part in part_scores} & {TRUNCATED, "no_answer"}
            if missing:  # a question is lost as its first lost part is, also where saying nothing would be right
                whole = Score(0.0, TRUNCATED if TRUNCATED in missing else "no_answer")
            combined.append(_row(unit, questions[members[0]], index, whole))
    return combined


def _row(identity: str, question: Question, index: int, item: Score) -> ScoreRow:
    cluster = question.cluster or identity
    return ScoreRow(identity, cluster, index, item.value, item.outcome, item.answer, item.weight)
