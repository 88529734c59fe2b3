"""Reading transfer.json: what was written comes back, and what is not a report of this version is refused."""

import json
import re
import subprocess
import sys

import pytest

from eval.report import read_transfer
from eval.report.schema import SCHEMA_VERSION, write_transfer
from recipes.errors import UserError
from tests.paths import DOCS
from tests.support.reports import arm_values, estimate, make_transfer


@pytest.fixture
def written(tmp_path):
    arm = arm_values({"math": estimate(5)}, {"sum": estimate(50)})
    transfer = make_transfer(arms={"grpo": arm}, groups={"math": ["sum"]})
    write_transfer(tmp_path / "runs" / "pocket" / "report" / "transfer.json", transfer)
    return transfer, tmp_path / "runs" / "pocket"


def test_what_was_written_comes_back(written):
    transfer, study = written
    assert read_transfer(study) == transfer
    assert read_transfer(study / "report" / "transfer.json") == transfer
    rows = transfer.gains_frame()
    assert list(rows.columns) == ["model", "group", "benchmark", "estimate", "low", "high"]
    assert rows[["model", "group", "estimate", "low", "high"]].values.tolist() == [
        ["grpo", "math", 5, 4, 6],
        ["grpo", "math", 0, -1, 1],
    ]
    assert rows["benchmark"].isna().tolist() == [True, False]


def test_the_example_of_the_documentation_runs(written, monkeypatch, capsys):
    _, study = written
    monkeypatch.chdir(study.parents[1])
    section = (DOCS / "report.md").read_text().split("## Reading a report in Python")[1]
    (example,) = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    exec(example, {})
    assert capsys.readouterr().out.startswith("matched\n")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda t: {k: v for k, v in t.items() if k != "schema_version"},
            f"has no schema_version.*reads {SCHEMA_VERSION}",
        ),
        (lambda t: t | {"schema_version": 99}, rf"has schema_version 99.*reads {SCHEMA_VERSION}; remove the folder"),
        (
            lambda t: {k: v for k, v in t.items() if k != "arms"},
            "is damaged, or not the transfer.json of a study; remove the folder",
        ),
        (lambda t: t | {"warnings": [{"code": "new", "message": "x"}]}, "is damaged"),
        (lambda t: t | {"base": {"benchmarks": 3}}, "is damaged"),
        (lambda t: {"a": 1}, "has no schema_version"),
        (lambda t: [], "is damaged, or not the transfer.json"),
    ],
)
def test_what_is_not_a_report_of_this_version_is_refused(written, change, message):
    transfer, study = written
    path = study / "report" / "transfer.json"
    path.write_text(json.dumps(change(transfer.dump())))
    with pytest.raises(UserError, match=message) as error:
        read_transfer(study)
    assert str(path) in str(error.value)


def test_a_torn_file_and_none_at_all_are_refused(written, tmp_path):
    _, study = written
    path = study / "report" / "transfer.json"
    path.write_text(path.read_text()[:100])
    with pytest.raises(UserError, match="is damaged"):
        read_transfer(study)
    with pytest.raises(UserError, match="there is no report at"):
        read_transfer(tmp_path / "none")


def test_importing_the_reader_loads_neither_torch_nor_matplotlib():
    code = "import sys, eval.report; print([n for n in ('torch', 'matplotlib', 'pandas', 'scipy') if n in sys.modules])"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout == "[]\n"
