"""`transfer push` against a hub on the loopback: what arrives there, and what is refused before anything is sent."""

import base64
import json
import shutil

import pytest
import yaml

from eval.report.model_card import PushedModel, model_card
from eval.report.schema import Transfer
from launch.push import require_owner
from recipes.errors import UserError
from recipes.files import hash_file
from recipes.loading import load_study
from tests.support.forked_command import ForkedCommand
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
    assert f"| **math** | | | **{gain['estimate']:+.1f} [{gain['low']:+.1f}, {gain['high']:+.1f}]** |" in text
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
    assert "This is the checkpoint after step 2." in result.stdout
    size = (analysed_study / "arms/grpo/seed-0/snapshots/step-2/model.safetensors").stat().st_size
    assert f"{size:,} bytes  model.safetensors" in result.stdout
    assert result.stdout.endswith("nothing was uploaded to me/model (--dry-run)\n")
    assert (hub["files"], hub["created"]) == ({}, [])


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
