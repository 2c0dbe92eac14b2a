"""Child processes that never outlive their parent, not even one killed with SIGKILL.

`spawn` puts a guard between parent and command: a process that leads a new process group, starts the command
in it and ends the whole group when the parent is gone. The guard watches its parent's id, which works
whichever thread started it and whatever the parent forked since (PR_SET_PDEATHSIG and pipes do not). Run as
`python -m r1mega.runtime.process PARENT_PID COMMAND...`; imports the standard library alone.
"""

import contextlib
import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

POLL_S = 0.25
GRACE_S = 5.0
"""What a group gets between SIGTERM and SIGKILL once its command or its parent is gone."""
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36


def child_environment(**extra: str) -> dict[str, str]:
    """This process's environment for a child, with `extra` set.

    PYTHONDONTWRITEBYTECODE is dropped: without .pyc files each process of a server compiles everything again,
    which doubles its start. Torchrun's rendezvous is dropped too: the child is no rank of the trainer.
    """
    ours = ("PYTHONDONTWRITEBYTECODE", "MASTER_ADDR", "MASTER_PORT", "RANK", "WORLD_SIZE", "LOCAL_RANK")
    keep = {k: v for k, v in os.environ.items() if k not in ours and not k.startswith(("TORCHELASTIC_", "GROUP_"))}
    return keep | extra


def free_port(host: str = "127.0.0.1") -> int:
    """A TCP port nobody listens on at this moment."""
    with socket.socket() as probe:
        probe.bind((host, 0))
        return probe.getsockname()[1]


def port_is_free(port: int, host: str = "127.0.0.1") -> bool:
    """Whether a server could listen on this port now."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as servers do: TIME_WAIT is no owner
        try:
            probe.bind((host, port))
        except OSError:
            return False
        return True


def spawn(command: Sequence[str], *, environment: Mapping[str, str], log_file: Path) -> subprocess.Popen[bytes]:
    """Start a command under a guard, output appended to `log_file`; its pid is its process group's id."""
    log_file.parent.mkdir(parents=True, exist_ok=True)
    with log_file.open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "r1mega.runtime.process", str(os.getpid()), *command],
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # a group of its own: Ctrl-C reaches the parent, which stops the child in order
        )


def stop_group(process: subprocess.Popen[bytes], *, grace_s: float) -> None:
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


def _guard(parent: int, command: Sequence[str]) -> int:
    """Run `command` until it ends or `parent` is gone, then end what it left; the exit code is the command's."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)  # orphans of the command become children of the guard
    signal.signal(signal.SIGTERM, lambda *_: None)  # the group's SIGTERM is for the command; the guard waits
    # One thread here, so preexec_fn is safe.
    child = subprocess.Popen(command, preexec_fn=lambda: _prctl(_PR_SET_PDEATHSIG, signal.SIGTERM))
    code = None
    while code is None and os.getppid() == parent:
        with contextlib.suppress(subprocess.TimeoutExpired):
            code = child.wait(timeout=POLL_S)
    _signal_group(os.getpgrp(), signal.SIGTERM)
    if not _all_ended(time.monotonic() + GRACE_S):
        _signal_group(os.getpgrp(), signal.SIGKILL)  # the guard as well
    return 1 if code is None else code if code >= 0 else 128 - code


def _all_ended(deadline: float) -> bool:
    """Reap children until there are none; False if some still run at the deadline."""
    while time.monotonic() < deadline:
        try:
            pid, _ = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return True
        if pid == 0:
            time.sleep(0.02)
    return False


if __name__ == "__main__":
    sys.exit(_guard(int(sys.argv[1]), sys.argv[2:]))
