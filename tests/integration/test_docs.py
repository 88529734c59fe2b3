"""Every command of README and docs/ is run here, with the smoke recipe in the place of the pocket study's.

A fence `sh` is run; `sh gpu` needs a GPU or a network and is only parsed; `sh fails` must be refused; `sh slurm` is run
where a cluster can be started (make test-faults).
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
import time

import pytest

from launch.cli import build_parser
from tests.integration.test_deepspeed import ROOT, study_of
from tests.slurm_cluster import SlurmCluster, why_not

PAGES = sorted((ROOT / "docs").glob("*.md"))
FENCE = re.compile(r"^```sh(?: (\w+))?\n(.*?)^```", re.MULTILINE | re.DOTALL)


def commands(page, kind):
    """The command lines of a page's fences of a kind."""
    return [
        line.strip()
        for found, body in FENCE.findall(page.read_text(encoding="utf-8"))
        if found == kind
        for line in body.splitlines()
        if line.strip() and not line.strip().startswith("#")
    ]


@pytest.fixture(scope="module")
def workspace(smoke_study, tmp_path_factory):
    """A folder as a user has it after cloning, with the pocket study shrunk and its base and corpus there."""
    folder = tmp_path_factory.mktemp("user")
    shutil.copytree(ROOT / "recipes", folder / "recipes")
    shutil.copytree(ROOT / "launch", folder / "launch", ignore=shutil.ignore_patterns("__pycache__"))
    smoke = (ROOT / "recipes" / "pocket" / "smoke.yaml").read_text()
    (folder / "recipes" / "pocket" / "study.yaml").write_text(smoke.replace("study: smoke", "study: pocket"))
    for name in ("pocket", "with-kl"):
        study = study_of(smoke_study, folder / "runs" / name)
        (study / "study.json").write_text((study / "study.json").read_text().replace('"smoke"', '"pocket"', 1))
    return folder


def run(line, folder, more=None):
    """Run a line of the docs; `transfer` is this source tree."""
    programs = folder / "bin"
    programs.mkdir(exist_ok=True)
    (programs / "transfer").write_text(f'#!/bin/sh\nexec {sys.executable} -m launch "$@"\n')
    (programs / "transfer").chmod(0o755)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", **(more or {})}
    environment["PATH"] = f"{programs}:{os.environ['PATH']}"
    return subprocess.run(line, shell=True, cwd=folder, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_commands_of_the_docs_run(page, workspace):
    for line in commands(page, ""):
        result = run(line, workspace)
        assert result.returncode == 0, f"{page.name}: {line}\n{result.stdout[-3000:]}{result.stderr[-3000:]}"
    for line in commands(page, "fails"):
        result = run(line, workspace)
        assert result.returncode == 2, f"{page.name}: {line}\n{result.stdout[-3000:]}"
        assert "nearest setting that works" in result.stdout


@pytest.mark.parametrize("page", [ROOT / "README.md", *PAGES], ids=lambda page: page.stem)
def test_every_other_command_exists_and_its_files_do(page):
    """What is not run is at least a command with options this version has, about files that are there."""
    text = page.read_text(encoding="utf-8")
    fenced = re.findall(r"^```(?:sh gpu|sh slurm)?\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    lines = [line.strip() for body in fenced for line in re.sub(r"\\\n\s*", "", body).splitlines()]
    found = 0
    for line in lines:
        words = shlex.split(line, comments=True) if re.match(r"(\.venv/bin/)?transfer [a-z]", line) else []
        if not words or any(word in line for word in ("...", "BASE", "@COMMIT")):
            continue
        words = words[1:]
        for word in words:
            if word.startswith(("recipes/", "launch/", "docs/")) and "=" not in word:
                assert (ROOT / word).exists(), f"{page.name}: {line}"
        if "RECIPE" in words or "RUN" in words:
            continue
        words = words[: next((place for place, word in enumerate(words) if len(word) > 1 and "  " in word), len(words))]
        build_parser().parse_known_args(words)
        found += 1
    assert found or "transfer " not in text or page.stem not in ("README", "slurm", "one-node", "reproduce")


@pytest.mark.faults
@pytest.mark.skipif(why_not() is not None, reason=f"no Slurm cluster can be started: {why_not()}")
def test_a_newcomer_with_an_account_gets_to_a_finished_study(workspace, tmp_path):
    """docs/slurm.md from its site file on, on a cluster of two nodes."""
    cluster = SlurmCluster(tmp_path / "cluster")
    try:
        cluster.start()
        site = tmp_path / "site.yaml"
        site.write_text("gpus_per_node: 0\nenvironment: {OMP_NUM_THREADS: '1'}\n")
        more = cluster.environment | {"TRANSFER_SITE": str(site)}
        shutil.rmtree(workspace / "runs" / "pocket")
        lines = commands(ROOT / "docs" / "slurm.md", "slurm")
        submit = next(number for number, line in enumerate(lines) if line.endswith("--on slurm"))
        for line in lines[: submit + 3]:
            result = run(line, workspace, more)
            assert result.returncode == 0, f"{line}\n{result.stdout[-3000:]}{result.stderr[-3000:]}"
        deadline = time.monotonic() + 400
        while cluster.query("squeue", "--noheader"):
            assert time.monotonic() < deadline
            time.sleep(1)
        shown = run("transfer status runs/pocket", workspace, more)
        assert shown.returncode == 0, shown.stdout
        assert re.search(r"runs/pocket: \d+ done$", shown.stdout, re.MULTILINE), shown.stdout
        for line in lines[submit + 3 :]:
            result = run(line, workspace, more)
            assert result.returncode == 0, f"{line}\n{result.stdout[-3000:]}{result.stderr[-3000:]}"
        assert "transfer index" in run("transfer report recipes/pocket/study.yaml", workspace).stdout
    finally:
        cluster.stop()
