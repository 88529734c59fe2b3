"""Checkpoints from elsewhere: eval, gate, audit, compare and external arms, through the command line."""

import json
import shutil
from pathlib import Path

import pytest

from launch.pairs import arm_names, audit_recipes, evaluation_recipe, refuse_other_models
from recipes.errors import UserError
from recipes.files import write_json
from recipes.loading import STUDY_FILE, load_recipe
from tests.paths import SMOKE


@pytest.fixture(scope="module")
def checkpoints(smoke_study, tmp_path_factory):
    """A base and two models as they would come from another trainer: plain folders."""
    folder = tmp_path_factory.mktemp("elsewhere")
    for name, source in (("base", "base"), ("theirs", "arms/grpo/seed-0/final"), ("copy", "base")):
        shutil.copytree(smoke_study / source, folder / name)
    return folder


@pytest.fixture(scope="module")
def scored(checkpoints, transfer):
    """`transfer eval` of the two models, and its study directory."""
    out = checkpoints / "study"
    models = ["--model", checkpoints / "theirs", "--model", checkpoints / "copy"]
    result = transfer("eval", "--base", checkpoints / "base", *models, "--suite", SMOKE, "--out", out, "--json")
    assert result.returncode == 0, result.stderr
    return result, out


def test_eval_scores_any_pair(scored, smoke_study, smoke_transfer):
    result, out = scored
    found = json.loads(result.stdout)
    assert list(found["arms"]) == ["theirs", "copy"]
    assert found["status"] == "unknown lineage"
    assert found["seeds"] == []
    # The same weights, questions and label give the base the same responses as in its own study.
    for name, theirs in smoke_transfer["base"]["benchmarks"].items():
        ours = found["base"]["benchmarks"][name]
        assert ours["outcomes"] == theirs["outcomes"]
        assert ours["score"]["estimate"] == theirs["score"]["estimate"]
    assert found["questions"] == smoke_transfer["questions"]
    assert found["models"]["copy"]["weights"] == found["models"]["base"]["weights"]
    page = (out / "report" / "index.html").read_text()
    assert "unknown lineage" in page
    assert "No arm was trained by this study." in page
    assert "Matched-arms certificate" not in page


def test_rerun_asks_nothing_and_a_changed_checkpoint_is_asked_alone(scored, checkpoints, transfer):
    _, out = scored
    before = {path: path.stat().st_mtime_ns for path in out.glob("eval/*/*/chunk-*")}
    command = ["eval", "--base", checkpoints / "base", "--suite", SMOKE, "--out", out]
    models = ["--model", checkpoints / "theirs", "--model", checkpoints / "copy"]
    result = transfer(*command, *models)
    assert result.returncode == 0, result.stderr
    assert "start" not in result.stdout.split("report:")[0].replace("started", "")
    shutil.copy(checkpoints / "theirs" / "model.safetensors", checkpoints / "copy" / "model.safetensors")
    result = transfer(*command, *models)
    assert result.returncode == 0, result.stderr
    after = {path: path.stat().st_mtime_ns for path in out.glob("eval/*/*/chunk-*")}
    changed = {path.parent.parent.name for path in after if before.get(path) != after[path]}
    assert changed == {"copy"}


def test_gate_is_an_exit_status_with_a_sentence(checkpoints, transfer, tmp_path):
    command = ["gate", "--base", checkpoints / "base", "--model", checkpoints / "theirs", "--suite", SMOKE]
    command += ["--out", tmp_path / "study", "suite.questions=4"]
    strict = transfer(*command, "--max-drop", "0")
    assert strict.returncode == 1
    assert "FAIL  theirs may have lost up to" in strict.stdout
    generous = transfer(*command, "--max-drop", "100")
    assert generous.returncode == 0
    assert "PASS  theirs keeps every group within 100 points of the base" in generous.stdout
    wrong = transfer(*command, "--max-drop", "-1")
    assert (wrong.returncode, wrong.stderr) == (2, "transfer: --max-drop is -1 but must be 0 or more points\n")


