"""Where the task files of a suite are. Needs no lm-evaluation-harness."""

from pathlib import Path

from recipes.errors import UserError
from recipes.files import hash_file
from recipes.suggestions import nearest
from recipes.suite_schema import SuiteSpec

TASKS_DIR = Path(__file__).parent.parent / "tasks"


def task_folder(suite: SuiteSpec) -> Path:
    """The folder of task files of a suite. Raises UserError if it or one of the suite's task files is missing."""
    folder = suite_folder(suite)
    if absent := missing_task_files(folder, suite):
        raise UserError("\n".join(absent.values()))
    return folder


def suite_folder(suite: SuiteSpec) -> Path:
    """The folder of task files of a suite. Raises UserError if there is no such folder."""
    folder = Path(suite.tasks) if "/" in suite.tasks else TASKS_DIR / suite.tasks
    if not folder.is_dir():
        known = sorted(path.name for path in TASKS_DIR.iterdir() if path.is_dir() and path.name[0] not in "_.")
        near = nearest(suite.tasks, known)
        hint = f"did you mean {near}? One" if near else f"shipped are {', '.join(known)}; one"
        raise UserError(
            f"suite.tasks {suite.tasks!r} is not a folder; {hint} of your own is written with a slash, as in ./tasks"
        )
    return folder


def missing_task_files(folder: Path, suite: SuiteSpec) -> dict[Path, str]:
    """The task files of a suite that do not exist, each with a sentence."""
    known = sorted(path.stem for path in folder.glob("*.yaml"))
    there = f"there are {', '.join(known)}" if known else "the folder has none; `transfer init benchmark` writes one"
    return {
        path: f"benchmark {benchmark!r} has no task file {path.name} in {folder}; {there}"
        for path, benchmark in _task_paths(folder, suite).items()
        if not path.is_file()
    }


def task_path(folder: Path, benchmark: str, prompting: str) -> Path:
    """The task file of a benchmark's prompting: the folder's own, otherwise a shipped one."""
    name = f"{benchmark}.yaml" if prompting == "native" else f"{benchmark}-{prompting}.yaml"
    own = folder / name
    if own.is_file():
        return own
    return next(iter(sorted(TASKS_DIR.glob(f"*/{name}"), reverse=True)), own)


def task_hashes(suite: SuiteSpec) -> dict[str, str]:
    """sha256 by name of every file in the suite's folder, and of the shipped task files that it uses besides."""
    folder = task_folder(suite)
    files = [path for path in folder.iterdir() if path.is_file()]  # not __pycache__
    shipped = [path for path in _task_paths(folder, suite) if path.parent != folder]
    return {path.name: hash_file(path) for path in [*files, *shipped]}


def _task_paths(folder: Path, suite: SuiteSpec) -> dict[Path, str]:
    """Task file -> benchmark, of all promptings of a suite."""
    return {
        task_path(folder, item.name, prompting): item.name for item in suite.benchmarks for prompting in item.promptings
    }
