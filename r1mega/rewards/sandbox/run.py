"""Start a program in its sandbox, read what it prints, end it where it goes beyond its bounds.

Who ends what: the program is a descendant of the sandbox's first process, with whose end the kernel ends the whole
pid namespace. `_Running.end` ends that process and waits until it is gone, however the program ended, so that when
`run` returns no process of it is left; its mounts and sockets go with the namespaces.
"""

import contextlib
import fcntl
import json
import os
import selectors
import signal
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from r1mega.errors import RewardError
from r1mega.rewards.sandbox import filter as system_calls
from r1mega.rewards.sandbox import tree
from r1mega.rewards.sandbox.bounds import MAX_INODES, SHM_MIB, Bounds
from r1mega.rewards.sandbox.command import command
from r1mega.rewards.sandbox.machine import tools
from r1mega.rewards.sandbox.slots import uid_of

LOOK_S = 0.02
GAP_S = 1.0
"""Between two looks, planned `LOOK_S` apart, from which on it counts as a standstill."""
MOST_WALLS = 6
"""Times `wall_s` after which a program ends that has waited for a core for most of it."""
START_S = 60.0
"""Until a sandbox stands, on a busy machine."""
MAX_ERRORS_BYTES = 64 * 2**10
"""Kept of standard error, its end; it counts towards what may be printed."""

End = Literal["exit", "signal", "cpu", "wall", "memory", "output", "files", "stopped", "lost"]


@dataclass(frozen=True)
class Ran:
    """How a run ended. lost: the sandbox never stood, or ended before the program."""

    end: End
    code: int = 0
    """Of `exit` its exit code, of `signal` the signal's number."""
    output: bytes = b""
    errors: bytes = b""
    """The end of standard error; where the sandbox was lost, what it said itself."""
    wall_s: float = 0.0
    """Without what it waited for a core, as of the last look."""
    cpu_s: float = 0.0
    """As of the last look; 0 for a short program."""


def run(
    argv: Sequence[str], files: Mapping[str, bytes], stdin: bytes, bounds: Bounds, slot: int,
    stop: threading.Event | None = None,
) -> Ran:  # fmt: skip
    """Run a program and wait for its end.

    Args:
        argv: its command line, as it is inside.
        files: name -> content: what it finds in /code, to read and to start.
        stdin: what it reads.
        slot: the held slot's number.
        stop: set, it ends the program.

    Raises:
        RewardError: no sandbox can be had on this machine, or none could be started.
    """
    try:
        with contextlib.ExitStack() as open_fds:
            running = _started(argv, files, stdin, bounds, slot, open_fds)
    except OSError as error:
        raise RewardError(f"no sandbox can be started: {error}") from error
    try:
        return running.watch(stop)
    finally:
        running.end()


def _started(
    argv: Sequence[str], files: Mapping[str, bytes], stdin: bytes, bounds: Bounds, slot: int,
    open_fds: contextlib.ExitStack,
) -> "_Running":  # fmt: skip
    def closed_after(fd: int) -> int:
        open_fds.callback(os.close, fd)
        return fd

    uid = uid_of(slot)
    given = {name: closed_after(_sealed(content)) for name, content in files.items()}
    filter_fd = closed_after(_sealed(system_calls.program()))
    reading = closed_after(_sealed(stdin))
    ends = [os.pipe() for _ in range(3)]
    for _, write in ends:
        closed_after(write)
    output, errors, status = ends
    if uid is not None:
        for _, write in (output, errors):
            os.fchown(write, uid, uid)  # or /dev/stdout could not be opened
    try:
        process = subprocess.Popen(
            command(tools(), argv, given, bounds, uid, filter_fd, status[1]),
            env={}, cwd="/", stdin=reading, stdout=output[1], stderr=errors[1], start_new_session=True,
            pass_fds=(*given.values(), filter_fd, status[1]),
        )  # fmt: skip
    except BaseException:
        for read, _ in ends:
            os.close(read)
        raise
    return _Running(process, output[0], errors[0], status[0], bounds)


