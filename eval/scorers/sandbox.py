"""Runs a program that a model wrote: no network, no files but its own scratch, limits on everything.

bubblewrap gives the program namespaces of its own with a read-only /usr, an empty scratch in memory and nothing else of
the machine. Limits are those of the kernel per process, set inside before the program starts, and a wall clock outside
that ends the namespace with everything in it. Started by root, it runs as a user of its own, because root is exempt
from the limit on processes.
"""

import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from itertools import cycle
from pathlib import Path
from typing import IO

from recipes.errors import UserError

_FIRST_UID = 61001  # of the users that sandboxes started by root run as; one each, for the limit is per user
_VERSIONS = """\
import platform
from importlib import metadata
print(platform.python_version())
try:
    print(metadata.version("numpy"))
except metadata.PackageNotFoundError:
    print("absent")
"""
_SCRATCH_BYTES = 64 << 20
_user = threading.local()
_users_taken = cycle(range(_FIRST_UID, _FIRST_UID + 4096))  # every pool of threads takes new ones


@dataclass(frozen=True)
class Limits:
    """What a program may use."""

    wall_seconds: float = 10.0
    cpu_seconds: int = 8
    memory_bytes: int = 1 << 30
    """Address space of each of its processes."""
    output_bytes: int = 4 << 20
    """Of standard output, of standard error, and of each file."""
    processes: int = 16
    """Processes and threads, its own among them."""


@dataclass(frozen=True)
class Ended:
    """How a program ended."""

    status: str
    """ok, timeout, output (it wrote too much), or crash."""
    stdout: str
    stderr: str
    """The last of it."""


@lru_cache(maxsize=1)
def python_for_sandbox() -> str:
    """A Python that a sandbox can see: under /usr. Raises UserError if there is none."""
    own = Path(sys.executable).resolve()
    if own.is_relative_to("/usr"):
        return str(own)
    system_python = shutil.which("python3", path="/usr/bin:/usr/local/bin")
    if system_python is None or not Path(system_python).resolve().is_relative_to("/usr"):
        raise UserError(
            "running code of models needs a python3 under /usr, where its sandbox can see it; install one "
            "(apt install python3)"
        )
    return str(Path(system_python).resolve())


@lru_cache(maxsize=1)
def without_user_namespaces() -> list[str]:
    """Flags that forbid user namespaces of its own to a program, in which it would be root before the kernel's less
    tested parts. bubblewrap has them from 0.8 on, and not where it is installed setuid or /proc/sys cannot be written.
    """
    flags = ["--unshare-user", "--disable-userns"]
    probe = ["bwrap", "--unshare-all", *flags, "--ro-bind", "/", "/", "--proc", "/proc", "true"]
    ended = subprocess.run([*_as_own_user(), *probe], capture_output=True, check=False)
    return flags if ended.returncode == 0 else []


@lru_cache(maxsize=1)
def require_sandbox() -> None:
    """Raise UserError if bubblewrap is missing or does not work here."""
    advice = (
        "install it (apt install bubblewrap), or insist on running that code with your files and your network by "
        "suite.allow_unsandboxed_code=true"
    )
    if shutil.which("bwrap") is None:
        raise UserError(f"code of models is run in a sandbox only, and bubblewrap (bwrap) is not installed: {advice}")
    ended = run_program("print(6 * 7)", "", Limits())
    if ended.status != "ok" or ended.stdout.strip() != "42":
        raise UserError(
            f"code of models is run in a sandbox only, and bubblewrap fails ({ended.stderr[-200:]!r}): {advice}"
        )


@lru_cache(maxsize=2)
def sandbox_versions(sandboxed: bool = True) -> dict[str, str]:
    """The Python that runs code of models, and its numpy, which some programs import."""
    ended = run_program(_VERSIONS, "", Limits(), sandboxed)
    names = ("python", "numpy")
    return dict(zip(names, ended.stdout.split(), strict=False)) if ended.status == "ok" else dict.fromkeys(names, "?")


