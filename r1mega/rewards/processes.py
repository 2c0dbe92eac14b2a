"""A pool's ends of its processes: the nursery that it starts, and the workers that this forks for it."""

import json
import os
import pickle
import socket
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection
from typing import Any

from r1mega.rewards.worker import Done, Limits
from r1mega.runtime.process import child_environment

START_S = 600.0
"""Until a nursery answers: its imports, on a busy machine."""
TASKS_PER_WORKER = 5_000
"""Then it is replaced: what its libraries keep in caches stays bounded."""

Call = tuple[Callable[..., Any], tuple[Any, ...]]
"""A function and its arguments. Both have to pickle; the function by its name."""


class WorkerLost(Exception):
    """A worker that hung, died or could not be started."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Worker:
    """One worker process, by its connection."""

    def __init__(self, nursery: "Nursery", pid: int, connection: Connection, limits: Limits) -> None:
        self.connection = connection
        self._nursery, self._pid, self._limits = nursery, pid, limits
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
            for _ in calls:
                if not self.connection.poll(self._limits.wall_s):
                    raise WorkerLost(f"took more than {self._limits.wall_s:g} s")
                self._done += 1
                yield pickle.loads(self.connection.recv_bytes())
        except (OSError, EOFError) as error:
            raise WorkerLost("ended its worker") from error

    def kill(self) -> None:
        self.connection.close()
        self._nursery.kill(self._pid)


class Nursery:
    """The process that has imported what rules need, and forks workers."""

    def __init__(self, preloaded: tuple[str, ...]) -> None:
        ours, theirs = socket.socketpair()
        call = f"nursery({theirs.fileno()}, {os.getpid()}, {json.dumps(sys.path)!r}, {preloaded!r})"
        command = [sys.executable, "-c", f"from r1mega.rewards.worker import nursery; {call}"]
        self._process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, pass_fds=[theirs.fileno()],
            start_new_session=True, env=child_environment(),
        )  # fmt: skip
        theirs.close()
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
        return Worker(self, pid, Connection(ours.detach()), limits)

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
    """The nursery sees its connection closed, and takes its workers with it."""
    control.close()
    if os.getpid() == owner:
        try:
            process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
