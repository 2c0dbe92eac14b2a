"""Several futures as one."""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Generic, TypeVar

T = TypeVar("T")
R = TypeVar("R")


def gathered(futures: "Sequence[Future[T]]", make: Callable[[list[T]], R]) -> Future[R]:
    """What `make` makes of all results, in order; it is called in whichever thread brings the last one.

    The future raises what `make` or any of `futures` raises.
    """
    return _Gathering(futures, make).whole


class _Gathering(Generic[T, R]):
    def __init__(self, futures: "Sequence[Future[T]]", make: Callable[[list[T]], R]) -> None:
        self.whole: Future[R] = Future()
        self._futures, self._make = futures, make
        self._left, self._lock = len(futures), threading.Lock()
        if not futures:
            self._finish()
        for future in futures:
            future.add_done_callback(self._one_came)

    def _one_came(self, _: "Future[T]") -> None:
        with self._lock:  # two may come at once, of two workers' threads
            self._left -= 1
            last = not self._left
        if last:
            self._finish()

    def _finish(self) -> None:
        try:
            self.whole.set_result(self._make([future.result() for future in self._futures]))
        except Exception as error:  # the caller's, where it asks
            self.whole.set_exception(error)
