"""Where the task files of a suite are. Needs no lm-evaluation-harness."""

from pathlib import Path

from recipes.errors import UserError
from recipes.suite_schema import SuiteSpec

TASKS_DIR = Path(__file__).parent.parent / "tasks"


def task_folder(suite: SuiteSpec) -> Path:
    """The folder of task files of a suite. Raises UserError if it or one of its files is missing."""
    folder = Path(suite.tasks) if "/" in suite.tasks else TASKS_DIR / suite.tasks
    if not folder.is_dir():
        known = sorted(path.name for path in TASKS_DIR.iterdir() if path.is_dir() and path.name[0] not in "_.")
        raise UserError(f"suite.tasks {suite.tasks!r} is not a folder; shipped are {', '.join(known)}")
    known = sorted(path.stem for path in folder.glob("*.yaml"))
    for benchmark in suite.benchmarks:
        for prompting in benchmark.promptings:
            path = task_path(folder, benchmark.name, prompting)
            if not path.is_file():
                raise UserError(
                    f"benchmark {benchmark.name!r} has no task file {path.name} in {folder}; "
                    f"there are {', '.join(known)}"
                )
    return folder


def task_path(folder: Path, benchmark: str, prompting: str) -> Path:
    """The task file of a benchmark's prompting."""
    return folder / (f"{benchmark}.yaml" if prompting == "native" else f"{benchmark}-{prompting}.yaml")
