"""Ctrl-C and SIGTERM: finish the step, save, leave. A second signal leaves at once."""

import signal
from types import FrameType
from typing import Self


class Interrupted(Exception):
    """The run was asked to stop and has saved; exit code 128 + signal."""

    def __init__(self, signum: int, message: str) -> None:
        super().__init__(message)
        self.signum = signum
        self.exit_code = 128 + signum


class Interrupt:
    """While entered, the first SIGINT or SIGTERM only sets `received`; the next one raises KeyboardInterrupt."""

    def __init__(self) -> None:
        self.received: int | None = None
        self._previous: dict[int, object] = {}

    def __enter__(self) -> Self:
        for signum in (signal.SIGINT, signal.SIGTERM):
            self._previous[signum] = signal.signal(signum, self._handle)
        return self

    def __exit__(self, *error: object) -> None:
        for signum, handler in self._previous.items():
            signal.signal(signum, handler)  # pyright: ignore[reportArgumentType]

    def leave_if_received(self, message: str) -> None:
        """Raises Interrupted with `message` if a signal has come; call it where everything is saved."""
        if self.received is not None:
            raise Interrupted(self.received, message)

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        if self.received is not None:
            raise KeyboardInterrupt
        self.received = signum
        print("\nstopping after this step, then saving; once more to leave at once", flush=True)
