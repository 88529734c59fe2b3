"""The KV cache that vLLM's CPU build is given."""

import pytest
from transformers import LlamaConfig, Qwen3Config

from data.sampling.engine import cpu_cache_bytes

SHAPE = {"hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 128}


@pytest.mark.parametrize(("config", "tokens", "expected"), [
    # 16 sequences, keys and values, 3 layers, 2 heads of 128, 4 bytes
    (Qwen3Config(**SHAPE, num_key_value_heads=2, head_dim=128), 20_000, 16 * 20_000 * 2 * 3 * 2 * 128 * 4),
    # every head has keys of its own, of 64 / 4
    (LlamaConfig(**SHAPE), 60_000, 16 * 60_000 * 2 * 3 * 4 * 16 * 4),
    (LlamaConfig(**SHAPE), 2_000, 2**30)])  # fmt: skip
def test_it_holds_sixteen_sequences_and_is_no_smaller_than_a_gigabyte(tmp_path, config, tokens, expected):
    config.save_pretrained(tmp_path)
    assert cpu_cache_bytes(tmp_path, tokens) == expected
