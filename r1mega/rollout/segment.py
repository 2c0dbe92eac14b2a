"""One file of the journal: a line an entry, each found again by its key.

A process may die while it writes: its torn last line is dropped on reading, and cut off before the next one.
"""

import array
import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self

import xxhash

from r1mega.errors import CheckpointError
from r1mega.rollout.engine import Request, SamplingParams
from r1mega.samples import FinishReason


class Key(NamedTuple):
    """What was asked, of which weights: by content, so that nothing else ever gets the answers."""

    weight_version: int
    policy: str
    """Digest of the weights' identity (`provenance.Lineage.policies`)."""
    prompt: str
    """Digest of the prompt's tokens, or of what an endpoint is sent instead."""
    seed: int
    n: int
    sampling: SamplingParams
    """All of them, whatever is added to them."""

    @classmethod
    def of(cls, request: Request, params: SamplingParams, *, version: int, policy: str) -> Self:
        sent = request.prompt.sent
        prompt = xxhash.xxh3_128_hexdigest(sent.encode()) if sent else tokens_digest(request.prompt.token_ids)
        return cls(version, policy, prompt, request.seed, request.n, params)

    @property
    def slot(self) -> "Slot":
        """By which another config's request may be taken for this one: seeds follow from a prompt's id."""
        return self.seed, self.n, self.sampling

    def to_json(self) -> dict[str, Any]:
        """Plain values; `from_json` reads them back."""
        return {**self._asdict(), "sampling": self.sampling.to_json()}

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> Self:
        """Raises KeyError, TypeError where `row` lacks a field or has one of another kind."""
        fields = {name: row[name] for name in cls._fields}
        key = cls(**{**fields, "sampling": SamplingParams.from_json(row["sampling"])})
        hash(key)  # TypeError where a value can be no part of a key
        return key


Slot = tuple[int, int, SamplingParams]
"""Seed, n, sampling."""


def tokens_digest(ids: Sequence[int]) -> str:
    """XXH3-128 of token ids, as 8 little-endian bytes each; hexadecimal."""
    packed = array.array("q", ids)
    if sys.byteorder == "big":
        packed.byteswap()
    return xxhash.xxh3_128_hexdigest(packed.tobytes())


class Segment:
    """The file of one weight version, and where each entry lies in it."""

    def __init__(self, path: Path, version: int) -> None:
        self.path = path
        self.index: dict[Key, tuple[int, int]] = {}
        """Offset and length of the line, in bytes."""
        self.slots: set[Slot] = set()
        """Of all keys; `Key.slot`."""
        self._end = 0
        """Of the last whole line; a torn one may follow."""
        self._file: int | None = None
        self._unsynced = False
        if path.exists():
            self._scan(version)

    def _scan(self, version: int) -> None:
        with self.path.open("rb") as file:
            number = 0
            while line := file.readline():
                number += 1
                key = _key(line)
                if key is None or key.weight_version != version:
                    if file.readline():
                        raise CheckpointError(
                            f"{self.path}:{number}: not an entry of this journal; the file was changed or damaged. "
                            "Remove this line to have its request sampled again"
                        )
                    return
                self.index[key] = (self._end, len(line))
                self.slots.add(key.slot)
                self._end += len(line)

    def read(self, key: Key) -> dict[str, Any]:
        start, length = self.index[key]
        with self.path.open("rb") as file:
            file.seek(start)
            return json.loads(file.read(length))

    def append(self, key: Key, line: bytes) -> None:
        try:
            if self._file is None:
                self._file = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)
                os.ftruncate(self._file, self._end)
            self._unsynced = True
            written = 0
            while written < len(line):
                written += os.pwrite(self._file, line[written:], self._end + written)
        except BaseException:  # a full disk, Ctrl-C
            self.close()  # the next one opens again and cuts off what this one left
            raise
        start, self._end = self._end, self._end + len(line)
        self.index[key] = (start, len(line))
        self.slots.add(key.slot)

    @property
    def is_open(self) -> bool:
        """Whether a file descriptor is held for appending."""
        return self._file is not None

    def sync(self) -> None:
        """Make what was appended survive the machine."""
        if self._file is not None and self._unsynced:
            os.fsync(self._file)
            self._unsynced = False

    def close(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None


def _key(line: bytes) -> Key | None:
    """The key of a whole line, or None where it is not one."""
    if not line.endswith(b"\n"):
        return None
    try:
        row = json.loads(line)
        key = Key.from_json(row)
        whole = len(row["answers"]) == key.n and all(_is_whole(answer) for answer in row["answers"])
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
    return key if whole else None


def _is_whole(answer: dict[str, Any]) -> bool:
    return (
        len(answer["ids"]) == len(answer["logp"])
        and isinstance(answer["text"], str)
        and answer["finish"] in set(FinishReason)
    )
