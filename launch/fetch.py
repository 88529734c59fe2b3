"""`transfer fetch`: download what a recipe names, and pin it in a lock file beside the recipe.

It needs a network; afterwards stages run with the hub offline and check what they read against the lock. Every call
resolves all entries again, at the commit that `revision` in the recipe says. An entry that fails does not stop the
others: what was resolved is pinned, and every mistake is printed at the end.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from data.attention import fetch_kernel
from data.corpus.sources import read_rows, read_source
from data.corpus.stored import PassedOver, stored_rows
from data.hub import HubError, UnreachableError, chosen, fetch_dataset, fetch_model, locate, lock_mismatch
from eval.questions.build import benchmark_files, read_benchmark_rows
from eval.questions.forms import questions_of
from recipes.corpus_schema import BenchmarkTexts, DataFiles, SourceSpec, StoredCompletions
from recipes.errors import UserError
from recipes.files import hash_file, write_json
from recipes.loading import lock_path
from recipes.schema import ModelSpec, Recipe
from recipes.suite_schema import BenchmarkData

Entry = dict[str, Any]
Count = Callable[[Any, Entry | None], int]
"""Counts the rows of a source or benchmark."""


@dataclass
class Fetched:
    """The result of one call."""

    lock: dict[str, dict[str, Entry]] = field(default_factory=lambda: {"sources": {}, "benchmarks": {}, "models": {}})
    mistakes: list[str] = field(default_factory=list)
    """A sentence for each entry that could not be resolved though the hub answered."""
    unreachable: dict[str, list[str]] = field(default_factory=dict)
    """Cause -> the datasets and models for which the hub did not answer."""
    unresolved: list[str] = field(default_factory=list)
    """Names without an entry."""
    kept: list[str] = field(default_factory=list)
    """Names that could not be resolved and keep the entry of the previous lock."""
    counts: list[str] = field(default_factory=list)
    """Benchmarks whose number of questions is not the recipe's `published_rows`."""
    resolved: int = 0
    """Entries resolved by this call."""
    written: bool = False
    """Whether the lock file was written."""

    @property
    def failed(self) -> bool:
        """Whether an entry could not be resolved."""
        return bool(self.mistakes or self.unreachable)

    def fail(self, error: UserError, sentence: str) -> None:
        """Record an entry that could not be resolved, and why."""
        if isinstance(error, UnreachableError):
            self.unreachable.setdefault(error.cause, []).append(error.what)
        else:
            self.mistakes.append(sentence)

    def add(self, other: "Fetched") -> None:
        """Add the result of another call; equal mistakes are kept once."""
        for kind, entries in other.lock.items():
            self.lock[kind] |= entries
        for name in ("mistakes", "unresolved", "kept", "counts"):
            setattr(self, name, [*dict.fromkeys([*getattr(self, name), *getattr(other, name)])])
        for cause, names in other.unreachable.items():
            self.unreachable.setdefault(cause, []).extend(names)
        self.resolved += other.resolved


def fetch(recipe: Recipe, recipe_path: Path | None) -> Fetched:
    """Resolve every source, benchmark and model of a recipe, and write the lock beside `recipe_path`.

    An entry that cannot be resolved stays as it is in the previous lock, if it is of the same dataset or model. If
    nothing could be resolved, the lock is not written.
    """
    fetched = Fetched()
    for files in recipe.corpus.all_files():
        if files.kind != "pocket":
            _resolve(fetched, recipe, "sources", files, _count_rows)
    for benchmark in recipe.benchmarks:
        if benchmark.data is not None:
            data = benchmark_files(benchmark)
            _resolve(fetched, recipe, "benchmarks", data, partial(_count, benchmark.name))
            rows = fetched.lock["benchmarks"].get(data.name, {}).get("rows")
            if rows and data.published_rows and rows != data.published_rows:
                fetched.counts.append(f"{data.name} {rows:,} ({data.published_rows:,})")
    for model, revision in recipe.models_read():
        _resolve_model(fetched, recipe, model, revision)
    if recipe.model is not None:
        _resolve_kernel(fetched, recipe.model)
    if recipe_path is not None:
        write_lock(fetched, recipe_path)
    return fetched


def write_lock(fetched: Fetched, recipe_path: Path) -> None:
    """Write a lock file beside its recipe, if anything was resolved, or an earlier lock has what is no longer read."""
    path = lock_path(recipe_path)
    if fetched.resolved or (not fetched.failed and path.exists()):
        write_json(path, fetched.lock)
        fetched.written = True


def _resolve(
    fetched: Fetched, recipe: Recipe, kind: str, files: Any, count: Callable[[Any, Entry | None], int]
) -> None:
    """Resolve one source or benchmark, and read it, so that a wrong column is an error here and not in a job."""
    print(f"  fetching {files.name} ({files.dataset or files.path})", flush=True)
    try:
        if files.kind == "hub":
            entry, passed = fetch_dataset(files)
            location = chosen(files, entry)
            if passed:
                at = f"{location.dataset} at {location.revision}" if location.revision else location.dataset
                taken = f"alternative {len(passed)} is taken ({at}: {', '.join(location.files)})"
                print(f"  {files.name}: {taken}, because {'; '.join(passed)}", flush=True)
            entry["rows"] = count(location, entry | {"rows": None})
        else:
            paths = locate(files, None)
            entry = {"path": files.path, "revision": None, "files": {path.name: hash_file(path) for path in paths}}
            entry["rows"] = count(files, None)
    except UserError as error:
        fetched.fail(error, _sentence(files.name, error))
        _keep(fetched, kind, files.name, _previous(recipe, kind, files, count, error))
    else:
        fetched.lock[kind][files.name] = entry
        fetched.resolved += 1


