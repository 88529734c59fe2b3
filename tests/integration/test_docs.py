"""Every command of README and docs/ is run here, with the smoke recipe in the place of the pocket study's.

`make test-slow` runs the fences `sh`, `sh long`, `sh rehearsal` and, where a cluster can be started, `sh slurm`;
`sh fails` must be refused. `make test` parses them all. `sh gpu` needs a GPU or a network and `sh form` has
placeholders: they are only parsed.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
import time

import pytest

from launch.commands.main import build_parser
from recipes.loading import load_recipe
from tests.integration.test_deepspeed import study_of
from tests.paths import ROOT
from tests.support.slurm_cluster import SlurmCluster, why_not

# The quick start first: other pages go on with what it has run.
PAGES = sorted(
    [ROOT / "README.md", *(ROOT / "docs").glob("*.md")], key=lambda page: (page.stem != "quickstart", page.stem)
)


def fences(page):
    """The fenced blocks of a page: what follows the opening fence, and its lines with continuations joined."""
    found, kind = [], None
    for line in page.read_text(encoding="utf-8").replace("\\\n", " ").splitlines():
        if line.startswith("```"):
            kind = line[3:].strip() if kind is None else None
            if kind is not None:
                found.append((kind, []))
        elif kind is not None and line.strip():
            found[-1][1].append(line.strip())
    return found


def commands(page, kind):
    """The command lines of a page's fences of a kind."""
    return [line for found, lines in fences(page) if found == kind for line in lines if not line.startswith("#")]


@pytest.fixture(scope="module")
def workspace(smoke_study, tmp_path_factory):
    """A folder as a user has it after cloning, with the pocket study shrunk and its base and corpus there."""
    folder = tmp_path_factory.mktemp("user")
    shutil.copytree(ROOT / "recipes", folder / "recipes", ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    smoke = (ROOT / "recipes" / "pocket" / "smoke.yaml").read_text()
    study = smoke.replace("study: smoke", "study: pocket").replace("heldout_problems: 8", "heldout_problems: 200")
    assert study.count("heldout_problems: 200") == 1  # as many as the page about the pocket study measures
    study = study.replace("save_every_steps: 1\n", "save_every_steps: 1\n  snapshots: 2\n")
    study += "\ndrift: {problems: 8}\ntrajectory: {questions: 4, heldout_problems: 8, draws: 100}\n"
    (folder / "recipes" / "pocket" / "study.yaml").write_text(study)
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


def statuses(line):
    """What a command of the docs may end with: `pick` and `gate` say by a 1 that the base is the one to keep."""
    return (0, 1) if line.startswith(("transfer pick", "transfer gate")) else (0,)


def test_no_command_stands_in_a_fence_of_no_kind():
    plain = [line for page in PAGES for kind, lines in fences(page) if kind == "" for line in lines]
    assert [line for line in plain if re.match(r"(\S*/)?transfer (?!index,)[a-z]|pip |vllm ", line)] == []


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_commands_of_the_docs_run(page, workspace):
    for line in commands(page, "sh"):
        result = run(line, workspace)
        assert result.returncode in statuses(line), (
            f"{page.name}: {line}\n{result.stdout[-3000:]}{result.stderr[-3000:]}"
        )
    for line in commands(page, "sh fails"):
        result = run(line, workspace)
        assert result.returncode == 2, f"{page.name}: {line}\n{result.stdout[-3000:]}"
        assert "nearest setting that works" in result.stdout


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_other_command_exists_and_its_files_do(page):
    """What is not run is at least a command with options this version has, about files that are there."""
    known = build_parser()._subparsers._group_actions[0].choices
    lines = [line for kind, lines in fences(page) if kind.startswith("sh") for line in lines]
    for line in lines:
        words = shlex.split(line, comments=True) if re.match(r"(\.venv/bin/)?transfer [a-z]", line) else []
        if (
            len(words) < 2
            or words[1] not in known
            or any(word in line for word in ("...", "BASE", "@COMMIT", "RECIPE"))
        ):
            continue
        for word in words:
            if word.startswith(("recipes/", "launch/", "docs/")) and "=" not in word:
                assert (ROOT / word).exists(), f"{page.name}: {line}"
        options, rest = build_parser().parse_known_args(words[1:])
        assert not [word for word in rest if word.startswith("-")], f"{page.name}: {line}"
        if options.command == "run" and options.study.suffix == ".yaml" and options.study.parts[0] == "recipes":
            load_recipe(ROOT / options.study, [*options.overrides, *rest])


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if commands(page, "sh long")], ids=lambda page: page.stem)
@pytest.mark.faults
def test_longer_commands_of_the_docs_run(page, workspace):
    if not (workspace / "runs" / "pocket" / "report" / "transfer.json").exists():
        assert run("transfer run recipes/pocket/study.yaml", workspace).returncode == 0
    for line in commands(page, "sh"):  # what the shorter commands write, where they have not run
        if line.startswith("transfer init") and not (workspace / line.split()[-1]).exists():
            assert run(line, workspace).returncode == 0
    for line in commands(page, "sh long"):
        result = run(line, workspace)
        assert result.returncode in statuses(line), (
            f"{page.name}: {line}\n{result.stdout[-3000:]}{result.stderr[-3000:]}"
        )


@pytest.mark.slow
def test_rehearsals_of_the_docs_run(workspace):
    lines = [line for page in PAGES for line in commands(page, "sh rehearsal")]
    assert lines
    for line in lines:
        result = run(line, workspace)
        assert result.returncode == 0, f"{line}\n{result.stdout[-3000:]}{result.stderr[-3000:]}"


@pytest.mark.slow
@pytest.mark.skipif(why_not() is not None, reason=f"no Slurm cluster can be started: {why_not()}")
@pytest.mark.faults
def test_a_newcomer_with_an_account_gets_to_a_finished_study(workspace, tmp_path):
    """docs/slurm.md from its site file on, on a cluster of two nodes."""
    cluster = SlurmCluster(tmp_path / "cluster")
    try:
        cluster.start()
        site = tmp_path / "site.yaml"
        site.write_text("gpus_per_node: 0\nenvironment: {OMP_NUM_THREADS: '1'}\n")
        more = cluster.environment | {"TRANSFER_SITE": str(site)}
        shutil.rmtree(workspace / "runs" / "pocket")
        lines = commands(ROOT / "docs" / "slurm.md", "sh slurm")
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
