"""Files of JSONL and parquet in blocks, searched by several processes, and what came of each block, in order.

A block is whole lines of JSONL, or a row group of parquet.
"""

import io
import itertools
import json
import os
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from r1mega.data.lines import BYTE_ORDER_MARK
from r1mega.errors import DataError
from r1mega.evaluation import parquet_rows
from r1mega.evaluation.normalise import normalise
from r1mega.evaluation.overlap import Evaluations, Hit, Place
from r1mega.evaluation.row_texts import Text, texts_of
from r1mega.runtime.in_order import in_order

BLOCK_BYTES = 2 * 2**20
"""Of a file that a process searches at a time; a longer line is a block by itself."""


@dataclass(frozen=True)
class Data:
    """The files that are searched, and how."""

    paths: Sequence[Path]
    fields: Sequence[str] = ()
    """Of a row that are looked at; none: `row_texts.NAMED`."""
    processes: int = 1
    """With one, this process does it all."""

    @property
    def num_bytes(self) -> int:
        """Raises DataError where a file is not there."""
        try:
            return sum(path.stat().st_size for path in self.paths)
        except OSError as error:
            raise DataError(f"cannot read {error.filename}: {error.strerror}") from error


@dataclass(frozen=True)
class Block:
    """Whole lines of a file, or a row group of it."""

    file: Path
    start: int
    """In bytes; of a row group its number."""
    length: int
    """In bytes of the file."""
    first_line: int
    """The number of its first line, or row."""


@dataclass(frozen=True)
class Searched:
    """What a block holds."""

    rows: int
    texts: int
    hits: Sequence[Hit]
    lines: Sequence[tuple[int, int]]
    """Of each row with hits: where its line begins and ends in the block, ascending; in a row group the place of the
    row, and the next."""


def searched(data: Data, evaluations: Evaluations) -> Generator[tuple[Block, Searched]]:
    """Every block and what it holds, in order; no more blocks are under way than keep the processes busy.

    Raises:
        DataError: a file cannot be read; a line is not JSON, or is no object with one of the fields; a process was
            killed.
    """
    yield from in_order(_search, (evaluations, data.fields), blocks(data.paths), data.processes, _killed)


def blocks(paths: Sequence[Path], block_bytes: int = BLOCK_BYTES) -> Iterator[Block]:
    """The files in blocks. Raises DataError on one that cannot be read."""
    for path in paths:
        if parquet_rows.is_parquet(path):
            first = 1
            for number, (num_rows, num_bytes) in enumerate(parquet_rows.groups(path)):
                yield Block(path, number, num_bytes, first)
                first += num_rows
            continue
        try:
            with path.open("rb") as file:
                start, line = 0, 1
                while some := file.read(block_bytes):
                    some += file.readline()
                    yield Block(path, start, len(some), line)
                    start, line = start + len(some), line + some.count(b"\n")
        except OSError as error:
            raise DataError(f"cannot read {path}: {error.strerror}") from error


def read(block: Block) -> bytes:
    """The lines of a block of JSONL."""
    with block.file.open("rb") as file:
        return os.pread(file.fileno(), block.length, block.start)


def search(block: Block, evaluations: Evaluations, fields: Sequence[str]) -> Searched:
    """The hits of a block.

    Raises:
        DataError: a line is not a JSON object with one of the fields, or a row group has none of the columns; names
            file and line.
    """
    if parquet_rows.is_parquet(block.file):
        return _search_group(block, evaluations, fields)
    places, texts, where = list[Place](), list[str](), dict[int, tuple[int, int]]()
    at = 0
    for number, line in enumerate(io.BytesIO(read(block)), block.first_line):
        start, at = at, at + len(line)
        if number == 1:
            line = line.removeprefix(BYTE_ORDER_MARK)
        if line.strip():
            where[number] = start, at
            found = _texts(line, f"{block.file}, line {number}", fields)
            places += [Place(str(block.file), number, name) for name, _ in found]
            texts += [normalise(text) for _, text in found]
    hits = evaluations.hits(places, texts)
    lines = [where[number] for number in dict.fromkeys(hit.place.line for hit in hits)]
    return Searched(len(where), len(texts), hits, lines)


def _search_group(block: Block, evaluations: Evaluations, fields: Sequence[str]) -> Searched:
    hits, num_rows, num_texts = list[Hit](), 0, 0
    rows = parquet_rows.rows(block.file, fields, block.start)
    while some := list(itertools.islice(rows, parquet_rows.BATCH_ROWS)):
        places, texts = list[Place](), list[str]()
        for number, row in enumerate(some, block.first_line + num_rows):
            found = texts_of(row, fields)
            places += [Place(str(block.file), number, name) for name, _ in found]
            texts += [normalise(text) for _, text in found]
        hits += evaluations.hits(places, texts)
        num_rows, num_texts = num_rows + len(some), num_texts + len(texts)
    at = dict.fromkeys(hit.place.line - block.first_line for hit in hits)
    return Searched(num_rows, num_texts, hits, [(place, place + 1) for place in at])


def _texts(line: bytes, place: str, fields: Sequence[str]) -> list[Text]:
    try:
        return texts_of(json.loads(line.decode("utf-8")), fields)
    except UnicodeDecodeError as error:
        raise DataError(f"{place}: byte {error.start + 1}, 0x{line[error.start]:02x}, is not UTF-8") from error
    except (json.JSONDecodeError, RecursionError) as error:
        raise DataError(f"{place}: not JSON: {error}") from error
    except ValueError as error:
        raise DataError(f"{place}: {error}") from error


def _search(state: tuple[Evaluations, Sequence[str]], block: Block) -> Searched:
    return search(block, *state)


def _killed(block: Block) -> str:
    return (
        f"{block.file}: a process that searched it was killed, perhaps because memory ran out; run the same "
        "command again, with fewer --processes"
    )
