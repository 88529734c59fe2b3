"""Check a recipe and run its stages, on this machine or on a Slurm cluster."""

import shutil
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path

from launch.execution.local import run_tasks
from launch.execution.processes import note_run
from launch.hardware import visible_gpus
from launch.planning.findings import Finding, disk_of_studies, findings
from launch.planning.fit import analysis_mistakes, fit_mistakes
from launch.planning.preflight import unresolved_sentences, warnings
from launch.reuse import plan_reuse
from launch.site_file import SiteSpec
from launch.slurm.submit import (
    Queue,
    active_ids,
    ask_queue,
    known_jobs,
    plan_submission,
    read_jobs,
    script_name,
    submit,
)
from launch.stages import Stage
from launch.tasks import Task, states_of, tasks_of_study
from recipes.errors import UserError, collected
from recipes.files import write_atomic, write_json
from recipes.schema import Recipe
from train.accounting.cost import model_shape
from train.accounting.matching import require_matched
from train.runtime.tracking import require_usable_key

_CANNOT_WORK = "cannot work: "


def check_recipe(recipe: Recipe) -> list[Finding]:
    """What keeps a recipe from running on any machine, and what is probably not meant."""
    errors: list[str] = []
    try:
        require_matched(recipe)
    except UserError as error:
        errors.append(str(error))  # of several lines
    shape = model_shape(recipe)
    misfits = [*fit_mistakes(recipe, shape), *analysis_mistakes(recipe, shape)]
    errors += [f"{_CANNOT_WORK}{text}" for text in misfits]
    return [Finding("error", text) for text in errors] + [Finding("warning", text) for text in warnings(recipe)]


def check_tasks(tasks: Sequence[Task], site: SiteSpec | None = None, *, planned: bool = False) -> list[Finding]:
    """What the unfinished tasks lack on this machine, or on the cluster `site`.

    `planned`: they may run on another machine than this, if they are for GPUs and this has none.
    """
    studies = {task.study_dir: task.recipe for task in tasks}
    of_study = {study_dir: [task.stage for task in tasks if task.study_dir == study_dir] for study_dir in studies}
    gpus = visible_gpus()
    away = planned and site is None and not gpus
    elsewhere = {key: away and recipe.resources.gpu is not None for key, recipe in studies.items()}
    disk = disk_of_studies([(studies[key], of_study[key], key) for key in studies], site, gpus, all(elsewhere.values()))
    found = _cannot_work(disk)
    for study_dir, recipe in studies.items():
        lacking = findings(recipe, of_study[study_dir], study_dir, site, gpus, elsewhere[study_dir])
        if site is None and recipe.resources.nodes > 1 and not elsewhere[study_dir]:
            text = f"resources.nodes is {recipe.resources.nodes}"
            lacking.append(Finding("error", text, "several machines need --on slurm, or set resources.nodes=1"))
        found += _cannot_work(lacking)
        found += [Finding("missing", text) for text in unresolved_sentences(recipe)]
        errors: list[str] = []
        if not elsewhere[study_dir] and (site is None or not site.offline):  # jobs of an offline site use no key
            with collected(errors):
                require_usable_key(recipe)
        found += [Finding("error", text) for text in errors]
    return found


def _cannot_work(found: Sequence[Finding]) -> list[Finding]:
    """Findings of which errors say that the study cannot work."""
    return [
        replace(item, sentence=f"{_CANNOT_WORK}{item.sentence}") if item.severity == "error" else item for item in found
    ]


def show(found: Sequence[Finding]) -> bool:
    """Print findings, each once and errors last; whether one is an error."""
    errors = {str(finding): None for finding in found if finding.severity == "error"}
    for text in dict.fromkeys(f"{finding.severity}: {finding}" for finding in found if finding.severity != "error"):
        print(f"transfer: {text}", file=sys.stderr)
    if errors:
        print("transfer: " + "\n".join(errors), file=sys.stderr, flush=True)
    return bool(errors)


