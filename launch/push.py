"""Uploading a trained model to the Hugging Face hub, with a card made from the study's report."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from eval.report.model_card import PushedModel, model_card
from eval.report.schema import read_transfer
from recipes.errors import UserError
from recipes.files import hash_file
from recipes.layout import run_folder
from recipes.manifest import finished_manifest
from recipes.schema import Recipe
from recipes.suggestions import did_you_mean
from train.models.directory import checkpoints_of_run, model_files


class Upload(NamedTuple):
    """What is uploaded."""

    directory: Path
    files: list[str]
    card: str

    @property
    def size(self) -> int:
        """Bytes of the files, without the card."""
        return sum((self.directory / name).stat().st_size for name in self.files)


def prepare_upload(recipe: Recipe, study_dir: Path, model: PushedModel, licence: str | None) -> Upload:
    """Find and check the files of a model and write its card.

    Raises:
        UserError: the study trains no such arm, seed or checkpoint, is not finished, or a file was changed.
    """
    if model.arm not in recipe.trained:
        raise UserError(
            f"{study_dir} trains no arm {model.arm!r}; {did_you_mean(model.arm, recipe.trained, 'it trains')}"
        )
    if model.seed not in recipe.seeds:
        raise UserError(f"{study_dir} has no seed {model.seed}; it has {', '.join(map(str, recipe.seeds))}")
    run_dir = run_folder(study_dir, model.arm, model.seed)
    manifest = finished_manifest(run_dir)
    if manifest is None:
        raise UserError(f"{run_dir} is not finished; `transfer run` trains it")
    transfer = read_transfer(study_dir)
    directory = run_dir / "final"
    if model.step is not None:
        checkpoints = checkpoints_of_run(run_dir)
        if model.step not in checkpoints:
            there = ", ".join(map(str, checkpoints))
            raise UserError(f"{run_dir} has no checkpoint of step {model.step}; there are {there} (the final model)")
        directory = checkpoints[model.step]
        if directory == run_dir / "final":  # its last step names the final model, as `transfer pick` does
            model = model._replace(step=None)
    files = model_files(directory)
    for name, digest in manifest["outputs"].items():
        if model.step is None and name.startswith("final/") and hash_file(run_dir / name) != digest:
            raise UserError(f"{run_dir / name} is not the file that was trained and scored; restore it")
    return Upload(directory, files, model_card(recipe, transfer, model, licence))


def require_owner(name: str) -> None:
    """Raise UserError for a name of a repository that is not of the form owner/name."""
    owner, _, repository = name.partition("/")
    if not owner or not repository or "/" in repository:
        raise UserError(f"{name!r} is not the name of a repository, which has the form owner/name")


def push(upload: Upload, name: str, private: bool) -> str:
    """Create the repository if there is none and upload everything in one commit; returns its address.

    Raises:
        UserError: there is no token, the hub refuses, or it cannot be reached.
    """
    from huggingface_hub import CommitOperationAdd, HfApi, get_token

    if get_token() is None:
        raise UserError("there is no token of the Hugging Face hub; set HF_TOKEN, or run `hf auth login`")
    api = HfApi()
    operations = [CommitOperationAdd(file, upload.directory / file) for file in upload.files]
    operations.append(CommitOperationAdd("README.md", upload.card.encode()))
    with _errors(name):
        address = api.create_repo(name, private=private, exist_ok=True)
        api.create_commit(name, operations, commit_message="Upload the model and its card")
    return str(address)


@contextmanager
def _errors(name: str) -> Iterator[None]:
    """Turn the hub's exceptions into sentences, which never hold the token."""
    import httpx
    from huggingface_hub import errors

    try:
        yield
    except errors.HFValidationError:
        raise UserError(f"{name!r} is not the name of a repository, which has the form owner/name") from None
    except errors.HfHubHTTPError as error:
        status = error.response.status_code
        why = "the token may not write there" if status in (401, 403) else error.server_message or "no reason given"
        raise UserError(f"the hub refused the upload to {name} with status {status}: {why}") from None
    except (errors.OfflineModeIsEnabled, httpx.HTTPError, ConnectionError) as error:
        raise UserError(f"the hub cannot be reached ({type(error).__name__}); the same command tries again") from None