def _sealed(content: bytes) -> int:
    """A file in memory that nobody can write any more, open at its beginning."""
    fd = os.memfd_create("", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        left = memoryview(content)
        while left:
            left = left[os.write(fd, left) :]
        os.lseek(fd, 0, os.SEEK_SET)
        fcntl.fcntl(
            fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL
        )
        reading = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        os.close(fd)
    return reading


class _Running:
    """A sandbox from its start to its end."""

    def __init__(
        self, process: "subprocess.Popen[bytes]", output: int, errors: int, status: int, bounds: Bounds
    ) -> None:
        self._process, self._bounds = process, bounds
        self._read: dict[int, bytearray] = {output: bytearray(), errors: bytearray(), status: bytearray()}
        self._output, self._errors, self._status = output, errors, status
        self._open = set(self._read)
        self._printed = 0
        self._began = self._looked = time.monotonic()
        self._first = 0
        """The sandbox's first process, as this process sees it; 0 until it is told."""
        self._first_fd = -1
        self._stands = False
        """Whether the program has been started within."""
        self._exit_code: int | None = None
        """Of the program, as bubblewrap gives it; None while it runs, and where it never started."""
        self._cpu_s, self._waited_s = 0.0, 0.0
        for fd in self._read:
            os.set_blocking(fd, False)

    def watch(self, stop: threading.Event | None) -> Ran:
        """Read and look until the program has ended or has to be ended."""
        end: End | None = None
        next_look = time.monotonic() + LOOK_S
        with selectors.DefaultSelector() as selector:
            for fd in self._read:
                selector.register(fd, selectors.EVENT_READ)
            while end is None and self._status in self._open and self._exit_code is None:
                for key, _ in selector.select(max(0.0, next_look - time.monotonic())):
                    if not self._take(key.fd):
                        selector.unregister(key.fd)
                if self._printed > self._bounds.output_bytes:
                    end = "output"
                elif time.monotonic() >= next_look:
                    end = "stopped" if stop is not None and stop.is_set() else self._look()
                    next_look = time.monotonic() + LOOK_S
        wall_s = max(0.0, time.monotonic() - self._began - self._waited_s)
        self._kill()
        self._drain()
        if end is None and self._printed > self._bounds.output_bytes:
            end = "output"
        return self._ran(end, wall_s)

    def _take(self, fd: int) -> bool:
        """Read what is there; False at the end of it."""
        try:
            block = os.read(fd, 1 << 16)
        except BlockingIOError:
            return True
        if not block:
            self._open.discard(fd)
            return False
        self._read[fd] += block
        if fd == self._status:
            self._meet()
            return True
        self._printed += len(block)
        if fd == self._errors and len(self._read[fd]) > 2 * MAX_ERRORS_BYTES:
            del self._read[fd][:-MAX_ERRORS_BYTES]
        return True

    def _meet(self) -> None:
        """Learn which the first process is, and later how the program ended. The program cannot reach this pipe."""
        for line in bytes(self._read[self._status]).splitlines():
            try:
                said = json.loads(line)
            except ValueError:
                continue  # half of it
            self._exit_code = said.get("exit-code", self._exit_code)
            if not self._first and "child-pid" in said:
                self._first = said["child-pid"]
                with contextlib.suppress(ProcessLookupError):
                    self._first_fd = os.pidfd_open(self._first)  # at once, while the number is its own

    def _look(self) -> End | None:
        """Whether the program has used too much."""
        now = time.monotonic()
        if now - self._looked > GAP_S:
            self._began += now - self._looked  # this process, and so the machine, stood still: that counts for nobody
        self._looked = now
        elapsed = time.monotonic() - self._began
        if not self._stands:
            self._stands = bool(self._first) and any(pid != self._first for pid in tree.processes(self._first))
            if self._stands:
                self._began = time.monotonic()  # on a busy machine namespaces take their time, which is not its
            return "lost" if elapsed > START_S else None
        self._cpu_s = tree.cpu_seconds(self._first)
        self._waited_s = max(self._waited_s, tree.waited_seconds(self._first))  # it may have ended, and waits no more
        if self._cpu_s > self._bounds.cpu_s + 1:
            return "cpu"  # of all processes together
        if elapsed - self._waited_s > self._bounds.wall_s or elapsed > MOST_WALLS * self._bounds.wall_s:
            return "wall"
        limit = self._bounds.memory_mib * 2**20
        if tree.memory_bytes(self._first, limit) > limit:
            return "memory"
        sizes = {"/tmp": self._bounds.scratch_mib, "/dev/shm": SHM_MIB}
        if any(tree.inodes(self._first, folder, mib * 2**20) > MAX_INODES for folder, mib in sizes.items()):
            return "files"
        return None

    def _kill(self) -> None:
        """End all processes, and wait until they are gone."""
        if self._first_fd >= 0:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._first_fd, signal.SIGKILL)
            waiting = selectors.DefaultSelector()
            waiting.register(self._first_fd, selectors.EVENT_READ)
            with waiting:
                if not waiting.select(START_S):
                    raise RewardError(f"the processes of a sandbox (first of them {self._first}) do not end")
        elif self._process.poll() is None:
            self._process.kill()
        self._process.wait()

    def _drain(self) -> None:
        """Read what the ended processes have left in the pipes."""
        for fd in list(self._open):
            while self._printed <= self._bounds.output_bytes and self._take(fd) and self._more(fd):
                pass

    def _more(self, fd: int) -> bool:
        with selectors.DefaultSelector() as selector:
            selector.register(fd, selectors.EVENT_READ)
            return bool(selector.select(0))

    def _ran(self, end: End | None, wall_s: float) -> Ran:
        output = bytes(self._read[self._output][: self._bounds.output_bytes])
        errors = bytes(self._read[self._errors][-MAX_ERRORS_BYTES:])
        code = 0
        if end is None and (self._exit_code is None or errors.startswith(b"prlimit: ")):
            end = "lost"
        elif end is None and self._exit_code is not None:
            end, code = _how(self._exit_code)
            if (end, code) == ("signal", signal.SIGKILL) and self._cpu_s >= self._bounds.cpu_s / 2:
                end = "cpu"
        return Ran(end or "lost", code, output, errors, wall_s, self._cpu_s)

    def end(self) -> None:
        """Nothing is left of it, whatever has happened."""
        try:
            self._kill()
        finally:
            for fd in (*self._read, self._first_fd):
                if fd >= 0:
                    os.close(fd)
            self._read, self._first_fd = {}, -1


def _how(code: int) -> tuple[End, int]:
    """bubblewrap gives 128 + n for signal n, as shells do."""
    if code == 128 + signal.SIGXCPU:
        return "cpu", code - 128
    if code == 128 + signal.SIGXFSZ:
        return "files", code - 128
    return ("signal", code - 128) if 128 < code <= 128 + 64 else ("exit", code)
