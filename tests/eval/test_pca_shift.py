"""Representation shift: known answers by hand, and other implementations (scipy, scikit-learn)."""

import numpy as np
import pytest
import torch
from scipy.linalg import subspace_angles
from sklearn.decomposition import PCA

from eval.shifts.pca_shift import MEASURES, paper_shift, paper_states, representation_shift, shuffled_cka
from eval.shifts.states import POOLINGS, batches, read_pooled_states, write_pooled_states
from eval.shifts.summary import _mean


def measured(base, tuned, components=2, draws=None):
    estimate, drawn = representation_shift(base, tuned, np.ones((1, len(base))) if draws is None else draws, components)
    return dict(zip(MEASURES, estimate, strict=True)), drawn


@pytest.fixture
def cross():
    """Four prompts on two axes: variances 8 and 2 (over N), the other dimensions empty."""
    return np.array([[4.0, 0, 0, 0], [-4.0, 0, 0, 0], [0, 2.0, 0, 0], [0, -2.0, 0, 0]])


def test_a_translation_moves_the_centroid_and_nothing_else(cross):
    found, _ = measured(cross, cross + np.array([3.0, 4.0, 0, 0]))
    # 5 over sqrt(8 + 2), in the plane and in the whole space alike
    assert found["pca_shift"] == pytest.approx(5 / np.sqrt(10), abs=1e-12)
    assert found["centroid_shift"] == pytest.approx(5 / np.sqrt(10), abs=1e-12)
    assert found["cka"] == pytest.approx(1, abs=1e-12)
    assert found["angle"] == pytest.approx(0, abs=1e-5)


def test_the_plane_is_blind_to_what_is_orthogonal_to_it_and_the_centroid_is_not(cross):
    found, _ = measured(cross, cross + np.array([0, 0, 7.0, 0]))
    assert found["pca_shift"] == pytest.approx(0, abs=1e-12)
    assert found["centroid_shift"] == pytest.approx(7 / np.sqrt(10), abs=1e-12)


def test_a_rotated_space_has_its_angle_and_the_same_alignment(cross):
    turn = np.eye(4)
    cosine, sine = np.cos(np.radians(40)), np.sin(np.radians(40))
    turn[np.ix_([0, 2], [0, 2])] = [[cosine, -sine], [sine, cosine]]  # the first axis leaves the plane by 40 degrees
    found, _ = measured(cross, 3 * cross @ turn.T)
    assert found["angle"] == pytest.approx((40 + 0) / 2, abs=1e-5)
    assert found["cka"] == pytest.approx(1, abs=1e-12)
    assert found["pca_shift"] == pytest.approx(0, abs=1e-12)


def test_signs_of_components_and_the_order_of_prompts_do_not_matter():
    rng = np.random.default_rng(0)
    base, tuned = rng.normal(size=(30, 12)), rng.normal(size=(30, 12))
    first, _ = measured(base, tuned, 4)
    for other in ((-base, -tuned), (base[::-1], tuned[::-1]), (5 * base, 5 * tuned)):
        again, _ = measured(*other, 4)
        assert again == pytest.approx(first, rel=1e-9)


@pytest.mark.parametrize("shape", [(40, 9), (9, 40)])
def test_alignment_and_angles_equal_their_textbook_forms(shape):
    rng = np.random.default_rng(1)
    base = rng.normal(size=shape)
    tuned = base + 0.4 * rng.normal(size=shape)
    found, _ = measured(base, tuned, 3)
    x, y = base - base.mean(0), tuned - tuned.mean(0)
    cka = np.linalg.norm(y.T @ x) ** 2 / (np.linalg.norm(x.T @ x) * np.linalg.norm(y.T @ y))
    assert found["cka"] == pytest.approx(cka, rel=1e-10)
    spaces = [PCA(3, svd_solver="full").fit(values).components_.T for values in (base, tuned)]
    assert found["angle"] == pytest.approx(np.degrees(subspace_angles(*spaces)).mean(), rel=1e-8)
    plane = PCA(2, svd_solver="full").fit(base)
    moved = plane.transform(tuned).mean(0) - plane.transform(base).mean(0)
    spread = np.sqrt(plane.explained_variance_.sum() * (len(base) - 1) / len(base))
    assert found["pca_shift"] == pytest.approx(np.linalg.norm(moved) / spread, rel=1e-10)


def test_a_draw_of_prompts_is_the_measure_of_those_prompts():
    rng = np.random.default_rng(2)
    base, tuned = rng.normal(size=(12, 5)), rng.normal(size=(12, 5))
    counts = np.array([2, 0, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1.0])
    _, drawn = measured(base, tuned, 2, np.stack([np.ones(12), counts]))
    whole, _ = measured(base, tuned, 2)
    assert drawn[0] == pytest.approx([whole[name] for name in MEASURES], rel=1e-9)
    rows = np.repeat(np.arange(12), counts.astype(int))
    again, _ = measured(base[rows], tuned[rows], 2)
    for name in ("centroid_shift", "cka", "angle"):  # the plane of pca_shift stays that of all prompts
        assert drawn[1][MEASURES.index(name)] == pytest.approx(again[name], rel=1e-9), name
    plane = PCA(2, svd_solver="full").fit(base).components_.T
    inside = base[rows] @ plane
    expected = np.linalg.norm((tuned[rows] - base[rows]).mean(0) @ plane) / np.sqrt(inside.var(axis=0).sum())
    assert drawn[1][MEASURES.index("pca_shift")] == pytest.approx(expected, rel=1e-9)


