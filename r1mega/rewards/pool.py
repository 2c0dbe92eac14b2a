"""A pool of processes in which rules judge untrusted text, with hard deadlines. It tells whose fault a failure is.

    with Pool(workers=2) as pool:
        outcome = pool.submit(judge, answer, truth).result()            # a concurrent.futures.Future
        outcome = await asyncio.wrap_future(pool.submit(judge, answer, truth))
        outcomes = pool.map(judge, [(answer, truth), ...])              # in order
        pool.submit(run_tests, program, tests, limits=Limits(wall_s=600))   # of a task that needs other ones

Who waits for whom: `submit` puts a task into one queue, from any thread. A thread per worker takes a few at a time,
sends them to its process (`rewards.worker`, by `rewards.processes`) and reads one result after the other, each within
the wall deadline. Where the process hangs or dies, the thread has it killed, gets another one, and asks there a
control task whose result is known, then the suspect task alone, then the rest. A task that ends two workers beside a
control that passes is the answer's doing; where the control fails as well, it is the infrastructure's.
"""

import atexit
import os
import queue
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Self

from r1mega.rewards import worker as this_process
from r1mega.rewards.processes import Nursery, Worker, WorkerLost
from r1mega.rewards.worker import PRELOADED, Call, Done, Limits, Loads

MAX_BATCH = 32
ATTEMPTS = 3
"""Starts of a worker, or of a nursery, before a task counts as failed by the infrastructure."""

Status = Literal["done", "answer", "failed"]


@dataclass(frozen=True)
class TaskOutcome:
    """How a task ended. done: `value` is the function's. answer: the task used too much, or ended its worker, beside
    a control task that passed. failed: the function raised, or the infrastructure broke."""

    status: Status
    value: Any = None
    reason: str = ""
    seconds: float = 0.0


@dataclass
class Counts:
    """What a pool has done so far."""

    tasks: int = 0
    retried: int = 0
    killed: int = 0
    """Workers that hung or died."""
    answer: int = 0
    """Tasks that were their answer's doing."""
    failed: int = 0


@dataclass(frozen=True)
class _Task:
    call: Call
    future: "Future[TaskOutcome]" = field(default_factory=Future)

    @property
    def memory_mib(self) -> int:
        return self.call[2].memory_mib


def control() -> str:
    """The control task: what any sound worker does at once."""
    return "".join(chr(97 + i * i % 26) for i in range(1_000))[-6:]


