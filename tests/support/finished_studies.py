"""Make the studies that tests read, once per session, while other tests run.

python -m tests.support.finished_studies FOLDER smoke_study analysed_study

The smoke study is made by a fresh interpreter, as a user makes it, the analysed one by a fork (see forked_command.py),
into FOLDER/NAME. FOLDER/NAME.json then holds the exit status and the output. Test processes copy it, so that no two of
them share a folder.
"""

import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

from tests.conftest import ANALYSED
from tests.paths import SMOKE
from tests.support.forked_command import ForkedCommand, run_fresh


def main(folder: Path, wanted: list[str]) -> None:
    """Make the smoke study and, where it is wanted, the analysed one from its base and corpus."""
    smoke, analysed = folder / "smoke_study", folder / "analysed_study"
    _make(run_fresh, smoke)
    if "analysed_study" in wanted:
        for name in ("base", "corpus"):
            shutil.copytree(smoke / name, analysed / name)
        shutil.copy(smoke / "study.json", analysed)
        forked = ForkedCommand()
        _make(forked.run, analysed, *ANALYSED)
        forked.close()


def _make(run: Callable[[list[str]], CompletedProcess[str]], study: Path, *settings: str) -> None:
    result = run(["run", str(SMOKE), "--out", str(study), "--no-reuse", *settings])
    written = study.with_suffix(".tmp")
    written.write_text(json.dumps([result.returncode, result.stdout + result.stderr]))
    os.replace(written, study.with_suffix(".json"))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
