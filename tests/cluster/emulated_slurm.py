"""A real Slurm on this machine: one controller, and compute nodes that all are this host under names of their own.

Node k listens on 127.0.0.(k + 1), so an address says which node is meant. The partitions share the nodes: a job in
`high` takes them from one in `batch` or, with little grace or none, `short` or `brief`, which is requeued. The waits
that a production cluster makes (a requeued job sits out the lifetime of its credential, two minutes) are cut short.
"""

import contextlib
import getpass
import os
import shutil
import signal
import socket
import stat
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from r1mega.runtime import process

PROGRAMS = ("slurmctld", "slurmd", "sbatch", "srun", "scontrol", "scancel")
CPUS = GPUS = 8
"""Of each node. Behind the GPUs' device files there is nothing: Slurm counts them and hands them out all the same."""
FREEZER = Path("/sys/fs/cgroup/freezer")
T = TypeVar("T")

CONF = """
ClusterName=r1mega
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/none
# A requeued job starts no sooner than its old credential expires; 5 s is the least that Slurm takes.
AuthInfo=cred_expire=5
CredType=cred/none
MailProg=/bin/true
ProctrackType=proctrack/{proctrack}
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_min_interval=0,sched_interval=1,bf_interval=1
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
ReturnToService=2
KillWait=5
MinJobAge=3600
GresTypes=gpu
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmctldLogFile={folder}/log/slurmctld.log
SlurmdLogFile={folder}/log/slurmd.%n.log
PartitionName=batch Nodes=ALL Default=YES MaxTime=INFINITE State=UP PriorityTier=1 GraceTime={grace_s}
PartitionName=brief Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=1 GraceTime=0
PartitionName=short Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=1 GraceTime=3
PartitionName=high Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=10 PreemptMode=OFF
"""


def missing() -> list[str]:
    """Programs of Slurm that are not installed here."""
    return [name for name in PROGRAMS if shutil.which(name) is None]


def wait_until(what: str, ask: Callable[[], T | None], timeout_s: float, every_s: float = 0.1) -> T:
    """The first true answer of `ask`; fails naming `what` when there is none in time."""
    deadline = time.monotonic() + timeout_s
    while not (answer := ask()):
        assert time.monotonic() < deadline, f"{what}: not within {timeout_s:g} s"
        time.sleep(every_s)
    return answer


def _free_ports(number: int) -> list[int]:
    """Free ports below those that the kernel gives to outgoing connections, which could take them meanwhile."""
    first = 10_000 + 20 * (os.getpid() % 1000)
    return [port for port in range(first, first + 1000) if process.port_is_free(port, "0.0.0.0")][:number]


