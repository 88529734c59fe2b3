"""Run the command line in forks of one process that has already imported the libraries.

Importing torch, transformers and TRL takes longer than most commands of the tests, and a study imports them once more
in each of its workers. `ForkedCommand` starts one server process that imports them; every command is then a fork of it,
with its own arguments, environment, output and exit status. The workers of a study are forks too, where the product
spawns them. The smoke study itself is run by a fresh interpreter (see finished_studies.py).
"""

import atexit
import gc
import json
import multiprocessing
import os
import pkgutil
import random
import signal
import subprocess
import sys
import tempfile
import threading
import traceback
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import NoReturn

from launch.execution.processes import die_with_parent, read_run
from launch.hardware import visible_gpus
from tests.paths import ROOT

# Libraries read these when they are imported, so a command with other values needs an interpreter of its own.
READ_ON_IMPORT = ("HF_", "TRANSFORMERS_", "TORCH_", "OMP_", "MKL_", "PYTHON", "LD_")
READ_LATER = ("HF_TOKEN",)
PACKAGES = ("recipes", "data", "train", "eval", "launch")


def environment() -> dict[str, str]:
    """Environment of a command."""
    return {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}


class ForkedCommand:
    """A server process and the commands that are forked from it, all with `settings` in their environment."""

    def __init__(self, settings: Mapping[str, str] | None = None) -> None:
        from launch.execution.worker import worker_environment

        self._settings = settings or {}
        self._first = environment() | self._settings
        self._environment = self._first | worker_environment()
        self._unfit = bool(visible_gpus()) or find_spec("vllm") is not None  # CUDA and vLLM do not survive a fork
        self._server: subprocess.Popen[str] | None = None

    def run(self, arguments: list[str], cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
        """Run `python -m launch` with arguments, or `python -c` if the first of them is `-c`, and wait for it."""
        values = environment() | self._settings
        if self._unfit or read_on_import(values) != read_on_import(self._first):
            return run_fresh(arguments, cwd, self._settings)
        self.start()
        with tempfile.TemporaryDirectory() as folder:
            paths = [Path(folder) / name for name in ("stdout", "stderr")]
            request = {"arguments": arguments, "cwd": str(cwd), "environment": values, "output": list(map(str, paths))}
            self._server.stdin.write(json.dumps(request) + "\n")
            self._server.stdin.flush()
            status = int(self._server.stdout.readline())
            return subprocess.CompletedProcess(arguments, status, *(path.read_text() for path in paths))

    def start(self) -> None:
        """Start the server, which imports the libraries, unless it has been started.

        Call it, or the first `run`, in a thread that outlives the server: the kernel ends it with its thread.
        """
        if self._server is None and not self._unfit:
            self._server = subprocess.Popen(
                [sys.executable, "-m", "tests.support.forked_command"], cwd=ROOT, env=self._environment,
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, preexec_fn=die_with_parent,
            )  # fmt: skip

    def close(self) -> None:
        """End the server."""
        if self._server is not None:
            self._server.stdin.close()
            self._server.wait(30)


@contextmanager
def killed_when(study: Path, happened: Callable[[], bool]) -> Iterator[None]:
    """Kill the command that runs a study, with `kill -9`, as soon as something has happened."""
    over = threading.Event()

    def watch() -> None:
        while not happened():
            if over.wait(0.002):
                return
        with suppress(ProcessLookupError):
            os.kill(read_run(study)["pid"], signal.SIGKILL)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join()


def run_fresh(
    arguments: list[str], cwd: Path = ROOT, settings: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run `python -m launch`, or `python -c`, in an interpreter of its own and wait for it."""
    command = [sys.executable, *(arguments if arguments[0] == "-c" else ["-m", "launch", *arguments])]
    return subprocess.run(
        command, cwd=cwd, capture_output=True, text=True, env=environment() | (settings or {}), check=False,
        preexec_fn=die_with_parent,
    )  # fmt: skip


def read_on_import(values: Mapping[str, str]) -> dict[str, str]:
    """Variables that libraries read when they are imported."""
    return {name: value for name, value in values.items() if name.startswith(READ_ON_IMPORT) and name not in READ_LATER}


def _import_libraries() -> None:
    import launch.execution.local

    for name in ("datasets", "lm_eval.api.task", "torch", "transformers"):
        import_module(name)
    for name in ("GRPOTrainer", "SFTTrainer"):
        getattr(import_module("trl"), name)
    for package in map(import_module, PACKAGES):
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if not module.name.endswith("__main__"):
                with suppress(ModuleNotFoundError):  # what needs vLLM
                    import_module(module.name)
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
        die_with_parent()
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
    if request["arguments"][0] == "-c":
        _, code, *words = request["arguments"]
        sys.argv = ["-c", *words]
        exec(code, {"__name__": "__main__"})
        return 0
    sys.argv = ["transfer", *request["arguments"]]
    return main()


if __name__ == "__main__":
    sys.exit(_serve())
