"""`transfer grade`: outcome, exit status, explanation, and mistakes in one sentence."""

import json

import pytest

from launch.commands.main import main


@pytest.fixture
def response(tmp_path):
    path = tmp_path / "response.txt"
    path.write_text("so \\boxed{m+n = 7}\n")
    return path


def test_outcome_and_exit_status(response, capsys):
    assert main(["grade", "--gold", "7", "--response", str(response)]) == 0
    assert capsys.readouterr().out == "correct\n"
    assert main(["grade", "--gold", "8", "--response", str(response)]) == 1
    assert capsys.readouterr().out == "wrong\n"


def test_explanation_shows_both_sides_and_the_rule(response, capsys):
    assert main(["grade", "--gold", "(7, 8]", "--response", str(response), "--explain"]) == 1
    lines = dict(line.split("  ", 1) for line in capsys.readouterr().out.splitlines())
    assert {name: text.strip() for name, text in lines.items()} == {
        "outcome": "wrong",
        "extracted": "m+n = 7",
        "answer read as": "value 7, name m+n",
        "gold read as": "ordered (] of [value 7; value 8]",
        "decided by": "one value against something of several parts",
    }
    assert main(["grade", "--gold", "7", "--response", str(response), "--explain", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert (shown["outcome"], shown["extracted"], shown["answer_read_as"]["name"]) == ("correct", "m+n = 7", "m+n")
    assert shown["rules"][-1] == "the same formula"


def test_a_switch_changes_the_verdict(tmp_path):
    path = tmp_path / "response.txt"
    path.write_text("The answer is 0.333")
    arguments = ["grade", "--gold", r"\frac{1}{3}", "--response", str(path), "--form", "plain"]
    assert main(arguments) == 1
    assert main([*arguments, "--switch", "rounded=on"]) == 0


def test_mistakes_are_sentences(response, capsys):
    assert main(["grade", "--gold", "7", "--response", str(response), "--switch", "rounded=maybe"]) == 2
    assert capsys.readouterr().err.startswith(
        "transfer: --switch rounded=maybe must be NAME=on or NAME=off with one of "
    )
    assert main(["grade", "--gold", "7", "--response", str(response) + "x"]) == 2
    assert f"{response}x does not exist; did you mean {response}?" in capsys.readouterr().err
