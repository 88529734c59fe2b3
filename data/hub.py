"""Files from the Hugging Face hub: resolved once into a lock, then checked and read without a network.

`fetch_*` run on a connected machine (`transfer fetch`); `locate` is what builds use. Only data files and model files
are downloaded; no code of a repository is ever run.
"""

import difflib
import glob
from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from recipes.corpus_schema import DataFiles
from recipes.errors import UserError
from recipes.files import hash_file

_DESCRIPTIONS = ("dataset_infos.json", "dataset_info.json", "dataset_dict.json", "state.json")  # no rows in them
_DATA_SUFFIXES = (".json", ".jsonl", ".csv", ".tsv", ".parquet")
_LISTED_FILES = 12
MODEL_FILES = ("*.safetensors", "*.json", "*.jinja", "merges.txt", "vocab.txt", "tokenizer.model")
Place = TypeVar("Place", bound=DataFiles)


class HubError(UserError):
    """What the recipe names cannot be had from the hub now."""


class UnreachableError(HubError):
    """The hub does not answer. `what`: the dataset or model that was asked for; `cause`: the name of the error."""

    def __init__(self, what: str, cause: str) -> None:
        super().__init__(
            f"{what} cannot be reached ({cause}); run `transfer fetch` on a machine with a network that shares this "
            "cache, or try again"
        )
        self.what, self.cause = what, cause


class NotThereError(HubError):
    """The hub was asked and does not have it: no such repository, revision or file."""


@contextmanager
def _hub_errors(kind: str, name: str) -> Iterator[None]:
    """Turn the hub's many exceptions into sentences."""
    import httpx
    from huggingface_hub import errors

    what, page = f"{kind} {name}", _page(kind, name)
    try:
        yield
    except errors.HFValidationError as error:
        raise NotThereError(f"{what} is no Hugging Face id: {str(error).splitlines()[0]}") from None
    except errors.GatedRepoError:
        raise HubError(
            f"{what} is gated: accept its terms at {page} and set HF_TOKEN to a token of that account"
        ) from None
    except errors.RevisionNotFoundError:
        raise NotThereError(f"{what} has no such revision; see {page}") from None
    except errors.RepositoryNotFoundError:
        raise NotThereError(
            f"{what} does not exist on the hub or needs a token: see {page}, and set HF_TOKEN if it is private"
        ) from None
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled, httpx.HTTPError, ConnectionError) as error:
        raise UnreachableError(what, type(error).__name__) from None


def _page(kind: str, name: str) -> str:
    return f"https://huggingface.co/{'datasets/' if kind == 'dataset' else ''}{name}"


def fetch_dataset(files: DataFiles) -> tuple[dict[str, Any], list[str]]:
    """Download the files of a hub dataset from the first of its locations that has them.

    Returns its lock entry without the number of rows, and why each location before the chosen one was skipped.

    Raises:
        UserError: no location has the files, or one cannot be reached or needs access. That stops the search, so that
            the choice depends on what the locations hold, not on the network or the account of the day.
    """
    passed: list[str] = []
    for index, location in enumerate(files.locations()):
        try:
            entry = _fetch_from(location)
        except NotThereError as error:
            passed.append(str(error))
        else:
            return entry | ({"alternative": index} if index else {}), passed
    raise NotThereError("; ".join([passed[0], *(f"alternative {n}: {why}" for n, why in enumerate(passed) if n)]))


def _fetch_from(files: DataFiles) -> dict[str, Any]:
    from huggingface_hub import HfApi, snapshot_download

    dataset = str(files.dataset)
    with _hub_errors("dataset", dataset):
        info = HfApi().dataset_info(dataset, revision=files.revision, files_metadata=True)
        siblings = info.siblings or []
        names = _wanted_names(files, [sibling.rfilename for sibling in siblings])
        patterns = [glob.escape(name) for name in names]
        folder = Path(snapshot_download(dataset, repo_type="dataset", revision=info.sha, allow_patterns=patterns))
    declared = {s.rfilename: s.lfs.sha256 for s in siblings if s.lfs is not None}
    digests = {name: hash_file(folder / name) for name in names}
    for name, digest in digests.items():
        if declared.get(name, digest) != digest:
            raise UserError(
                f"{name} of dataset {dataset} is damaged: its hash is not the hub's; delete {folder} and fetch again"
            )
    return {"dataset": files.dataset, "revision": info.sha, "gated": bool(info.gated), "files": digests}


