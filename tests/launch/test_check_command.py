"""`transfer check`: in what the arms of a recipe differ."""

import pytest

from launch.commands.main import main
from tests.paths import POCKET

ARMS = "pocket is matched: off_policy_sft, on_policy_sft, grpo"


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ([], "differ only in sampling, credit, negatives, learning_rate; `varies` also allows beta"),
        (["arms.grpo.beta=0.04"], "differ only in sampling, credit, negatives, beta, learning_rate"),
        (
            [f"arms.{arm}={{sampling: current, credit: uniform, negatives: false}}" for arm in ARMS[19:].split(", ")],
            "do not differ; `varies` also allows sampling, credit, negatives, beta, learning_rate",
        ),
    ],
)
def test_check_says_what_differs_apart_from_what_may(settings, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["check", str(POCKET), *settings]) == 0
    assert capsys.readouterr().out.splitlines()[0] == f"{ARMS} {said}"
