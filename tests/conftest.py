"""Shared fixtures: finished studies, made once per session, the command line, and a recipe of `transfer init`."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from launch.commands.main import main
from launch.execution.processes import die_with_parent
from tests.paths import ROOT
from tests.support.forked_command import ForkedCommand, read_on_import

ANALYSED = (
    "train.snapshots=3",
    "drift={problems: 8, batch_size: 8}",
    "diagnostics={prompts: 8, max_completion_tokens: 24, batch_tokens: 200, components: 3, draws: 100}",
    "trajectory={questions: 6, heldout_problems: 8, draws: 200}",
    "wandb={mode: offline}",
)
settings.register_profile("repeatable", derandomize=True, database=None)  # the same examples in every run
settings.load_profile("repeatable")
for _name in ("no_proxy", "NO_PROXY"):  # the servers of the tests are on this machine, also where a proxy is set
    os.environ[_name] = ",".join([*filter(None, [os.environ.get(_name)]), "127.0.0.1", "localhost"])
_STUDIES = ("smoke_study", "analysed_study")  # in the order in which they are made
_MADE_WITHIN_SECONDS = 1800


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Order the files by the studies they need, which are made meanwhile."""
    needs: dict[Path, int] = {}
    for item in items:
        wanted = max((1 + _STUDIES.index(n) for n in getattr(item, "fixturenames", ()) if n in _STUDIES), default=0)
        needs[item.path] = max(wanted, needs.get(item.path, 0))
    items.sort(key=lambda item: needs[item.path])


@pytest.hookimpl(trylast=True)
def pytest_collection_finish(session: pytest.Session) -> None:
    """Begin with the studies in the background, in one of the test processes."""
    if os.environ.get("PYTEST_XDIST_WORKER", "gw0") != "gw0" or session.config.option.collectonly:
        return
    wanted = {name for item in session.items for name in getattr(item, "fixturenames", ()) if name in _STUDIES}
    if wanted:
        factory = session.config._tmp_path_factory
        command = [sys.executable, "-m", "tests.support.finished_studies", str(_shared(factory)), *wanted]
        session.config.stash[_BUILDER] = subprocess.Popen(command, cwd=ROOT, preexec_fn=die_with_parent)


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    builder = session.config.stash.get(_BUILDER, None)
    if builder is None:
        return
    if exitstatus != pytest.ExitCode.INTERRUPTED:
        builder.wait()  # another test process may still need the studies
    builder.kill()  # what it has started dies with it


_BUILDER = pytest.StashKey[subprocess.Popen]()


def _shared(factory: pytest.TempPathFactory) -> Path:
    """A folder that the test processes of one session share."""
    base = factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "studies"
    folder.mkdir(exist_ok=True)
    return folder


def _copy_when_made(factory: pytest.TempPathFactory, name: str) -> Path:
    """A copy, for this test process, of a study made in the background (`tests/support/finished_studies.py`)."""
    result = _shared(factory) / f"{name}.json"
    deadline = time.monotonic() + _MADE_WITHIN_SECONDS
    while not result.exists():
        assert time.monotonic() < deadline, f"{name} was not made within {_MADE_WITHIN_SECONDS} s"
        time.sleep(0.1)
    status, output = json.loads(result.read_text())
    assert status == 0, output
    return Path(shutil.copytree(_shared(factory) / name, factory.mktemp(name) / "study"))


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """One arithmetic thread in every test, as the smoke studies were made with.

    A stage that runs inside the test process sets its own number, which later tests would inherit. Sums in another
    order differ in the last bits, and so would every hash.
    """
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def variables_read_on_import() -> Iterator[None]:
    """Those of before the test: `validate`, `rehearse` and `work` set some in the process in which they run.

    Later tests would inherit them, and `transfer` would give each of its commands an interpreter of its own.
    """
    before = read_on_import(os.environ)
    yield
    for name in read_on_import(os.environ).keys() - before.keys():
        del os.environ[name]
    os.environ.update(before)


@pytest.fixture(autouse=True)
def clone_without_runs(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """A working directory like that of a fresh clone, so that no test reads or writes the studies of `runs/`."""
    folder = tmp_path_factory.mktemp("clone")
    for name in ("data", "docs", "eval", "launch", "recipes", "tests", "train"):
        (folder / name).symlink_to(ROOT / name)
    monkeypatch.chdir(folder)


@pytest.fixture(scope="session")
def transfer() -> Iterator[Callable[..., subprocess.CompletedProcess[str]]]:
    """Run `python -m launch` with arguments, or `python -c`, and wait for it."""
    command = ForkedCommand()
    yield lambda *arguments, cwd=ROOT: command.run(list(map(str, arguments)), cwd)
    command.close()


@pytest.fixture(scope="session")
def smoke_study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Directory of a finished smoke study."""
    study = _copy_when_made(tmp_path_factory, "smoke_study")
    # A miniature that learns nothing could not show that training state is lost; every arm must move the weights.
    weights = {
        path: path.read_bytes()
        for path in [study / "base/model.safetensors", *study.glob("arms/*/*/final/*.safetensors")]
    }
    assert len(set(weights.values())) == 4
    for ledger in study.glob("arms/*/*/ledger.jsonl"):
        assert json.loads(ledger.read_text().splitlines()[-1])["trained_tokens"] > 0, ledger
    return study


@pytest.fixture(scope="session")
def analysed_study(smoke_study: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Directory of a finished smoke study with snapshots, drift, trajectories and diagnostics."""
    return _copy_when_made(tmp_path_factory, "analysed_study")


@pytest.fixture(scope="session")
def analysed_transfer(analysed_study: Path) -> dict:
    return json.loads((analysed_study / "report" / "transfer.json").read_text())


@pytest.fixture(scope="session")
def smoke_transfer(smoke_study: Path) -> dict:
    return json.loads((smoke_study / "report" / "transfer.json").read_text())


@pytest.fixture
def law(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The recipe that `transfer init study` writes, used from another folder."""
    assert main(["init", "study", str(tmp_path / "law" / "law.yaml")]) == 0
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    return tmp_path / "law" / "law.yaml"
