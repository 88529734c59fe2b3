"""Mistyped names and paths: the nearest one that exists is named, the same way by every command."""

import json

import pytest

from launch.commands.main import main
from recipes.errors import UserError
from recipes.loading import load_recipe
from recipes.suggestions import did_you_mean, nearest, similar_file, similar_path, similar_study

STUDY = "recipes/pocket/study.yaml"


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """Two studies, an ablation and a folder of logs, in runs/ of the working directory."""
    values = load_recipe(STUDY).dump()
    monkeypatch.chdir(tmp_path)
    for name in ("pocket", "tickets"):
        (tmp_path / "runs" / name / "base").mkdir(parents=True)
        (tmp_path / "runs" / name / "base" / "model.safetensors").touch()
        (tmp_path / "runs" / name / "study.json").write_text(json.dumps(values | {"study": name}))
    (tmp_path / "runs" / "rates").mkdir()
    (tmp_path / "runs" / "rates" / "ablation.json").write_text("{}")
    (tmp_path / "runs" / "pockets").mkdir()
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "study.yaml").write_text("study: own\n")
    return tmp_path


def test_words():
    known = ["base", "corpus", "arms", "eval", "report", "arms/grpo/seed-0", "arms/sft/seed-0"]
    assert nearest("corpsu", known) == "corpus"
    assert nearest("grpo", known) == "arms/grpo/seed-0"  # though `report` has the same letters
    assert nearest("arms/grpo/sed-0", known) == "arms/grpo/seed-0"
    assert nearest("evaluation", known) == "eval"
    assert nearest("rep", known) == "report"
    assert nearest("zzz", known) is nearest("e", known) is nearest("grpo", []) is None
    assert did_you_mean("bas", known) == "did you mean base?"
    assert did_you_mean("zzz", ["a", "b", "a"], "allowed are") == "allowed are a, b"
    assert did_you_mean("zzz", []) == "there are none"


def test_paths(runs):
    assert similar_path(runs / "runs" / "pockt") == runs / "runs" / "pocket"
    assert similar_path(runs / "rnus" / "tikets" / "bse") == runs / "runs" / "tickets" / "base"
    assert similar_path(runs / "runs" / "zzz") is similar_path(runs / "zzz" / "pocket") is None
    assert similar_path(runs / "own" / "study.yaml" / "x") is None
    assert similar_study(runs / "runs" / "rats") == runs / "runs" / "rates"
    assert similar_study(runs / "runs" / "pockets0") is None, "it is no study"
    assert similar_file(runs / "own" / "studdy.yaml") == runs / "own" / "study.yaml"
    assert similar_file(runs / "own" / "studdy.csv") is None
    assert similar_file(runs / "own" / "data" / "study.yaml") == runs / "own" / "study.yaml"  # no such folder
    assert similar_file(runs / "study.yaml") == runs / "own" / "study.yaml"
    assert similar_file(runs / "own" / "data" / "studdy.yaml") is None


COMMANDS = [
    "run", "plan", "check", "report", "lineage", "status", "logs", "cancel", "resume", "validate", "rehearse", "fetch",
    "view", "trajectory", "pick", "compare", "power", "work", "sync", "ablate",
]  # fmt: skip


@pytest.mark.parametrize(
    "words",
    [
        *([command, "PATH"] for command in COMMANDS),
        ["gate", "PATH", "grpo", "--max-drop", "5"],
        ["push", "PATH", "grpo", "--to", "me/model", "--dry-run"],
        ["score", "PATH", "sum.loose=plain"],
        ["diff", "PATH", "runs/tickets"],
        ["diff", "runs/tickets", "PATH"],
        ["eval", "--base", "runs/pocket/base", "--model", "runs/pocket/base", "--suite", "PATH"],
    ],
    ids=lambda words: "-".join(words[:2]),
)
def test_every_command_names_the_nearest_study_or_recipe(runs, capsys, words):
    for path, meant in (("runs/pockt", "runs/pocket"), ("own/studdy.yaml", "own/study.yaml")):
        assert main([path if word == "PATH" else word for word in words]) == 2
        captured = capsys.readouterr()
        said = f"{path} does not exist; did you mean {meant}?"
        assert captured.err.splitlines()[-1] in (f"transfer: {said}", f"transfer: recipe {said}")
        assert captured.out == ""
    assert sorted(path.name for path in runs.iterdir()) == ["own", "runs"], "nothing is written"


def test_folders_that_are_no_studies_lead_to_those_that_are(runs, capsys):
    for path, meant in (
        ("runs", "runs/pocket or runs/rates or runs/tickets"),
        ("runs/pocket/base", "runs/pocket"),
        ("own", "the recipe own/study.yaml"),
    ):
        assert main(["plan", path]) == 2
        assert capsys.readouterr().err == (
            f"transfer: {path} is not a study directory: it has no study.json; did you mean {meant}?\n"
        )


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["logs", "runs/pocket", "arms/grpo/sed-0"],
         "runs/pocket has no stage 'arms/grpo/sed-0'; did you mean arms/grpo/seed-0?"),
        (["run", "runs/pocket", "--until", "grpo"],
         "--until 'grpo' is neither a kind of stage nor a stage of this recipe; did you mean arms/grpo/seed-0?"),
        (["push", "runs/pocket", "gpro", "--to", "me/model", "--dry-run"],
         "runs/pocket trains no arm 'gpro'; did you mean grpo?"),
        (["score", "runs/pocket", "sum.loose=boxd"], "'boxd' is not a scoring rule; did you mean boxed?"),
        (["score", "runs/pocket", "smu.loose=boxed"],
         "'smu.loose=boxed': 'smu' is not a benchmark of the suite; did you mean sum?"),
        (["eval", "--base", "runs/pocket/bse", "--model", "runs/pocket/base", "--suite", STUDY],
         "--base runs/pocket/bse does not exist; did you mean runs/pocket/base? If not, `transfer run "
         "recipes/pocket/study.yaml` makes it"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)  # fmt: skip
def test_names_on_the_command_line(runs, capsys, words, sentence):
    assert main(words) == 2
    assert f"transfer: {sentence}\n" == capsys.readouterr().err


def test_nearest_values_of_enumerations_in_a_recipe():
    wrong = {
        "suite.benchmarks.0.scorings.robust=boxd": "did you mean boxed?",
        "arms.grpo.sampling=curent": "did you mean current?",
        "train.loss_normalisation=weighted_token": "did you mean weighted_tokens?",
        "arms.grpo.credit=advantge": "did you mean advantage?",
        "varies=[samplin]": "did you mean sampling?",
        "resources.gpu=H100": "did you mean H100-80GB?",
        "model.dtype=fp32": "allowed are float32, bfloat16",
        "train.lerning_rate=1": "is not a setting; did you mean `train.learning_rate`?",
    }
    with pytest.raises(UserError) as error:
        load_recipe(STUDY, list(wrong))
    text = str(error.value)
    assert len(text.splitlines()) == len(wrong)
    for override, hint in wrong.items():
        assert hint in text, override
    assert f"{STUDY}: `arms.grpo.sampling` is 'curent'; did you mean current?" in text.splitlines()
    for override, sentence in (
        ("arms.grpo.start_from=off_policy", "which is not an arm this study trains; did you mean off_policy_sft?"),
        ("analysis.claims=[{group: math, first: gropo, second: base}]",
         "neither base nor an arm of this study; did you mean grpo?"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=sentence.replace("?", r"\?")):
            load_recipe(STUDY, [override])