def test_states_without_spread_have_no_measure():
    same = np.tile(np.arange(6.0), (5, 1))
    found, drawn = measured(same, same + 1)
    assert all(np.isnan(value) for value in found.values())
    assert np.isnan(drawn).all()
    assert np.isnan(shuffled_cka(same, same, np.random.default_rng(0)))


def test_shuffled_alignment_is_that_of_unrelated_states():
    rng = np.random.default_rng(3)
    base = rng.normal(size=(400, 4))
    assert shuffled_cka(base, base, rng) == pytest.approx(0, abs=0.02)
    assert shuffled_cka(rng.normal(size=(8, 200)), rng.normal(size=(8, 200)), rng) > 0.8  # few prompts, wide states


def test_an_interval_of_a_length_is_reflected_so_that_noise_does_not_push_it_up():
    drawn = np.full(100, 5.0)
    rng = np.random.default_rng(0)
    assert _mean([[4.0]], [[drawn]], 0.95, rng, (0.0, np.inf)).dump() == {"estimate": 4.0, "low": 3.0, "high": 3.0}
    assert _mean([[1.0]], [[drawn]], 0.95, rng, (0.0, np.inf)).dump() == {"estimate": 1.0, "low": 0.0, "high": 0.0}
    assert _mean([[4.0]], [[drawn]], 0.95, rng).dump() == {"estimate": 4.0, "low": 5.0, "high": 5.0}


@pytest.fixture(scope="module")
def pair():
    """Two tiny models of one shape, and prompts of several lengths."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    config = Qwen3Config(
        vocab_size=97, hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, max_position_embeddings=256,
    )  # fmt: skip
    torch.manual_seed(0)
    models = [Qwen3ForCausalLM(config).eval(), Qwen3ForCausalLM(config).eval()]
    for model in models:  # random initial weights would leave the states nearly alike
        for parameter in model.parameters():
            parameter.data += 0.05 * torch.randn_like(parameter)
    rng = np.random.default_rng(0)
    prompts = [rng.integers(1, 97, size=length).tolist() for length in (3, 17, 5, 40, 9, 9, 28, 4, 11, 33)]
    return models, prompts


def test_pooled_states_of_one_pass_equal_each_prompt_read_alone(pair, tmp_path):
    (model, _), prompts = pair
    write_pooled_states(model, prompts, tmp_path / "states.npy", 60, "model")
    stored = read_pooled_states(tmp_path / "states.npy")
    assert stored.shape == (4, len(POOLINGS), len(prompts), 32)
    for number, prompt in enumerate(prompts):
        with torch.no_grad():
            hidden = model(input_ids=torch.tensor([prompt]), output_hidden_states=True).hidden_states
        for level, states in enumerate(hidden):
            assert stored[level, 0, number] == pytest.approx(states[0].mean(dim=0).numpy(), abs=1e-5)
            assert stored[level, 1, number] == pytest.approx(states[0, -1].numpy(), abs=1e-5)


def test_batches_hold_every_prompt_once_within_the_budget():
    lengths = [3, 17, 5, 40, 9, 100, 28]
    found = list(batches(lengths, 60))
    assert sorted(place for batch in found for place in batch) == list(range(7))
    assert found[0] == [5]  # longer than the budget: alone
    assert all(max(lengths[place] for place in batch) * len(batch) <= 60 for batch in found[1:])
    assert [3] in found  # 40, as two would be 80


class _Tokenizer:
    """Characters as tokens; cuts as the published code asks its tokenizer to."""

    pad_token_id = 0

    def __call__(self, text, truncation, max_length):
        assert truncation
        return {"input_ids": [1 + ord(character) % 96 for character in text][:max_length]}


def test_the_paper_mode_equals_the_published_procedure_with_scikit_learn(pair):
    (base, tuned), _ = pair
    rng = np.random.default_rng(4)
    texts = ["".join(chr(97 + c) for c in rng.integers(0, 26, size=n)) for n in (5, 200, 60, 130, 9, 31, 77, 15)]
    tokenizer = _Tokenizer()
    ours = paper_shift(*(paper_states(model, tokenizer, texts, 300) for model in (base, tuned)))

    # Written anew: one batch, left padding, a pass for each level, scikit-learn's PCA, projection without centring.
    rows = [tokenizer(text, truncation=True, max_length=128)["input_ids"] for text in texts]
    width = max(map(len, rows))
    ids = torch.tensor([[0] * (width - len(row)) + row for row in rows])
    mask = (torch.arange(width) >= torch.tensor([[width - len(row)] for row in rows])).long()
    records = {"Original": [], "Updated": []}
    for level in range(4):
        features = []
        for model in (base, tuned):
            with torch.no_grad():
                hidden = model(input_ids=ids, attention_mask=mask, output_hidden_states=True).hidden_states[level]
            features.append(hidden.float().mean(dim=1).numpy())
        pca = PCA(n_components=2).fit(features[0])
        scores = [np.dot(part, pca.components_.T).mean(axis=0) for part in features]
        records["Original"].append([0.0, scores[0][1]])
        records["Updated"].append([scores[1][0] - scores[0][0], scores[1][1]])
    distance = np.linalg.norm(np.mean(records["Updated"], axis=0) - np.mean(records["Original"], axis=0))
    assert width == 128
    assert ours["d"] > 0.01
    assert ours["d"] == pytest.approx(distance, abs=1e-5)
    for level, (first, second) in enumerate(ours["levels"]):
        assert first == pytest.approx(records["Updated"][level][0], abs=1e-5)
        assert second == pytest.approx(records["Updated"][level][1] - records["Original"][level][1], abs=1e-5)
