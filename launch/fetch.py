"""`transfer fetch`: download what a recipe names, and pin it in a lock file beside the recipe.

Needs a network once; afterwards builds and jobs run with the hub offline, and every build checks what it reads against
the lock. An entry is resolved anew each time the command runs; `revision` in the recipe decides which commit.
"""

from pathlib import Path
from typing import Any

from data.attention import fetch_kernel
from data.hub import fetch_dataset, fetch_model, locate
from data.sources import read_rows
from eval.forms import questions_of
from eval.questions import benchmark_files, read_benchmark_rows
from recipes.corpus_schema import BenchmarkTexts, DataFiles, SourceSpec, StoredCompletions
from recipes.loading import lock_path
from recipes.manifest import hash_file, write_json
from recipes.schema import Recipe
from recipes.suite_schema import BenchmarkData


def fetch(recipe: Recipe, recipe_path: Path | None) -> dict[str, Any]:
    """Resolve every source, benchmark and model of a recipe; returns the lock, and writes it beside `recipe_path`.

    Raises:
        UserError: something cannot be reached, needs access or lacks a column. The old lock stays as it was.
    """
    sources: dict[str, Any] = {}
    for files in recipe.corpus.all_files():
        if files.kind != "pocket":
            print(f"  fetching {files.name} ({files.dataset or files.path})", flush=True)
            sources[files.name] = _fetch_source(files)
    benchmarks: dict[str, Any] = {}
    for benchmark in recipe.suite.benchmarks if recipe.suite is not None else ():
        if benchmark.data is not None:
            data = benchmark_files(benchmark)
            print(f"  fetching {data.name} ({data.dataset or data.path})", flush=True)
            benchmarks[data.name] = _fetch_benchmark(benchmark.name, data)
    models: dict[str, Any] = {}
    for name, revision in _models(recipe):
        print(f"  fetching {name}", flush=True)
        models[name] = {"directory": name} if Path(name).is_dir() else fetch_model(name, revision)
    if recipe.model is not None and (commit := fetch_kernel(recipe.model)):
        print(f"  fetched the kernel of {recipe.model.attention}, commit {commit[:12]}", flush=True)
    pinned = {name: entry for name, entry in models.items() if "revision" in entry}
    lock = {"sources": sources, "benchmarks": benchmarks, "models": pinned}
    if recipe_path is not None:
        write_lock(lock, recipe_path)
    return lock


def write_lock(lock: dict[str, Any], recipe_path: Path) -> None:
    """Write a lock file beside its recipe."""
    write_json(lock_path(recipe_path), lock)


def _resolve(files: DataFiles) -> dict[str, Any]:
    if files.kind == "hub":
        return fetch_dataset(files)
    return {"path": files.path, "revision": None, "files": {p.name: hash_file(p) for p in locate(files, None)}}


def _fetch_benchmark(name: str, data: BenchmarkData) -> dict[str, Any]:
    entry = _resolve(data)
    rows = read_benchmark_rows(data, entry | {"rows": None} if data.kind == "hub" else None)
    questions = questions_of(name, data.model_copy(update={"rows": None}), rows)  # a row of another form is found now
    return entry | {"rows": len(questions)}


def _fetch_source(files: DataFiles) -> dict[str, Any]:
    entry = _resolve(files)
    # Reading it now finds a wrong column here, and not on a compute node without a network.
    rows = read_rows(files, _fields(files), entry | {"rows": None} if files.kind == "hub" else None)
    return entry | {"rows": len(rows)}


def _fields(files: DataFiles) -> list[str]:
    if isinstance(files, BenchmarkTexts):
        return list(files.text_fields)
    if isinstance(files, StoredCompletions):
        return [files.problem_field, files.completion_field]
    assert isinstance(files, SourceSpec)
    return [files.problem_field, files.answer_field, *([files.level_field] if files.level_field else []), *files.where]


def _models(recipe: Recipe) -> list[tuple[str, str | None]]:
    """Ids and revisions of the models a recipe loads from the hub."""
    found: dict[str, str | None] = {}
    if recipe.model is not None and recipe.model.path is not None:
        found[recipe.model.path] = recipe.model.revision
    for external in recipe.external.values():
        found[external.path] = external.revision
    samplers = [recipe.corpus.teacher, recipe.corpus.pass_rate.sampler if recipe.corpus.pass_rate else None]
    for sampler in samplers:
        if sampler is not None and sampler.kind == "transformers" and sampler.model != "base":
            found[str(sampler.model)] = sampler.revision
    return list(found.items())


def format_lock(lock: dict[str, Any], path: Path) -> str:
    """What the lock holds, as text."""
    lines = []
    for name, entry in [*lock["sources"].items(), *lock["benchmarks"].items()]:
        place = entry.get("dataset") or entry.get("path")
        revision = (entry["revision"] or "local file")[:12]
        gated = "  gated: not to be published" if entry.get("gated") else ""
        lines.append(
            f"  {name:<24} {entry['rows']:>9,} rows  {revision:<12}  {len(entry['files'])} file(s)  {place}{gated}"
        )
    for name, entry in lock["models"].items():
        lines.append(f"  {name:<24} {'model':>14}  {entry['revision'][:12]:<12}  {len(entry['files'])} file(s)")
    return "\n".join([*(lines or ["  nothing to resolve"]), f"lock: {path}"])
