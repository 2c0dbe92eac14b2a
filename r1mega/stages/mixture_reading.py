"""The first pass over the rows of a mixture: each is read, checked and looked at, and what is kept of it is some 200
bytes, whatever its length: where it stands, what it says as hashes, how long it is.

Rows of parquet are spooled into a JSONL file on the way, since the second pass reads rows one by one in any order.
"""

import contextlib
import hashlib
import io
import itertools
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from r1mega.data import lines
from r1mega.data.lines import BYTE_ORDER_MARK
from r1mega.data.mixed_rows import DOMAINS, LOOKED_AT, THINKING, MixedRow, mixed_row
from r1mega.data.signed_rows import Row
from r1mega.data.special_tokens import control_token_in
from r1mega.data.tokenised import asks_held_out
from r1mega.errors import DataError
from r1mega.evaluation import parquet_rows
from r1mega.evaluation.normalise import normalise
from r1mega.evaluation.overlap import Evaluations, Hit, Place
from r1mega.evaluation.row_texts import texts_of
from r1mega.evaluation.search_files import Block, blocks, read
from r1mega.recipe.mixture import MakeMixture
from r1mega.runtime.in_order import in_order
from r1mega.runtime.progress import Bar
from r1mega.stages.mixture_review import Reviewing

MB = 10**6
POOL_BYTES = 64 * MB
"""Of all files, from which on several processes read them: to start one takes a second."""

ROW = np.dtype(
    [
        ("table", "u2"), ("file", "u4"), ("line", "u8"),
        ("start", "u8"), ("length", "u8"), ("raw", "S16"),  # of its bytes, in its file or in the spool
        ("sha256", "S32"), ("question", "S16"), ("pair", "S16"),
        ("draw", "u8"), ("order", "u8"), ("pick", "u8"),  # by the seed and its sha256, each a draw of its own
        ("unchanged", "?"), ("spooled", "?"), ("imported", "?"),
        ("left_out", "u1"), ("held_out", "?"), ("contaminated", "?"), ("control", "?"),
        ("domain", "u1"), ("thinking", "i1"), ("tokens", "i8"), ("characters", "u8"),
        ("source", "u4"), ("policy", "u4"), ("verdict", "u4"), ("rewrite", "u4"), ("review", "u4"),
    ]
)  # fmt: skip
"""What is kept of a row. `left_out` is a place in `REVIEWED`, `thinking` in `THINKING`, the last five in
`Seen.names`; `thinking` and `tokens` that are not known are -1."""
REVIEWED = ("", "rejected", "undecided")
"""Why people's decisions leave a row out; "": they do not."""
NAMED = ("source", "policy", "verdict", "rewrite", "review")
Rows = NDArray[Any]
"""[rows] of ROW."""


@dataclass(frozen=True)
class Looking:
    """What rows are looked at for."""

    seed: int
    domains: Sequence[str]
    """Of each table, for rows without provenance; "": it says none."""
    evaluations: Evaluations | None
    reviewed: frozenset[str]
    """Rows that people have decided on, by their sha256."""

    def row(self, value: Any, file: Path, table: int, line: int) -> MixedRow:
        """As it may go into the set. Raises DataError, as `mixed_row`."""
        name = file.name.encode("utf-8", "replace").decode("utf-8")
        return mixed_row(value, name, line, place_of(file, line), self.domains[table])


@dataclass(frozen=True)
class _TableBlock:
    """A block of a table's file."""

    table: int
    file: int
    block: Block


@dataclass(frozen=True)
class _Looked:
    """A block's rows."""

    rows: Rows
    names: Sequence[str]
    """That its rows' last fields are places in."""
    hits: Sequence[Hit]
    spooled: bytes
    """Of parquet: the rows as lines, which their starts and lengths count in."""
    reviewed: Sequence[tuple[int, Row]]
    """Places and rows that people have decided on."""


@dataclass
class Seen:
    """All rows, looked at."""

    files: Sequence[Path]
    rows: Rows
    names: Sequence[str]
    """What is named in rows: sources, and policies, verdicts, rewriters and reviews as JSON."""
    hits: Sequence[Hit]
    """What rows share with evaluations."""
    rejected: Sequence[Row]
    """Those that people's decisions leave out."""
    review: Mapping[str, Any]
    """How many decisions of which kind, and whose."""


def place_of(file: Path, line: int) -> str:
    """Where a row stands, for messages."""
    return f"{file}, {'row' if parquet_rows.is_parquet(file) else 'line'} {line}"