def _wanted_names(files: DataFiles, there: list[str]) -> list[str]:
    """The files that the patterns of a location name, of those in its repository.

    Raises:
        NotThereError: a pattern matches none.
    """
    rows = [name for name in there if PurePosixPath(name).name not in _DESCRIPTIONS]
    names_by_pattern = {pattern: [name for name in rows if matches(name, pattern)] for pattern in files.files}
    if missing := [pattern for pattern, names in names_by_pattern.items() if not names]:
        raise NotThereError(_nothing_matches(files, missing, rows))
    return sorted({name for names in names_by_pattern.values() for name in names})


def _nothing_matches(files: DataFiles, missing: list[str], there: list[str]) -> str:
    """The sentence about patterns without a file: what there is there instead, and what is nearest."""
    at = f" at revision {files.revision}" if files.revision else ""
    text = f"dataset {files.dataset}{at} has no file that matches {', '.join(missing)}"
    data = sorted(name for name in there if PurePosixPath(name).suffix.lower() in _DATA_SUFFIXES)
    listed = data or sorted(there)
    more = f" and {len(listed) - _LISTED_FILES} more" if len(listed) > _LISTED_FILES else ""
    shown = ", ".join(listed[:_LISTED_FILES]) + more
    if not data:
        hint = "; `revision: refs/convert/parquet` may hold the hub's own conversion" if not files.revision else ""
        return f"{text}: it has no data file{f', only {shown}' if shown else ''}{hint}"
    near = difflib.get_close_matches(missing[0], data, n=1, cutoff=0.3)
    return f"{text}; it has {shown}" + (f"; the nearest to {missing[0]} is {near[0]}" if near else "")


def matches(name: str, pattern: str) -> bool:
    """Whether a path in a repository is meant by a pattern: `*` stays within a folder, `**` is any folders."""
    return _parts_match(name.split("/"), pattern.split("/"))


def _parts_match(path: list[str], patterns: list[str]) -> bool:
    if not patterns:
        return not path
    if patterns[0] == "**":
        return any(_parts_match(path[start:], patterns[1:]) for start in range(len(path) + 1))
    return bool(path) and fnmatchcase(path[0], patterns[0]) and _parts_match(path[1:], patterns[1:])


def chosen(files: Place, lock: dict[str, Any] | None) -> Place:
    """A source with the settings of the location its lock entry was made from; without a lock the source itself.

    Raises:
        UserError: the lock names an alternative that the recipe no longer has.
    """
    index = (lock or {}).get("alternative", 0)
    if not index or not files.alternatives:
        return files
    locations = files.locations()
    if index >= len(locations):
        raise UserError(
            f"source {files.name}: the lock is for alternative {index}, the recipe has {len(locations) - 1}; "
            "run `transfer fetch` again"
        )
    return locations[index]


def locate(files: DataFiles, lock: dict[str, Any] | None) -> list[Path]:
    """The local files of a source, checked against its lock entry.

    Raises:
        UserError: a hub source that was not fetched, a missing file, or content that is not what was locked.
    """
    if files.kind == "file":
        path = Path(str(files.path))
        if not path.is_file():
            raise UserError(f"source file {path} does not exist; correct `path` of {files.name}")
        paths = {path.name: path}
    else:
        if lock is None:
            raise UserError(f"source {files.name} is not resolved; run `transfer fetch RECIPE` on a connected machine")
        if wrong := lock_mismatch(files, lock):
            raise UserError(f"source {files.name}: {wrong}; run `transfer fetch` again")
        folder = _snapshot("dataset", str(files.dataset), lock["revision"], list(lock["files"]))
        paths = {name: folder / name for name in lock["files"]}
    for name, digest in (lock or {}).get("files", {}).items():
        if name not in paths or not paths[name].is_file():
            raise UserError(f"source {files.name}: {name} of the lock file is missing; run `transfer fetch` again")
        if hash_file(paths[name]) != digest:
            raise UserError(
                f"source {files.name}: {paths[name]} is not the file that was locked (other sha256); "
                "restore it, or run `transfer fetch` to accept the new one"
            )
    return list(paths.values())


