"""Where the task files of a suite are. Needs no lm-evaluation-harness."""

from pathlib import Path

from recipes.errors import UserError
from recipes.schema import SuiteSpec

TASKS_DIR = Path(__file__).parent / "tasks"


def task_folder(suite: SuiteSpec) -> Path:
    """The folder of task files of a suite. Raises UserError if it or one of its tasks is missing."""
    folder = Path(suite.tasks) if "/" in suite.tasks else TASKS_DIR / suite.tasks
    if not folder.is_dir():
        known = sorted(path.name for path in TASKS_DIR.iterdir() if path.is_dir() and path.name[0] not in "_.")
        raise UserError(f"suite.tasks {suite.tasks!r} is not a folder; shipped are {', '.join(known)}")
    known = sorted(path.stem for path in folder.glob("*.yaml"))
    for benchmark in suite.benchmarks:
        if benchmark.name not in known:
            raise UserError(f"benchmark {benchmark.name!r} has no task file in {folder}; there are {', '.join(known)}")
    return folder
