"""Child processes that never outlive their parent, not even one killed with SIGKILL.

`spawn` puts a guard between parent and command: a process that leads a new process group, starts the command
in it and ends the whole group when the parent is gone. The guard watches its parent's id, which works
whichever thread started it and whatever the parent forked since (PR_SET_PDEATHSIG and pipes do not). Where another
process is to be its owner, the guard watches that one, by id and start. Run as
`python -m r1mega.runtime.process [--pass-signals] PARENT_PID COMMAND...`, or with PID:START of an owner in place of
PARENT_PID; imports the standard library alone.
"""

import contextlib
import ctypes
import errno
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import NamedTuple, Protocol

PORTS = range(10000, 20000)
"""Where a free port is looked for."""
PORTS_GIVEN_AWAY = Path("/proc/sys/net/ipv4/ip_local_port_range")
"""Lowest and highest port that the kernel hands to outgoing connections and to whoever asks for any."""
POLL_S = 0.25
GRACE_S = 5.0
"""What a group gets between SIGTERM and SIGKILL once its command or its parent is gone."""
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
"""What asks a run to save and leave: a user, a scheduler, and Slurm before a time limit."""
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36
_PASS_SIGNALS = "--pass-signals"


class Identity(NamedTuple):
    """A process that no later one of the same number is taken for."""

    pid: int
    started: int
    """In clock ticks since the machine's start."""

    @classmethod
    def of(cls, pid: int) -> "Identity | None":
        """None where no such process runs; one that has ended and was not waited for does not."""
        try:
            line = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
        except (FileNotFoundError, ProcessLookupError):
            return None
        # Its name stands in parentheses before, and may hold anything.
        state, *fields = line.rpartition(")")[2].split()
        return None if state in "ZX" else cls(pid, int(fields[18]))

    def runs(self) -> bool:
        return Identity.of(self.pid) == self


class Spawned(Protocol):
    """What leads a group that `spawn` started: the process that it returned, or `Adopted`."""

    @property
    def pid(self) -> int: ...

    @property
    def returncode(self) -> int | None: ...

    def poll(self) -> int | None: ...

    def wait(self, timeout: float | None = None) -> int: ...


class Adopted:
    """The guard of a group that another process spawned, which may be gone; as `subprocess.Popen` of a child."""

    def __init__(self, identity: Identity) -> None:
        self._identity, self.pid = identity, identity.pid

    @property
    def returncode(self) -> int | None:
        """1 once it has ended: how is its parent's to know."""
        return None if self._identity.runs() else 1

    def poll(self) -> int | None:
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Raises subprocess.TimeoutExpired."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while (code := self.poll()) is None:
            if deadline is not None and time.monotonic() > deadline:
                raise subprocess.TimeoutExpired([str(self.pid)], timeout or 0.0)
            time.sleep(0.02)
        return code


def settle_signals() -> None:
    """Undo what this process has inherited about signals and cannot work with. For the start of a program.

    SIGCHLD ignored: the kernel then throws away how children end, and each seems to end with 0. SIGTERM and SIGUSR1
    ignored, or STOP_SIGNALS blocked: a run could not be asked to save and leave. What a shell ignores on purpose
    stays ignored, in children as well: SIGHUP (nohup: the run goes on when its terminal goes away; without nohup it
    ends, and --resume continues it) and SIGINT (a script's background job, which a Ctrl-C is not meant for).
    """
    for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGUSR1):
        if signal.getsignal(number) == signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGCHLD, *STOP_SIGNALS})


def heeded_stop_signals() -> list[signal.Signals]:
    """Those of STOP_SIGNALS that a handler may be set for: all that are not ignored, see `settle_signals`."""
    return [number for number in STOP_SIGNALS if signal.getsignal(number) != signal.SIG_IGN]


def child_environment(**extra: str) -> dict[str, str]:
    """This process's environment for a child, with `extra` set.

    PYTHONDONTWRITEBYTECODE is dropped: without .pyc files each process of a server compiles everything again,
    which doubles its start. Torchrun's rendezvous is dropped too: the child is no rank of the trainer,
    and the interfaces that this one has chosen: it may run on another host.
    """
    ours = ("PYTHONDONTWRITEBYTECODE", "MASTER_ADDR", "MASTER_PORT", "RANK", "WORLD_SIZE")
    ours += ("R1MEGA_SET", *os.environ.get("R1MEGA_SET", "").split())  # as env.use_interface says
    prefixes = ("LOCAL_RANK", "LOCAL_WORLD_SIZE", "TORCHELASTIC_", "GROUP_")
    keep = {k: v for k, v in os.environ.items() if k not in ours and not k.startswith(prefixes)}
    return keep | extra


def free_port(host: str = "127.0.0.1", ports: Sequence[int] = PORTS) -> int:
    """A TCP port nobody listens on at this moment, where possible none of PORTS_GIVEN_AWAY.

    One of those may be taken by anybody in the seconds until its user listens.

    Raises:
        OSError: none of `ports` can be listened on at `host`.
    """
    given_away = _ports_given_away()
    kept = [port for port in ports if port not in given_away]
    others = [port for port in ports if port in given_away]
    for some in (kept, others):
        for port in random.SystemRandom().sample(some, min(len(some), 100)):
            if port_is_free(port, host):
                return port
    raise OSError(errno.EADDRINUSE, f"no port from {ports[0]} to {ports[-1]} of {host} can be listened on")


