"""What a server says about itself before it is asked, and the environment that evaluation runs in."""

import json
from pathlib import Path

import pytest

from data.sampling.server import require_served, served_models, server_version
from launch.execution.failures import _first_line
from launch.execution.worker import worker_environment
from launch.slurm.vllm_server import server_command
from recipes.errors import UserError
from recipes.loading import load_recipe
from tests.paths import SMOKE
from tests.support.servers import pages

HEADERS = {"Authorization": "Bearer key"}
TWO = json.dumps({"data": [{"id": "a", "max_model_len": 128}, {"id": "b"}]}).encode()


def require(address, model, tokens, least=None):
    require_served(f"{address}/v1/completions", HEADERS, model, "suite.engine.model", tokens, "both limits", least)


def test_a_server_says_what_it_serves_and_how_long():
    with pages({"/v1/models": TWO, "/version": b'{"version": "0.31.0"}'}) as address:
        for url in (f"{address}/v1", f"{address}/v1/", f"{address}/v1/completions"):
            assert served_models(url, HEADERS) == {"a": 128, "b": None}
        assert served_models(f"{address}/v1", {}) is None
        assert server_version(f"{address}/v1", HEADERS) == "0.31.0"
        require(address, "a", 128)
        require(address, "b", 10**6)  # it does not say how long
        require(address, "a", 200, least=128)
        with pytest.raises(
            UserError, match=r"serves a, b, not c; set suite\.engine\.model, or .*--served-model-name c"
        ):
            require(address, "c", 1)
        with pytest.raises(UserError, match=r"takes 128 tokens .* 129 may .*--max-model-len 129, or lower both limits"):
            require(address, "a", 129)
        with pytest.raises(UserError, match="but 200 may be needed; start it with --max-model-len 200"):
            require(address, "a", 200, least=129)


@pytest.mark.parametrize("answer", [b"<html>", b"[]", b"null", b'{"data": [{}]}', b'{"data": 1}'])
def test_a_server_that_says_nothing_of_use_is_taken_as_it_is(answer):
    with pages({"/v1/models": answer, "/version": answer}) as address:
        assert served_models(f"{address}/v1", HEADERS) is None
        assert server_version(f"{address}/v1", HEADERS) is None
        require(address, "any", 10**6)
    assert served_models("http://127.0.0.1:9/v1", {}) is None
    assert server_version("http://127.0.0.1:9/v1", {}) is None


def test_a_stage_starts_vllm_without_a_fork_and_without_bars():
    found = worker_environment()
    assert (found["VLLM_WORKER_MULTIPROC_METHOD"], found["TQDM_DISABLE"]) == ("spawn", "1")


@pytest.mark.parametrize(
    ("message", "line"),
    [
        ("", "no message"),
        ("one\ntwo", "one"),
        (
            "1 validation error for ModelConfig\n  Value error, too long [type=value_error]\n    For further",
            "1 validation error for ModelConfig: Value error, too long [type=value_error]",
        ),
        ("2 validation errors for X", "2 validation errors for X"),
    ],
)
def test_the_line_of_an_error_that_says_what_is_wrong(message, line):
    assert _first_line(message) == line


def test_the_server_of_a_job_serves_the_dtype_that_is_trained():
    settings = ["resources.ranks=2", "resources.nodes=2", "resources.vllm={mode: server, server_nodes: 1}"]
    recipe = load_recipe(SMOKE, [*settings, "model.dtype=bfloat16"])
    command = server_command(recipe, Path("study"), "grpo", 0, 8000, gpus=1)
    assert command[command.index("--dtype") + 1] == "bfloat16"
    assert command[command.index("--max-model-len") + 1] == "128"
