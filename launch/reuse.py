"""A new study reuses what studies beside it have made: base, corpus, questions, and the base's evaluation.

A stage is reused if its inputs are equal by hash and the same code, packages and Python made it; on a CPU also the
same kernels, because others round differently (`recipes/processor.py`). Its outputs must match the hashes that its
manifest recorded. A stage is put together in `<study>/.reuse` and moved into place as a whole, so that a kill leaves no
half of one.
"""

import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from eval.questions.analysis_lock import write_lock
from eval.scorers.version import judged_by
from launch.stages import Stage
from recipes.errors import UserError
from recipes.files import hash_file, hash_json, write_json
from recipes.layout import flat
from recipes.loading import STUDY_FILE, read_study_file
from recipes.manifest import MANIFEST, OUTPUT_OF, package_versions, read_manifest, stage_state
from recipes.processor import cpu_kernels, other_kernels
from recipes.schema import Recipe

REUSED = ("base", "corpus", "questions", "eval/base")
"""The stages that studies of different arms share, by name."""
_FOLDER = ".reuse"
_LEFT_OUT = (".lock", "*.lock", ".*.tmp")
_NEAR = 2  # differences that are named; with more settings it is another study


class Source(NamedTuple):
    """A finished stage of another study."""

    study: Path
    manifest: dict[str, Any]


class ReusePlan(NamedTuple):
    """What a run would reuse."""

    sources: dict[str, Source]
    """By name of the stage."""
    refused: list[str]
    """What it would not, although another study has nearly the same, as sentences with the reason."""


class _Refused(NamedTuple):
    """A finished stage of another study that cannot be reused."""

    distance: int
    """How far it is from what is wanted; the nearest one is named."""
    stage: str
    study: Path
    why: str


class _DamagedError(Exception):
    """A stage does not hold what its manifest says; the message names the file."""


def plan_reuse(recipe: Recipe, study_dir: Path, stages: Sequence[Stage], *, on_cluster: bool = False) -> ReusePlan:
    """What a run would reuse, if the outputs are what they should be. Writes nothing."""
    planned: dict[str, Source] = {}
    refused: list[_Refused] = []
    for stage, sources, others in _offers(recipe, study_dir, stages, on_cluster, planned):
        refused += others
        if sources:
            planned[stage.name] = sources[0]
    return ReusePlan(planned, _as_sentences(refused))


def reuse(recipe: Recipe, study_dir: Path, stages: Sequence[Stage], *, on_cluster: bool = False) -> None:
    """Take over what other studies have made, and print what and from where. The study must be locked.

    A source that is damaged, or was made in nearly the same way, is named and left alone.
    """
    shutil.rmtree(study_dir / _FOLDER, ignore_errors=True)  # of a run that was killed
    taken: dict[Path, list[str]] = {}
    refused: list[_Refused] = []
    for stage, sources, others in _offers(recipe, study_dir, stages, on_cluster, {}):
        refused += others
        for source in sources:
            try:
                _take_over(recipe, study_dir, stage, source)
            except (_DamagedError, OSError) as error:
                reason = error.args[0][0][2] if isinstance(error, shutil.Error) else error  # of the first file
                print(f"  not reused {stage.name} of {source.study}: {reason}")
                continue
            taken.setdefault(source.study, []).append(stage.name)
            break
    shutil.rmtree(study_dir / _FOLDER, ignore_errors=True)
    for text in _as_sentences(refused):
        print(f"  {text}")
    for study, names in taken.items():
        print(f"  reused   {', '.join(names)} of {study} (--no-reuse makes them again)")


def _offers(
    recipe: Recipe, study_dir: Path, stages: Sequence[Stage], on_cluster: bool, planned: Mapping[str, Source]
) -> Iterator[tuple[Stage, list[Source], list[_Refused]]]:
    """Of each stage to reuse that has no folder: its sources, and what is refused.

    `planned`: by stage, the sources that are to be reused and are not yet.
    """
    # None where a GPU computes, or nodes that are not known yet.
    kernels = None if recipe.resources.gpu is not None or on_cluster else cpu_kernels()
    for stage in stages:
        if stage.name in REUSED and not os.path.lexists(study_dir / stage.name):
            manifests = {
                name: planned[name].manifest if name in planned else read_manifest(study_dir / name)
                for name in stage.needs
            }
            yield stage, *_sources(stage, study_dir, manifests, kernels)