def test_gate_of_a_finished_study_judges_its_stored_scores(smoke_study, transfer, smoke_transfer):
    """The limit at which it passes follows from the report, and nothing is generated."""
    before = {path: path.stat().st_mtime_ns for path in smoke_study.rglob("*") if path.is_file()}
    low = min(gain["low"] for gain in smoke_transfer["arms"]["grpo"]["groups"].values())
    passed = transfer("gate", smoke_study, "grpo", "--max-drop", str(-low + 0.01), "--json")
    assert passed.returncode == 0, passed.stderr
    assert list(json.loads(passed.stdout)) == ["grpo"]
    failed = transfer("gate", smoke_study, "grpo", "--max-drop", str(max(0.0, -low - 0.01)))
    assert failed.returncode == 1
    assert failed.stdout.startswith("FAIL  grpo may have lost up to")
    assert failed.stdout.endswith(f"report: {smoke_study}/report/index.html\n")
    every = transfer("gate", smoke_study, "--max-drop", "100", "--json")
    assert list(json.loads(every.stdout)) == ["off_policy_sft", "on_policy_sft", "grpo"]
    after = {path: path.stat().st_mtime_ns for path in smoke_study.rglob("*") if path.is_file()}
    assert {path: when for path, when in after.items() if ".locks" not in str(path)} == {
        path: when for path, when in before.items() if ".locks" not in str(path)
    }
    wrong = transfer("gate", smoke_study, "gpro", "--max-drop", "1")
    assert (wrong.returncode, wrong.stderr.count("\n")) == (2, 1)
    assert "has no arm gpro; did you mean grpo?" in wrong.stderr
    ignored = transfer("gate", smoke_study, "--suite", SMOKE, "--max-drop", "1")
    assert (ignored.returncode, ignored.stderr.count("\n")) == (2, 1)
    assert "--suite and --out need --base and --model" in ignored.stderr
    neither = transfer("gate", "--base", "x", "--max-drop", "1")
    assert neither.returncode == 2
    assert neither.stderr.startswith("transfer: name a finished study, as in `transfer gate runs/pocket grpo")


def test_external_arm_beside_trained_ones(checkpoints, smoke_study, tmp_path):
    recipe = load_recipe(SMOKE, [f"arms.theirs={{external: {checkpoints / 'theirs'}}}"])
    assert list(recipe.trained) == ["off_policy_sft", "on_policy_sft", "grpo"]
    from launch.stages import build_stages
    from train.accounting.matching import recipe_differences

    assert recipe_differences(recipe) == []  # it is not matched with anything, and not compared
    names = [stage.name for stage in build_stages(recipe)]
    assert "external/theirs" in names
    assert "eval/theirs" in names


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["eval", "--base", "nowhere", "--model", "x"],
            "--base nowhere is neither a directory nor a Hugging Face id",
        ),
        (["eval", "--base", "{base}", "--model", "./x"], "--model ./x is neither a directory nor"),
        (
            ["eval", "--base", "{base}", "--model", "{base}/.."],
            "--model {base}/.. has no safetensors weights; did you mean {base}/../base?",
        ),
        (
            ["eval", "--base", "{base}", "--model", "owner/name"],
            "model owner/name is not resolved; name a commit",
        ),
        (
            ["eval", "--base", "{base}", "--model", "{base}", "--suite", "absent.yaml"],
            "recipe absent.yaml does not exist",
        ),
        (["audit"], "name an audit file, for instance recipes/audit/paper.yaml, or give --published"),
        (["audit", "recipes/pocket/smoke.yaml"], "has no `pairs`, a list of base and model to audit"),
        (["compare", "absent"], "absent does not exist; `transfer run` makes it"),
        (["score", "absent"], "absent does not exist; `transfer run` makes it"),
        (["power", "recipes/corpora/gsm8k.yaml"], "gsm8k has no suite, so there is nothing to detect"),
        (["power", "recipes/pocket/smoke.yaml", "--power", "2"], "--power is 2 but must lie between 0.5 and 1"),
        (["work", "recipes/pocket/smoke.yaml", "--out", "absent"], "absent does not exist; start `transfer run` first"),
    ],
)
def test_mistakes_are_a_sentence(arguments, message, checkpoints, transfer):
    filled = [str(word).replace("{base}", str(checkpoints / "base")) for word in arguments]
    if filled[0] == "eval" and "--suite" not in filled:
        filled += ["--suite", str(SMOKE)]
    result = transfer(*filled)
    assert result.returncode == 2
    assert message.replace("{base}", str(checkpoints / "base")) in result.stderr
    assert "Traceback" not in result.stderr


