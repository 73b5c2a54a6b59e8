"""A real Slurm of two nodes on this machine, for the tests: up in a second or two, no systemd.

Everything lies in one folder and listens on the loopback only, at ports that were free. Both nodes
claim more cores than there are, since the runs of the tests sleep most of the time.

Partitions: `debug` (the default; its jobs can be preempted) and `high` (its jobs preempt them).
There is no accounting: what Slurm forgets, only the run directories know.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.support.commands import wait_for

NODES = ("node1", "node2")
CORES = 8
PROGRAMS = ("slurmctld", "slurmd", "munged", "munge", "sbatch", "srun", "squeue", "scontrol")
SBIN = "/usr/sbin"

CONF = """\
ClusterName=tests
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={folder}/munge/socket,cred_expire=5
SlurmUser=root
SlurmdUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
MpiDefault=none
MailProg=/bin/true
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=1,sched_min_interval=0,bf_interval=1,batch_sched_delay=0
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
{more}
ReturnToService=2
JobRequeue=1
KillWait=8
MinJobAge={remembers}
SlurmctldTimeout=30
SlurmdTimeout=30
MaxArraySize=1001
NodeName=node1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs={cores} State=UNKNOWN
NodeName=node2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs={cores} State=UNKNOWN
PartitionName=DEFAULT Nodes=node1,node2 MaxTime=60 DefaultTime=30 State=UP OverSubscribe=NO
PartitionName=debug Default=YES PriorityTier=1 PreemptMode=REQUEUE GraceTime=120
PartitionName=high PriorityTier=10 PreemptMode=OFF
"""


def missing() -> str:
    """Why no Slurm can be started here; empty where it can."""
    lacking = [name for name in PROGRAMS if _found(name) is None]
    if lacking:
        return (
            f"Slurm is not installed here ({', '.join(lacking)}): apt-get install slurm-wlm munge"
        )
    if os.geteuid() != 0:
        return "starting a Slurm of one's own takes root"
    try:
        socket.gethostbyname(_host())
    except OSError:
        return f"this machine's own name, {_host()}, is not in /etc/hosts"
    return ""


class Cluster:
    """A running Slurm; `environment` is what its clients need."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = {"SLURM_CONF": str(folder / "slurm.conf")}

    def ask(self, *command: str, check: bool = True) -> str:
        """What a client of Slurm prints; it is given ten seconds."""
        done = subprocess.run(
            command, env={**os.environ, **self.environment}, capture_output=True, encoding="utf-8",
            timeout=10, check=False,
        )  # fmt: skip
        assert done.returncode == 0 or not check, f"{command}: {done.stderr}"
        return done.stdout.strip()

    def jobs(self) -> list[list[str]]:
        """The tasks in the queue: id, state and node."""
        lines = self.ask("squeue", "--noheader", "--array", "--format", "%i|%T|%N").splitlines()
        return [line.split("|") for line in lines]

    def empty(self, seconds: float = 240) -> None:
        """Wait until the queue is empty."""
        assert wait_for(lambda: not self.jobs(), seconds, every=0.3), self.jobs()


@contextmanager
def running_cluster(*parameters: str, remembers: int = 300) -> Iterator[Cluster]:
    """A Slurm that lives as long as the block.

    Args:
        parameters: further lines of slurm.conf.
        remembers: seconds for which Slurm still knows a job that has ended.
    """
    with TemporaryDirectory(prefix="resvar-slurm-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        cluster = Cluster(folder)
        text = CONF.format(
            host=_host(), folder=folder, ports=_free_ports(3), cores=CORES,
            more="\n".join(parameters), remembers=remembers,
        )  # fmt: skip
        (folder / "slurm.conf").write_text(text, encoding="utf-8")
        parts = {"munge": 0o711, "state": 0o700} | {f"spool-{name}": 0o755 for name in NODES}
        for part, mode in parts.items():
            (folder / part).mkdir(mode=mode)
        try:
            _start(cluster)
            yield cluster
        finally:
            _stop(cluster)


def _start(cluster: Cluster) -> None:
    folder = cluster.folder
    key = folder / "munge" / "key"
    key.write_bytes(os.urandom(128))
    key.chmod(0o600)
    munge = folder / "munge"
    _daemon(
        cluster, "munged", f"--key-file={key}", f"--socket={munge}/socket",
        f"--pid-file={folder}/munged.pid", f"--log-file={munge}/log", f"--seed-file={munge}/seed",
        "--num-threads=2",
    )  # fmt: skip
    assert wait_for((munge / "socket").exists, 60)
    _daemon(cluster, "slurmctld", "-c", "-f", cluster.environment["SLURM_CONF"])
    for node in NODES:
        _daemon(cluster, "slurmd", "-c", "-f", cluster.environment["SLURM_CONF"], "-N", node)

    def ready() -> bool:
        states = cluster.ask("sinfo", "-h", "-N", "-p", "debug", "-o", "%t", check=False)
        return states.split() == ["idle"] * len(NODES)

    assert wait_for(ready, 30, every=0.1), (folder / "slurmctld.log").read_text(encoding="utf-8")[
        -2000:
    ]


def _stop(cluster: Cluster) -> None:
    """Cancel what is there, then end exactly the daemons that were started, by their ids."""
    cluster.ask("scancel", "--user=root", check=False)
    cluster.ask("scancel", "--signal=KILL", "--user=root", check=False)
    wait_for(lambda: not cluster.ask("squeue", "-h", check=False), 20, every=0.2)
    for path in sorted(cluster.folder.glob("*.pid"), key=lambda path: path.name == "munged.pid"):
        pid = int(path.read_text(encoding="utf-8"))
        for number in (signal.SIGTERM, signal.SIGKILL):
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                break
            if wait_for(lambda pid=pid: not _lives(pid), 60):
                break


def _daemon(cluster: Cluster, program: str, *arguments: str) -> None:
    """Start one that goes to the background by itself."""
    with (cluster.folder / f"{program}.out").open("ab") as out:
        subprocess.run(
            [str(_found(program)), *arguments], env={**os.environ, **cluster.environment},
            stdin=subprocess.DEVNULL, stdout=out, stderr=out, timeout=30, check=True,
        )  # fmt: skip


def _found(program: str) -> str | None:
    return shutil.which(program) or shutil.which(program, path=SBIN)


def _lives(pid: int) -> bool:
    try:
        return " Z " not in Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
    except OSError:
        return False


def _host() -> str:
    return socket.gethostname().partition(".")[0]


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports
