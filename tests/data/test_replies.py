"""Replies of a chat completion server: choices in another order, broken off, without counts."""

import pytest

from data.language_model import stop_ids
from data.sampling.completions import parse_reply


def reply(*choices, tokens=10):
    listed = [{"index": n, "message": {"content": text}, "finish_reason": reason} for n, text, reason in choices]
    return {"choices": listed, "usage": {"completion_tokens": tokens}}


def test_choices_are_in_the_order_of_their_index():
    answered = parse_reply(reply((2, "c", "stop"), (0, "a", "length"), (1, "b", "stop")), 3, stripped=False)
    assert answered.completions == [("a", False), ("b", True), ("c", True)]


def test_tokens_are_shared_by_what_was_generated_before_thinking_is_removed():
    long, short = "<think>" + "x" * 7983 + "</think>ok", "<think>hm</think>" + "y" * 1983
    answered = parse_reply(reply((0, long, "stop"), (1, short, "stop"), tokens=2500), 2, stripped=True)
    assert [text for text, _ in answered.completions] == ["ok", "y" * 1983]
    assert answered.token_shares() == pytest.approx([2000, 500], rel=0.001)


@pytest.mark.parametrize("reason", [None, "abort", "error"])
def test_a_text_the_server_broke_off_is_asked_again(reason):
    with pytest.raises(ValueError, match=f"finish_reason is {reason}"):
        parse_reply(reply((0, "half an ans", reason)), 1, stripped=False)


def test_a_server_need_not_count():
    assert parse_reply(reply((0, "a", "stop"), tokens=None), 1, stripped=False).generated_tokens == 0


@pytest.mark.parametrize(("named", "stops"), [(2, {2}), ([2, 7], {2, 7}), (None, set())])
def test_a_checkpoint_names_one_stop_several_or_none(named, stops):
    model = type("Model", (), {"generation_config": type("Config", (), {"eos_token_id": named})})
    assert stop_ids(model) == stops
