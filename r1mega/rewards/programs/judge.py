"""Does a program pass its tests? Run inside a sandbox, judged outside it."""

import contextlib
import json
import secrets
import signal
import threading
from collections.abc import Callable
from dataclasses import dataclass

from r1mega.errors import RewardError
from r1mega.rewards.programs.build import CompilerEnded, DoesNotCompile, Program, cpp_program, python_program
from r1mega.rewards.programs.compare import same_output, same_value
from r1mega.rewards.programs.harness import COMPILE_CODE, COMPILE_MARK, cpp_calls
from r1mega.rewards.programs.settings import CodeSettings
from r1mega.rewards.programs.task import Case, Checker, CodeTask
from r1mega.rewards.sandbox.bounds import Bounds
from r1mega.rewards.sandbox.run import Ran
from r1mega.rewards.sandbox.slots import slot
from r1mega.rewards.sandbox.sound import sound_run

TRY_S = 0.05
"""Between two looks of a further lane for a free slot."""


@dataclass(frozen=True)
class Passed:
    """What became of a program's tests."""

    passed: int
    total: int
    reason: str = ""
    """Of the first test that failed, as they stand in the question."""

    def value(self, settings: CodeSettings) -> float:
        return self.passed / self.total if settings.counts == "share" else float(self.passed == self.total)


def judge(source: str, task: CodeTask, settings: CodeSettings) -> Passed:
    """Run a program on its task's tests; with `counts = "all"`, up to the first that fails.

    Raises RewardError: the sandbox fails, or the question's checker does.
    """
    bounds = _bounds(task, settings)
    spent = [0.0]
    try:
        program = _built(source, task, settings)
    except DoesNotCompile as error:
        return Passed(0, len(task.cases), f"does not compile: {error}")
    checker = None if task.checker is None else checker_program(task.checker, settings)

    def judged(index: int, number: int, stop: threading.Event) -> str | None:
        left = settings.answer_s - sum(spent)
        if left <= 0:
            return f"its tests together took more than {settings.answer_s:g} s"
        within = bounds.model_copy(update={"wall_s": min(bounds.wall_s, max(left, 0.1))})
        case = task.cases[index]
        token = secrets.token_hex(16)
        argv, stdin = _started(program, case, index, task, token)
        ran = sound_run(argv, program.files, stdin.encode("utf-8", "replace"), within, number, stop)
        spent.append(ran.wall_s)
        if (fault := fault_of(ran, within)) is not None:
            return fault
        if task.calls:
            return _judge_value(ran.output, case, task, token)
        if checker is not None:
            return check(checker, case, ran.output, settings.run, number)
        return None if same_output(ran.output, case.expected) else "wrong answer"

    reasons = _Lanes(len(task.cases), settings, judged).reasons()
    failed = {index: reason for index, reason in reasons.items() if reason is not None}
    total = len(task.cases)
    if not failed:
        return Passed(total, total)
    first = min(failed)
    return Passed(len(reasons) - len(failed), total, f"test {first + 1} of {total}: {failed[first]}")


def _bounds(task: CodeTask, settings: CodeSettings) -> Bounds:
    more: dict[str, float] = {}
    if task.time_s is not None:
        more = {"cpu_s": task.time_s, "wall_s": settings.run.wall_s * max(1.0, task.time_s / settings.run.cpu_s)}
    if task.memory_mib is not None:
        more["memory_mib"] = max(16, task.memory_mib)
    return settings.run.model_copy(update=more)


def _built(source: str, task: CodeTask, settings: CodeSettings) -> Program:
    if task.language == "python":
        return python_program(source, calls=task.calls)
    # All calls of a question are one program, compiled once.
    texts = cpp_calls(source, [case.call for case in task.cases]) if task.calls else [source]
    with slot(settings.slots) as number:
        assert number is not None
        try:
            return cpp_program(texts[0], settings, number)
        except CompilerEnded:
            raise
        except DoesNotCompile:
            for other in texts[1:]:
                with contextlib.suppress(DoesNotCompile):
                    return cpp_program(other, settings, number)
            raise


def _started(program: Program, case: Case, index: int, task: CodeTask, token: str) -> tuple[tuple[str, ...], str]:
    """The command line and standard input of a test."""
    if not task.calls:
        return program.argv, case.stdin
    if task.language == "python":
        return program.argv, json.dumps([token, case.call])
    return (*program.argv, str(index)), f"{token}\n"


def _judge_value(output: bytes, case: Case, task: CodeTask, token: str) -> str | None:
    """Of all that was printed, what stands behind this run's token is the value."""
    said = [line for line in output.split(b"\n") if line.startswith(token.encode())]
    if not said:
        return "ended before its function gave a value"
    if len(said) > 1:
        return "printed a value beside its function's"
    return None if same_value(said[0][len(token) :], case.expected, literal=task.literal) else "wrong answer"


