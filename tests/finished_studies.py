"""Make the studies that tests read, once per session, while other tests run.

python -m tests.finished_studies FOLDER smoke_study analysed_study

Each study is made by a fresh interpreter, as a user makes it, into FOLDER/NAME. FOLDER/NAME.json then holds the exit
status and the output. Test processes copy it, so that no two of them share a folder.
"""

import json
import os
import shutil
import sys
from pathlib import Path

from tests.conftest import ANALYSED, SMOKE
from tests.forked_command import run_fresh


def main(folder: Path, wanted: list[str]) -> None:
    """Make the smoke study and, where it is wanted, the analysed one from its base and corpus."""
    smoke, analysed = folder / "smoke_study", folder / "analysed_study"
    _make(smoke)
    if "analysed_study" in wanted:
        for name in ("base", "corpus"):
            shutil.copytree(smoke / name, analysed / name)
        shutil.copy(smoke / "study.json", analysed)
        _make(analysed, *ANALYSED)


def _make(study: Path, *settings: str) -> None:
    result = run_fresh(["run", str(SMOKE), "--out", str(study), "--no-reuse", *settings])
    written = study.with_suffix(".tmp")
    written.write_text(json.dumps([result.returncode, result.stdout + result.stderr]))
    os.replace(written, study.with_suffix(".json"))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
