"""Files of rows under a folder, in which a row is found by its digest; and the rows that a run trained on."""

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from r1mega.data import lines
from r1mega.data.signed_rows import SHA256, Row
from r1mega.data.token_store import ROWS
from r1mega.errors import DataError
from r1mega.pipeline.run_folders import StageFolder

WRITTEN = ("conversations.jsonl", "rows.jsonl", "pairs.jsonl", "labelled.jsonl", "originals.jsonl")
"""Under which names stages write rows; the last ones are those from before they were written anew."""
JSONL = ".jsonl"
DIGEST = re.compile("[0-9a-f]{64}")
OWN = re.compile(rb'"sha256": ?"([0-9a-f]{64})"\}\s*\Z')
"""A row's own digest, which stands behind its other fields."""


@dataclass(frozen=True)
class RowPlace:
    """Where a row stands."""

    file: Path
    line: int
    """From 1."""
    offset: int
    """Of the line, in bytes."""

    def __str__(self) -> str:
        return f"{self.file}, line {self.line}"


class RowFiles:
    """All files of rows that run directories wrote or read. Each is read from end to end once, whatever is asked."""

    def __init__(self, stages: Sequence[StageFolder], more: Iterable[Path] = ()) -> None:
        """
        Args:
            more: files besides.
        """
        written = [(stage.path / name).resolve() for stage in stages for name in WRITTEN]
        self.signed = frozenset(written)
        """Those that stages wrote, in which every row is signed and says where it comes from."""
        read = (of.path for stage in stages for of in stage.inputs() if of.path.suffix == JSONL)
        found = (file.resolve() for file in (*more, *written, *read) if file.is_file())
        self.files = list(dict.fromkeys(found))
        self._index: dict[bytes, tuple[int, int, int]] | None = None
        self._open: dict[Path, IO[bytes]] = {}

    def places(self, text: str) -> Iterator[RowPlace]:
        """Every line that has `text` at the beginning of a JSON string, such as a digest or the beginning of one."""
        wanted = f'"{text}'.encode()
        for file in self.files:
            yield from (place for place, line in lines_of(file) if wanted in line)

    def named(self, digest: str) -> RowPlace | None:
        """A row that says that it has this digest; None where there is none."""
        if self._index is None:
            self._index = {}
            for number, file in enumerate(self.files):
                for place, line in lines_of(file):
                    if own := own_digest(line):
                        self._index.setdefault(bytes.fromhex(own), (number, place.line, place.offset))
        found = self._index.get(bytes.fromhex(digest)) if DIGEST.fullmatch(digest) else None
        return found and RowPlace(self.files[found[0]], *found[1:])

    def row(self, place: RowPlace) -> Row:
        """The row at a place. Raises DataError where it is none."""
        if place.file not in self._open:
            self._open[place.file] = place.file.open("rb")
        file = self._open[place.file]
        file.seek(place.offset)
        return row_of(file.readline(), str(place))

    def close(self) -> None:
        for file in self._open.values():
            file.close()
        self._open.clear()


def lines_of(file: Path) -> Iterator[tuple[RowPlace, bytes]]:
    """Every line of a file as it stands there. Raises DataError where it cannot be read."""
    try:
        with file.open("rb") as opened:
            offset = 0
            for number, line in enumerate(opened, 1):
                yield RowPlace(file, number, offset), line
                offset += len(line)
    except OSError as error:
        raise DataError(f"cannot read rows from {file}: {error.strerror}") from error


def row_of(line: bytes, where: str) -> Row:
    """A line's JSON object. Raises DataError that names `where`."""
    try:
        row = lines.value_of(line.removeprefix(lines.BYTE_ORDER_MARK))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: not JSON: {error}") from error
    if not isinstance(row, dict):
        raise DataError(f"{where}: a row is an object, not {type(row).__name__}")
    return row


def own_digest(line: bytes) -> str:
    """The digest by which a row names itself; "" of one that has none."""
    if found := OWN.search(line):
        return found[1].decode()
    try:
        row = json.loads(line) if b'"sha256"' in line else {}
    except (ValueError, RecursionError):
        return ""
    own: Any = row.get(SHA256, "") if isinstance(row, dict) else ""
    return own if isinstance(own, str) and DIGEST.fullmatch(own) else ""


@dataclass(frozen=True)
class Trained:
    """The rows that a run trained on, as it wrote them down."""

    rows: Sequence[tuple[str, str, int]]
    """Of each document digest, place ("FILE, line") and number."""

    @classmethod
    def read(cls, stage: StageFolder) -> "Trained | None":
        """None where a run did not write them down.

        Raises:
            DataError: what it wrote cannot be read.
        """
        folder = stage.path / "data/train"
        if not (folder / ROWS).is_file():
            return None
        try:
            places = json.loads((folder / "store.json").read_text(encoding="utf-8"))["places"]
            with (folder / ROWS).open(encoding="utf-8") as file:
                split = [line.split() for line in file]
            return cls([(digest, places[int(place)], int(number)) for digest, place, number in split])
        except (OSError, ValueError, KeyError, IndexError) as error:
            raise DataError(f"{folder / ROWS}: cannot be read ({error})") from error