class Pool:
    """Worker processes, started at the first task. Of the process that made it: a fork has to make its own."""

    def __init__(
        self,
        workers: int | None = None,
        limits: Limits | None = None,
        control: Callable[[], Any] = control,
        preloaded: tuple[str, ...] = PRELOADED,
        loads: Loads = (),
    ) -> None:
        """
        Args:
            workers: None: a process a core that this process may use.
            limits: of a task that comes with none of its own.
            preloaded: modules that every worker has from its start.
            loads: calls (function, arguments) whose effects every worker has from its start, outside all limits.
            control: a task that needs no argument; what it returns here is what it has to return in a worker.
        """
        self.limits = limits or Limits()
        self.num_workers = workers or len(os.sched_getaffinity(0))
        self.counts = Counts()
        self._control, self._expected = control, control()
        self._preloaded, self._loads = preloaded, loads
        self._waiting: queue.SimpleQueue[_Task | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._nursery: Nursery | None = None
        self._threads: list[threading.Thread] = []
        self._owner = os.getpid()
        self._closed = False

    def submit(
        self, function: Callable[..., Any], *arguments: Any, limits: Limits | None = None
    ) -> "Future[TaskOutcome]":
        """Have `function(*arguments)` called in a worker. Both have to pickle; the function by its name.

        Args:
            limits: of this task; None: the pool's. A rule asks for its own with `RuleReward.needs`, a verifier with
                `needs` (`rewards.reward`), and a config sets them with a reward's `cpu_s`, `wall_s`, `memory_mib`.

        The future never raises. Raises RuntimeError after `close`, and in a forked child.
        """
        task = _Task((function, arguments, limits or self.limits))
        if os.getpid() == self._owner:
            with self._lock:  # nothing is put behind what ends the threads
                if not self._closed:
                    if not self._threads:
                        self._start_threads()
                    self._waiting.put(task)
                    return task.future
        raise RuntimeError("a pool belongs to the process that made it, until it is closed")

    def map(self, function: Callable[..., Any], arguments: Iterable[tuple[Any, ...]]) -> list[TaskOutcome]:
        """The outcomes of a call for each tuple of arguments, in order."""
        futures = [self.submit(function, *each) for each in arguments]
        return [future.result() for future in futures]

    def close(self) -> None:
        """End the processes once what was submitted is done; a forked child leaves them to its parent."""
        if os.getpid() != self._owner:
            return  # the lock may be held for ever in it
        with self._lock:
            if self._closed:
                return
            self._closed = True
            for _ in self._threads:
                self._waiting.put(None)
        for thread in self._threads:
            thread.join()
        if self._nursery is not None:
            self._nursery.close()

    def abandon(self) -> None:
        """End the processes at once; what was not done is failed."""
        self._closed = True
        while True:
            try:
                task = self._waiting.get_nowait()
            except queue.Empty:
                break
            if task is not None:
                self._finish_all([task], "the pool was abandoned")
        for _ in self._threads:
            self._waiting.put(None)
        if self._nursery is not None:
            self._nursery.close()
        for thread in self._threads:
            thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        if kind is None:
            self.close()
        else:
            self.abandon()

    # ---- threads --------------------------------------------------------------------------------------------

    def _start_threads(self) -> None:
        for number in range(self.num_workers):
            thread = threading.Thread(target=self._run, name=f"rewards-{number}", daemon=True)
            self._threads.append(thread)
            thread.start()

    def _run(self) -> None:
        """One worker's thread: batches until the pool is closed."""
        worker: Worker | None = None
        while (first := self._waiting.get()) is not None:
            batch, last = self._batch(first)
            try:
                worker = self._do(batch, worker)
            except BaseException as error:  # no future may wait for ever
                self._finish_all(batch, f"{type(error).__name__}: {error}")
                worker = None
            if last:
                break
        if worker is not None:
            worker.connection.close()

    def _batch(self, first: _Task) -> tuple[list[_Task], bool]:
        """`first` and a fair share of what waits; whether the pool was closed behind them."""
        batch = [first]
        share = min(MAX_BATCH, self._waiting.qsize() // (2 * self.num_workers))
        for _ in range(share):
            try:
                task = self._waiting.get_nowait()
            except queue.Empty:
                break
            if task is None:
                return batch, True
            batch.append(task)
        return batch, False

    def _do(self, batch: list[_Task], worker: Worker | None) -> Worker | None:
        waiting = batch
        while waiting:
            done = 0
            try:
                memory = max(task.memory_mib for task in waiting)
                if worker is None or worker.spent or worker.memory_mib < memory:
                    worker = self._sound_worker(worker, memory)
                for result in worker.results([task.call for task in waiting]):
                    if result.fault == "memory":
                        raise WorkerLost(result.reason)
                    self._finish(waiting[done], _outcome(result))
                    done += 1
                return worker
            except WorkerLost:
                self._replaced(worker)
                suspect, waiting = waiting[done], waiting[done + 1 :]
                worker = self._retry(suspect)
        return worker

    def _retry(self, task: _Task) -> Worker | None:
        """A task that ended its worker, alone in another one that has passed the control task."""
        self.counts.retried += 1
        try:
            worker = self._sound_worker(None, task.memory_mib)
        except WorkerLost as lost:
            self._finish(task, TaskOutcome("failed", reason=lost.reason))
            return None
        try:
            result = next(worker.results([task.call]))
        except WorkerLost as lost:
            self._finish(task, TaskOutcome("answer", reason=lost.reason))
            self._replaced(worker)
            return None
        self._finish(task, _outcome(result))
        if result.fault == "memory":
            self._replaced(worker)
            return None
        return worker

    def _sound_worker(self, old: Worker | None, memory_mib: int) -> Worker:
        """A new worker that has passed the control task, with so much memory. Raises WorkerLost after ATTEMPTS."""
        if old is not None:
            old.connection.close()
        reason = ""
        for _ in range(ATTEMPTS):
            worker: Worker | None = None
            try:
                worker = self._started(memory_mib)
                result = next(worker.results([(self._control, (), self.limits)]))
                if result.value == self._expected:
                    return worker
                reason = f"the control task gave {result.reason or 'another result'}"
            except WorkerLost as lost:
                reason = lost.reason
            self._replaced(worker)
        raise WorkerLost(f"no worker does the control task: {reason}")

    def _started(self, memory_mib: int) -> Worker:
        with self._lock:
            if self._closed and (self._nursery is None or not self._nursery.alive):
                raise WorkerLost("the pool was abandoned")
            if self._nursery is None or not self._nursery.alive:
                self._nursery = Nursery(self._preloaded, self._loads)
            nursery = self._nursery
        return nursery.start(replace(self.limits, memory_mib=max(memory_mib, self.limits.memory_mib)))

    def _replaced(self, worker: Worker | None) -> None:
        if worker is not None:
            self.counts.killed += 1
            worker.kill()

    def _finish(self, task: _Task, outcome: TaskOutcome) -> None:
        with self._lock:
            self.counts.tasks += 1
            self.counts.answer += outcome.status == "answer"
            self.counts.failed += outcome.status == "failed"
        if not task.future.done():
            task.future.set_result(outcome)

    def _finish_all(self, tasks: list[_Task], reason: str) -> None:
        for task in tasks:
            if not task.future.done():
                self._finish(task, TaskOutcome("failed", reason=reason))


def _outcome(result: Done) -> TaskOutcome:
    status: Status = {"": "done", "raised": "failed"}.get(result.fault, "answer")  # pyright: ignore[reportAssignmentType]
    return TaskOutcome(status, result.value, result.reason, result.seconds)


_shared: dict[int, Pool] = {}


def judged(function: Callable[..., Any], *arguments: Any) -> TaskOutcome:
    """The outcome of `function(*arguments)` in this process's own pool; in place where this process is a worker."""
    if this_process.inside:
        return TaskOutcome("done", function(*arguments))
    return shared_pool().submit(function, *arguments).result()


def shared_pool() -> Pool:
    """This process's own pool, made at the first use and closed at its end; a forked child has another one."""
    with _shared_lock:
        pool = _shared.get(os.getpid())
        if pool is None:
            _shared.clear()
            pool = _shared[os.getpid()] = Pool()
            atexit.register(pool.close)
        return pool


_shared_lock = threading.Lock()
os.register_at_fork(after_in_child=lambda: globals().update(_shared_lock=threading.Lock()))
