"""A Slurm cluster of one node on this machine: munged, slurmctld and slurmd, for one test.

Nothing outside one temporary folder is read or written: key, sockets, state and log files are in
it. The node claims more cores, memory and GPUs than the machine has, so the options that
conf/hydra/launcher/slurm.yaml asks for need no change; nothing enforces them.
"""

import os
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")
PARTITION = "gpu"
NEEDED = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "sacct", "scontrol", "scancel")
# How long a busy machine may take.
PATIENCE_SECONDS = 600
_PATH = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"
# cred_expire is also the time that a requeued job waits, and KillWait the time between SIGTERM and
# SIGKILL: 120 and 30 seconds by default.
_CONFIGURATION = """\
ClusterName=loopback
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
SlurmdPort={node_port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
SchedulerParameters=sched_interval=2,bf_interval=2
ReturnToService=2
JobRequeue=1
KillWait=1
MailProg=/bin/true
SlurmdParameters=config_overrides
GresTypes=gpu
NodeName=node NodeHostname={host} NodeAddr=127.0.0.1 CPUs=32 RealMemory=200000 Gres=gpu:4
PartitionName={partition} Nodes=node Default=YES MaxTime=INFINITE State=UP
"""


def missing() -> str | None:
    """Return why no cluster can be started here; None if it can."""
    absent = [name for name in NEEDED if shutil.which(name, path=_PATH) is None]
    if absent:
        return f"not installed (Debian: slurm-wlm and munge): {', '.join(absent)}"
    return None if os.geteuid() == 0 else "slurmctld and slurmd need root here"


class Slurm:
    """A running cluster.

    Args:
        folder: its files.

    Attributes:
        variables: environment variables that select this cluster for Slurm's commands.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.variables = {"SLURM_CONF": str(folder / "slurm.conf"), "PATH": _PATH}

    def call(self, *words: object) -> str:
        """Return what one of Slurm's commands prints."""
        done = subprocess.run(
            [*map(str, words)],
            capture_output=True,
            text=True,
            timeout=PATIENCE_SECONDS,
            env=os.environ | self.variables,
        )
        assert done.returncode == 0, (words, done.stderr, self.logs())
        return done.stdout

    def jobs(self) -> list[str]:
        """Return the ids of the jobs that wait or run, one for each task of an array."""
        return sorted(self.call("squeue", "--noheader", "--array", "--format=%i").split())

    def restarts(self, job: str) -> int:
        """Return how often a job was requeued and started again."""
        fields = dict(
            word.split("=", 1)
            for word in self.call("scontrol", "show", "job", job).split()
            if "=" in word
        )
        return int(fields["Restarts"])

    def logs(self) -> str:
        """Return the ends of the daemons' log files, for a failed test."""
        texts = {file.name: file.read_text(errors="replace") for file in self.folder.glob("*.log")}
        return "\n".join(f"{name}:\n{text[-2000:]}" for name, text in texts.items())

    def is_idle(self) -> bool:
        """Return whether the node is up, and no job is running or ending."""
        done = subprocess.run(
            ["sinfo", "--noheader", "--format=%T"],
            capture_output=True,
            text=True,
            env=os.environ | self.variables,
        )
        return done.stdout.strip() == "idle"


@contextmanager
def cluster() -> Iterator[Slurm]:
    """Start the three daemons. All their processes and files are gone after the block."""
    # Not pytest's folder: the path of a socket has at most 107 bytes.
    folder = Path(tempfile.mkdtemp(prefix="so_clip-slurm-"))
    slurm = Slurm(folder)
    try:
        _write(folder)
        with ExitStack() as stack:
            stack.callback(_kill_all, slurm.variables["SLURM_CONF"])
            munge = {"socket": "munge.socket", "pid-file": "munged.pid", "log-file": "munged.log"}
            munge |= {"key-file": "munge.key", "seed-file": "munge.seed"}
            options = [f"--{name}={folder / file}" for name, file in munge.items()]
            # --force: the socket's folder belongs to root and not to a user of its own.
            stack.enter_context(_daemon(slurm, "munged", "--foreground", "--force", *options))
            _until((folder / "munge.socket").exists)
            stack.enter_context(_daemon(slurm, "slurmctld", "-D"))
            stack.enter_context(_daemon(slurm, "slurmd", "-D", "-N", "node"))
            _until(slurm.is_idle, slurm.logs)
            yield slurm
            slurm.call("scancel", f"--partition={PARTITION}")
            _until(slurm.is_idle, slurm.logs)
    finally:
        shutil.rmtree(folder)


def _write(folder: Path) -> None:
    folder.chmod(0o755)
    for name in ("state", "spool"):
        (folder / name).mkdir()
    (folder / "munge.key").write_bytes(secrets.token_bytes(128))
    (folder / "munge.key").chmod(0o400)
    ports = _free_ports(2)
    text = _CONFIGURATION.format(
        folder=folder,
        host=socket.gethostname().partition(".")[0],
        controller_port=ports[0],
        node_port=ports[1],
        partition=PARTITION,
    )
    (folder / "slurm.conf").write_text(text)
    for number in range(4):  # Slurm counts the files of a GPU, and does not open them
        (folder / f"gpu{number}").touch()
    (folder / "gres.conf").write_text(f"NodeName=node Name=gpu File={folder}/gpu[0-3]\n")


def _free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


@contextmanager
def _daemon(slurm: Slurm, *words: str) -> Iterator[None]:
    process = subprocess.Popen(
        words,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=os.environ | slurm.variables,
        start_new_session=True,
    )
    try:
        yield
    finally:
        process.terminate()
        try:
            process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _kill_all(configuration: str) -> None:
    """Kill what is left of the cluster: processes with its configuration in their environment."""
    mark = f"SLURM_CONF={configuration}".encode()
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if mark in (folder / "environ").read_bytes().split(b"\0"):
                os.kill(int(folder.name), signal.SIGKILL)


def _until(true: Callable[[], T], explain: Callable[[], str] = str) -> T:
    """Wait until a condition is true, and return its value."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < deadline:
        value = true()
        if value:
            return value
        time.sleep(0.1)
    raise TimeoutError(explain())
