"""As many programs at once as there are cores, whichever processes ask: a slot is a locked file, and a user id."""

import contextlib
import fcntl
import os
import random
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from r1mega.errors import RewardError

FIRST_UID = 200_000
"""Slot k's user is this + k; no such user needs to exist. Each has a count of processes of its own."""
POLL_S = 0.005


@contextlib.contextmanager
def slot(count: int | None = None, *, wait: bool = True) -> Iterator[int | None]:
    """Hold a slot of this machine: its number. A process that dies gives its slot back.

    Args:
        count: how many there are; None: one a core that this process may use.
        wait: until one is free; otherwise None is given where none is.
    """
    numbers = list(range(count or len(os.sched_getaffinity(0))))
    folder = _folder()
    held: tuple[int, int] | None = None
    while held is None:
        random.shuffle(numbers)
        held = next(filter(None, (_locked(folder, number) for number in numbers)), None)
        if held is None:
            if not wait:
                yield None
                return
            time.sleep(POLL_S)
    try:
        yield held[0]
    finally:
        os.close(held[1])


def uid_of(number: int) -> int | None:
    """The user that a slot's programs run as; None where this process cannot become another."""
    return FIRST_UID + number if os.geteuid() == 0 else None


def _locked(folder: Path, number: int) -> tuple[int, int] | None:
    fd = os.open(folder / str(number), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        return None
    return number, fd


def _folder() -> Path:
    """Of this user, on this machine. Raises RewardError where another user has made it."""
    folder = Path(tempfile.gettempdir()) / f"r1mega-sandboxes-{os.geteuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    found = folder.lstat()
    if folder.is_symlink() or found.st_uid != os.geteuid() or found.st_mode & 0o077:
        raise RewardError(f"{folder} is not this user's alone: remove it, it holds nothing but locks")
    return folder