def lock_mismatch(files: DataFiles, lock: dict[str, Any]) -> str | None:
    """How a lock entry contradicts the location it is read for; None if it does not."""
    wrong = []
    if lock.get("dataset") != files.dataset:
        wrong.append(f"dataset {lock.get('dataset')}")
    if files.revision is not None and len(files.revision) == 40 and files.revision != lock["revision"]:
        wrong.append(f"revision {lock['revision']}")
    if not all(any(matches(name, pattern) for pattern in files.files) for name in lock["files"]):
        wrong.append(f"files {', '.join(lock['files'])}")
    return f"the lock is for {'; '.join(wrong)}" if wrong else None


def fetch_model(name: str, revision: str | None) -> dict[str, Any]:
    """Download a model's weights, configurations and tokenizer; its lock entry.

    Raises:
        UserError: it cannot be reached, needs access, or has no safetensors weights.
    """
    from huggingface_hub import HfApi, snapshot_download

    with _hub_errors("model", name):
        info = HfApi().model_info(name, revision=revision, files_metadata=True)
        folder = Path(snapshot_download(name, revision=info.sha, allow_patterns=list(MODEL_FILES)))
    declared = {s.rfilename: s.lfs.sha256 for s in info.siblings or [] if s.lfs is not None}
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    if not any(path.suffix == ".safetensors" for path in paths):
        page = _page("model", name)
        raise NotThereError(f"model {name} has no safetensors weights, and other formats are not loaded; see {page}")
    # The hub's own digest for large files: hashing tens of gigabytes again would add nothing.
    files = {str(path.relative_to(folder)): path for path in paths}
    digests = {name: declared.get(name) or hash_file(path) for name, path in files.items()}
    return {"revision": info.sha, "files": digests}


def locate_model(name: str, lock: dict[str, Any] | None, revision: str | None = None) -> Path:
    """Directory of a model: itself if it is one, else the hub snapshot of the lock (or of `revision`).

    Raises:
        UserError: it is not on this machine.
    """
    if Path(name).is_dir():
        return Path(name)
    if lock and revision is not None and len(revision) == 40 and revision != lock["revision"]:
        raise UserError(f"model {name}: the lock is for revision {lock['revision']}; run `transfer fetch` again")
    pinned = (lock or {}).get("revision") or revision
    if pinned is None:
        raise UserError(f"model {name} is not resolved; run `transfer fetch RECIPE` on a connected machine")
    return _snapshot("model", name, pinned, list((lock or {}).get("files", MODEL_FILES)))


def cached_model(name: str, lock: dict[str, Any] | None, revision: str | None = None) -> Path | None:
    """Directory of a model that is on this machine; None if it is not. Never downloads."""
    if Path(name).is_dir():
        return Path(name)
    pinned = (lock or {}).get("revision") or revision
    return None if pinned is None else _cached("model", name, pinned)


def cached_files(files: DataFiles, lock: dict[str, Any]) -> bool:
    """Whether the files that a lock entry names are on this machine. Never downloads."""
    folder = _cached("dataset", str(files.dataset), lock["revision"])
    return folder is not None and all((folder / name).is_file() for name in lock["files"])


def _cached(kind: str, name: str, revision: str) -> Path | None:
    from huggingface_hub import errors, snapshot_download

    try:
        return Path(snapshot_download(name, repo_type=kind, revision=revision, local_files_only=True))
    except (errors.LocalEntryNotFoundError, errors.HFValidationError):
        return None


def _snapshot(kind: str, name: str, revision: str, patterns: list[str]) -> Path:
    """The cached snapshot of a commit, downloaded if it is not there and the hub can be reached."""
    from huggingface_hub import snapshot_download

    if (there := _cached(kind, name, revision)) is not None:
        return there
    with _hub_errors(kind, name):
        return Path(snapshot_download(name, repo_type=kind, revision=revision, allow_patterns=patterns))
