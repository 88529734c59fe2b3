"""A Slurm cluster of two nodes on this machine's loopback, for the tests: real sbatch, srun, squeue and scontrol.

python -m tests.support.slurm_cluster FOLDER          starts one and prints the SLURM_CONF to use
python -m tests.support.slurm_cluster FOLDER --stop   stops it
"""

import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

from filelock import FileLock

_NEEDED = ("slurmctld", "slurmd", "munged", "sbatch", "srun", "scontrol", "squeue", "scancel")

_CONFIG = """
ClusterName=tests
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
ReturnToService=2
JobRequeue=1
KillWait=10
SlurmdTimeout=30
SlurmdParameters=config_overrides
SchedulerParameters=batch_sched_delay=1,sched_interval=1,sched_min_interval=0,requeue_delay=1
NodeName=n[1-2] NodeHostname={host} NodeAddr=127.0.0.1 Port=[{first}-{last}] CPUs=4 RealMemory=8000 State=UNKNOWN
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP PriorityTier=1 PreemptMode=REQUEUE GraceTime=60
PartitionName=urgent Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=10 PreemptMode=OFF
"""


def why_not() -> str | None:
    """Why no cluster can be started here; None if it can."""
    missing = [name for name in _NEEDED if shutil.which(name) is None]
    if missing:
        return f"not installed: {', '.join(missing)}"
    return None if os.geteuid() == 0 else "only root can start Slurm's daemons"


def _free_ports(count: int) -> int:
    """The first of `count` free ports in a row, below those the kernel hands out."""
    for first in range(17001, 19000, count):
        with suppress(OSError):
            for port in range(first, first + count):
                with socket.socket() as server:
                    server.bind(("127.0.0.1", port))
            return first
    raise RuntimeError("no free ports for a Slurm cluster")


class SlurmCluster:
    """Starts on construction; `environment` is what client commands need."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.config = folder / "slurm.conf"
        self.environment = {"SLURM_CONF": str(self.config)}
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        # One cluster at a time on a machine: two would disturb each other's times.
        self._alone = FileLock(Path(tempfile.gettempdir()) / "transfer-slurm-cluster.lock")

    def start(self) -> "SlurmCluster":
        """Start munge, the controller and both nodes, and wait until they are idle."""
        self._alone.acquire(timeout=3600)
        first = _free_ports(3)
        values = {"host": socket.gethostname().split(".")[0], "folder": self.folder}
        self.config.write_text(_CONFIG.format(**values, port=first, first=first + 1, last=first + 2))
        user = pwd.getpwnam("munge")
        for path, mode in ((self.folder, 0o755), (self.folder / "munge", 0o700)):
            path.mkdir(exist_ok=True)
            path.chmod(mode)
        munge = self.folder / "munge"
        key = munge / "munge.key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o600)
        for path in (munge, key):
            os.chown(path, user.pw_uid, user.pw_gid)
        # The socket's folder must be reachable for everybody and writable for munge alone.
        sockets = self.folder
        os.chown(sockets, user.pw_uid, user.pw_gid)
        for parent in self.folder.parents:
            if parent.stat().st_mode & 0o001 == 0:
                parent.chmod(parent.stat().st_mode | 0o011)
        self._run("munged", "--foreground", "--force", f"--key-file={key}", f"--socket={sockets}/munge.socket",
                  f"--pid-file={munge}/munged.pid", f"--log-file={munge}/munged.log", f"--seed-file={munge}/seed",
                  user="munge")  # fmt: skip
        for name in ("state", "spool-n1", "spool-n2"):
            (self.folder / name).mkdir(exist_ok=True)
        deadline = time.monotonic() + 20
        while not (sockets / "munge.socket").exists():
            if time.monotonic() > deadline:
                raise RuntimeError(f"munged did not start; see {munge}")
            time.sleep(0.05)
        self._run("slurmctld", "-c", "-D", "-f", str(self.config))
        for node in ("n1", "n2"):
            self.start_node(node)
        deadline = time.monotonic() + 60
        while self.query("sinfo", "--noheader", "--format=%T").split() != ["idle"]:
            if time.monotonic() > deadline:
                raise RuntimeError(f"the cluster did not become idle; see {self.folder}")
            time.sleep(0.2)
        return self

    def start_node(self, node: str) -> None:
        """Start (again) the daemon of a node."""
        self._run("slurmd", "-D", "-f", str(self.config), "-N", node, name=f"slurmd-{node}")

    def stop_node(self, node: str) -> None:
        """Kill the daemon of a node, as if its machine had lost power; its jobs' processes too."""
        process = self._processes.pop(f"slurmd-{node}")
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    def _run(self, *command: str, user: str | None = None, name: str | None = None) -> None:
        path = shutil.which(command[0]) or command[0]
        with (self.folder / f"{name or command[0]}.out").open("ab") as out:
            self._processes[name or command[0]] = subprocess.Popen(
                [path, *command[1:]], stdout=out, stderr=out, env={**os.environ, **self.environment}, user=user,
                start_new_session=True,
            )  # fmt: skip

    def query(self, *command: str) -> str:
        """Output of a Slurm command."""
        result = subprocess.run(
            command, capture_output=True, text=True, env={**os.environ, **self.environment}, check=False
        )
        return result.stdout

    def stop(self) -> None:
        """Cancel what runs and end the daemons."""
        self.query("scancel", "--user=root")
        deadline = time.monotonic() + 20
        while self.query("squeue", "--noheader") and time.monotonic() < deadline:
            time.sleep(0.2)
        for process in reversed(list(self._processes.values())):
            with suppress(ProcessLookupError):
                process.terminate()
        for process in self._processes.values():
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                process.kill()
        self._alone.release()


if __name__ == "__main__":
    cluster = SlurmCluster(Path(sys.argv[1]).resolve()).start()
    print(f"export SLURM_CONF={cluster.config}", flush=True)
    signal.sigwait({signal.SIGTERM, signal.SIGINT})
    cluster.stop()
