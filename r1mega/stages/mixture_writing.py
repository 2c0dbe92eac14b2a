"""The second pass over the rows of a mixture: those that are kept are read again, in the order of the set."""

import json
import os
from pathlib import Path

import xxhash

from r1mega.data import lines
from r1mega.data.signed_rows import SHA256
from r1mega.errors import DataError
from r1mega.runtime import files
from r1mega.runtime.progress import Bar
from r1mega.stages.mixture_choice import Places
from r1mega.stages.mixture_reading import Looking, Seen, place_of

OPEN_FILES = 256
AT_ONCE = 256
"""Rows that are written together."""


def write(look: Looking, seen: Seen, order: Places, spool: Path, out: Path) -> None:
    """A file of the rows at these places, synced.

    Args:
        spool: the rows of parquet, and those that people edited, as the first pass wrote them.

    Raises:
        DataError: a row is not what it was when it was read first.
    """
    with (
        files.LargeFile(out, new=True) as file,
        _Again(look, seen, spool) as again,
        Bar("writing", len(order), unit="row", silent=len(order) < AT_ONCE) as bar,
    ):
        for start in range(0, len(order), AT_ONCE):
            some = order[start : start + AT_ONCE].tolist()
            file.write(b"".join(again.line(place) for place in some))
            bar.advance(len(some))
        file.sync()


class _Again:
    """Rows read once more, one by one."""

    def __init__(self, look: Looking, seen: Seen, spool: Path) -> None:
        self._look, self._seen, self._spool = look, seen, spool
        self._open: dict[Path, int] = {}

    def __enter__(self) -> "_Again":
        return self

    def __exit__(self, *error: object) -> None:
        for descriptor in self._open.values():
            os.close(descriptor)
        self._open.clear()

    def line(self, place: int) -> bytes:
        """A row as it goes into the set. Raises DataError where it is not what was read before."""
        row = self._seen.rows[place]
        file, number = self._seen.files[row["file"]], int(row["line"])
        raw = self._read(self._spool if row["spooled"] else file, int(row["start"]), int(row["length"]))
        if xxhash.xxh3_128_digest(raw).rstrip(b"\0") != row["raw"]:
            raise DataError(
                f"{place_of(file, number)}: changed while it was read; wait for what writes the file, and start again"
            )
        if row["unchanged"]:
            return raw.strip() + b"\n"
        made = self._look.row(lines.value_of(raw), file, int(row["table"]), number).row
        assert bytes.fromhex(made[SHA256]).rstrip(b"\0") == row["sha256"], "a row follows from its bytes"
        return json.dumps(made, ensure_ascii=False).encode() + b"\n"

    def _read(self, path: Path, start: int, length: int) -> bytes:
        if path not in self._open:
            if len(self._open) >= OPEN_FILES:
                self.__exit__()
            try:
                self._open[path] = os.open(path, os.O_RDONLY)
            except OSError as error:
                raise DataError(f"cannot read {path}: {error.strerror}") from error
        return os.pread(self._open[path], length, start)
