"""The processes in which rules run: a nursery that has imported their libraries, and the workers that it forks.

The nursery is one process a pool. It imports what rules need once, without torch, then forks a worker on demand in
some milliseconds, and kills and reaps those it is told to. A worker reads tasks from its own connection and answers
each. When the pool's process is gone, however it ended, the nursery sees it within a second and takes its workers
with it; a worker goes with its nursery in any case.
"""

import array
import contextlib
import ctypes
import gc
import importlib
import json
import os
import pickle
import resource
import select
import signal
import socket
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from types import FrameType
from typing import Any, Literal

PRELOADED = ("sympy", "mpmath", "r1mega.rewards.math", "r1mega.rewards.choice", "math_verify.parser")
"""What a nursery imports unless it is told otherwise, where it is installed."""
inside = False
"""Whether this process is a worker."""
POLL_S = 0.5
_PR_SET_PDEATHSIG = 1
_MIB = 2**20

Fault = Literal["", "cpu", "memory", "raised"]


@dataclass(frozen=True)
class Limits:
    """What one task may use."""

    cpu_s: float = 5.0
    """Seconds of processor time of the worker itself, not of what it starts."""
    wall_s: float = 120.0
    memory_mib: int = 1024
    """Above what the nursery has."""


Call = tuple[Callable[..., Any], tuple[Any, ...], Limits]
"""A function, its arguments, and what it may use. All have to pickle; the function by its name."""
Loads = Sequence[tuple[Callable[..., Any], tuple[Any, ...]]]
"""Calls that a nursery makes once, before the first worker: what they load every worker has."""


@dataclass(frozen=True)
class Done:
    """How a task ended in a worker that lives on: its value, or the fault and its message."""

    value: Any = None
    fault: Fault = ""
    reason: str = ""
    seconds: float = 0.0


class OutOfTime(BaseException):
    """A task's processor time is over. No Exception, so that no library swallows it."""


def nursery(control_fd: int, parent: int, path: str, preloaded: tuple[str, ...]) -> None:
    """Serve a pool until it is gone: fork a worker for each connection, kill and reap those it names.

    Its standard input holds the calls to make before the first worker (`Loads`), pickled.

    Args:
        path: the pool's sys.path, as JSON, so that a function is found here under the name that it has there.
        preloaded: modules to import before the first worker.
    """
    loads = sys.stdin.buffer.read()
    sys.path[:] = json.loads(path)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for name in preloaded:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    for function, arguments in pickle.loads(loads):
        with contextlib.suppress(Exception, SystemExit):  # the task that needs it says what is wrong
            function(*arguments)
    gc.collect()
    gc.freeze()
    control = socket.socket(fileno=control_fd)
    workers: set[int] = set()
    while os.getppid() == parent:
        readable, _, _ = select.select([control], [], [], POLL_S)
        for pid in [pid for pid in workers if os.waitpid(pid, os.WNOHANG)[0]]:
            workers.discard(pid)
        if not readable:
            continue
        message, fds = _receive(control)
        if message is None:
            break
        if message["do"] == "start":
            pid = _fork(control, fds[0], message["limits"])
            workers.add(pid)
            os.close(fds[0])
            control.sendall(pid.to_bytes(8, "little"))
        else:
            pid = message["pid"]
            if pid in workers:  # not yet reaped, so that the id is still its own
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
                workers.discard(pid)
            control.sendall(pid.to_bytes(8, "little"))
    for pid in workers:
        os.kill(pid, signal.SIGKILL)


def _receive(control: socket.socket) -> tuple[dict[str, Any] | None, list[int]]:
    data, ancillary, _, _ = control.recvmsg(4096, socket.CMSG_SPACE(4))
    fds = array.array("i")
    for level, kind, content in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(content[:4])
    return (pickle.loads(data) if data else None), list(fds)


def _fork(control: socket.socket, fd: int, limits: Limits) -> int:
    nursery_pid = os.getpid()
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        control.close()
        if os.getppid() == nursery_pid:
            _serve(Connection(fd), limits)
            code = 0
    finally:
        os._exit(code)  # the nursery's clean-up is not the worker's


def _serve(connection: Connection, limits: Limits) -> None:
    """Do tasks until the pool closes the connection."""
    global inside
    inside = True
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    before = _address_space()
    most = before + limits.memory_mib * _MIB
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    signal.signal(signal.SIGPROF, _raise_out_of_time)
    while True:
        try:
            packed = connection.recv_bytes()
        except EOFError:
            return
        resource.setrlimit(resource.RLIMIT_AS, (most, most))  # to read tasks, whatever the last one was allowed
        calls: Sequence[Call] = pickle.loads(packed)
        for function, arguments, allowed in calls:
            memory = min(before + allowed.memory_mib * _MIB, most)
            resource.setrlimit(resource.RLIMIT_AS, (memory, most))
            done = _do(function, arguments, allowed)
            connection.send_bytes(_packed(done))
            if done.fault == "memory":
                return  # what it still holds may not fail the next one


def _do(function: Callable[..., Any], arguments: tuple[Any, ...], limits: Limits) -> Done:
    started = time.perf_counter()
    hard = int(time.process_time() + limits.cpu_s) + 2  # the kernel ends what does not come back to Python
    resource.setrlimit(resource.RLIMIT_CPU, (hard, resource.RLIM_INFINITY))
    try:
        signal.setitimer(signal.ITIMER_PROF, limits.cpu_s)
        try:
            value = function(*arguments)
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
        return Done(value, seconds=time.perf_counter() - started)
    except OutOfTime:
        return Done(None, "cpu", f"took more than {limits.cpu_s:g} s", time.perf_counter() - started)
    except MemoryError:
        return Done(None, "memory", f"took more than {limits.memory_mib} MiB", time.perf_counter() - started)
    except Exception as error:
        return Done(None, "raised", f"{type(error).__name__}: {error}"[:500], time.perf_counter() - started)


def _packed(done: Done) -> bytes:
    try:
        return pickle.dumps(done)
    except Exception as error:
        return pickle.dumps(Done(None, "raised", f"its result cannot be sent: {type(error).__name__}: {error}"[:500]))


def _raise_out_of_time(number: int, frame: FrameType | None) -> None:
    raise OutOfTime


def _address_space() -> int:
    with open("/proc/self/statm", encoding="ascii") as file:  # noqa: PTH123  (one short line, on every start)
        return int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
