"""What an endpoint has said before, by content: asked again, a run has the same answer and sends nothing.

A file of JSON lines, so that it needs no locks, which network file systems may lack: a process that dies while it
writes leaves a torn last line, which is cut off before the next one.
"""

import hashlib
import json
import logging
import os
import threading
from pathlib import Path
from typing import Any

from r1mega.errors import DataError

log = logging.getLogger(__name__)


def key_of(*parts: Any) -> str:
    """SHA-256 of JSON values, whatever the order of their tables."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


class ReplyCache:
    """Answers by key. Of one process; from any of its threads."""

    def __init__(self, path: Path | None = None) -> None:
        """
        Args:
            path: where they lie; made with the first one. None: in memory, for as long as this object lives.

        Raises:
            DataError: it is there and cannot be read.
        """
        self._path = path
        self._places: dict[bytes, tuple[int, int]] = {}
        """Key -> offset and length of its line, in bytes."""
        self._held: dict[bytes, Any] = {}
        self._end = 0
        """Of the last whole line."""
        self._file: int | None = None
        self._lock = threading.Lock()
        if path is not None and path.exists():
            try:
                self._scan(path)
            except OSError as error:
                raise DataError(
                    f"{path}, of what was said before, cannot be read: {error.strerror}; mend that, or take it "
                    "away, and all is asked anew"
                ) from error

    def __len__(self) -> int:
        return len(self._places) + len(self._held)

    def get(self, key: str) -> Any:
        """The value; None where there is none."""
        with self._lock:
            digest = bytes.fromhex(key)
            if self._path is None or digest not in self._places:
                return self._held.get(digest)
            start, length = self._places[digest]
            if self._file is None:
                self._file = self._opened(self._path)
            return json.loads(os.pread(self._file, length, start))["value"]

    def put(self, key: str, value: Any) -> None:
        """Keep a JSON value, for good where there is a file.

        Raises:
            OSError: it cannot be written, such as on a full disk; the next one is written in its place.
        """
        with self._lock:
            digest = bytes.fromhex(key)
            if self._path is None:
                self._held[digest] = value
                return
            line = (
                json.dumps({"key": key, "value": value}, ensure_ascii=False).encode("utf-8", "surrogatepass") + b"\n"
            )
            if self._file is None:
                self._file = self._opened(self._path)
            written = 0
            while written < len(line):
                written += os.pwrite(self._file, line[written:], self._end + written)
            self._places[digest] = (self._end, len(line))
            self._end += len(line)

    def close(self) -> None:
        """All that was put is on the disk then."""
        with self._lock:
            if self._file is not None:
                os.fsync(self._file)
                os.close(self._file)
                self._file = None

    def _opened(self, path: Path) -> int:
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        os.ftruncate(file, self._end)  # a torn last line
        return file

    def _scan(self, path: Path) -> None:
        damaged = 0
        with path.open("rb") as file:
            start = 0
            for line in file:
                if (key := _key(line)) is not None:
                    self._places[key] = (start, len(line))
                elif line.endswith(b"\n"):
                    damaged += 1
                start += len(line)
                if line.endswith(b"\n"):
                    self._end = start
        if damaged:
            log.warning("%s: %d lines are damaged; what stood in them is asked anew", path, damaged)


def _key(line: bytes) -> bytes | None:
    """Of a whole line; None where it is none of this file's."""
    try:
        row = json.loads(line) if line.endswith(b"\n") else {}
        return bytes.fromhex(row["key"]) if "value" in row else None
    except (ValueError, KeyError, TypeError):
        return None
