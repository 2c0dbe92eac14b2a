"""Files that are there whole or not at all: written to a temporary name, synced, renamed."""

import glob
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self, TextIO

FLUSH_BYTES = 64 * 2**20
"""Bytes written between two flushes of a large file."""

REPLACED = ".replaced.tmp"
"""Behind the name of a folder in whose place another one is being put."""

BLOCK_BYTES = 128 * 2**10
"""Written to the kernel at once: for more it takes pages by the megabyte, which a virtual machine that has given free
memory back to its host gets nine times slower."""


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path` so that a reader finds the old file or the new one, never a part."""
    with replacing(path) as file:
        file.write(text)


def write_parts(path: Path, parts: Iterable[str]) -> None:
    """Write a text as it comes, one part after the other; complete or absent, also where they end with an error."""
    with replacing(path) as file:
        file.writelines(parts)


@contextmanager
def replacing(path: Path) -> Iterator[TextIO]:
    """A file to write, which is `path` once the block has ended; where the block raises, nothing is left of it."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    sync(path.parent)


def remove_parts(path: Path) -> None:
    """Remove what processes that were killed have left of `path` (`replacing`), where no other can be writing it."""
    for part in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        part.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, complete or absent."""
    write_text(path, json.dumps(value, indent=2, default=str) + "\n")


def dump_json(path: Path, value: Any) -> None:
    """Write `value` as `write_json` does, in a folder that gets its name when all of it is there."""
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def write_jsonl(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Write one JSON object a line as they come, complete or absent."""
    write_parts(path, (json.dumps(row) + "\n" for row in rows))


def write_folder(path: Path, fill: Callable[[Path], None]) -> None:
    """Let `fill` write into a temporary folder beside `path`, sync all of it, and rename it to `path`.

    An existing folder at `path` is replaced (`put_folder`). If `fill` raises, nothing is left behind.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    make_folder(path.parent)
    temporary.mkdir()
    try:
        fill(temporary)
        for made in (temporary, *temporary.rglob("*")):
            sync(made)
        put_folder(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def make_folder(path: Path) -> None:
    """Make a folder, and those above it, unless they are there; a power cut takes none of their names."""
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    path.mkdir(parents=True, exist_ok=True)
    for folder in missing:
        sync(folder.parent)


def put_folder(temporary: Path, path: Path) -> None:
    """Rename a folder to `path`, in place of an older one, of which there is never a part under that name.

    A process that dies between the two renames leaves the older one whole beside `path`: see `put_back`.
    """
    aside = path.with_name(f".{path.name}{REPLACED}")
    if path.exists():
        remove(aside)
        path.rename(aside)
    try:
        temporary.rename(path)
    except OSError:
        if aside.exists():
            aside.rename(path)
        raise
    sync(path.parent)
    remove(aside)


def put_back(parent: Path) -> None:
    """Give back their names to the folders in `parent` whose replacement was broken off."""
    for aside in parent.glob(f".*{REPLACED}"):
        path = parent / aside.name[1:].removesuffix(REPLACED)
        if not path.exists():
            aside.rename(path)


def remove_folder(path: Path) -> None:
    """Remove a folder, of which there is never a part under its name."""
    aside = path.with_name(f".{path.name}.removed.tmp")
    remove(aside)
    path.rename(aside)
    remove(aside)


def remove(path: Path) -> None:
    """Remove what has no place any more: a file, or a folder and what is in it, or a link and not what it names."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


class LargeFile:
    """A large file that goes to the disk while more of it is computed, so that its sync at the end finds little left.

    What is written is safe only after `sync`. Several processes may write into one that is not new.
    """

    def __init__(self, path: Path, *, new: bool) -> None:
        """
        Args:
            new: make the file, or empty it.
        """
        self._descriptor = os.open(path, os.O_WRONLY | (os.O_CREAT | os.O_TRUNC if new else 0), 0o666)
        self._end = 0
        self._thread = ThreadPoolExecutor(1)
        self._flush: Future[None] | None = None
        self._unflushed = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._thread.shutdown()
        os.close(self._descriptor)

    def write(self, data: Any, /) -> int:
        """Append; returns the number of bytes.

        Raises:
            OSError: as `write_at`.
        """
        length = self.write_at(data, self._end)
        self._end += length
        return length

    def write_at(self, data: Any, start: int) -> int:
        """Write at a place of its own; returns the number of bytes.

        Raises:
            OSError: of this write, or of an earlier one that could not be flushed.
        """
        block, at = memoryview(data).cast("B"), 0
        while at < len(block):
            at += os.pwrite(self._descriptor, block[at : at + BLOCK_BYTES], start + at)
        self._unflushed += at
        if self._unflushed >= FLUSH_BYTES and (self._flush is None or self._flush.done()):
            if self._flush is not None:
                self._flush.result()
            self._flush, self._unflushed = self._thread.submit(os.fdatasync, self._descriptor), 0
        return at

    def tell(self) -> int:
        """Where `write` appends."""
        return self._end

    def flush(self) -> None:
        """Nothing is kept back."""

    def sync(self) -> None:
        """Return when all that was written is on the disk. Raises OSError where it is not."""
        if self._flush is not None:
            self._flush.result()
        os.fsync(self._descriptor)


def sync(path: Path) -> None:
    """Make a file's content, or the renames inside a folder, survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