def test_a_study_without_published_benchmarks_is_not_compared(scored, transfer):
    _, out = scored
    for arguments in ([], ["--as", "theirs=UniReason RL"]):  # who is who is no way out
        result = transfer("compare", out, *arguments)
        assert result.returncode == 2
        assert result.stderr == (
            f"transfer: {out} has none of the twelve benchmarks of the published comparison; to compare two studies, "
            "use `transfer diff A B`\n"
        )


def test_audit_makes_one_study_for_each_base(checkpoints, transfer, tmp_path):
    pair = {"base": str(checkpoints / "base"), "method": "RL", "size": 0.001}
    pairs = [pair | {"name": f"model {n}", "model": str(checkpoints / n)} for n in ("theirs", "copy")]
    path = tmp_path / "audit.yaml"
    path.write_text(json.dumps({"suite": str(SMOKE), "pairs": pairs}))
    ((recipe, members),) = audit_recipes(path, [])
    assert list(recipe.arms) == ["model_theirs", "model_copy"]
    assert members == pairs
    figure = tmp_path / "audit.svg"
    command = ["audit", path, "suite.questions=4", "--out", tmp_path / "runs", "--figure", figure, "--json"]
    result = transfer(*command)
    assert result.returncode == 0, result.stderr
    rows = json.loads(result.stdout)
    assert [row["name"] for row in rows] == ["model theirs", "model copy"]
    assert set(rows[0]["groups"]) == {"math", "other_reasoning", "non_reasoning"}
    assert figure.read_text().startswith("<svg")
    path.write_text(json.dumps({"pairs": [{"base": "b"}]}))
    with pytest.raises(UserError, match="pair 1 must have base, method, model, name, size"):
        audit_recipes(path, [])


def test_published_audit_from_the_command_line(transfer, tmp_path):
    figure = tmp_path / "published.svg"
    result = transfer("audit", "--published", "--json", "--figure", figure)
    assert result.returncode == 0, result.stderr
    rows = {row["model"]: row for row in json.loads(result.stdout)}
    assert rows["UniReason RL"]["published"] == rows["UniReason RL"]["recomputed"]["paper"]
    assert "DAPO-Qwen-32B" in figure.read_text()
    text = transfer("audit", "--published").stdout
    assert "13 of 18 models reproduce" in text
    assert "fitted to the six indices" in text


def test_arm_names_tell_checkpoints_apart():
    assert list(arm_names(["a/final", "b/final"])) == ["a_final", "b_final"]
    assert list(arm_names(["owner/Name-1.5B@abc"])) == ["Name_1_5B"]
    assert list(arm_names(["x/base"])) == ["x_base"]
    finals = [f"runs/pocket/arms/{arm}/seed-0/final" for arm in ("sft", "grpo")]
    assert list(arm_names(finals)) == ["sft_seed_0_final", "grpo_seed_0_final"]
    assert len(arm_names(["m", "m"])) == 2


def test_an_evaluation_of_other_models_is_not_replaced(tmp_path):
    """Checkpoints of two studies have the same name, `grpo_seed_0_final`."""
    runs = [tmp_path / name / "arms" / "grpo" / "seed-0" / "final" for name in ("one", "two")]
    for run in runs:
        run.mkdir(parents=True)

    def recipe(model, base="org/base@abc"):
        return evaluation_recipe(base, arm_names([str(model)]), Path(SMOKE), "eval-grpo-seed-0-final", [])

    folder = tmp_path / "runs" / "eval-grpo-seed-0-final"
    refuse_other_models(recipe(runs[0]), folder)  # nothing is there yet
    write_json(folder / STUDY_FILE, recipe(runs[0]).dump())
    refuse_other_models(recipe(runs[0]), folder)
    refuse_other_models(recipe(f"{runs[0]}/../final"), folder)
    for other in (recipe(runs[1]), recipe(runs[0], "org/base@def")):
        with pytest.raises(UserError) as refused:
            refuse_other_models(other, folder)
        assert str(refused.value) == (
            f"{folder} has an evaluation of org/base@abc and {runs[0]}; name another folder for this evaluation with "
            "--out"
        )
    write_json(folder / STUDY_FILE, load_recipe(SMOKE).dump())
    with pytest.raises(UserError, match=f"^{folder} has another study; name another folder"):
        refuse_other_models(recipe(runs[0]), folder)
