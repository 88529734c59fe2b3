"""Files from the Hugging Face hub: resolved once into a lock, then checked and read without a network.

`fetch_*` run on a connected machine (`transfer fetch`); `locate` is what builds use. Only data files and model files
are downloaded; no code of a repository is ever run.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from recipes.corpus_schema import DataFiles
from recipes.errors import UserError
from recipes.manifest import hash_file

_DESCRIPTIONS = ("dataset_infos.json", "dataset_info.json", "dataset_dict.json", "state.json")  # no rows in them
MODEL_FILES = ("*.safetensors", "*.json", "*.jinja", "merges.txt", "vocab.txt", "tokenizer.model")


@contextmanager
def _hub_errors(what: str, page: str) -> Iterator[None]:
    """Turn the hub's many exceptions into sentences."""
    import httpx
    from huggingface_hub import errors

    try:
        yield
    except errors.HFValidationError as error:
        raise UserError(f"{what} is no Hugging Face id: {str(error).splitlines()[0]}") from None
    except errors.GatedRepoError:
        raise UserError(
            f"{what} is gated: accept its terms at {page} and set HF_TOKEN to a token of that account"
        ) from None
    except errors.RevisionNotFoundError:
        raise UserError(f"{what} has no such revision; see {page}") from None
    except errors.RepositoryNotFoundError:
        raise UserError(
            f"{what} does not exist on the hub or needs a token: see {page}, and set HF_TOKEN if it is private"
        ) from None
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled, httpx.HTTPError, ConnectionError) as error:
        raise UserError(
            f"{what} cannot be reached ({type(error).__name__}); "
            "run `transfer fetch` on a machine with a network that shares this cache, or try again"
        ) from None


def _describe(kind: str, name: str) -> tuple[str, str]:
    folder = "datasets/" if kind == "dataset" else ""
    return f"{kind} {name}", f"https://huggingface.co/{folder}{name}"


def fetch_dataset(files: DataFiles) -> dict[str, Any]:
    """Download the files of a hub dataset; its lock entry without the number of rows.

    Raises:
        UserError: it cannot be reached, needs access, or has no such file.
    """
    from huggingface_hub import HfApi, snapshot_download

    what, page = _describe("dataset", str(files.dataset))
    with _hub_errors(what, page):
        info = HfApi().dataset_info(str(files.dataset), revision=files.revision, files_metadata=True)
        folder = Path(
            snapshot_download(
                str(files.dataset), repo_type="dataset", revision=info.sha, allow_patterns=list(files.files)
            )
        )
    paths = _matching(folder, files)
    declared = {s.rfilename: s.lfs.sha256 for s in info.siblings or [] if s.lfs is not None}
    digests = {str(path.relative_to(folder)): hash_file(path) for path in paths}
    for name, digest in digests.items():
        if declared.get(name, digest) != digest:
            raise UserError(f"{name} of {what} is damaged: its hash is not the hub's; delete {folder} and fetch again")
    return {"dataset": files.dataset, "revision": info.sha, "gated": bool(info.gated), "files": digests}


def _matching(folder: Path, files: DataFiles) -> list[Path]:
    found = {path for pattern in files.files for path in folder.glob(pattern) if path.is_file()}
    paths = sorted(path for path in found if path.name not in _DESCRIPTIONS)
    if not paths:
        raise UserError(f"dataset {files.dataset} has no file that matches {', '.join(files.files)}")
    return paths


def locate(files: DataFiles, lock: dict[str, Any] | None) -> list[Path]:
    """The local files of a source, checked against its lock entry.

    Raises:
        UserError: a hub source that was not fetched, a missing file, or content that is not what was locked.
    """
    if files.kind == "file":
        path = Path(str(files.path))
        if not path.is_file():
            raise UserError(f"source file {path} does not exist")
        paths = {path.name: path}
    else:
        if lock is None:
            raise UserError(f"source {files.name} is not resolved; run `transfer fetch RECIPE` on a connected machine")
        _require_same(files, lock)
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


def _require_same(files: DataFiles, lock: dict[str, Any]) -> None:
    """Refuse a lock entry that was made for another dataset, other files or another commit than the recipe names."""
    wrong = []
    if lock["dataset"] != files.dataset:
        wrong.append(f"dataset {lock['dataset']}")
    if files.revision is not None and len(files.revision) == 40 and files.revision != lock["revision"]:
        wrong.append(f"revision {lock['revision']}")
    if not all(any(Path(name).match(pattern) for pattern in files.files) for name in lock["files"]):
        wrong.append(f"files {', '.join(lock['files'])}")
    if wrong:
        raise UserError(f"source {files.name}: the lock is for {'; '.join(wrong)}; run `transfer fetch` again")


def fetch_model(name: str, revision: str | None) -> dict[str, Any]:
    """Download a model's weights, configurations and tokenizer; its lock entry.

    Raises:
        UserError: it cannot be reached, needs access, or has no safetensors weights.
    """
    from huggingface_hub import HfApi, snapshot_download

    what, page = _describe("model", name)
    with _hub_errors(what, page):
        info = HfApi().model_info(name, revision=revision, files_metadata=True)
        folder = Path(snapshot_download(name, revision=info.sha, allow_patterns=list(MODEL_FILES)))
    declared = {s.rfilename: s.lfs.sha256 for s in info.siblings or [] if s.lfs is not None}
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    if not any(path.suffix == ".safetensors" for path in paths):
        raise UserError(f"{what} has no safetensors weights, and other formats are not loaded; see {page}")
    # The hub's own digest for large files: hashing tens of gigabytes again would tell nothing new.
    digests = {path: declared.get(str(path.relative_to(folder))) or hash_file(path) for path in paths}
    return {"revision": info.sha, "files": {str(path.relative_to(folder)): digest for path, digest in digests.items()}}


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


def _snapshot(kind: str, name: str, revision: str, patterns: list[str]) -> Path:
    """The cached snapshot of a commit, downloaded if it is not there and the hub can be reached."""
    from huggingface_hub import errors, snapshot_download

    arguments: dict[str, Any] = {"repo_type": kind, "revision": revision, "allow_patterns": patterns}
    try:
        return Path(snapshot_download(name, local_files_only=True, **arguments))
    except errors.LocalEntryNotFoundError:
        pass
    with _hub_errors(*_describe(kind, name)):
        return Path(snapshot_download(name, **arguments))
