"""Files that are there whole or not at all: written to a temporary name, synced, renamed."""

import json
import os
import shutil
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Self

FLUSH_BYTES = 64 * 2**20
"""Bytes written between two flushes of a large file."""


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path` so that a reader finds the old file or the new one, never a part."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(path.parent)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, complete or absent."""
    write_text(path, json.dumps(value, indent=2, default=str) + "\n")


def dump_json(path: Path, value: Any) -> None:
    """Write `value` as `write_json` does, in a folder that gets its name when all of it is there."""
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def write_jsonl(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Write one JSON object a line, complete or absent."""
    write_text(path, "".join(json.dumps(row) + "\n" for row in rows))


def write_folder(path: Path, fill: Callable[[Path], None]) -> None:
    """Let `fill` write into a temporary folder beside `path`, sync every file, and rename it to `path`.

    An existing folder at `path` is replaced. If `fill` raises, nothing is left behind.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        fill(temporary)
        for file in temporary.rglob("*"):
            if file.is_file():
                with file.open("rb") as handle:
                    os.fsync(handle.fileno())
        if path.exists():
            shutil.rmtree(path)
        temporary.rename(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    sync_folder(path.parent)


class WriteBehind:
    """Sends a large file to the disk while more of it is computed, so that its sync at the end finds little left.

    A thread flushes what was written (`os.fdatasync` holds no lock of the interpreter). What is written is safe only
    after `sync`. Leaving waits for the thread: the file may be closed then, and not before.
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1)
        self._flush: Future[None] | None = None
        self._unflushed = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._thread.shutdown()

    def wrote(self, descriptor: int, num_bytes: int) -> None:
        """Count what was just written to the open file, and begin to flush it where it has become much.

        Raises:
            OSError: an earlier flush's.
        """
        self._unflushed += num_bytes
        if self._unflushed < FLUSH_BYTES or (self._flush is not None and not self._flush.done()):
            return
        if self._flush is not None:
            self._flush.result()
        self._flush, self._unflushed = self._thread.submit(os.fdatasync, descriptor), 0

    def sync(self, descriptor: int) -> None:
        """Return when all that was written to the file is on the disk."""
        if self._flush is not None:
            self._flush.result()
        os.fsync(descriptor)


def sync_folder(folder: Path) -> None:
    """Make a rename inside `folder` survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