def _sources(
    stage: Stage, study_dir: Path, needs: dict[str, dict[str, Any] | None], kernels: dict[str, str] | None
) -> tuple[list[Source], list[_Refused]]:
    """Where the stage is finished with the same inputs, code and packages: first where it was made, the latest first.

    Args:
        stage: the stage.
        study_dir: the study that lacks it.
        needs: manifests of the stages that it needs.
        kernels: the CPU kernels it must have been made with; None: any.

    Returns:
        The sources; if there are none, the nearest finished stage of another study, and why it is none.
    """
    if not all(manifest is not None and manifest["completed"] for manifest in needs.values()):
        return [], []
    outputs = {f"{OUTPUT_OF}{name}": (manifest or {}).get("output_hash") for name, manifest in needs.items()}
    sources, others = [], []
    for study in _studies_beside(study_dir):
        with suppress(UserError, KeyError):  # an unreadable or foreign manifest is no source
            manifest = read_manifest(study / stage.name)
            if manifest is not None and manifest["completed"]:
                unlike = _difference(study, manifest, stage, stage.reads | outputs, kernels)
                if unlike is None:
                    sources.append(Source(study, manifest))
                else:
                    others.append((unlike, manifest["completed"]))
    sources.sort(key=lambda source: ("reused_from" not in source.manifest, source.manifest["completed"]), reverse=True)
    others.sort(key=lambda other: other[1], reverse=True)
    nearest = min((unlike for unlike, _ in others), key=lambda unlike: unlike.distance, default=None)
    return sources, [nearest] if nearest is not None and not sources and nearest.why else []


def _difference(
    study: Path, manifest: dict[str, Any], stage: Stage, inputs: dict[str, Any], kernels: dict[str, str] | None
) -> _Refused | None:
    """Why a finished stage of a study cannot be reused; empty if it is another one; None: it can."""
    if manifest["input_hash"] != hash_json(inputs):
        keys = stage_state(study / stage.name, inputs).reasons
        why = f"made from other inputs ({'; '.join(keys)})" if 0 < len(keys) <= _NEAR else ""
        return _Refused(2 + len(keys), stage.name, study, why)
    environment = manifest["environment"]
    then = {"python": environment["python"], "machine": environment["machine"], **environment["packages"]}
    now = package_versions()
    judged = judged_by(study / stage.name) == "other"
    if manifest["code"] != stage.code or judged or then != now:
        told = ["by other code"] * (manifest["code"] != stage.code) + ["by other scoring rules"] * judged
        told += [
            f"with {name} {then.get(name, 'absent')}, here {now.get(name, 'absent')}"
            for name in sorted(then.keys() | now.keys())
            if then.get(name) != now.get(name)
        ][:_NEAR]
        return _Refused(1, stage.name, study, f"made {' and '.join(told)}")
    other = None if kernels is None else other_kernels(environment.get("cpu_kernels"), kernels)
    return None if other is None else _Refused(0, stage.name, study, other)


def _as_sentences(refused: Sequence[_Refused]) -> list[str]:
    """One sentence for the stages of a study that cannot be reused for the same reason."""
    together: dict[tuple[Path, str], list[str]] = {}
    for item in refused:
        together.setdefault((item.study, item.why), []).append(item.stage)
    return [f"not reused {', '.join(names)} of {study}: {why}" for (study, why), names in together.items()]


def _studies_beside(study_dir: Path) -> list[Path]:
    """The other studies in the same folder, without rehearsals."""
    studies = []
    with suppress(OSError):
        for path in sorted(study_dir.parent.iterdir()):
            with suppress(OSError, UserError):
                if (path / STUDY_FILE).is_file() and not (study_dir.exists() and path.samefile(study_dir)):
                    studies += [] if read_study_file(path).get("rehearsal") else [path]
    return studies


def _take_over(recipe: Recipe, study_dir: Path, stage: Stage, source: Source) -> None:
    """Put a copy of a stage in place.

    Raises:
        _DamagedError: the outputs do not match the manifest.
        OSError: files vanished or cannot be read, or there is no room.
    """
    outputs = source.manifest["outputs"]
    made = study_dir / _FOLDER / flat(stage.name)
    shutil.rmtree(made, ignore_errors=True)
    _copy(source.study / stage.name, made, () if stage.facts.in_place else tuple(outputs))
    if source.manifest["output_hash"] != hash_json(outputs):
        raise _DamagedError("its manifest does not match its hash")
    for name, digest in outputs.items():
        if name.startswith("content of "):  # of questions, which their file's hash covers
            continue
        if not (made / name).is_file():
            raise _DamagedError(f"{name} is missing")
        if hash_file(made / name) != digest:
            raise _DamagedError(f"{name} does not match its hash")
    write_json(made / MANIFEST, source.manifest | {"reused_from": os.path.relpath(source.study, study_dir)})
    if recipe.suite is not None and stage.name != "base":
        write_lock(recipe, study_dir)  # before the study holds an answer
    target = study_dir / stage.name
    target.parent.mkdir(parents=True, exist_ok=True)
    made.rename(target)


def _copy(source: Path, target: Path, linked: Sequence[str]) -> None:
    """Copy a folder; by hard links what nothing writes into again, the outputs of stages that are made as a whole.

    A stage whose folder stays when inputs change (`in_place` of its kind) may append to its files, so it gets copies.
    """

    def put(path: str, destination: str) -> None:
        if Path(destination).relative_to(target).as_posix() in linked:
            with suppress(OSError):  # another file system, or one without links
                os.link(os.path.realpath(path), destination)
                return
        shutil.copy2(path, destination)

    shutil.copytree(source, target, copy_function=put, ignore=shutil.ignore_patterns(*_LEFT_OUT))