def _sentence(name: str, error: UserError) -> str:
    return f"{name}: {error}" if isinstance(error, HubError) else str(error)


def _previous(recipe: Recipe, kind: str, files: Any, count: Count, error: UserError) -> Entry | None:
    """The entry of the previous lock, if it is for what the recipe names and its rows can be read."""
    entry: Entry | None = recipe.lock.get(kind, {}).get(files.name)
    if entry is None or files.kind != "hub":
        return None
    try:
        location = chosen(files, entry)
        if lock_mismatch(location, entry):
            return None
        if not isinstance(error, HubError):  # the newer commit has other rows; those of the older one may be readable
            count(location, entry | {"rows": None})
    except UserError:
        return None
    return entry


def _keep(fetched: Fetched, kind: str, name: str, entry: Entry | None) -> None:
    if entry is None:
        fetched.unresolved.append(name)
    else:
        fetched.kept.append(name)
        fetched.lock[kind][name] = entry


def _resolve_model(fetched: Fetched, recipe: Recipe, name: str, revision: str | None) -> None:
    if Path(name).is_dir():
        return
    key = recipe.lock_key(name, revision)
    print(f"  fetching {key}", flush=True)
    try:
        fetched.lock["models"][key] = fetch_model(name, revision)
        fetched.resolved += 1
    except UserError as error:
        fetched.fail(error, str(error))
        entry = recipe.lock_of_model(name, revision)
        pinned = revision is not None and len(revision) == 40
        _keep(fetched, "models", key, None if entry and pinned and entry["revision"] != revision else entry)


def _resolve_kernel(fetched: Fetched, model: ModelSpec) -> None:
    try:
        if commit := fetch_kernel(model):
            print(f"  fetched the kernel of {model.attention}, commit {commit[:12]}", flush=True)
    except UserError as error:
        fetched.mistakes.append(str(error))
        fetched.unresolved.append(model.attention)


def _count(name: str, data: BenchmarkData, entry: Entry | None) -> int:
    """Number of questions of a benchmark."""
    return len(questions_of(name, data.model_copy(update={"rows": None}), read_benchmark_rows(data, entry)))


def _count_rows(files: DataFiles, entry: Entry | None) -> int:
    """Number of rows of a source of the corpus."""
    if isinstance(files, SourceSpec):
        return len(read_source(files.model_copy(update={"alternatives": ()}), 0, entry))
    if isinstance(files, StoredCompletions):
        passed_over = PassedOver()
        return sum(1 for _ in stored_rows(files, entry, passed_over)) + passed_over.rows
    assert isinstance(files, BenchmarkTexts)
    return sum(1 for _ in read_rows(files, files.text_fields, entry))


def format_lock(fetched: Fetched, path: Path) -> str:
    """The entries of a lock as text, and where they were written."""
    lines, lock = [], fetched.lock
    for name, entry in [*lock["sources"].items(), *lock["benchmarks"].items()]:
        origin = entry.get("dataset") or entry.get("path")
        revision = (entry["revision"] or "local file")[:12]
        other = f"  alternative {entry['alternative']}" if entry.get("alternative") else ""
        gated = "  gated: not to be published" if entry.get("gated") else ""
        lines.append(
            f"  {name:<24} {entry['rows']:>9,} rows  {revision:<12}  {len(entry['files'])} file(s)  "
            f"{origin}{other}{gated}"
        )
    for name, entry in lock["models"].items():
        lines.append(f"  {name:<24} {'model':>14}  {entry['revision'][:12]:<12}  {len(entry['files'])} file(s)")
    if not lines and not fetched.failed:
        lines = ["  nothing to resolve"]
    unchanged = f"lock: {path}, unchanged" if path.exists() else "no lock was written"
    return "\n".join([*lines, f"lock: {path}" if fetched.written else unchanged])


def _unreachable_lines(fetched: Fetched) -> list[str]:
    """What the hub did not answer for, one line a cause."""
    lines = []
    for error, names in fetched.unreachable.items():
        why, first = f"({error})", ""
        if error == "OfflineModeIsEnabled":
            why, first = "because HF_HUB_OFFLINE is set", "unset it, and "
        lines.append(
            f"the hub cannot be reached {why}: {', '.join(dict.fromkeys(names))}; {first}run the same command on a "
            "machine with a network that shares this cache"
        )
    return lines


def messages(fetched: Fetched, path: Path) -> list[str]:
    """Lines for standard error: every mistake, what is not resolved, and unexpected numbers of questions."""
    lines = [*_unreachable_lines(fetched), *dict.fromkeys(fetched.mistakes)]
    if fetched.counts:
        lines.append(
            f"warning: the number of questions differs from the recipe's published_rows (in brackets): "
            f"{', '.join(fetched.counts)}"
        )
    if fetched.kept:
        lines.append(f"kept from the previous lock: {', '.join(fetched.kept)}")
    if fetched.unresolved:
        there = sum(len(entries) for entries in fetched.lock.values())
        rest = f"the other {there} are in {path}" if fetched.resolved and there else "no lock was written"
        names = list(dict.fromkeys(fetched.unresolved))
        shown = f"{len(names)} names" if fetched.unreachable else ", ".join(names)
        lines.append(f"not resolved: {shown}; {rest}; after fixing that, run the same command again")
    return lines
