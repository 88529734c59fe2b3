"""`transfer fetch`: download what a recipe names, and pin it in a lock file beside the recipe.

Needs a network once; afterwards builds and jobs run with the hub offline, and every build checks what it reads against
the lock. An entry is resolved anew each time the command runs; `revision` in the recipe decides which commit. What
cannot be had does not stop the rest: everything that was found is pinned, and every problem is told at the end.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from data.attention import fetch_kernel
from data.corpus.sources import read_rows
from data.hub import HubError, chosen, fetch_dataset, fetch_model, locate, lock_mismatch
from eval.questions.build import benchmark_files, read_benchmark_rows
from eval.questions.forms import questions_of
from recipes.corpus_schema import BenchmarkTexts, DataFiles, SourceSpec, StoredCompletions
from recipes.errors import UserError
from recipes.loading import lock_path
from recipes.manifest import hash_file, write_json
from recipes.schema import ModelSpec, Recipe
from recipes.suite_schema import BenchmarkData

Entry = dict[str, Any]


@dataclass
class Fetched:
    """What one call found and what it did not."""

    lock: dict[str, dict[str, Entry]] = field(default_factory=lambda: {"sources": {}, "benchmarks": {}, "models": {}})
    problems: list[str] = field(default_factory=list)
    """A sentence for each thing that could not be resolved now."""
    left: list[str] = field(default_factory=list)
    """Names that are not resolved."""
    kept: list[str] = field(default_factory=list)
    """Names that could not be resolved now and keep the entry they had."""
    counts: list[str] = field(default_factory=list)
    """Benchmarks that have another number of questions than the recipe says was published."""
    resolved: int = 0
    """Entries made by this call."""

    def add(self, other: "Fetched") -> None:
        """Take over what another call found; the same problem is told once."""
        for kind, entries in other.lock.items():
            self.lock[kind] |= entries
        for name in ("problems", "left", "kept", "counts"):
            setattr(self, name, [*dict.fromkeys([*getattr(self, name), *getattr(other, name)])])
        self.resolved += other.resolved


def fetch(recipe: Recipe, recipe_path: Path | None) -> Fetched:
    """Resolve every source, benchmark and model of a recipe, and write the lock beside `recipe_path`.

    What cannot be resolved keeps the entry of the recipe's previous lock, if that was made for the same dataset or
    model; the lock stays as it was if nothing at all could be resolved.
    """
    found = Fetched()
    for files in recipe.corpus.all_files():
        if files.kind != "pocket":
            _resolve(found, recipe, "sources", files, lambda item, entry: len(read_rows(item, _fields(item), entry)))
    for benchmark in recipe.suite.benchmarks if recipe.suite is not None else ():
        if benchmark.data is not None:
            data = benchmark_files(benchmark)
            _resolve(found, recipe, "benchmarks", data, partial(_count, benchmark.name))
            rows = found.lock["benchmarks"].get(data.name, {}).get("rows")
            if rows and data.published_rows and rows != data.published_rows:
                found.counts.append(f"{data.name} {rows:,} ({data.published_rows:,})")
    for model, revision in _models(recipe):
        _resolve_model(found, recipe, model, revision)
    if recipe.model is not None:
        _resolve_kernel(found, recipe.model)
    if recipe_path is not None:
        write_lock(found, recipe_path)
    return found


def write_lock(found: Fetched, recipe_path: Path) -> None:
    """Write a lock file beside its recipe, if anything was resolved or there is nothing to resolve."""
    if found.resolved or not found.problems:
        write_json(lock_path(recipe_path), found.lock)


def _resolve(found: Fetched, recipe: Recipe, kind: str, files: Any, count: Callable[[Any, Entry | None], int]) -> None:
    """Resolve one source or benchmark; reading it now finds a wrong column here and not on a compute node."""
    print(f"  fetching {files.name} ({files.dataset or files.path})", flush=True)
    try:
        if files.kind == "hub":
            entry, passed = fetch_dataset(files)
            place = chosen(files, entry)
            if passed:
                at = f"{place.dataset} at {place.revision}" if place.revision else place.dataset
                taken = f"alternative {len(passed)} is taken ({at}: {', '.join(place.files)})"
                print(f"  {files.name}: {taken}, because {'; '.join(passed)}", flush=True)
            entry["rows"] = count(place, entry | {"rows": None})
        else:
            paths = locate(files, None)
            entry = {"path": files.path, "revision": None, "files": {path.name: hash_file(path) for path in paths}}
            entry["rows"] = count(files, None)
    except UserError as error:
        found.problems.append(_sentence(files.name, error))
        _keep(found, kind, files.name, _previous(recipe, kind, files, count, error))
    else:
        found.lock[kind][files.name] = entry
        found.resolved += 1


def _sentence(name: str, error: UserError) -> str:
    return f"{name}: {error}" if isinstance(error, HubError) else str(error)


def _previous(
    recipe: Recipe, kind: str, files: Any, count: Callable[[Any, Entry | None], int], error: UserError
) -> Entry | None:
    """The entry of the previous lock, if it is for the place the recipe names and its rows can be read."""
    entry: Entry | None = recipe.lock.get(kind, {}).get(files.name)
    if entry is None or files.kind != "hub":
        return None
    try:
        place = chosen(files, entry)
        if lock_mismatch(place, entry):
            return None
        if not isinstance(error, HubError):  # the rows of the newer commit cannot be read; those of the older may be
            count(place, entry | {"rows": None})
    except UserError:
        return None
    return entry


def _keep(found: Fetched, kind: str, name: str, entry: Entry | None) -> None:
    if entry is None:
        found.left.append(name)
    else:
        found.kept.append(name)
        found.lock[kind][name] = entry


def _resolve_model(found: Fetched, recipe: Recipe, name: str, revision: str | None) -> None:
    if Path(name).is_dir():
        return
    print(f"  fetching {name}", flush=True)
    try:
        found.lock["models"][name] = fetch_model(name, revision)
        found.resolved += 1
    except UserError as error:
        found.problems.append(str(error))
        entry = recipe.lock.get("models", {}).get(name)
        pinned = revision is not None and len(revision) == 40
        _keep(found, "models", name, None if entry and pinned and entry["revision"] != revision else entry)


def _resolve_kernel(found: Fetched, model: ModelSpec) -> None:
    try:
        if commit := fetch_kernel(model):
            print(f"  fetched the kernel of {model.attention}, commit {commit[:12]}", flush=True)
    except UserError as error:
        found.problems.append(str(error))
        found.left.append(model.attention)


def _count(name: str, data: BenchmarkData, entry: Entry | None) -> int:
    """Questions of a benchmark; a row of another form is found now."""
    return len(questions_of(name, data.model_copy(update={"rows": None}), read_benchmark_rows(data, entry)))


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
        other = f"  alternative {entry['alternative']}" if entry.get("alternative") else ""
        gated = "  gated: not to be published" if entry.get("gated") else ""
        lines.append(
            f"  {name:<24} {entry['rows']:>9,} rows  {revision:<12}  {len(entry['files'])} file(s)  "
            f"{place}{other}{gated}"
        )
    for name, entry in lock["models"].items():
        lines.append(f"  {name:<24} {'model':>14}  {entry['revision'][:12]:<12}  {len(entry['files'])} file(s)")
    return "\n".join([*(lines or ["  nothing to resolve"]), f"lock: {path}"])


def remarks(found: Fetched, path: Path) -> list[str]:
    """What a person must know of a call: every problem, what is left, and counts that are not the published ones."""
    lines = list(found.problems)
    if found.counts:
        lines.append(
            f"warning: other numbers of questions than the recipe's published_rows (in brackets): "
            f"{', '.join(found.counts)}"
        )
    if found.kept:
        lines.append(f"kept as they were in the lock before: {', '.join(found.kept)}")
    if found.left:
        there = sum(len(entries) for entries in found.lock.values())
        rest = f"the other {there} are in {path}" if found.resolved and there else "no lock was written"
        lines.append(
            f"not resolved: {', '.join(found.left)}; {rest}; when that is mended, the same command does the rest"
        )
    return lines
