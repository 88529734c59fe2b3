"""What `transfer validate` finds."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data.hub import cached_files, chosen, locate
from launch.planning.lengths import Lengths
from recipes.corpus_schema import DataFiles
from recipes.errors import collected


@dataclass(frozen=True)
class Sample:
    """One text as a model will see it, and what its responses are compared with."""

    name: str
    text: str
    reference: str | None = None
    """The reference answer; JSON where it is no text. None: there is none, or it is restricted."""
    choices: list[str] | None = None
    """The given answers whose likelihoods are compared; None where responses are generated."""


@dataclass
class Validation:
    """What was found. A study is valid if there are no mistakes."""

    study: str
    mistakes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    """What `transfer fetch` has still to bring, as in the plan; no mistake of the recipe."""
    not_checked: list[str] = field(default_factory=list)
    unresolved: set[tuple[str, str]] = field(default_factory=set)
    """Kind and name of files that no lock pins; `missing` says so."""
    absent: dict[str, list[str]] = field(default_factory=dict)
    """Kind of files -> names of those that are pinned and not here."""
    corpus: dict[str, Any] | None = None
    """Rows read; problems left, sampled for training, held out, solvable by the teacher; removed rows by reason, and
    the first of each; rows of stored completions that are passed over, if there are any."""
    groups: dict[str, list[str]] = field(default_factory=dict)
    """Group -> its benchmarks."""
    trained_group: str = ""
    benchmarks: dict[str, dict[str, int]] = field(default_factory=dict)
    """Benchmark that was read -> its questions and clusters."""
    references: dict[str, dict[str, int]] = field(default_factory=dict)
    """Benchmark, or "" for the corpus -> reference answer -> how often it occurs; only of at most ten."""
    lengths: list[Lengths] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)


def readable(what: str, files: DataFiles, lock: dict[str, Any] | None, validation: Validation) -> bool:
    """Whether files can be read here; of hub files that are pinned, says why not."""
    if files.kind == "pocket":
        return True
    if files.kind == "file":
        return Path(str(files.path)).is_file()
    if lock is None or (what, files.name) in validation.unresolved:
        return False
    if not cached_files(chosen(files, lock), lock):
        validation.absent.setdefault(what, []).append(files.name)
    else:
        with collected(validation.mistakes):
            locate(chosen(files, lock), lock)
            return True
    return False
