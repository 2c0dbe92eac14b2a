"""Being asked to stop: finish the step, save, leave. Ctrl-C a second time leaves at once."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Self

from r1mega.runtime.process import heeded_stop_signals


class StopNow(KeyboardInterrupt):
    """A signal came while work ran that need not be finished."""


class Stopped(Exception):
    """A signal has come, and every rank is told: the run saves and leaves (`Interrupted`)."""

    def __init__(self, signum: int) -> None:
        super().__init__(f"signal {signum}")
        self.signum = signum


class Interrupted(Exception):
    """The run was asked to stop and has saved; exit code 128 + signal."""

    def __init__(self, signum: int, message: str) -> None:
        super().__init__(message)
        self.signum = signum
        self.exit_code = 128 + signum


class Interrupt:
    """While entered, the first SIGINT, SIGTERM or SIGUSR1 only sets `received`.

    A SIGINT after that raises KeyboardInterrupt: someone at a keyboard will not wait. Schedulers send their SIGTERM
    several times while a run is saving, and SIGKILL when they mean it. A SIGINT that is ignored stays ignored.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._at_once = False
        self._previous: dict[int, object] = {}

    def __enter__(self) -> Self:
        for signum in heeded_stop_signals():
            self._previous[signum] = signal.signal(signum, self._handle)
        return self

    def __exit__(self, *error: object) -> None:
        for signum, handler in self._previous.items():
            signal.signal(signum, handler)  # pyright: ignore[reportArgumentType]

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """For work of which nothing is lost when it breaks off: the first signal raises StopNow inside.

        In a thread other than the main one, which no signal reaches, it does nothing.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before, self._at_once = self._at_once, True
        try:
            if self.received is not None:
                raise StopNow
            yield
        finally:
            self._at_once = before

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        if self.received is None:
            self.received = signum
            print("\nstopping after this step, then saving; Ctrl-C once more to leave at once", flush=True)
            if self._at_once:
                raise StopNow
        elif signum == signal.SIGINT:
            raise KeyboardInterrupt
