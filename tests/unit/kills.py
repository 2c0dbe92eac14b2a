"""SIGKILL at a chosen moment of what a process does to its files."""

import os
import signal
import sys
from collections.abc import Callable

CHANGES = ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir")
"""Python's audit events that come before a change of the file system, and some others."""


def killed_at(number: int, act: Callable[[], object]) -> bool:
    """Whether SIGKILL just before the n-th of `CHANGES`, counted from 0, kept a child from doing all of `act`."""
    if child := os.fork():
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert code in (0, -signal.SIGKILL), code
        return code != 0
    left = [number]

    def count(event: str, _: object) -> None:
        if event in CHANGES:
            left[0] -= 1
            if left[0] < 0:
                os.kill(os.getpid(), signal.SIGKILL)

    code = 1
    try:
        sys.addaudithook(count)
        act()
        code = 0
    finally:
        os._exit(code)
