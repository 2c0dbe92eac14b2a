"""Work that goes on beside the training loop: one job at a time in a thread, whose fault is told at the next call."""

import threading
from collections.abc import Callable


class Background:
    """A place for one job. Not for collectives: only the training loop may enter those."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self.abandoned = threading.Event()
        """Set when nobody will wait any longer; a job that waits for others looks at it."""

    def start(self, work: Callable[[], None]) -> None:
        """Begin `work` when the job before it is done. Raises what that one raised."""
        self.wait()
        # Daemon: a job that waits for ranks that are gone must not hold up the end of this process.
        self._thread = threading.Thread(target=self._run, args=(work,), name=self._name, daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Raise what the last job raised, if it has failed; return at once in any case."""
        if self._thread is not None and not self._thread.is_alive():
            self._thread.join()
            self._thread = None
        if self._error is not None and self._thread is None:
            error, self._error = self._error, None
            raise error

    def join(self) -> None:
        """Return when the job is done; what it raised is told at the next call of another method."""
        if self._thread is not None:
            self._thread.join()

    def wait(self) -> None:
        """Return when the job is done, or raise what it raised."""
        self.join()
        self.check()

    def abandon(self, grace_s: float) -> None:
        """Give the job some time to end, on the way out with an error of another kind; raises nothing."""
        if self._thread is not None:
            self._thread.join(grace_s)
        self.abandoned.set()

    @property
    def busy(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def _run(self, work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:
            self._error = error