def fault_of(ran: Ran, bounds: Bounds) -> str | None:
    """Why a run has no output to judge; None where it has."""
    errors = ran.errors.decode("utf-8", "replace").strip()
    last = errors.splitlines()[-1][:160] if errors else ""
    memory = "MemoryError" in last or "bad_alloc" in errors[-400:]
    if ran.end == "memory" or (memory and (ran.end != "exit" or ran.code)):
        return f"took more than {bounds.memory_mib} MiB of memory"
    reasons = {
        "cpu": f"took more than {bounds.cpu_s} s", "wall": f"had not ended after {bounds.wall_s:.3g} s",
        "output": f"printed more than {bounds.output_bytes:,} bytes", "files": "wrote more than it may",
        "lost": "ended its sandbox", "stopped": "was stopped",
    }  # fmt: skip
    if ran.end in reasons:
        return reasons[ran.end]
    if ran.end == "signal":
        name = signal.Signals(ran.code).name if ran.code in set(signal.Signals) else f"signal {ran.code}"
        return f"crashed with {name}"
    if ran.code == COMPILE_CODE and last.startswith(COMPILE_MARK):
        return last
    return None if ran.code == 0 else f"crashed with exit code {ran.code}{': ' if last else ''}{last}"


def checker_program(checker: Checker, settings: CodeSettings) -> Program:
    """A question's checker, ready to run. Raises RewardError where it does not compile."""
    if checker.language == "python":
        return python_program(checker.source)
    try:
        with slot(settings.slots) as number:
            assert number is not None
            return cpp_program(checker.source, settings, number)
    except DoesNotCompile as error:
        raise RewardError(f"the question's checker does not compile: {error}") from error


def check(checker: Program, case: Case, output: bytes, bounds: Bounds, number: int) -> str | None:
    """Whether a checker takes an output. Raises RewardError where it is no checker: it refuses what is expected."""
    files = {**checker.files, "input": case.stdin.encode(), "output": output, "expected": case.expected.encode()}
    argv = (*checker.argv, "/code/input", "/code/output", "/code/expected")
    ran = sound_run(argv, files, b"", bounds, number)
    if ran.end == "exit" and ran.code in (0, 1, 2):
        return None if ran.code == 0 else "wrong answer"
    files["output"] = files["expected"]
    control = sound_run(argv, files, b"", bounds, number)
    if (control.end, control.code) != ("exit", 0):
        raise RewardError(f"the question's checker ends with {control.end} {control.code} on the expected output")
    return "wrong answer: its checker cannot read it"


class _Lanes:
    """Tests of one answer on as many slots as are free: one lane waits for its slot, the others take what is left."""

    def __init__(
        self, count: int, settings: CodeSettings, judged: Callable[[int, int, threading.Event], str | None]
    ) -> None:
        self._count, self._settings, self._judged = count, settings, judged
        self._next, self._lock, self._stop = 0, threading.Lock(), threading.Event()
        self._reasons: dict[int, str | None] = {}
        self._error: BaseException | None = None

    def reasons(self) -> dict[int, str | None]:
        """Index of each test that was run to its end -> why it failed, or None. Raises what a test raised."""
        if self._settings.counts == "all":  # most wrong programs fail the first
            with slot(self._settings.slots) as number:
                assert number is not None
                self._next = 1
                self._note(0, self._judged(0, number, self._stop))
        more = min(self._settings.lanes, self._count - self._next) - 1
        threads = [threading.Thread(target=self._lane, args=(False,), daemon=True) for _ in range(more)]
        for thread in threads:
            thread.start()
        try:
            self._lane(True)
        except BaseException:
            self._stop.set()
            raise
        finally:
            for thread in threads:
                thread.join()
        if self._error is not None:
            raise self._error
        return self._reasons

    def _lane(self, first: bool) -> None:
        try:
            while not self._stop.is_set() and self._next < self._count:
                with slot(self._settings.slots, wait=first) as number:
                    index = None if number is None else self._take()
                    if number is not None and index is not None:
                        self._note(index, self._judged(index, number, self._stop))
                        continue
                self._stop.wait(TRY_S)
        except BaseException as error:
            self._stop.set()
            if first:
                raise
            self._error = error

    def _take(self) -> int | None:
        with self._lock:
            if self._next >= self._count or self._stop.is_set():
                return None
            self._next += 1
            return self._next - 1

    def _note(self, index: int, reason: str | None) -> None:
        with self._lock:
            if reason is not None and self._stop.is_set():
                return  # it was stopped, or is one more of those that failed
            self._reasons[index] = reason
            if reason is not None and self._settings.counts == "all":
                self._stop.set()
