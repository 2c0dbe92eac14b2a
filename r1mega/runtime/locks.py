"""Locks that say who uses a folder, where its file system has any."""

import contextlib
import errno
import fcntl
import logging
from typing import IO, Any

log = logging.getLogger(__name__)

NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)
"""What file systems without locks answer: some of NFS, Lustre mounted with noflock, FUSE."""


def take(file: IO[Any]) -> bool:
    """Hold the lock of an open file until it is closed; False where another process holds it.

    Where there are no locks it counts as held, and a warning says so once: two runs in one folder then destroy each
    other's files, and nobody notices.

    Raises:
        OSError: the file system fails.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            return False
        if error.errno not in NO_LOCKS:
            raise
        log.warning(
            "%s: this file system has no locks (%s): see to it that no other process uses the folder",
            file.name, error.strerror,
        )  # fmt: skip
    return True


def release(file: IO[Any]) -> None:
    """Let go of a lock, also where a child that was forked meanwhile has the file open."""
    if not file.closed:
        with contextlib.suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_UN)
        file.close()
