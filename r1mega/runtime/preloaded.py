"""`r1mega` commands without the seconds of their imports: forked from a process that has imported what they need.

    with Preloaded(["r1mega.stages.sft"], environment) as preloaded:
        child = preloaded.start(["run", CONFIG], environment, Path.cwd(), sys.stdout, sys.stderr)
        code = child.wait()

That process has no thread of its own, has entered no OpenMP region and formed no process group. A command is a child
of it that takes over arguments, working directory, environment, output and the default signals, leads a session of
its own, and goes on as `python -m r1mega.cli` does; what it starts itself (ranks, servers) starts as ever. Both end
with the process that made the object, however that ends: children are asked to leave first, as by `process.spawn`.
Two things are not as after a start of its own: /proc shows this module's command line and environment for a child,
and the hashes of strings are the same in all children.

Run as `python -m r1mega.runtime.preloaded SOCKET MODULE...`.
"""

import contextlib
import ctypes
import gc
import importlib
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Self

from r1mega.runtime import process

PROGRAM = "r1mega.cli"
POLL_S = 0.02
START_S = 600.0
"""Limit of the imports; some ten seconds on an idle machine."""
MAY_DIFFER = ("R1MEGA_", "PYTEST_", "PYTHONPATH", "NO_PROXY", "no_proxy")
"""Names, or beginnings of names, of variables that nothing reads while it is imported."""
_PR_SET_NAME = 15


class PreloadError(Exception):
    """The process cannot be had, or cannot make this child; a start of its own can."""


class Forked:
    """A child of the process that has imported everything, as subprocess.Popen shows its own."""

    def __init__(self, preloaded: "Preloaded", pid: int, arguments: Sequence[str]) -> None:
        self._preloaded, self.pid = preloaded, pid
        self.args = [sys.executable, "-m", PROGRAM, *arguments]
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """As Popen's. A child whose parent is gone is gone with it, by SIGKILL."""
        if self.returncode is None:
            try:
                self._preloaded.listen(0.0)
                self.returncode = self._preloaded.codes.pop(self.pid, None)
            except PreloadError:
                self.returncode = -signal.SIGKILL
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """As Popen's."""
        end = None if timeout is None else time.monotonic() + timeout
        while self.poll() is None:
            if end is not None and time.monotonic() > end:
                raise subprocess.TimeoutExpired(self.args, timeout or 0.0)
            with contextlib.suppress(PreloadError):
                self._preloaded.listen(0.5)
        assert self.returncode is not None
        return self.returncode

    def send_signal(self, number: int) -> None:
        """As Popen's."""
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def kill(self) -> None:
        """As Popen's."""
        self.send_signal(signal.SIGKILL)


