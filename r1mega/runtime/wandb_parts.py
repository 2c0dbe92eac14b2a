"""The parts of a run at W&B: one id for all of them, numbers of rows that never come twice, and rows to make up for.

Each start of a run is a part: a folder wandb/[offline-]run-TIME-ID with a file run-ID.wandb, which `wandb sync`
sends. W&B keeps one row for each number (`_step`), and a part that is not told begins at 0 again; so rows of a later
part would take the place of an earlier one's. Here numbers go on from part to part, whatever ended the one before.
They say nothing of training: steps that are taken again after a checkpoint are further rows, with the same `step`.

wandb/r1mega.json   {"id", "run", "parts", "next_row", "events", "alerted", "table", "referenced"}
"""

import importlib
import json
import struct
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self
from uuid import uuid4

from r1mega.runtime import files
from r1mega.runtime.provenance import RUN

STATE, LEGACY_ID = "r1mega.json", "r1mega_id"
OFFLINE = "offline-"
"""Before the names of the folders of parts that wait to be sent."""
BLOCK = 1000
"""RowNumbers that are set aside at once, in a file that outlives a crash; those of them that no row got stay free."""

_BLOCK_BYTES, _HEAD = 32768, struct.Struct("<IHB")
"""Of a .wandb file: 7 bytes that say what it is, then LevelDB's log format: checksum, length, type, data."""
_FIRST, _ENDS = (1, 2), (1, 4)
"""Types of the chunks that begin and that end a record."""


@dataclass
class PartsState:
    """What the next part has to know of the earlier ones."""

    id: str
    run: str = ""
    """run.json's id of the run; a run directory that was copied has another one, and is another run at W&B."""
    parts: int = 0
    """How many have begun."""
    next_row: int = 0
    """A number that no row has, and none above it."""
    events: int = 0
    """Bytes of events.jsonl that were looked at."""
    alerted: list[str] = field(default_factory=list[str])
    """Causes of which an alert was raised."""
    table: int = -1
    """The step of the newest table of transcripts."""
    referenced: list[str] = field(default_factory=list[str])
    """Folders that are listed as artifacts, each with its digest."""

    @classmethod
    def of(cls, run_dir: Path) -> Self:
        """A run's as its last part left it, or a new one."""
        run = str(_object(run_dir / RUN).get("run", ""))
        kept = _object(run_dir / "wandb" / STATE)
        if "id" in kept and kept.get("run") in ("", run):
            known = {name: kept[name] for name in cls.__dataclass_fields__ if name in kept}
            return cls(**{**known, "run": run})
        legacy = run_dir / "wandb" / LEGACY_ID
        if not kept and legacy.is_file():
            # Its rows have no numbers of ours: W&B counted them itself, one a line of metrics.jsonl or less.
            return cls(legacy.read_text(encoding="utf-8").strip(), run, next_row=_lines(run_dir / "metrics.jsonl"))
        return cls(run or uuid4().hex[:16], run)

    def save(self, run_dir: Path) -> None:
        """Write it where it is not what stands there."""
        if _object(file := run_dir / "wandb" / STATE) != (now := asdict(self)):
            file.parent.mkdir(exist_ok=True)
            files.write_json(file, now)


class RowNumbers:
    """RowNumbers of rows, ascending over all parts of a run."""

    def __init__(self, state: PartsState, run_dir: Path) -> None:
        self._state, self._run_dir, self._next = state, run_dir, state.next_row

    def take(self) -> int:
        if self._next >= self._state.next_row:
            self._state.next_row = self._next + BLOCK
            self._state.save(self._run_dir)
        self._next += 1
        return self._next - 1

    def go_on_from(self, number: int) -> None:
        """Take none below: W&B would throw the row away."""
        self._next = max(self._next, number)

    def give_back(self) -> None:
        """Those of the last block that are left; nothing takes a number after that."""
        self._state.next_row = self._next


def parts_of(run_dir: Path, id: str | None = None) -> list[Path]:
    """The .wandb files in a run directory, of one id or of all, in the order in which they were begun."""
    found = (run_dir / "wandb").glob(f"*run-*/run-{id or '*'}.wandb")
    return sorted((file for file in found if not file.parent.is_symlink()), key=_begun)


def _begun(part: Path) -> tuple[str, str]:
    """The time in a part's name, offline or not."""
    return part.parent.name.removeprefix(OFFLINE), part.name


def records(part: Path) -> Iterator[Any]:
    """The records of a .wandb file, as wandb's protobuf; what is torn at the end, by a kill, is left out."""
    from google.protobuf.message import DecodeError

    messages: Any = importlib.import_module("wandb.proto.wandb_internal_pb2")
    data, at, whole = part.read_bytes(), 7, b""
    while at + _HEAD.size <= len(data):
        if (left := _BLOCK_BYTES - at % _BLOCK_BYTES) < _HEAD.size:
            at += left
            continue
        _, length, kind = _HEAD.unpack_from(data, at)
        at += _HEAD.size
        if kind == 0 or at + length > len(data):
            return
        whole = (b"" if kind in _FIRST else whole) + data[at : at + length]
        at += length
        if kind in _ENDS:
            record = messages.Record()
            try:
                record.ParseFromString(whole)
            except DecodeError:
                return
            yield record


def rows(part: Path) -> Iterator[dict[str, Any]]:
    """The rows of a .wandb file, `_step` being its number."""
    for record in records(part):
        if record.HasField("history"):
            yield {
                ".".join(item.nested_key) or item.key: json.loads(item.value_json) for item in record.history.item
            } | ({"_step": record.history.step.num} if record.history.HasField("step") else {})


def has_ended(part: Path) -> bool:
    """Whether its writer said that it is over; one that was killed did not."""
    return any(record.HasField("exit") for record in records(part))


def left_out(
    metrics: Sequence[dict[str, Any]], earlier: Sequence[Path], sent: int | None = None
) -> list[dict[str, Any]]:
    """Rows of metrics.jsonl that no part holds: W&B hung or died in an earlier one, or the machine did.

    Args:
        earlier: all parts that there were.
        sent: the number behind the last that W&B itself has, where it has been asked: what an online part's file has
            from there on was never sent, and nobody sends it any more.
    """
    held = Counter(
        (row.get("kind"), row.get("step"))
        for part in earlier
        for row in rows(part)
        if sent is None or part.parent.name.startswith(OFFLINE) or row.get("_step", 0) < sent
    )
    found: list[dict[str, Any]] = []
    for row in metrics:
        if held[name := (row["kind"], row["step"])]:
            held[name] -= 1
        else:
            found.append(row)
    return found


def _object(file: Path) -> dict[str, Any]:
    """Of a JSON file; empty where there is none, or a torn one."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _lines(file: Path) -> int:
    return file.read_bytes().count(b"\n") if file.is_file() else 0
