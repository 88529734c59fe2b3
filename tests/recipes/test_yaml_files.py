"""YAML of recipes and task files: a key twice is refused, and what is no YAML is said with file and line."""

import pytest

from eval.questions.wording import task_values
from launch.commands.main import main
from recipes.errors import UserError
from recipes.loading import read_yaml


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("study: x\nseeds: [1, 2\ntrain: {}\n", "line 3: expected ',' or ']', but got ':' (while parsing a flow "
                                                "sequence that begins in line 2)"),
        ("study: x\n study: y\n", "line 2: mapping values are not allowed here; indent it like the keys around it, or "
                                  "put a text with a colon in quotes"),
        ("study: x\ntrain:\n\tsteps: 2\n", "line 3: found character '\\t' that cannot start any token; indent with "
                                           "blanks, not with tabs"),
        ("study: x\ntitle: {{ label }}\n", "line 2: found unhashable key (while constructing a mapping that begins in "
                                           "line 2); a text that begins with {{ must be in quotes"),
        ("study: x\n\ntitle: a\x01b\n", "line 3 has the character '\\x01'; remove it"),
        ("study: x\nday: 2026-13-45\n", "line 2: month must be in 1..12; put what is no date in quotes"),
        ("train:\n  steps: 1\n  beta: 0\n\n  steps: 2\n", "line 5: the key 'steps' is there already, in line 2; keep "
                                                         "one of the two"),
        ("study: x\narms: {a: {}, b: {},\n 'a': {}}\n", "line 3: the key 'a' is there already, in line 2; keep one of "
                                                        "the two"),
    ],
)  # fmt: skip
def test_what_is_no_yaml_is_told_with_file_and_line(text, said, tmp_path):
    path = tmp_path / "own.yaml"
    path.write_text(text)
    for what, read in (("recipe", read_yaml), ("task file", task_values)):
        with pytest.raises(UserError) as error:
            read(path)
        assert str(error.value) == f"{what} {path} is not valid YAML: {said}"


def test_a_merged_key_may_be_set_anew(tmp_path):
    path = tmp_path / "own.yaml"
    path.write_text("a: &a {steps: 1, beta: 2}\nb: {<<: *a, steps: 3}\nc: {<<: *a, beta: 4}\nd: {<<: *a}\n")
    assert read_yaml(path) == {
        "a": {"steps": 1, "beta": 2}, "b": {"steps": 3, "beta": 2}, "c": {"steps": 1, "beta": 4},
        "d": {"steps": 1, "beta": 2},
    }  # fmt: skip


def test_a_key_twice_is_refused_by_every_command(law, capsys):
    law.write_text(law.read_text() + "seeds: [1]\n")
    lines = law.read_text().splitlines()
    first, again = (lines.index(line) + 1 for line in (next(x for x in lines if x.startswith("seeds:")), "seeds: [1]"))
    assert first < again
    for command in ("validate", "plan", "run"):
        assert main([command, str(law)]) == 2
        said = f"{law} is not valid YAML: line {again}: the key 'seeds' is there already, in line {first}; keep one"
        assert said in capsys.readouterr().err
