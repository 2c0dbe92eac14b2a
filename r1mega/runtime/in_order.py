"""One function over many inputs in several processes, and what comes of each in the inputs' order.

No more inputs are under way than keep the processes busy, so memory does not grow with their number.
"""

import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

from r1mega.errors import DataError
from r1mega.runtime.process import die_with_parent

State = TypeVar("State")
Given = TypeVar("Given")
Made = TypeVar("Made")

_state: dict[str, Any] = {}
"""What a process of the pool does, and with what."""


def in_order(
    function: Callable[[State, Given], Made],
    state: State,
    inputs: Iterable[Given],
    processes: int,
    killed: Callable[[Given], str],
) -> Generator[tuple[Given, Made]]:
    """Every input, and what `function(state, input)` made of it.

    Args:
        function: of a module, as another process can import it.
        state: is given to each process once.
        processes: with one, this process does it all.
        killed: what to say where a process was killed over an input.

    Raises:
        DataError: a process was killed; and whatever `function` raises.
    """
    if processes <= 1:
        for given in inputs:
            yield given, function(state, given)
        return
    context = multiprocessing.get_context("spawn")  # a fork of a process with threads may hang
    start = function, state, os.getpid()
    with ProcessPoolExecutor(processes, context, _start, start) as pool:
        under_way = deque[tuple[Given, Future[Made]]]()

        def ended() -> tuple[Given, Made]:
            given, future = under_way.popleft()
            try:
                return given, future.result()
            except BrokenProcessPool as error:
                raise DataError(killed(given)) from error

        try:
            for given in inputs:
                under_way.append((given, pool.submit(_work, given)))
                if len(under_way) > 2 * processes:
                    yield ended()
            while under_way:
                yield ended()
        finally:
            pool.shutdown(cancel_futures=True)


def _start(function: Callable[[Any, Any], Any], state: Any, parent: int) -> None:
    die_with_parent(parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent hears it too
    _state.update(function=function, state=state)


def _work(given: Any) -> Any:
    return _state["function"](_state["state"], given)