class Preloaded:
    """A process that has imported everything, seen from the one that has it start commands."""

    def __init__(self, imports: Sequence[str], environment: Mapping[str, str]) -> None:
        """It imports from now on, and `start` waits for it.

        Args:
            imports: modules, in the order in which a command imports them.
            environment: the process's, with libraries that commands preload.

        Raises:
            PreloadError: it cannot be started.
        """
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115 (closed by `close`)
        self.codes = dict[int, int]()
        """Of the children that have ended and were not yet asked for."""
        self.environment = dict(environment)
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._ready = False
        try:
            with theirs:
                self._process = subprocess.Popen(
                    [sys.executable, "-m", "r1mega.runtime.preloaded", str(theirs.fileno()), *imports],
                    cwd=Path(__file__).parents[2], env=self.environment, stdin=subprocess.DEVNULL,
                    stdout=self._log, stderr=self._log, pass_fds=[theirs.fileno()], start_new_session=True,
                )  # fmt: skip
        except OSError as error:
            raise PreloadError(f"it cannot be started: {error}") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def start(
        self, arguments: Sequence[str], environment: Mapping[str, str], cwd: Path, out: IO[Any], err: IO[Any]
    ) -> Forked:
        """A command that runs.

        Args:
            arguments: of `r1mega`.
            out: gets what it writes on stdout; `err` on stderr.

        Raises:
            PreloadError: the process has ended, or has imported what another environment may have to say about.
        """
        names = environment.keys() | self.environment.keys()
        changed = [name for name in names if environment.get(name) != self.environment.get(name)]
        if late := sorted(name for name in changed if not name.startswith(MAY_DIFFER)):
            raise PreloadError(f"{late} may be read while modules are imported")
        self._socket.settimeout(START_S)
        try:
            if not self._ready:
                self._ready = "ready" in self._receive()
            out.flush()
            err.flush()
            request = {"arguments": list(arguments), "environment": dict(environment), "cwd": str(cwd)}
            socket.send_fds(self._socket, [json.dumps(request).encode()], [out.fileno(), err.fileno()])
            while "started" not in (said := self._receive()):
                self.codes[said["pid"]] = said["code"]
        except OSError as error:
            raise PreloadError(f"it does not answer: {error}; {self._said()}") from error
        return Forked(self, said["started"], arguments)

    def listen(self, seconds: float) -> None:
        """Take what the process says within this time. Raises PreloadError where it has ended."""
        self._socket.settimeout(seconds)
        with contextlib.suppress(TimeoutError, BlockingIOError):
            said = self._receive()
            self.codes[said["pid"]] = said["code"]

    def _receive(self) -> dict[str, Any]:
        try:
            data = self._socket.recv(1 << 16)
        except ConnectionError:
            data = b""
        if not data:
            raise PreloadError(f"it has ended: {self._said()}")
        return json.loads(data)

    def _said(self) -> str:
        """The end of what it has written, which it does last."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(process.GRACE_S)
        self._log.seek(0)
        return self._log.read()[-3000:].strip()

    def close(self) -> None:
        """End it, and the commands that still run."""
        self._socket.close()
        self._process.wait()
        self._log.close()


# ---- the process itself -----------------------------------------------------------------------------------------


def _serve(theirs: socket.socket) -> None:
    """Fork a child for each request; returns in each child alone, when it has become what was asked for."""
    children = set[int]()
    theirs.send(json.dumps({"ready": True}).encode())
    while True:
        for pid, code in _ended(children):
            theirs.send(json.dumps({"pid": pid, "code": code}).encode())
        theirs.settimeout(POLL_S if children else None)
        try:
            data, files, _, _ = socket.recv_fds(theirs, 1 << 20, 2)
        except TimeoutError:
            continue
        except ConnectionError:
            data, files = b"", []
        if not data:  # whoever had it start commands is gone
            _end(children)
            os._exit(0)
        sys.stdout.flush()
        sys.stderr.flush()
        parent, processors = os.getpid(), os.sched_getaffinity(0)
        pid = os.fork()
        if not pid:
            os.setsid()
            theirs.send(json.dumps({"started": os.getpid()}).encode())
            theirs.close()
            os.sched_setaffinity(0, processors)  # Intel's OpenMP, which torch asks at its import, binds a fork to one
            return _become(json.loads(data), files, parent)
        for file in files:
            os.close(file)
        children.add(pid)


def _ended(children: set[int]) -> list[tuple[int, int]]:
    """Those that have ended, with their exit codes, and whatever they left in their groups ended as well."""
    found: list[tuple[int, int]] = []
    for pid in sorted(children):
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            children.remove(pid)
            _signal(pid, signal.SIGKILL)
            found.append((pid, os.waitstatus_to_exitcode(status)))
    return found


def _end(children: set[int]) -> None:
    for pid in children:
        _signal(pid, signal.SIGTERM)
    deadline = time.monotonic() + process.GRACE_S
    while children and time.monotonic() < deadline:
        _ended(children)
        time.sleep(POLL_S)
    for pid in children:
        _signal(pid, signal.SIGKILL)


def _signal(group: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)


def _become(request: dict[str, Any], files: list[int], parent: int) -> None:
    """Make this fork what `python -m r1mega.cli ARGUMENTS` is before its first line."""
    threads = len(list(Path("/proc/self/task").iterdir()))
    assert threads == 1, f"{threads} threads after a fork"
    process.die_with_parent(parent)
    ctypes.CDLL(None).prctl(_PR_SET_NAME, b"r1mega run")
    nothing = os.open(os.devnull, os.O_RDONLY)
    for file, number in zip((nothing, *files), (0, 1, 2), strict=True):
        os.dup2(file, number)
        os.close(file)
    known = _folders(os.environ)
    os.environ.clear()
    os.environ |= request["environment"]
    os.chdir(request["cwd"])
    sys.argv = ["-m", *request["arguments"]]
    sys.orig_argv = [sys.executable, "-m", PROGRAM, *request["arguments"]]
    sys.path[:1] = [folder for folder in _folders(os.environ) if folder not in known]
    hooks = (Path(folder, "sitecustomize.py") for folder in sys.path)
    if hook := next(filter(Path.is_file, hooks), None):
        runpy.run_path(str(hook))
    sys.path.insert(0, request["cwd"])


def _folders(environment: Mapping[str, str]) -> list[str]:
    return list(filter(None, environment.get("PYTHONPATH", "").split(os.pathsep)))


if __name__ == "__main__":
    with socket.socket(fileno=int(sys.argv[1])) as _theirs:
        for _name in sys.argv[2:]:
            importlib.import_module(_name)
        gc.freeze()  # pages that no child writes to are shared
        _serve(_theirs)
    runpy.run_module(PROGRAM, run_name="__main__", alter_sys=True)