def _ports_given_away() -> range:
    try:
        lowest, highest = map(int, PORTS_GIVEN_AWAY.read_text().split())
    except (OSError, ValueError):  # not said here
        return range(0)
    return range(lowest, highest + 1)


def port_is_free(port: int, host: str = "127.0.0.1") -> bool:
    """Whether a server could listen on this port now."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as servers do: TIME_WAIT is no owner
        try:
            probe.bind((host, port))
        except OSError:
            return False
        return True


def spawn(
    command: Sequence[str],
    *,
    environment: Mapping[str, str],
    log_file: Path | None,
    pass_signals: bool = False,
    talk: bool = False,
    owner: Identity | None = None,
) -> subprocess.Popen[bytes]:
    """Start a command under a guard; the pid is its process group's id, and the exit code the command's.

    Args:
        log_file: its output is appended there; None: the command writes where this process writes.
        pass_signals: the guard hands each of STOP_SIGNALS that it gets to the command, and to nothing else of the
            group: `send_signal` then reaches the command as if it had been started without a guard.
        talk: its stdin and stdout are pipes, unbuffered, and only what it writes on stderr goes to `log_file`.
        owner: who the command ends with, in place of this process, which may leave before.
    """
    flags = [_PASS_SIGNALS] if pass_signals else []
    watched = f"{owner.pid}:{owner.started}" if owner else str(os.getpid())
    with contextlib.ExitStack() as stack:
        log = None
        if log_file is not None:
            log_file.parent.mkdir(parents=True, exist_ok=True)
            log = stack.enter_context(log_file.open("ab"))
        return subprocess.Popen(
            [sys.executable, "-m", "r1mega.runtime.process", *flags, watched, *command],
            env=dict(environment),
            stdin=subprocess.PIPE if talk else subprocess.DEVNULL,
            stdout=subprocess.PIPE if talk else log,
            stderr=log,
            bufsize=0,
            start_new_session=True,  # a group of its own: Ctrl-C reaches the parent, which stops the child in order
        )


def die_with_parent(parent: int) -> None:
    """Let the kernel kill this process when the one that started it is gone. For workers of the main thread.

    Args:
        parent: its id as it knew itself, so that one which is gone already is noticed.
    """
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def stop_group(process: Spawned, *, grace_s: float) -> None:
    """End a group that `spawn` started: SIGTERM, up to `grace_s` seconds, then SIGKILL for what is left of it."""
    _signal_group(process.pid, signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(timeout=grace_s)  # the guard ends after the last of its group
    _signal_group(process.pid, signal.SIGKILL)
    process.wait()


def _signal_group(group: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)


def _prctl(option: int, value: int) -> None:
    ctypes.CDLL(None).prctl(option, value)


def _guard(parent: int | Identity, command: Sequence[str], *, pass_signals: bool) -> int:
    """Run `command` until it ends or `parent` is gone, then end what it left; the exit code is the command's.

    Args:
        parent: by its number, of which the kernel says when it is gone; or any process, which is looked for.
    """
    settle_signals()
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)  # orphans of the command become children of the guard
    child: subprocess.Popen[bytes] | None = None
    early: list[int] = []

    def handle(signum: int, frame: FrameType | None) -> None:
        if child is None:
            early.append(signum)
        elif pass_signals:
            child.send_signal(signum)

    for number in STOP_SIGNALS:
        if pass_signals or number != signal.SIGTERM:
            signal.signal(number, handle)
    # Until the command runs, the group's SIGTERM ends both: a handler that it inherits would lose it to the exec.
    # One thread here, so preexec_fn is safe.
    child = subprocess.Popen(command, preexec_fn=lambda: _prctl(_PR_SET_PDEATHSIG, signal.SIGTERM))
    signal.signal(signal.SIGTERM, handle)  # it reaches the command by itself, and the guard waits
    for signum in early:
        handle(signum, None)
    code = None
    while code is None and (os.getppid() == parent if isinstance(parent, int) else parent.runs()):
        with contextlib.suppress(subprocess.TimeoutExpired):
            code = child.wait(timeout=POLL_S)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    _signal_group(os.getpgrp(), signal.SIGTERM)
    if not _group_ended(time.monotonic() + GRACE_S):
        _signal_group(os.getpgrp(), signal.SIGKILL)  # the guard as well
    return 1 if code is None else code if code >= 0 else 128 - code


def _group_ended(deadline: float) -> bool:
    """Reap the group's children until there are none; False if some still run at the deadline.

    A child in a group of its own is not waited for: it is another guard, which ends by itself.
    """
    while time.monotonic() < deadline:
        try:
            pid, _ = os.waitpid(-os.getpgrp(), os.WNOHANG)
        except ChildProcessError:
            return True
        if pid == 0:
            time.sleep(0.02)
    return False


if __name__ == "__main__":
    _arguments = sys.argv[1:]
    _passing = _arguments[0] == _PASS_SIGNALS
    _watched, *_command = _arguments[_passing:]
    _pid, _, _started = _watched.partition(":")
    _parent = Identity(int(_pid), int(_started)) if _started else int(_pid)
    sys.exit(_guard(_parent, _command, pass_signals=_passing))