def run_program(program: str, stdin: str, limits: Limits, sandboxed: bool = True) -> Ended:
    """Run Python source with a standard input.

    `sandboxed=False` keeps the limits and runs it in a scratch folder, but with the user's files and network.
    """
    with tempfile.TemporaryDirectory(prefix="transfer-code-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        for file, text in (("program.py", program), ("start.py", _start_script(limits)), ("stdin", stdin)):
            (folder / file).write_text(text, encoding="utf-8", errors="replace")
            (folder / file).chmod(0o644)
        command = _sandboxed(folder) if sandboxed else [python_for_sandbox(), "-I", str(folder / "start.py")]
        with (
            (folder / "stdin").open("rb") as source,
            tempfile.TemporaryFile() as stdout,
            tempfile.TemporaryFile() as stderr,
        ):
            process = subprocess.Popen(
                command,
                stdin=source,
                stdout=stdout,
                stderr=stderr,
                start_new_session=True,
                cwd="/" if sandboxed else folder,
                env={"PATH": "/usr/bin:/bin", "HOME": "/tmp", "OMP_NUM_THREADS": "1"},
                preexec_fn=_limit_files(limits),
            )
            try:
                code = process.wait(limits.wall_seconds)
                status = "ok" if code == 0 else "crash"
            except subprocess.TimeoutExpired:
                status = "timeout"
            finally:
                _kill(process)
            out, too_long = _read(stdout, limits.output_bytes)
            err, _ = _read(stderr, limits.output_bytes)
        if status == "crash" and process.returncode in (-signal.SIGXCPU, 128 + signal.SIGXCPU):
            status = "timeout"
        return Ended("output" if too_long else status, out, err[-2000:])


def _limit_files(limits: Limits) -> Callable[[], None]:
    """Before anything else: what is written to standard output goes to a file, and so has this limit."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limits.output_bytes, limits.output_bytes))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))

    return limit


def _start_script(limits: Limits) -> str:
    """Sets the limits inside, where bubblewrap's own processes are past, and becomes the program."""
    return (
        "import os, resource, sys\n"
        f"for name, value in (('AS', {limits.memory_bytes}), ('NPROC', {limits.processes}), ('NOFILE', 64)):\n"
        "    kind = getattr(resource, 'RLIMIT_' + name)\n"
        "    resource.setrlimit(kind, (value, value))\n"
        # The soft limit sends SIGXCPU, which tells a timeout from a crash; the hard limit kills.
        f"resource.setrlimit(resource.RLIMIT_CPU, ({limits.cpu_seconds}, {limits.cpu_seconds + 1}))\n"
        "folder = os.path.dirname(os.path.abspath(__file__))\n"
        "os.execv(sys.executable, [sys.executable, '-I', os.path.join(folder, 'program.py')])\n"
    )


def _sandboxed(folder: Path) -> list[str]:
    size = str(_SCRATCH_BYTES)
    command = ["bwrap", "--unshare-all", "--die-with-parent", "--new-session", "--cap-drop", "ALL", "--clearenv"]
    command += without_user_namespaces()
    command += ["--setenv", "PATH", "/usr/bin:/bin", "--setenv", "HOME", "/tmp", "--setenv", "OMP_NUM_THREADS", "1"]
    command += ["--ro-bind", "/usr", "/usr", "--ro-bind-try", "/etc/ld.so.cache", "/etc/ld.so.cache"]
    for link in ("/lib", "/lib64", "/bin"):
        path = Path(link)
        if path.is_symlink():
            command += ["--symlink", f"usr{link}", link]
        elif path.exists():
            command += ["--ro-bind", link, link]
    # bubblewrap's /dev and the /dev/shm in it have no size of their own: they would take half of the memory.
    command += ["--proc", "/proc", "--dev", "/dev", "--size", size, "--tmpfs", "/dev/shm", "--remount-ro", "/dev"]
    command += ["--size", size, "--tmpfs", "/tmp", "--ro-bind", str(folder), "/code"]
    command += ["--remount-ro", "/", "--chdir", "/tmp", "--uid", "65534", "--gid", "65534"]
    command += [python_for_sandbox(), "-I", "/code/start.py"]
    return [*_as_own_user(), *command]


def _as_own_user() -> list[str]:
    """What starts a command as the user of this thread, if this process is root."""
    if os.geteuid() != 0:
        return []
    if not hasattr(_user, "uid"):
        _user.uid = next(_users_taken)
    return ["setpriv", "--reuid", str(_user.uid), "--regid", str(_user.uid), "--clear-groups"]


def _kill(process: subprocess.Popen[bytes]) -> None:
    """End the process group; with bubblewrap the namespace ends with it, so nothing survives."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _read(file: IO[bytes], limit: int) -> tuple[str, bool]:
    file.seek(0)
    content = file.read(limit)
    return content.decode("utf-8", errors="replace"), len(content) >= limit
