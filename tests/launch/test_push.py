"""`transfer push` against a hub on the loopback: what arrives there, and what is refused before anything is sent."""

import base64
import json
import shutil

import pytest
import yaml

from eval.report.model_card import PushedModel, model_card
from eval.report.schema import Transfer
from launch.push import prepare_upload, require_owner
from recipes.errors import UserError
from recipes.files import hash_file
from recipes.loading import load_study
from tests.support.forked_command import ForkedCommand
from tests.support.reports import gain_shown
from tests.support.servers import _Handler, serving

TOKEN = "hf_" + "x" * 34


@pytest.fixture(scope="module")
def pushing(tmp_path_factory):
    """A hub that accepts commits of whoever has the token, what it was sent, and commands with its address."""
    received = {}

    class Hub(_Handler):
        def do_POST(self):  # noqa: N802 (the name http.server looks for)
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            if self.path == "/api/validate-yaml":
                return self.reply_json({"errors": [], "warnings": []})
            if self.headers.get("Authorization") != f"Bearer {TOKEN}":
                return self.reply_json({"error": "Invalid credentials"}, 401)
            if self.path == "/api/repos/create":
                received["created"].append(json.loads(body))
                return self.reply_json({"url": f"{received['address']}/me/model"})
            if self.path.endswith("/preupload/main"):
                files = [{"path": row["path"], "uploadMode": "regular", "shouldIgnore": False, "oid": None}
                         for row in json.loads(body)["files"]]  # fmt: skip
                return self.reply_json({"files": files})
            assert self.path == "/api/models/me/model/commit/main"
            for line in body.decode().splitlines():
                row = json.loads(line)
                if row["key"] == "file":
                    received["files"][row["value"]["path"]] = base64.b64decode(row["value"]["content"])
            return self.reply_json({"commitUrl": f"{received['address']}/me/model/commit/1", "commitOid": "1"})

    home = tmp_path_factory.mktemp("hub")
    with serving(Hub) as received["address"]:
        command = ForkedCommand({
            "HF_ENDPOINT": received["address"], "HF_HUB_OFFLINE": "0", "HF_HOME": str(home),
            "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1",
        })  # fmt: skip
        yield received, command
        command.close()


@pytest.fixture
def hub(pushing):
    """What the hub has received in this test."""
    received, _ = pushing
    received |= {"files": {}, "created": []}
    return received


@pytest.fixture
def push(pushing, hub, monkeypatch):
    def push(*arguments, token=TOKEN):
        monkeypatch.delenv("HF_TOKEN", raising=False)
        if token:
            monkeypatch.setenv("HF_TOKEN", token)
        return pushing[1].run(["push", *map(str, arguments)])

    return push


def test_the_hub_gets_the_trained_files_and_a_card_with_the_gains(analysed_study, analysed_transfer, hub, push):
    result = push(analysed_study, "grpo", "--to", "me/model", "--licence", "mit")
    assert result.returncode == 0, result.stdout + result.stderr
    assert TOKEN not in result.stdout + result.stderr
    assert hub["created"][0]["name"] == "model"
    assert hub["created"][0].get("private") is True or hub["created"][0].get("visibility") == "private"
    final = analysed_study / "arms/grpo/seed-0/final"
    card = hub["files"].pop("README.md").decode()
    assert hub["files"] == {path.name: path.read_bytes() for path in final.iterdir()}
    _, metadata, text = card.split("---\n", 2)
    assert yaml.safe_load(metadata) == {
        "license": "mit",
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["transfer-lab", "grpo"],
    }
    arm = analysed_transfer["arms"]["grpo"]
    gain = arm["groups"]["math"]
    assert f"| **math** | | | **{gain_shown(gain)}** |" in text
    row, before = arm["benchmarks"]["sum"], analysed_transfer["base"]["benchmarks"]["sum"]
    assert f"| sum | {before['score']['estimate']:.1f} | {row['score']['estimate']:.1f} | " in text
    assert "| learning_rate | 0.001 |\n" in text  # shared with the other arms
    assert "| sampling | current |\n" in text  # its own
    assert "None" not in text
    assert f"commit {analysed_transfer['versions']['commit']}" in text


def test_the_card_names_a_local_base_by_its_folder_alone(analysed_study, analysed_transfer, tmp_path):
    """Readers elsewhere have no use for paths of the machine; ids of the hub are whole."""
    (tmp_path / "my-base").mkdir()
    paths = {
        str(tmp_path / "my-base"): "A local checkpoint, `my-base`, trained on ",
        "runs/gone/my-base": "A local checkpoint, `my-base`, trained on ",
        "Qwen/Qwen3-14B-Base": "Qwen/Qwen3-14B-Base, trained on ",
    }
    recipe, transfer = load_study(analysed_study), Transfer.model_validate(analysed_transfer)
    for path, said in paths.items():
        model = recipe.require_model().model_copy(update={"path": path})
        card = model_card(recipe.model_copy(update={"model": model}), transfer, PushedModel("grpo", 0, None), None)
        assert f"\n{said}pocket-math by GRPO" in card
        assert str(tmp_path) not in card
    elsewhere = transfer.model_copy(update={"versions": {"commit": "not in a repository"}})
    assert "| code | " in model_card(recipe, elsewhere, PushedModel("grpo", 0, None), None)
    here = transfer.model_copy(update={"versions": {"commit": "abc"}})
    assert "| code | " not in model_card(recipe, here, PushedModel("grpo", 0, None), None)


