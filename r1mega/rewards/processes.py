"""A pool's ends of its processes: the nursery that it starts, and the workers that this forks for it."""

import contextlib
import json
import os
import pickle
import socket
import subprocess
import sys
import threading
import weakref
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection
from typing import Any

from r1mega.rewards.worker import Call, Done, Limits, Loads
from r1mega.runtime.process import child_environment

START_S = 600.0
"""Until a nursery answers: its imports, on a busy machine."""
END_S = 2.0
"""Until a nursery that was told to end is killed: in its imports it hears nothing."""
TASKS_PER_WORKER = 5_000
"""Then it is replaced: what its libraries keep in caches stays bounded."""


class WorkerLost(Exception):
    """A worker that hung, died or could not be started."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Worker:
    """One worker process, by its connection."""

    def __init__(self, nursery: "Nursery", pid: int, connection: Connection, memory_mib: int) -> None:
        self.connection = connection
        self.memory_mib = memory_mib
        """What a task may use at most here, whatever it asks for."""
        self._nursery, self._pid = nursery, pid
        self._done = 0

    @property
    def spent(self) -> bool:
        return self._done >= TASKS_PER_WORKER

    def results(self, calls: Sequence[Call]) -> Iterator[Done]:
        """The result of each call, in order, as it comes. Raises WorkerLost where one does not."""
        try:
            packed = pickle.dumps(list(calls))
        except Exception as error:
            for _ in calls:
                yield Done(None, "raised", f"a task cannot be sent: {type(error).__name__}: {error}"[:500])
            return
        try:
            self.connection.send_bytes(packed)
            for _, _, limits in calls:
                if not self.connection.poll(limits.wall_s):
                    raise WorkerLost(f"took more than {limits.wall_s:g} s")
                self._done += 1
                yield pickle.loads(self.connection.recv_bytes())
        except (OSError, EOFError) as error:
            raise WorkerLost("ended its worker") from error

    def kill(self) -> None:
        self.connection.close()
        self._nursery.kill(self._pid)


class Nursery:
    """The process that has imported what rules need, and forks workers."""

    def __init__(self, preloaded: tuple[str, ...], loads: Loads = ()) -> None:
        packed = pickle.dumps(list(loads))
        ours, theirs = socket.socketpair()
        call = f"nursery({theirs.fileno()}, {os.getpid()}, {json.dumps(sys.path)!r}, {preloaded!r})"
        command = [sys.executable, "-c", f"from r1mega.rewards.worker import nursery; {call}"]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, pass_fds=[theirs.fileno()],
            start_new_session=True, env=child_environment(),
        )  # fmt: skip
        theirs.close()
        assert self._process.stdin is not None
        with contextlib.suppress(OSError), self._process.stdin as stdin:  # where it has died, `start` says so
            stdin.write(packed)
        ours.settimeout(START_S)
        self._socket = ours
        self._lock = threading.Lock()
        self.alive = True
        self._finalizer = weakref.finalize(self, _end, ours, self._process, os.getpid())

    def start(self, limits: Limits) -> Worker:
        """A new worker. Raises WorkerLost where none comes."""
        ours, theirs = socket.socketpair()
        try:
            pid = self._ask({"do": "start", "limits": limits}, [theirs.fileno()])
        except OSError as error:
            ours.close()
            self.close()
            raise WorkerLost(f"no process can be started for rewards: {error or type(error).__name__}") from error
        finally:
            theirs.close()
        return Worker(self, pid, Connection(ours.detach()), limits.memory_mib)

    def kill(self, pid: int) -> None:
        try:
            self._ask({"do": "kill", "pid": pid}, [])
        except OSError:
            self.close()

    def _ask(self, message: dict[str, Any], fds: list[int]) -> int:
        with self._lock:
            socket.send_fds(self._socket, [pickle.dumps(message)], fds)
            answer = self._socket.recv(8)
        if len(answer) != 8:
            raise ConnectionError("the process that starts workers has ended")
        return int.from_bytes(answer, "little")

    def close(self) -> None:
        self.alive = False
        self._finalizer()


def _end(control: socket.socket, process: "subprocess.Popen[bytes]", owner: int) -> None:
    """The nursery sees its connection closed, and takes its workers with it; so do they when it is killed."""
    control.close()
    if os.getpid() == owner:
        try:
            process.wait(timeout=END_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
