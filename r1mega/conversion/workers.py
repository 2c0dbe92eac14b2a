"""Parts of a conversion, spread over processes; each opens the source anew and works on one part at a time."""

import multiprocessing
import os
import signal
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from threading import BrokenBarrierError
from typing import Any, Self

import torch

from r1mega.conversion.folders import open_folder
from r1mega.conversion.writers import DType, Form, Part, Writer, make_writer
from r1mega.errors import ConversionError
from r1mega.runtime.process import die_with_parent
from r1mega.runtime.progress import Bar

POLL_S = 0.2
START_S = 600.0
"""Longest wait for all processes to have started."""
MB = 10**6


@dataclass(frozen=True)
class ConversionJob:
    """A conversion as every process of it knows it."""

    source: Path
    form: Form
    dtype: DType | None
    out: Path
    """The folder in the making."""
    part_bytes: int
    shard_bytes: int

    def writer(self) -> Writer:
        """The writer, which divides the work the same way in every process."""
        source = open_folder(self.source)
        return make_writer(
            source, self.form, self.dtype, shard_bytes=self.shard_bytes, part_bytes=self.part_bytes
        )  # fmt: skip


Task = tuple[Part, Mapping[str, Any] | None]
"""A part to write, or, with its record, to audit."""
_state: dict[str, Any] = {}


def write_part(task: Task) -> Any:
    """Write one part; returns its record."""
    return _state["writer"].write(_state["job"].out, task[0], _state["count"])


def audit_part(task: Task) -> Any:
    """Read one part back; returns what is wrong with it."""
    if "written" not in _state:
        _state["written"] = open_folder(_state["job"].out)
    return _state["writer"].audit(_state["written"], task[0], task[1], _state["count"])


class Workers:
    """The processes of a conversion, started on entering; with one, or nothing to share, this process does it all."""

    def __init__(self, job: ConversionJob, num_processes: int) -> None:
        self._job, self._num = job, num_processes
        self._pool: ProcessPoolExecutor | None = None
        self._uncounted = 0
        self._bar: Bar | None = None

    def __enter__(self) -> Self:
        if self._num <= 1:
            _prepare(self._job, self._count)
            return self
        context = multiprocessing.get_context("spawn")  # a fork of a process with threads may hang
        self._written = context.Value("q", 0)
        meeting = context.Barrier(self._num)
        arguments = (self._job, self._written, meeting, os.getpid())
        self._pool = ProcessPoolExecutor(self._num, context, _start_worker, arguments)
        for start in [self._pool.submit(_meet) for _ in range(self._num)]:
            _result(start)
        return self

    def __exit__(self, *error: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
        _state.clear()

    def run(self, do: Callable[[Task], Any], tasks: Sequence[Task], bar: Bar, done: Callable[[Any], None]) -> None:
        """Do every task; `done` gets each result in this process, in the order in which they come.

        Args:
            do: write_part or audit_part.
            bar: counts megabytes.

        Raises:
            ConversionError: a process was killed, by the system where memory ran out.
            R1MegaError, OSError: what a task raised; the others end first.
        """
        self._bar, self._uncounted = bar, 0
        if self._pool is None:
            for task in tasks:
                done(do(task))
            return
        open_tasks = {self._pool.submit(do, task) for task in tasks}
        shown = self._written.value
        while open_tasks:
            ended, open_tasks = wait(open_tasks, timeout=POLL_S, return_when=FIRST_COMPLETED)
            now = self._written.value
            self._count(now - shown)
            shown = now
            for future in ended:
                done(_result(future))

    def _count(self, num_bytes: int) -> None:
        self._uncounted += num_bytes
        if self._uncounted >= MB and self._bar is not None:
            self._bar.advance(self._uncounted // MB)
            self._uncounted %= MB


def _result(future: "Future[Any]") -> Any:
    try:
        return future.result()
    except (BrokenProcessPool, BrokenBarrierError) as e:
        raise ConversionError(
            "a process of the conversion was killed, perhaps because memory ran out; what is done is kept: run the "
            "same command again, with fewer --processes"
        ) from e


def _start_worker(job: ConversionJob, shared: Any, meeting: Any, parent: int) -> None:
    die_with_parent(parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent hears it too
    torch.set_num_threads(1)

    def count(num_bytes: int) -> None:
        with shared.get_lock():
            shared.value += num_bytes

    _prepare(job, count)
    _state["meeting"] = meeting


def _meet() -> None:
    """One for each process: none is done before all have started."""
    _state["meeting"].wait(START_S)


def _prepare(job: ConversionJob, count: Callable[[int], None]) -> None:
    _state.clear()
    _state.update(job=job, writer=job.writer(), count=count)
