"""`r1mega` commands without the seconds of their imports: forked from a process that has imported what a run needs.

    done = warm.run("run", CONFIG, "--run-dir", folder)     # as subprocess.run(..., capture_output=True, text=True)
    process = warm.start("run", CONFIG, "--run-dir", folder)  # as subprocess.Popen(..., start_new_session=True)

The process is started at the first use, with the environment and the preloaded libraries that a run gives itself
(runtime/openmp.py), and imports the stages in the order of a run; it has no thread of its own, has entered no OpenMP
region and formed no process group. Each command is a child of it that takes over arguments, working directory,
environment, output and the default signals, leads a session of its own, and goes on as `python -m r1mega.cli` does.
What it starts itself, ranks and servers, starts as ever. Two things are not as after a start of its own: /proc shows
this module's command line and environment for it, and its hashes of strings are those of all other children (tests
compare it with runs that have others). `cold=True` starts the real thing.
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
from typing import IO, Any

ROOT = Path(__file__).parents[1]
POLL_S = 0.02
START_S = 600.0
"""Limit of the imports; some ten seconds on an idle machine."""
MAY_DIFFER = ("R1MEGA_", "PYTEST_", "PYTHONPATH", "NO_PROXY", "no_proxy")
"""Names, or beginnings of names, of variables that nothing reads while it is imported."""
IMPORTS = (
    "typer", "r1mega.conversion.commands", "r1mega.recipe.load", "r1mega.runtime.run_dir", "r1mega.stages.pretrain",
    "r1mega.stages.grpo", "r1mega.stages.sft", "r1mega.stages.evaluate", "reasoning_gym",
    "transformers.models.auto.tokenization_auto", "r1mega.report.show",
)  # fmt: skip
"""What a run imports, in its order; last what it imports where it is used."""
_PR_SET_NAME = 15


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "r1mega.cli", *arguments]


def run(*arguments: str, environment: Mapping[str, str] | None = None, cold: bool = False) -> Any:
    """A command's end: its `returncode`, `stdout` and `stderr`."""
    if cold:
        return subprocess.run(command(*arguments), capture_output=True, text=True, cwd=ROOT, env=environment)
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        process = _warm().start(arguments, environment, out, err)
        code = process.wait()
        out.seek(0)
        err.seek(0)
        return subprocess.CompletedProcess(command(*arguments), code, out.read(), err.read())


def start(
    *arguments: str, environment: Mapping[str, str] | None = None, output: IO[Any] | None = None, cold: bool = False
) -> Any:
    """A command that runs: `pid`, `poll`, `wait`, `send_signal`, `kill` and `returncode` of subprocess.Popen.

    Args:
        output: gets what it writes, on stdout and stderr; None: nobody does.
    """
    with contextlib.ExitStack() as stack:
        file = output or stack.enter_context(Path(os.devnull).open("w"))
        if not cold:
            return _warm().start(arguments, environment, file, file)
        return subprocess.Popen(
            command(*arguments), cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=file, stderr=file,
            start_new_session=True,
        )  # fmt: skip


class Process:
    """A child of the warm process, as subprocess.Popen shows its own."""

    def __init__(self, warm: "Warm", pid: int, arguments: tuple[str, ...]) -> None:
        self._warm, self.pid, self.args = warm, pid, command(*arguments)
        self.returncode: int | None = None

    def poll(self) -> int | None:
        if self.returncode is None:
            self._warm.listen(0.0)
            self.returncode = self._warm.codes.pop(self.pid, None)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        end = None if timeout is None else time.monotonic() + timeout
        while self.poll() is None:
            if end is not None and time.monotonic() > end:
                raise subprocess.TimeoutExpired(self.args, timeout or 0.0)
            self._warm.listen(0.5)
        assert self.returncode is not None
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


class Warm:
    """The warm process, seen from the tests."""

    def __init__(self, imports: Sequence[str] = IMPORTS) -> None:
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115 (closed by `close`)
        self.codes = dict[int, int]()
        """Of the children that have ended and were not yet asked for."""
        self.environment = _environment()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, __file__, str(theirs.fileno()), *imports], cwd=ROOT, env=self.environment,
                stdin=subprocess.DEVNULL, stdout=self._log, stderr=self._log, pass_fds=[theirs.fileno()],
                start_new_session=True,
            )  # fmt: skip
        self._socket = ours
        ours.settimeout(START_S)
        assert self._receive() == {"ready": True}

    def start(
        self, arguments: tuple[str, ...], environment: Mapping[str, str] | None, out: IO[Any], err: IO[Any]
    ) -> Process:
        wanted = _environment(os.environ if environment is None else environment)
        changed = {k for k in wanted.keys() | self.environment.keys() if wanted.get(k) != self.environment.get(k)}
        late = sorted(name for name in changed if not name.startswith(MAY_DIFFER))
        assert not late, f"{late} may be read while modules are imported: start this command with cold=True"
        request = {"arguments": arguments, "environment": wanted, "cwd": str(ROOT)}
        out.flush()
        err.flush()
        socket.send_fds(self._socket, [json.dumps(request).encode()], [out.fileno(), err.fileno()])
        self._socket.settimeout(START_S)
        while "started" not in (said := self._receive()):
            self.codes[said["pid"]] = said["code"]
        return Process(self, said["started"], arguments)

    def listen(self, seconds: float) -> None:
        """Take what the process says within this time."""
        self._socket.settimeout(seconds)
        with contextlib.suppress(TimeoutError, BlockingIOError):
            said = self._receive()
            self.codes[said["pid"]] = said["code"]

    def _receive(self) -> dict[str, Any]:
        try:
            data = self._socket.recv(1 << 16)
        except ConnectionResetError:
            data = b""
        if not data:
            self._log.seek(0)
            raise RuntimeError(f"the warm process has ended: {self._log.read()[-3000:]}")
        return json.loads(data)

    def close(self) -> None:
        """End it, and the commands that still run."""
        self._socket.close()
        self._process.wait()
        self._log.close()


_started: Warm | None = None


def _warm() -> Warm:
    global _started
    if _started is None:
        _started = Warm()
    return _started


def close() -> None:
    """End the warm process, if there is one."""
    global _started
    if _started is not None:
        _started.close()
        _started = None


def _environment(given: Mapping[str, str] = os.environ) -> dict[str, str]:
    """With the library that a run would preload."""
    from r1mega.runtime import openmp

    return {**given, **openmp.preload()}


# ---- the process itself -----------------------------------------------------------------------------------------


def _serve(theirs: socket.socket) -> None:
    """Fork a child for each request; returns in each child alone, when it has become what was asked for."""
    children = set[int]()
    theirs.send(json.dumps({"ready": True}).encode())
    while True:
        for pid in sorted(children):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                children.remove(pid)
                theirs.send(json.dumps({"pid": pid, "code": os.waitstatus_to_exitcode(status)}).encode())
        theirs.settimeout(POLL_S if children else None)
        try:
            data, files, _, _ = socket.recv_fds(theirs, 1 << 20, 2)
        except TimeoutError:
            continue
        if not data:  # the tests are over
            for pid in children:
                os.kill(pid, signal.SIGKILL)
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


def _become(request: dict[str, Any], files: list[int], parent: int) -> None:
    """Make this fork what `python -m r1mega.cli ARGUMENTS` is before its first line."""
    from r1mega.runtime import process

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
    sys.orig_argv = command(*request["arguments"])
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
    runpy.run_module("r1mega.cli", run_name="__main__", alter_sys=True)