def _looking(config: MakeMixture, reviewed: frozenset[str]) -> Looking:
    """What a mixture's rows are looked at for. Raises DataError where there is nothing to decontaminate against."""
    against = config.decontaminate
    evaluations = against and Evaluations.read(against.files, (), against.words, against.boilerplate)
    return Looking(config.seed, [table.domain or "" for table in config.data], evaluations, reviewed)


def see(config: MakeMixture, spool: Path | None) -> tuple[Looking, Seen]:
    """Read all rows of a mixture once.

    Args:
        spool: a file that is written with the rows of parquet and those that people edited; None: no second pass
            follows.

    Raises:
        DataError: a file cannot be read, has no rows, or has a row that `mixed_row` refuses; file and line are named.
            People's decisions do not fit the rows.
    """
    reviewing = Reviewing(config)
    look, files = _looking(config, reviewing.about), [file for table in config.data for file in table.files]
    tables = [i for i, table in enumerate(config.data) for _ in table.files]
    total = _num_bytes(files)
    found, hits, names = list[Rows](), list[Hit](), dict[str, int]()
    pieces = (
        _TableBlock(table, number, block)
        for number, (table, file) in enumerate(zip(tables, files, strict=True))
        for block in blocks([file])
    )
    processes = (config.processes or len(os.sched_getaffinity(0))) if total > POOL_BYTES else 1
    with (
        spool.open("wb") if spool is not None else io.BytesIO() as spooled,
        Bar("reading", max(1, total // MB), unit="MB", silent=total < POOL_BYTES) as bar,
        contextlib.closing(in_order(_look, (look, spool is not None), pieces, processes, _killed)) as looked,
    ):
        num_bytes = 0
        for piece, some in looked:
            found.append(_placed(some, names, spooled))
            hits += _reviewed(found[-1], some, piece, look, reviewing, names, spooled)
            num_bytes += piece.block.length
            if more := num_bytes // MB - bar.done:
                bar.advance(more)
    rows = np.concatenate(found) if found else np.empty(0, ROW)
    for number in sorted(set(range(len(files))) - set(np.unique(rows["file"]).tolist())):
        raise DataError(
            f"data.{tables[number]}.files: {files[number]}: no rows in it: the stage that writes it made none, or it "
            "is the wrong file; leave it out, or name another"
        )
    return look, Seen(files, rows, list(names), hits, *reviewing.finish())


def _num_bytes(files: Sequence[Path]) -> int:
    try:
        return sum(file.stat().st_size for file in files)
    except OSError as error:
        raise DataError(f"cannot read {error.filename}: {error.strerror}") from error


def _placed(some: _Looked, names: dict[str, int], spooled: IO[bytes]) -> Rows:
    """A block's rows, with the names and the spool of all blocks."""
    rows = some.rows
    known = np.array([names.setdefault(name, len(names)) for name in some.names], np.uint32)
    for name in NAMED if len(rows) else ():
        rows[name] = known[rows[name]]
    if some.spooled:
        rows["start"] += spooled.tell()
        rows["spooled"] = True
        spooled.write(some.spooled)
    return rows


def _reviewed(
    rows: Rows,
    some: _Looked,
    piece: _TableBlock,
    look: Looking,
    reviewing: Reviewing,
    names: dict[str, int],
    spooled: IO[bytes],
) -> Sequence[Hit]:
    """Apply decisions to a block's `rows`; what its rows then share with evaluations."""
    hits = list(some.hits)
    for place, row in some.reviewed:
        number = int(rows["line"][place])

        def remade(made: MixedRow, line: bytes, place: int = place, number: int = number) -> None:
            making = _Making(look, piece)
            making.add(made, number, 0, line)
            anew = making.made(line)
            rows[place] = _placed(anew, names, spooled)[0]
            hits[:] = [*(hit for hit in hits if hit.place.line != number), *anew.hits]

        why = reviewing.decide(row, place_of(piece.block.file, number), remade)
        rows["left_out"][place] = REVIEWED.index(why)
    return hits


def _killed(piece: _TableBlock) -> str:
    return (
        f"{piece.block.file}: a process that read it was killed, perhaps because memory ran out; run the same "
        "command again, with fewer processes"
    )


# ---- one block, in a process of the pool ---------------------------------------------------------------------------


@dataclass
class _Making:
    """A block's rows in the making."""

    look: Looking
    piece: _TableBlock
    rows: list[tuple[Any, ...]] = field(default_factory=list[tuple[Any, ...]])
    names: dict[str, int] = field(default_factory=dict[str, int])
    places: list[Place] = field(default_factory=list[Place])
    texts: list[str] = field(default_factory=list[str])
    reviewed: list[tuple[int, Row]] = field(default_factory=list[tuple[int, Row]])

    def read(self, value: Any, line: int, start: int, raw: bytes) -> None:
        """A row that is `raw`, at `start`."""
        row = self.look.row(value, self.piece.block.file, self.piece.table, line)
        if row.sha256 in self.look.reviewed:
            self.reviewed.append((len(self.rows), row.row))
        self.add(row, line, start, raw)

    def add(self, row: MixedRow, line: int, start: int, raw: bytes) -> None:
        """A row whose bytes are `raw`, at `start`."""
        file = self.piece.block.file
        if self.look.evaluations is not None:
            for name, text in texts_of({"messages": row.row["messages"]}):
                self.places.append(Place(str(file), line, name))
                self.texts.append(normalise(text))
        provenance, digest = row.provenance, bytes.fromhex(row.sha256)
        drawn = hashlib.sha256(f"{self.look.seed}/".encode() + digest).digest()
        self.rows.append(
            (
                self.piece.table, self.piece.file, line, start, len(raw), xxhash.xxh3_128_digest(raw),
                digest, *row.keys(),
                *(int.from_bytes(drawn[at : at + 8], "big") for at in (0, 8, 16)),
                row.unchanged, False, "imported" in provenance, 0, asks_held_out(row.conversation), False,
                any(control_token_in(message["content"]) for message in row.conversation.messages),
                DOMAINS.index(row.domain), THINKING.index(row.thinking) if row.thinking else -1,
                -1 if row.tokens is None else row.tokens, row.characters,
                self._name(str(provenance["question"].get("source", ""))),
                self._name(_policy(provenance)), self._name(str(_part(provenance, "verdict").get("by", ""))),
                self._name(str(_part(provenance, "rewrite").get("by", ""))),
                self._name(str(_part(provenance, "review").get("decision", ""))),
            )
        )  # fmt: skip

    def _name(self, name: str) -> int:
        return self.names.setdefault(name, len(self.names))

    def made(self, spooled: bytes = b"") -> _Looked:
        rows, hits = np.array(self.rows, ROW), list[Hit]()
        if self.look.evaluations is not None:
            hits = self.look.evaluations.hits(self.places, self.texts)
            rows["contaminated"] = np.isin(rows["line"], [hit.place.line for hit in hits])
        return _Looked(rows, list(self.names), hits, spooled, self.reviewed)


def _look(state: tuple[Looking, bool], piece: _TableBlock) -> _Looked:
    look, spools = state
    making = _Making(look, piece)
    if parquet_rows.is_parquet(piece.block.file):
        return making.made(_look_at_group(making, spools))
    for value, line, start, raw in _lines(piece.block):
        making.read(value, line, start, raw)
    return making.made()


def _lines(block: Block) -> Iterator[tuple[Any, int, int, bytes]]:
    """Value, number, place in the file and bytes of each line that is not blank."""
    at = block.start
    for number, line in enumerate(io.BytesIO(read(block)), block.first_line):
        start, at = at, at + len(line)
        if number == 1 and line.startswith(BYTE_ORDER_MARK):
            line, start = line.removeprefix(BYTE_ORDER_MARK), start + len(BYTE_ORDER_MARK)
        if line.strip():
            yield lines.parsed(line, place_of(block.file, number)), number, start, line


def _look_at_group(making: _Making, spools: bool) -> bytes:
    """Add the rows of a row group; they as lines, if they are spooled."""
    block, spooled = making.piece.block, io.BytesIO()
    rows = parquet_rows.rows(block.file, LOOKED_AT, block.start)
    while some := list(itertools.islice(rows, parquet_rows.BATCH_ROWS)):
        for number, row in enumerate(some, block.first_line):
            value = {name: part for name, part in row.items() if part is not None}
            raw = json.dumps(value, ensure_ascii=False, default=str).encode("utf-8", "surrogatepass") + b"\n"
            making.read(json.loads(raw), number, spooled.tell(), raw)
            spooled.write(raw if spools else b"")
        block = Block(block.file, block.start, block.length, block.first_line + len(some))
    return spooled.getvalue()


def _part(provenance: Any, name: str) -> Any:
    found = provenance.get(name)
    return found if isinstance(found, dict) else {}


def _policy(provenance: Any) -> str:
    """Which checkpoint answered, as JSON; "" where nobody of ours did."""
    policy = _part(provenance, "policy")
    told = {name: policy[name] for name in ("endpoint", "model", "start", "weight_version") if name in policy}
    return json.dumps(told, sort_keys=True) if told else ""