def require(found: Sequence[Finding]) -> None:
    """Print warnings and notes. Raises UserError with everything that is missing or an error."""
    refused = ("missing", "error")
    show([finding for finding in found if finding.severity not in refused])
    if texts := dict.fromkeys(str(finding) for finding in found if finding.severity in refused):
        raise UserError("\n".join(texts))


def run_stages(
    recipe: Recipe,
    study_dir: Path,
    stages: list[Stage],
    as_json: bool,
    until: str | None = None,
    *,
    with_reuse: bool = False,
) -> int:
    """Check a recipe, then run its unfinished stages on this machine; returns the exit status."""
    tasks = tasks_of_study(recipe, study_dir, stages)
    require([*check_recipe(recipe), *check_tasks(tasks)])
    refuse_if_queued(study_dir)
    # With --json, standard output carries the report alone and progress goes to standard error.
    with redirect_stdout(sys.stderr if as_json else sys.stdout):
        return run_tasks(tasks, study_dir, until, with_reuse=with_reuse)


def run_on_slurm(root: Path, tasks: Sequence[Task], site: SiteSpec, until: str | None) -> int:
    """Submit the unfinished tasks; returns the exit status."""
    unfinished, states = [], states_of(tasks)
    for task in tasks:
        if states[task.key].state == "done":
            print(f"  done     {task.stage.name}")
        else:
            unfinished.append(task)
    write_json(root / "slurm" / "site.json", site.model_dump(mode="json"))
    note_run(root, {"on": "slurm", "until": until})
    submitted = submit(root, unfinished, site)
    print(f"{submitted} job(s) submitted; transfer status {root} shows their state")
    return 0


def refuse_if_queued(root: Path) -> None:
    """Raise UserError if jobs of a study are queued or running: a job reads the recipe when it starts."""
    if not read_jobs(root) or shutil.which("squeue") is None:  # not on the cluster it was submitted to
        return
    queue = ask_queue()
    if active_ids(root, known_jobs(root, queue), queue):
        raise UserError(
            f"jobs of {root} are in the queue and would run with the changed recipe; `transfer cancel {root}` first, "
            "or choose another --out"
        )


def show_jobs(root: Path, tasks: Sequence[Task], site: SiteSpec, *, with_reuse: bool = False) -> None:
    """Print the jobs that would be submitted, and write their scripts. Submits nothing.

    What is queued already is known only where Slurm is installed.
    """
    states = states_of(tasks)
    queue = ask_queue() if read_jobs(root) and shutil.which("squeue") is not None else Queue()
    active = active_ids(root, known_jobs(root, queue), queue)
    left = [task for task in tasks if states[task.key].state != "done"]
    reused = {
        (str(study_dir), name)
        for study_dir, recipe in ({task.study_dir: task.recipe for task in left}.items() if with_reuse else ())
        for name in plan_reuse(
            recipe, study_dir, [task.stage for task in left if task.study_dir == study_dir], on_cluster=True
        ).sources
    }
    missing = [task for task in left if task.key not in active and task.key not in reused]
    folder = root / "slurm" / "dry-run"
    for script in folder.glob("*.sh"):  # of an earlier dry run
        script.unlink()
    for job, text in plan_submission(root, missing, site, active):
        path = folder / script_name(job)
        write_atomic(path, text)
        after = next(
            (line.partition("=")[2] for line in text.splitlines() if line.startswith("#SBATCH --dependency")), ""
        )
        size = f"{len(job.tasks)} task(s) x {job.nodes + job.server_nodes} node(s)"
        gpus = f" x {job.gpus_per_node} GPU(s)" if site.gpus_per_node and job.gpus_per_node else ""
        print(f"  {job.name}: {size}{gpus}" + (f"  after {after}" if after else ""))
        print(f"      {path}")
    counts = {
        "done": len(tasks) - len(left),
        "queued": sum(task.key in active for task in left),
        "reused from another study": sum(task.key in reused and task.key not in active for task in left),
    }
    if others := ", ".join(f"{count} {state}" for state, count in counts.items() if count):
        print(f"stages that would not be submitted: {others}")
