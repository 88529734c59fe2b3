"""Run the command line in forks of one process that has already imported the libraries.

Importing torch, transformers and TRL takes longer than most commands of the tests, and a study imports them once more
in each of its workers. `ForkedCommand` starts one server process that imports them; every command is then a fork of it,
with its own arguments, environment, output and exit status. The workers of a study are forks too, where the product
spawns them. The smoke study itself is run by a fresh interpreter (see conftest.py).
"""

import atexit
import gc
import json
import multiprocessing
import os
import random
import subprocess
import sys
import tempfile
import threading
import traceback
import weakref
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import NoReturn

from launch.execution.processes import die_with_parent
from launch.hardware import visible_gpus

ROOT = Path(__file__).resolve().parent.parent
# Libraries read these when they are imported, so a command with other values needs an interpreter of its own.
READ_ON_IMPORT = ("HF_", "TRANSFORMERS_", "TORCH_", "OMP_", "MKL_", "PYTHON", "LD_")


def environment() -> dict[str, str]:
    """Environment of a command."""
    return {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}


class ForkedCommand:
    """A server process and the commands that are forked from it; it ends with the test session."""

    def __init__(self) -> None:
        from launch.execution.worker import worker_environment

        self._first = environment()
        self._environment = self._first | worker_environment()
        self._unfit = bool(visible_gpus()) or find_spec("vllm") is not None  # CUDA and vLLM do not survive a fork
        self._server: subprocess.Popen[str] | None = None

    def run(self, arguments: list[str], cwd: Path) -> subprocess.CompletedProcess[str]:
        """Run `python -m launch` with arguments and wait for it."""
        values = environment()
        if self._unfit or _read_on_import(values) != _read_on_import(self._first):
            return run_fresh(arguments, cwd)
        if self._server is None:
            self._server = subprocess.Popen(
                [sys.executable, "-m", "tests.forked_command"], cwd=ROOT, env=self._environment,
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            )  # fmt: skip
        with tempfile.TemporaryDirectory() as folder:
            paths = [Path(folder) / name for name in ("stdout", "stderr")]
            request = {"arguments": arguments, "cwd": str(cwd), "environment": values, "output": list(map(str, paths))}
            self._server.stdin.write(json.dumps(request) + "\n")
            self._server.stdin.flush()
            status = int(self._server.stdout.readline())
            return subprocess.CompletedProcess(arguments, status, *(path.read_text() for path in paths))

    def close(self) -> None:
        """End the server."""
        if self._server is not None:
            self._server.stdin.close()
            self._server.wait(30)


def run_fresh(arguments: list[str], cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """Run `python -m launch` in an interpreter of its own and wait for it."""
    return subprocess.run(
        [sys.executable, "-m", "launch", *arguments],
        cwd=cwd, capture_output=True, text=True, env=environment(), check=False, preexec_fn=die_with_parent,
    )  # fmt: skip


def _read_on_import(values: dict[str, str]) -> dict[str, str]:
    return {name: value for name, value in values.items() if name.startswith(READ_ON_IMPORT)}


def _import_libraries() -> None:
    import launch.execution.local

    for name in ("datasets", "lm_eval.api.task", "torch", "transformers"):
        import_module(name)
    for name in ("GRPOTrainer", "SFTTrainer"):
        getattr(import_module("trl"), name)
    context = multiprocessing.get_context
    launch.execution.local.get_context = lambda method: context("fork" if method == "spawn" else method)


def _serve() -> int:
    """Fork a child for each request."""
    _import_libraries()
    gc.collect()
    gc.freeze()  # a collection in a fork would write to every object of the libraries, and so copy their pages
    for line in sys.stdin:
        request = json.loads(line)
        child = os.fork()
        if child == 0:
            _run_and_exit(request)
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)
    return 0


def _keep_temporary_folders() -> None:
    """Leave those that libraries made when they were imported, such as wandb's, to the server: later forks use them."""
    for finalizer in weakref.finalize._registry:
        finalizer.atexit = False
    if "wandb" in sys.modules:
        atexit.unregister(import_module("wandb.sdk.data_types._private").MEDIA_TMP.cleanup)


def _run_and_exit(request: dict) -> NoReturn:
    """Run a command and end as an interpreter does, but leave the modules alone.

    Tearing them down copies all pages of the libraries, which takes longer than most commands (2 s).
    """
    status = 1
    try:
        status = _command(request)
    except SystemExit as end:
        if end.code is None or isinstance(end.code, int):
            status = end.code or 0
        else:
            print(end.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
    finally:
        threading._shutdown()  # waits for other threads
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _command(request: dict) -> int:
    from launch.commands.main import main

    _keep_temporary_folders()
    for descriptor, path in zip((0, 1, 2), ["/dev/null", *request["output"]], strict=True):
        opened = os.open(path, os.O_RDWR | os.O_CREAT)
        os.dup2(opened, descriptor)
        os.close(opened)
    os.environ.clear()
    os.environ.update(request["environment"])
    os.chdir(request["cwd"])
    random.seed()
    sys.argv = ["transfer", *request["arguments"]]
    return main()


if __name__ == "__main__":
    sys.exit(_serve())