class Slurm:
    """A running cluster; `environment` lets Slurm's commands find it.

    Args:
        folder: of this cluster's configuration, state and logs.
        num_nodes: their names are the keys of `nodes`, their addresses the values.
        grace_s: what a job in `batch` gets between the notice of its preemption and its end.
    """

    def __init__(self, folder: Path, num_nodes: int = 2, *, grace_s: int = 60) -> None:
        self.folder = folder
        # Their control groups are the host's: another cluster beside this one must have other names.
        self.nodes = {f"test{os.getpid()}n{k}": f"127.0.0.{k + 1}" for k in range(1, num_nodes + 1)}
        for name in ("state", "log", *(f"spool/{node}" for node in self.nodes)):
            (folder / name).mkdir(parents=True)
        host, conf = socket.gethostname().partition(".")[0], folder / "slurm.conf"
        port, *ports = _free_ports(1 + num_nodes)
        lines = [
            f"NodeName={node} NodeHostname={host} NodeAddr={address} Port={own} CPUs={CPUS} RealMemory=8000 "
            f"Gres=gpu:{GPUS} State=UNKNOWN"
            for (node, address), own in zip(self.nodes.items(), ports, strict=True)
        ]
        # As production clusters do where this host lets us: signals then reach a step's tasks alone. Without control
        # groups they reach all that the tasks have started, too.
        self.proctrack = "cgroup" if os.access(FREEZER / "tasks", os.W_OK) else "linuxproc"
        settings = {"host": host, "port": port, "user": getpass.getuser(), "grace_s": grace_s}
        settings["proctrack"] = self.proctrack
        self._conf = conf
        conf.write_text("\n".join([CONF.format(folder=folder, **settings), *lines]) + "\n")
        for k in range(GPUS):
            os.mknod(folder / f"gpu{k}", 0o600 | stat.S_IFCHR, os.makedev(1, 3))
        gres = (f"NodeName={node} Name=gpu File={folder}/gpu[0-{GPUS - 1}]" for node in self.nodes)
        (folder / "gres.conf").write_text("\n".join(gres) + "\n")
        (folder / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\nCgroupAutomount=no\n")
        self.environment = process.child_environment(SLURM_CONF=str(conf))
        # Under guards: whatever becomes of the tests, the daemons go.
        commands = [["slurmctld", "-D"], *(["slurmd", "-D", "-N", node] for node in self.nodes)]
        self._daemons = [
            process.spawn(command, environment=self.environment, log_file=folder / "log/daemons.log")
            for command in commands
        ]

    @contextlib.contextmanager
    def configured(self, line: str) -> Iterator[None]:
        """Run the controller with one more line of slurm.conf."""
        before = self._conf.read_text()
        self._reconfigure(f"{before}{line}\n")
        try:
            yield
        finally:
            self._reconfigure(before)

    def _reconfigure(self, text: str) -> None:
        self._conf.write_text(text)
        self.ask("scontrol", "reconfigure")

    def wait_ready(self) -> None:
        ask = ("sinfo", "--noheader", "--Node", "--partition=batch", "--format=%t")
        want = ["idle"] * len(self.nodes)
        wait_until(f"nodes idle (see {self.folder}/log)", lambda: self.ask(*ask, check=False).split() == want, 200)

    def stop(self) -> None:
        # Killed first: a job told to stop would have its say, and might come back.
        for how in (["--full", "--signal=KILL"], []):
            self.ask("scancel", *how, "--user", getpass.getuser(), check=False)
        try:
            wait_until("all jobs ended", lambda: not self.ask("squeue", "--noheader", check=False).strip(), 300)
        finally:
            for daemon in self._daemons:
                process.stop_group(daemon, grace_s=5)
            for pid in self.processes():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            for node in self.nodes:
                for group in sorted(FREEZER.glob(f"slurm_{node}/**/"), reverse=True):
                    with contextlib.suppress(OSError):
                        group.rmdir()

    def processes(self, job: int | None = None) -> dict[int, tuple[str, str]]:
        """What runs on this cluster, or for one job of it: {process id: (node, command line)}."""
        found: dict[int, tuple[str, str]] = {}
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                words = (folder / "environ").read_text(errors="replace").split("\0")
                command = (folder / "cmdline").read_text(errors="replace").replace("\0", " ").strip()
            except OSError:  # it ended meanwhile, or is another user's
                continue
            variables = dict(word.split("=", 1) for word in words if "=" in word)
            ours = variables.get("SLURM_CONF") == self.environment["SLURM_CONF"]
            if ours and int(folder.name) != os.getpid() and job in (None, int(variables.get("SLURM_JOB_ID", "0"))):
                found[int(folder.name)] = (variables.get("SLURMD_NODENAME", ""), command)
        return found

    def ask(self, *command: str, check: bool = True, cwd: Path | None = None) -> str:
        """What one of Slurm's commands prints."""
        done = subprocess.run(command, env=self.environment, cwd=cwd, capture_output=True, text=True)
        assert not check or done.returncode == 0, f"{' '.join(command)}: {done.stderr}"
        return done.stdout

    def submit(self, *arguments: str | Path, cwd: Path) -> int:
        """Number of the job that `sbatch ARGUMENTS` makes."""
        return int(self.ask("sbatch", "--parsable", *map(str, arguments), cwd=cwd))

    def job(self, number: int | str) -> dict[str, str]:
        """What `scontrol show job` says: JobState, ExitCode, Restarts, PreemptTime and the like."""
        words = self.ask("scontrol", "show", "--oneliner", "job", str(number)).split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def wait_for_state(self, number: int | str, *states: str, timeout_s: float) -> dict[str, str]:
        def reached() -> dict[str, str] | None:
            job = self.job(number)
            return job if job["JobState"] in states else None

        return wait_until(f"job {number} {' or '.join(states)}", reached, timeout_s)


def ended(slurm: Slurm, job: int | str, state: str, folder: Path) -> tuple[dict[str, str], str]:
    """The job once it has ended in `state`, and what it has printed; N_M is task M of the array N."""
    said = slurm.wait_for_state(job, "COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", timeout_s=600)
    output = (folder / f"slurm-{job}.out").read_text()
    assert said["JobState"] == state, output
    return said, output
