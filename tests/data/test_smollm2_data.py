"""The data files of the SmolLM2 study: what becomes of a publisher's row."""

import importlib.util
import sys

import pytest

from tests.paths import ROOT

SCRIPT = ROOT / "recipes" / "smollm2-135m" / "prepare.py"
CSV = """\
Question,Numbers,Equation,Answer,group_nums,Body,Ques
"Ann 's shop has number0 boxes of number1 pens , doesn't it ? How many pens ?",12.0 4.0,* number0 number1,48.0,[],,
A pen costs $ number0 and a cap $ number1 . How much more is the pen ?,2.5 1.0,- number0 number1,1.5,[],,
number0 of number1 plus number2 . How many ?,1.0 2.0 3.0,+ number0 * number1 number2,7.0,[],,
Share number0 among number1 . How much each ?,10.0 3.0,/ number0 number1,3.33,[],,
How much is half of number0 ?,9.0,/ number0 2.0,4.5,[],,
"""


@pytest.fixture(scope="module")
def prepare():
    spec = importlib.util.spec_from_file_location("prepare", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_word_problems_get_numbers_a_worked_solution_and_a_part(prepare):
    rows = list(prepare.word_problems(CSV.encode()))
    # The third has two operations; the answer of the fourth is rounded, so its equation would be wrong.
    assert [row["problem"] for row in rows] == [
        "Ann's shop has 12 boxes of 4 pens, doesn't it? How many pens?",
        "A pen costs $2.5 and a cap $1. How much more is the pen?",
        "How much is half of 9?",
    ]
    assert [row["answer"] for row in rows] == ["48", "1.5", "4.5"]
    assert rows[0]["short"] == "12 × 4 = 48\n\\boxed{48}"
    assert rows[1]["worded"][0] == "Taking 1 away from 2.5 leaves 1.5. The answer is \\boxed{1.5}."
    assert rows[2]["worded"][1] == "We divide 9 by 2 and get 4.5. The answer is \\boxed{4.5}."
    assert [len(set(row["worded"])) for row in rows] == [4, 4, 4]
    again = [row["part"] for row in prepare.word_problems(CSV.encode())]
    assert again == [row["part"] for row in rows]
    assert set(again) <= {"warm_start", "study"}


def test_another_file_than_the_pinned_one_is_refused(prepare, tmp_path, monkeypatch, capsys):
    (tmp_path / "word_problems.csv").write_text(CSV)
    monkeypatch.setattr(sys, "argv", ["prepare.py", "--from", str(tmp_path), "--out", str(tmp_path / "out")])
    assert prepare.main() == 2
    assert capsys.readouterr().err.startswith("error: word_problems.csv is not the pinned file (SHA-256 c761cdc6")
    (tmp_path / "word_problems.csv").unlink()
    assert prepare.main() == 2
    assert "word_problems.csv cannot be read" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_written_is_a_sentence(prepare, tmp_path, monkeypatch, capsys):
    (tmp_path / "file").touch()
    monkeypatch.setattr(prepare, "make", lambda folder, out: out.mkdir(parents=True))
    monkeypatch.setattr(sys, "argv", ["prepare.py", "--out", str(tmp_path / "file" / "out")])
    assert prepare.main() == 2
    assert "cannot be written" in capsys.readouterr().err
