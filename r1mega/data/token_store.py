"""Tokenised documents in a folder, mapped into memory by every rank: the report's 800,000 are 4.3 billion tokens.

tokens.npy [T] int32; starts.npy [N + 1] int64 into it; spans.npy [S, 2] int32, ranges of targets inside their
document; span_starts.npy [N + 1] int64 into those; store.json: counts, and the digest by which a checkpoint knows its
data. Where documents have a value each, values.npy [N] float32. Where they are known by the rows they were made of,
rows.txt has a line for each: the digest of its row, a number into store.json's "places", and which row of that place.
"""

import hashlib
import itertools
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from r1mega.buffers import Float32s, Int32s
from r1mega.errors import DataError
from r1mega.runtime import files
from r1mega.samples import Document

ARRAYS = ("tokens", "starts", "spans", "span_starts")
VALUES = "values"
ROWS = "rows.txt"
Spans = Sequence[tuple[int, int]]


class Stored(NamedTuple):
    """A document as it is written."""

    ids: Sequence[int]
    spans: Spans
    """Ranges of targets; of a document of several texts, those texts."""
    value: float | None = None
    """What is known of it, such as a label; all documents of a store have one, or none has."""
    row: tuple[str, str] | None = None
    """Of the row it was made of the digest (`signed_rows.FromRow`), and where it stands: "FILE, line N"."""


@dataclass(frozen=True)
class TokenStore:
    """N documents. Make one with `write` and open it with `load`."""

    tokens: np.ndarray
    starts: np.ndarray
    spans: np.ndarray
    span_starts: np.ndarray
    about: Mapping[str, Any]
    """What store.json says: `key`, `digest`, and whatever was counted while the documents were made."""
    values: np.ndarray | None = None
    """[N] float32, where documents have one each."""

    def __len__(self) -> int:
        return len(self.starts) - 1

    @property
    def lengths(self) -> list[int]:
        """[N] tokens of each document."""
        return np.diff(self.starts).tolist()

    @property
    def num_targets(self) -> np.ndarray:
        """[N] int64: targets of each document."""
        ends = np.concatenate([[0], np.cumsum(self.spans[:, 1] - self.spans[:, 0], dtype=np.int64)])
        return np.diff(ends[self.span_starts])

    def document(self, i: int, weight: float) -> Document:
        """Document i, each of whose targets weighs `weight` in the loss."""
        ids = Int32s(self.tokens[self.starts[i] : self.starts[i + 1]])
        spans = tuple((a, b) for a, b in self.spans[self.span_starts[i] : self.span_starts[i + 1]].tolist())
        count = sum(stop - start for start, stop in spans)
        return Document(ids, fields={"weight": Float32s.repeated(weight, count)}, spans=spans)


def write(folder: Path, key: str, documents: Iterable[Stored], about: Mapping[str, Any]) -> None:
    """Write documents, as they come, to a folder that is complete or absent.

    Args:
        key: says what they were made from; `load` refuses another.
        about: read after the last document, so that it may count them.
    """
    files.write_folder(folder, lambda to: _fill(to, key, documents, about))


def load(folder: Path, key: str | None = None) -> TokenStore | None:
    """Open a store; None where there is none, or one of another key.

    Raises:
        DataError: it cannot be read.
    """
    file = folder / "store.json"
    if not file.is_file():
        return None
    try:
        about = json.loads(file.read_text())
        if key is not None and about["key"] != key:
            return None
        arrays = {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in ARRAYS[:1]}
        arrays |= {name: np.load(folder / f"{name}.npy") for name in ARRAYS[1:]}
        if (folder / f"{VALUES}.npy").is_file():
            arrays[VALUES] = np.load(folder / f"{VALUES}.npy")
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"{folder}: tokenised data that cannot be read ({error}); remove the folder") from None
    return TokenStore(**arrays, about=about)


def place_of(folder: Path, document: int) -> str:
    """Where the row of a document stands, as "FILE, line N"; "" where the store does not say."""
    file = folder / ROWS
    if not file.is_file():
        return ""
    with file.open(encoding="utf-8") as rows:
        _, place, number = next(itertools.islice(rows, document, None)).split()
    return f"{json.loads((folder / 'store.json').read_text())['places'][int(place)]} {number}"


def _fill(folder: Path, key: str, documents: Iterable[Stored], about: Mapping[str, Any]) -> None:
    lengths: list[int] = []
    span_counts: list[int] = []
    ranges: list[tuple[int, int]] = []
    values: list[float] = []
    places: dict[str, int] = {}
    raw = folder / "tokens.raw"
    with raw.open("wb") as file, (folder / ROWS).open("w", encoding="utf-8") as rows:
        for ids, spans, value, row in documents:
            np.asarray(ids, np.int32).tofile(file)
            lengths.append(len(ids))
            span_counts.append(len(spans))
            ranges += spans
            values += [] if value is None else [value]
            if row is not None:
                digest, (place, _, number) = row[0], row[1].rpartition(" ")
                rows.write(f"{digest} {places.setdefault(place, len(places))} {number}\n")
    tokens = np.memmap(raw, np.int32, "r") if lengths else np.empty(0, np.int32)
    arrays = {
        "tokens": tokens,
        "starts": np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]).astype(np.int64),
        "spans": np.array(ranges, np.int32).reshape(-1, 2),
        "span_starts": np.concatenate([[0], np.cumsum(span_counts, dtype=np.int64)]).astype(np.int64),
    }
    if values:
        assert len(values) == len(lengths), "all documents have a value, or none has"
        arrays[VALUES] = np.array(values, np.float32)
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array)
    raw.unlink()
    if not places:
        (folder / ROWS).unlink()
    digest = hashlib.sha256()
    for name in arrays:
        for block in _blocks(folder / f"{name}.npy"):
            digest.update(block)
    record = {"key": key, "digest": digest.hexdigest()[:16], "documents": len(lengths), "tokens": sum(lengths)}
    record |= {"places": list(places)} if places else {}
    (folder / "store.json").write_text(json.dumps({**record, **about}, indent=2) + "\n")


def _blocks(file: Path, size: int = 1 << 24) -> Iterator[bytes]:
    with file.open("rb") as handle:
        while block := handle.read(size):
            yield block
