"""Check a recipe and run its stages, on this machine or on a Slurm cluster."""

import shutil
import sys
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from pathlib import Path

from launch.execution.local import run_tasks
from launch.execution.processes import note_run
from launch.planning.findings import findings, refuse
from launch.planning.fit import fit_mistakes
from launch.planning.node import require_sandbox_of
from launch.planning.preflight import check_resolved, warnings
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


def require_runnable(recipe: Recipe, site: SiteSpec | None = None) -> None:
    """Print warnings. Raises UserError if the recipe cannot run, or for what `require_resolved` refuses."""
    require_resolved(recipe, site)
    require_possible(recipe)


def require_resolved(recipe: Recipe, site: SiteSpec | None = None) -> None:
    """Raise UserError if data, models or the sandbox that the recipe needs are missing.

    `site`: the cluster; None: this machine. What an image has installed, only its jobs can tell.
    """
    check_resolved(recipe)
    if site is None or not site.offline:  # jobs of an offline site do not use the key
        require_usable_key(recipe)
    if site is None or site.container is None:
        require_sandbox_of(recipe)


def require_possible(recipe: Recipe) -> None:
    """As `require_runnable`, but data and models need not be resolved."""
    _refuse_impossible(recipe)
    for text in warnings(recipe):
        print(f"transfer: warning: {text}", file=sys.stderr)


def require_possible_points(points: Mapping[str, Recipe], suite_is_given: bool = True) -> None:
    """As `require_possible` for every point of an ablation: errors name the point, and a warning is printed once.

    `suite_is_given`: whether the suite is that of the recipe; one made for a choice of rates cannot be mended by it.
    """
    for name, recipe in points.items():
        try:
            _refuse_impossible(recipe)
        except UserError as error:
            raise UserError(f"point {name}: {error}") from None
    recipes = list(points.values())
    if not suite_is_given:
        recipes = [recipe.model_copy(update={"suite": None}) for recipe in recipes]
    for text in dict.fromkeys(text for recipe in recipes for text in warnings(recipe)):
        print(f"transfer: warning: {text}", file=sys.stderr)


def _refuse_impossible(recipe: Recipe) -> None:
    require_matched(recipe)
    for text in fit_mistakes(recipe, model_shape(recipe)):
        raise UserError(f"cannot work: {text}")


def require_ready(tasks: Sequence[Task], site: SiteSpec | None = None) -> None:
    """Print, once each, what the tasks lack on the machine or cluster they will run on. Raises UserError for errors."""
    shown = set()
    for study_dir in dict.fromkeys(task.study_dir for task in tasks):
        members = [task for task in tasks if task.study_dir == study_dir]
        lacking = findings(members[0].recipe, [task.stage for task in members], study_dir, site)
        refuse(lacking)
        for text in (f"transfer: {finding.severity}: {finding}" for finding in lacking):
            if text not in shown:
                print(text, file=sys.stderr)
            shown.add(text)


def blocking(tasks: Sequence[Task], site: SiteSpec) -> list[str]:
    """Every error for which a run of the tasks on the cluster would be refused, as sentences."""
    sentences: list[str] = []
    for study_dir, recipe in {task.study_dir: task.recipe for task in tasks}.items():
        stages = [task.stage for task in tasks if task.study_dir == study_dir]
        with collected(sentences):
            _refuse_impossible(recipe)
        with collected(sentences):
            refuse(findings(recipe, stages, study_dir, site))
        with collected(sentences):
            require_resolved(recipe, site)
    return sentences


def require_ready_here(tasks: Sequence[Task]) -> None:
    """As `require_ready` on this machine. Raises UserError also where a study needs several, or has jobs queued."""
    require_ready(tasks)
    for study_dir, recipe in {task.study_dir: task.recipe for task in tasks}.items():
        if recipe.resources.nodes > 1:
            raise UserError(
                f"resources.nodes is {recipe.resources.nodes}; several machines need --on slurm, or set "
                "resources.nodes=1"
            )
        refuse_if_queued(study_dir)


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
    require_runnable(recipe)
    tasks = tasks_of_study(recipe, study_dir, stages)
    require_ready_here(tasks)
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


def show_jobs(root: Path, tasks: Sequence[Task], site: SiteSpec, *, with_reuse: bool = False) -> int:
    """Print what would keep the tasks from being submitted, then the jobs that would be, and write their scripts.

    Submits nothing. What is queued already is known only where Slurm is installed. Returns the exit status: 2 if a run
    would be refused.
    """
    errors = blocking(tasks, site)
    if errors:
        print("transfer: " + "\n".join(errors), file=sys.stderr, flush=True)
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
        "taken over from another study": sum(task.key in reused and task.key not in active for task in left),
    }
    if others := ", ".join(f"{count} {state}" for state, count in counts.items() if count):
        print(f"stages that would not be submitted: {others}")
    return 2 if errors else 0
