"""Token shift: KL and ranks by hand, torch.distributions, and the chunked path against the plain one."""

import math

import numpy as np
import pytest
import torch

from eval.shifts import token_shift
from eval.shifts.figures import visible_token
from eval.shifts.token_shift import (
    KL_EDGES,
    MEASURES,
    RANK_EDGES,
    average,
    chunked_measures,
    histogram,
    kind_of_token,
    merge_shifted,
    paper_kl,
    prompt_draws,
    shifted,
    shifted_tokens,
    token_measures,
)


def columns(tuned, base, ids):
    found = token_measures(torch.tensor(tuned), torch.tensor(base), torch.tensor(ids)).numpy()
    return {name: found[:, place] for place, name in enumerate(MEASURES)}


def test_three_words_by_hand():
    p, q = [0.7, 0.2, 0.1], [0.1, 0.3, 0.6]
    found = columns([[math.log(x) for x in p]], [[math.log(x) + 4 for x in q]], [0])  # logits are free of a constant
    # 0.7 ln 7 + 0.2 ln(2/3) + 0.1 ln(1/6) = 1.362137 - 0.081093 - 0.179176
    assert found["kl_to_base"] == pytest.approx([1.101868], abs=1e-6)
    # 0.1 ln(1/7) + 0.3 ln(3/2) + 0.6 ln 6 = -0.194591 + 0.121640 + 1.075056
    assert found["kl_from_base"] == pytest.approx([1.002104], abs=1e-6)
    assert found["entropy_tuned"] == pytest.approx([0.801819], abs=1e-6)
    assert found["entropy_base"] == pytest.approx([0.897946], abs=1e-6)
    assert found["logprob_tuned"] == pytest.approx([math.log(0.7)], abs=1e-6)
    assert found["logprob_base"] == pytest.approx([math.log(0.1)], abs=1e-6)
    assert (found["rank_tuned"].tolist(), found["rank_base"].tolist()) == ([1], [3])


def test_equal_logits_share_the_better_rank():
    found = columns([[1.0, 1.0, 0.0, 1.0]], [[0.0, 2.0, 2.0, 5.0]], [1])
    assert (found["rank_tuned"].tolist(), found["rank_base"].tolist()) == ([1], [2])


def test_equal_to_torch_distributions():
    torch.manual_seed(0)
    tuned, base = 3 * torch.randn(50, 1000), 3 * torch.randn(50, 1000)
    ids = torch.randint(1000, (50,))
    found = token_measures(tuned, base, ids)
    one, two = (torch.distributions.Categorical(logits=logits.double()) for logits in (tuned, base))
    kl = torch.distributions.kl_divergence
    expected = torch.stack(
        [kl(one, two), kl(two, one), one.entropy(), two.entropy(), one.log_prob(ids), two.log_prob(ids)]
    )
    assert torch.allclose(found[:, :6], expected.T, atol=1e-5, rtol=1e-6)
    order = base.argsort(dim=-1, descending=True)
    assert found[:, 7].tolist() == [1 + order[row].tolist().index(int(ids[row])) for row in range(50)]


class _Head:
    def __init__(self, weight):
        self.weight = weight

    def logits(self, states):
        return states @ self.weight.T


def test_the_chunked_path_equals_the_plain_one(monkeypatch):
    torch.manual_seed(1)
    states = torch.randn(23, 16), torch.randn(23, 16)
    heads = _Head(torch.randn(301, 16)), _Head(torch.randn(301, 16))
    ids = torch.randint(301, (23,))
    monkeypatch.setattr(token_shift, "CHUNK", 4)
    chunked = chunked_measures(*states, *heads, ids)
    plain = token_measures(heads[0].logits(states[0]), heads[1].logits(states[1]), ids).numpy()
    assert chunked == pytest.approx(plain, abs=1e-6, rel=1e-6)


