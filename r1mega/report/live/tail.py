"""Lines of a JSONL file that another process writes, each read once, as they come."""

import json
import os
from pathlib import Path

from r1mega.report.rows import Row

CHUNK_BYTES = 8 * 2**20
"""Read at once, and the longest line that is read: of a longer one only the number is kept."""
MARK_BYTES = 128
"""How much of what was read last is compared, to know a file that was written anew from one that has grown."""


class Tail:
    """Reads on where it was. A file that was written anew, as a resumed run does with its metrics, begins again.

    A last line without its newline is left for later; one that is no JSON object, as a killed writer leaves in the
    middle, is counted and passed over.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self.offset = 0
        """Bytes up to the end of the last line read."""
        self.generation = 0
        """Grows when the file begins again: what was read before is no part of it any more."""
        self.broken = 0
        """Lines that could not be read."""
        self.too_long = 0
        """Lines of more than `CHUNK_BYTES`, which were passed over."""
        self.behind = 0
        """Bytes of the file that have not been read."""
        self._inode = 0
        self._mark = b""
        self._passing = False

    def read(self) -> list[tuple[int, Row]]:
        """Rows of the next `CHUNK_BYTES` with the offset of each one's end; empty where there is nothing new, or no
        file yet.

        Raises:
            OSError: the file is there and cannot be read.
        """
        try:
            descriptor = os.open(self.file, os.O_RDONLY | os.O_NONBLOCK)
        except FileNotFoundError:
            if self.offset:
                self._begin_again()
            self.behind = 0
            return []
        try:
            status = os.fstat(descriptor)
            if self._is_another(descriptor, status):
                self._begin_again()
            self._inode = status.st_ino
            data = os.pread(descriptor, CHUNK_BYTES, self.offset)
            rows = self._take(data)
            self.behind = max(0, status.st_size - self.offset)
            return rows
        finally:
            os.close(descriptor)

    def _is_another(self, descriptor: int, status: os.stat_result) -> bool:
        if not self.offset:
            return False
        if status.st_ino != self._inode or status.st_size < self.offset:
            return True
        return os.pread(descriptor, len(self._mark), self.offset - len(self._mark)) != self._mark

    def _begin_again(self) -> None:
        self.offset, self._mark, self._passing, self.broken, self.too_long = 0, b"", False, 0, 0
        self.generation += 1

    def _take(self, data: bytes) -> list[tuple[int, Row]]:
        begin, end = 0, data.rfind(b"\n") + 1
        if not end:
            if len(data) < CHUNK_BYTES and not self._passing:
                return []  # its end is still to be written
            self._passing, end, begin = True, len(data), len(data)
        elif self._passing:
            self._passing, begin = False, data.find(b"\n") + 1
            self.too_long += 1
        rows: list[tuple[int, Row]] = []
        at = self.offset + begin
        for line in data[begin:end].split(b"\n")[:-1] if begin < end else ():
            at += len(line) + 1
            if not line.strip():
                continue
            if (row := _object(line)) is None:
                self.broken += 1
            else:
                rows.append((at, row))
        self.offset += end
        if end:
            self._mark = (self._mark + data[max(0, end - MARK_BYTES) : end])[-MARK_BYTES:]
        return rows


def last_rows(file: Path, max_bytes: int = CHUNK_BYTES) -> list[Row]:
    """The rows that stand whole in the last `max_bytes` of a JSONL file; none where there is no file.

    Raises:
        OSError: the file is there and cannot be read.
    """
    data = last_bytes(file, max_bytes + 1)
    if len(data) > max_bytes:
        data = data[data.find(b"\n") + 1 :] if b"\n" in data else b""
    return [row for line in data.split(b"\n")[:-1] if line.strip() and (row := _object(line)) is not None]


def last_bytes(file: Path, max_bytes: int) -> bytes:
    """The end of a file; nothing where there is none. Raises OSError where it is there and cannot be read."""
    try:
        descriptor = os.open(file, os.O_RDONLY | os.O_NONBLOCK)
    except FileNotFoundError:
        return b""
    try:
        size = os.fstat(descriptor).st_size
        return os.pread(descriptor, max_bytes, max(0, size - max_bytes))
    finally:
        os.close(descriptor)


def _object(line: bytes) -> Row | None:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None
