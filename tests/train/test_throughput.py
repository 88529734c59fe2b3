"""Seconds of an update by section, tokens per second and MFU, by hand."""

import pytest
from transformers import Qwen3Config

from train.micro_batches import Work
from train.runtime import throughput as module
from train.runtime.recorder import throughput_text
from train.runtime.throughput import StepClock, throughput


@pytest.fixture
def times(monkeypatch):
    """Times that the clock will read, one after another."""
    waiting = []
    monkeypatch.setattr(module, "_now", lambda: waiting.pop(0))
    return waiting


def test_a_section_is_not_part_of_the_one_around_it(times):
    clock = StepClock()
    with clock.section("generation"):  # before the first update
        pass
    assert clock.end() == {}
    times += [10.0, 11.0, 13.0, 16.0, 20.0, 25.0]
    clock.begin()
    with clock.section("generation"), clock.section("weight_sync"):  # 11 to 20; 13 to 16
        pass
    assert clock.end() == {"training": 1.0 + 5.0, "generation": 2.0 + 4.0, "weight_sync": 3.0}
    assert clock.end() == {}  # the summary at the end of a run is no update
    times += [30.0, 31.0]
    clock.begin()
    assert clock.end() == {"training": 1.0}


def test_metrics_by_hand():
    """Rows of 30 and 10 tokens in a micro-batch of 2 x 30, one of 20 tokens skipped."""
    config = Qwen3Config(
        vocab_size=8, hidden_size=4, intermediate_size=12, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, head_dim=2, tie_word_embeddings=True,
    )  # fmt: skip
    work = Work(computed=60, padding=20, skipped=20, squares=30**2 + 10**2)
    found = throughput({"training": 2.0, "generation": 1.0}, work, config, 2, 1000.0)
    # 48 attention weights (4 x 4 of queries and outputs, 2 x 4 of keys and values), 3 x 48 of the MLP, 32 of the head;
    # scores and values: 2 x 2 FLOPs x 4 dimensions x 25 tokens, the mean length, half of it under causal attention.
    flops = 3 * (2 * (48 + 3 * 48 + 32) + 4 * 4 * 25 / 2)
    assert found == {
        "seconds/training": 2.0,
        "seconds/generation": 1.0,
        "throughput/tokens_per_second": 20.0,
        "throughput/padding_share": 0.3333,
        "throughput/mfu": round(flops * 40 / 2.0 / 2 / 1000.0, 4),
    }
    assert (
        throughput_text(found | {"throughput/mfu": 0.412})
        == "20 tokens/s (training 67%, generation 33%, MFU 41%, padding 33%)"
    )
    assert "throughput/mfu" not in throughput({"training": 2.0}, work, config, 2, None)


def test_update_without_a_computed_row():
    found = throughput({"training": 2.0}, Work(skipped=10), None, 1, 1000.0)
    assert found["throughput/tokens_per_second"] == 5.0
    assert throughput_text(found) == "5 tokens/s (training 100%)"
    idle = throughput(
        {"training": 2.0}, Work(computed=8, padding=8, skipped=10), None, 1, 1000.0
    )  # keeps ranks in step
    assert idle == found