def test_averages_by_hand():
    # Response 0 has tokens 1, 2, 3; response 1 has 10.
    values, response = np.array([1.0, 2, 3, 10]), np.array([0, 0, 0, 1])
    draws = np.array([[1.0, 1.0], [2.0, 0.0], [0.0, 2.0], [3.0, 1.0]])
    found = average(values, response, draws)
    assert (found.per_token, found.per_response) == (4.0, 6.0)
    assert found.per_token_D == pytest.approx([4, 2, 10, (3 * 6 + 10) / (3 * 3 + 1)])
    assert found.per_response_D == pytest.approx([6, 2, 10, (3 * 2 + 10) / 4])


def test_draws_take_as_many_prompts_as_there_are_and_are_the_same_for_all_models():
    first = prompt_draws(7, 50, (3, 11))
    assert (first.sum(axis=1) == 7).all()
    assert (first == prompt_draws(7, 50, (3, 11))).all()
    assert (first != prompt_draws(7, 50, (3, 12))).any()


def test_the_published_estimate_by_hand():
    tuned = [np.log([0.9, 0.5, 0.25]), np.log([0.5, 0.5]), np.log([0.1])]
    base = [np.log([0.1, 0.25, 0.5]), np.log([0.5, 1.0]), np.log([0.9])]
    # Without first tokens: (ln 2 - ln 2) / 2 = 0 and ln 0.5; the third response has no second token.
    assert paper_kl(tuned, base) == pytest.approx(math.log(2) / 2, abs=1e-8)
    assert paper_kl(tuned[2:], base[2:]) is None
    impossible = paper_kl([np.array([0.0, 0.0])], [np.array([0.0, -1000.0])])
    assert impossible == pytest.approx(-math.log(1e-10), abs=1e-6)  # what the floor makes of it


def test_histograms_put_every_token_into_one_bin():
    assert histogram(np.array([1, 1, 2, 3, 4, 10, 11, 5000]), RANK_EDGES) == [2, 1, 1, 2, 1, 0, 1]
    # Rounding makes a KL of equal distributions a little negative.
    assert histogram(np.array([-1e-9, 0, 0.05, 0.1, 20]), KL_EDGES) == [2, 0, 0, 1, 1, 0, 0, 0, 1]


def test_shifted_is_probable_now_and_was_not():
    assert shifted(np.array([1, 3, 4, 1, 3]), np.array([4, 900, 900, 3, 4])).tolist() == [
        True,
        True,
        False,
        False,
        True,
    ]


def test_shifted_tokens_by_hand():
    rows = [  # kl, kl, entropy, entropy, logprob tuned, logprob base, rank tuned, rank base
        [0, 0, 0, 0, -0.1, -5.1, 1, 10],
        [0, 0, 0, 0, -0.2, -3.2, 1, 20],
        [0, 0, 0, 0, -0.1, -0.1, 1, 1],
        [0, 0, 0, 0, -1.0, -4.0, 2, 5],
    ]
    found = shifted_tokens(np.array(rows), np.array([7, 7, 7, 9]), {7: " wait", 9: "\n"})
    assert found == [
        {"token": 7, "text": " wait", "kind": "connective", "shifted": 2, "occurs": 3, "rise": 4.0, "base_rank": 15.0},
        {"token": 9, "text": "\n", "kind": "format", "shifted": 1, "occurs": 1, "rise": 3.0, "base_rank": 5.0},
    ]  # fmt: skip
    again = merge_shifted([found, [dict(found[0], shifted=6, occurs=6, rise=2.0, base_rank=7.0)]])
    assert again[0] == dict(found[0], shifted=8, occurs=9, rise=2.5, base_rank=9.0)
    assert again[1] == found[1]


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        (" But", "connective"), ("therefore", "connective"), ("wait", "connective"), (" apple", "content"),
        ("7", "content"), ("and7", "content"), (" ", "format"), ("\\boxed", "format"),
        ("{", "format"), ("<|im_end|>", "format"),
        ("</think>", "format"), ("", "format"), ("_", "format"), (" né", "content"), ("然后", "content"),
    ],
)  # fmt: skip
def test_kinds_of_tokens(text, kind):
    assert kind_of_token(text) == kind


def test_tokens_are_shown_without_anything_invisible():
    assert visible_token(" a\n\t\x1b") == "␣a⏎⇥�"
    assert visible_token("x" * 40) == "x" * 15 + "…"
