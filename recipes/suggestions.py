"""What to say about a name or a path that does not exist: the nearest one that does."""

import difflib
import glob
from collections.abc import Iterable
from pathlib import Path

STUDY_FILES = ("study.json", "ablation.json")
"""One of them is in the folder of a study or an ablation."""
_NEAR_PATH = 0.75  # difflib's ratio of names of files and folders, which are alike by convention
_NEAR = 0.6
_STEM = 3  # letters


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The known word that is meant: one with `word` as a part between slashes, the same in other case, a similar
    one, or one that begins it or that it begins; None if there is none.
    """
    words = list(known)
    near = [other for other in words if word in other.split("/")]
    near += [other for other in words if other.casefold() == word.casefold()]
    near += difflib.get_close_matches(word, words, n=1, cutoff=_NEAR)
    near += [other for other in words if min(len(word), len(other)) >= _STEM and other.startswith(word[: len(other)])]
    return next(iter(near), None)


def did_you_mean(word: str, known: Iterable[str], otherwise: str = "there are") -> str:
    """`did you mean X?`; where nothing is near, all known words after `otherwise`."""
    words = list(dict.fromkeys(known))
    near = nearest(word, words)
    return f"did you mean {near}?" if near else f"{otherwise} {', '.join(words) or 'none'}"


def similar_file(path: Path) -> Path | None:
    """The file that is meant by one that does not exist: beside it with nearly the same name and the same extension, or
    with the same name one folder up or down; None if there is none.
    """
    by_stem = {
        other.stem: other for other in sorted(path.parent.glob("*")) if other.suffix == path.suffix and other.is_file()
    }
    if near := difflib.get_close_matches(path.stem, by_stem, n=1, cutoff=_NEAR_PATH):
        return path.with_name(by_stem[near[0]].name)
    elsewhere = [path.parent.parent / path.name, *sorted(path.parent.glob(f"*/{glob.escape(path.name)}"))]
    return next((other for other in elsewhere if other.is_file()), None)


def similar_path(path: Path) -> Path | None:
    """The file or folder whose path is nearly that of one that does not exist, part by part; None if there is none."""
    found = Path(path.anchor)
    for part in path.parts[len(found.parts) :]:
        if (found / part).exists():
            found /= part
            continue
        try:
            names = sorted(other.name for other in found.iterdir())
        except OSError:  # no folder, or not readable
            return None
        near = difflib.get_close_matches(part, names, n=1, cutoff=_NEAR_PATH)
        if not near:
            return None
        found /= near[0]
    return found


def similar_study(path: Path) -> Path | None:
    """The folder of a study, or of an ablation, whose path is nearly that of one that does not exist."""
    near = similar_path(path)
    return near if near is not None and holds_study(near) else None


def holds_study(folder: Path) -> bool:
    """Whether a folder is that of a study or an ablation."""
    return any((folder / name).is_file() for name in STUDY_FILES)