def test_a_dry_run_shows_card_and_files_and_sends_nothing(analysed_study, hub, push):
    result = push(analysed_study, "grpo", "--to", "me/model", "--step", "2", "--dry-run", token=None)
    assert result.returncode == 0, result.stderr
    size = (analysed_study / "arms/grpo/seed-0/snapshots/step-2/model.safetensors").stat().st_size
    assert f"{size:,} bytes  model.safetensors" in result.stdout
    assert result.stdout.endswith("nothing was uploaded to me/model (--dry-run)\n")
    assert (hub["files"], hub["created"]) == ({}, [])


def test_the_card_of_a_checkpoint_has_its_own_gains_and_none_of_the_final_models(analysed_study, analysed_transfer):
    """One slice of 6 questions a benchmark was scored for every checkpoint; the final model has all questions."""
    gain = {"estimate": 12.0, "low": -3.41, "high": 20.0}
    other = {"estimate": -50.0, "low": -60.0, "high": -40.0}
    changed = json.loads(json.dumps(analysed_transfer))
    curve = changed["trajectory"]["arms"]["grpo"]
    position = curve["steps"].index(2)
    for rows in curve["gains"].values():
        rows[:] = [gain if index == position else other for index in range(len(rows))]
    cut = {"code": "all_truncated", "message": "All final responses were cut off.", "model": "grpo"}
    changed["warnings"] = [cut, {"code": "few_questions", "message": "Few questions.", "model": None}]
    recipe, transfer = load_study(analysed_study), Transfer.model_validate(changed)
    card = model_card(recipe, transfer, PushedModel("grpo", 0, 2), None)
    assert ": GRPO, seed 0, step 2\n" in card
    count = len(transfer.groups["math"])
    assert f"| **math**: {', '.join(transfer.groups['math'])} | {6 * count} | **+12.0 [-3.4, +20.0]** |\n" in card
    total, whole = sum(6 * len(names) for names in transfer.groups.values()), sum(transfer.questions.values())
    assert f"Scored on a slice of the test questions, {total} of {whole}. " in card
    assert card.count("[-3.4, +20.0]") == len(transfer.groups)
    assert "-50.0" not in card
    assert "no group lost more than 3.5 points" in card
    for row in transfer.arms["grpo"].benchmarks.values():
        assert f"{row.gain.estimate:+.1f} [{row.gain.low:+.1f}" not in card
    assert f"- It is one of {len(curve['steps']) - 1} checkpoints of this method with scores" in card
    assert ("All final responses" in card, "- Few questions." in card) == (False, True)
    assert "All final responses" in model_card(recipe, transfer, PushedModel("grpo", 0, None), None)


def test_the_card_of_a_checkpoint_without_scores_has_no_table(analysed_study, analysed_transfer):
    transfer = Transfer.model_validate(analysed_transfer | {"trajectory": None, "warnings": []})
    card = model_card(load_study(analysed_study), transfer, PushedModel("grpo", 0, 2), None)
    gains = card.split("## Gains over the base\n")[1].split("\n## ")[0]
    assert gains.strip() == (
        "This is the checkpoint after step 2. It was not scored; the study's report has the final model."
    )
    assert "checkpoints of this method" not in card


def test_the_last_step_names_the_final_model(analysed_study):
    recipe = load_study(analysed_study)
    last = recipe.train.steps
    named, final = (prepare_upload(recipe, analysed_study, PushedModel("grpo", 0, step), None) for step in (last, None))
    assert named == final
    assert named.directory == analysed_study / "arms/grpo/seed-0/final"
    with pytest.raises(UserError, match=rf"has no checkpoint of step 99; there are .*, {last} \(the final model\)$"):
        prepare_upload(recipe, analysed_study, PushedModel("grpo", 0, 99), None)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["ppo", "--to", "me/model"], "trains no arm 'ppo'; it trains off_policy_sft, on_policy_sft, grpo"),
        (["grpo", "--to", "me/model", "--seed", "7"], "has no seed 7; it has 0"),
        (["grpo", "--to", "me/model", "--step", "99"], "has no checkpoint of step 99; there are "),
        (["grpo", "--to", "model", "--dry-run"], "'model' is not the name of a repository, which has the form owner/n"),
        (["grpo", "--to", "a/b/c"], "'a/b/c' is not the name of a repository, which has the form owner/name"),
    ],
)
def test_mistakes_are_told_in_a_sentence(analysed_study, hub, push, arguments, message):
    result = push(analysed_study, *arguments)
    assert result.returncode == 2
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    assert (hub["files"], hub["created"]) == ({}, [])


def test_what_the_hub_says_and_what_is_missing(analysed_study, hub, push, tmp_path):
    to = ["grpo", "--to", "me/model"]
    refused = push(analysed_study, *to, token="hf_wrong")
    assert (refused.returncode, hub["files"]) == (2, {})
    assert "refused the upload to me/model with status 401: the token may not write there" in refused.stderr
    assert "hf_wrong" not in refused.stderr
    assert "there is no token of the Hugging Face hub; set HF_TOKEN" in push(analysed_study, *to, token=None).stderr
    changed = tmp_path / "study"
    shutil.copytree(analysed_study, changed)
    weights = changed / "arms/grpo/seed-0/final/config.json"
    weights.write_text(weights.read_text() + "\n")
    assert hash_file(weights) != hash_file(analysed_study / "arms/grpo/seed-0/final/config.json")
    assert "is not the file that was trained and scored; restore it" in push(changed, *to).stderr


@pytest.mark.parametrize("name", ["model", "", "/model", "me/", "a/b/c"])
def test_a_name_needs_an_owner(name):
    require_owner("me/model")
    with pytest.raises(UserError, match=f"^{name!r} is not the name of a repository, which has the form owner/name$"):
        require_owner(name)
