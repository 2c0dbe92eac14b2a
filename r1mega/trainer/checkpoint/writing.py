"""Files of a checkpoint as one rank writes them, and how the first rank makes one checkpoint of all ranks' files.

The format is Megatron's `torch_dist`, which is PyTorch's distributed checkpoint: `__RANK_0.distcp` holds tensors one
after the other, `.metadata` says where. Ranks speak through the folder alone, which all of them reach: each leaves
`part_RANK.json` when its files are on disk, or `failed_RANK`; so all of this runs in threads beside the training.
"""

import contextlib
import errno
import io
import json
import math
import os
import time
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from r1mega.errors import CheckpointError, RanksLostError
from r1mega.formats.reader import Box
from r1mega.formats.torch_dist import Chunk, Stored, cover_faults, empty_object, metadata_files, write_chunk

POLL_S = 0.05
READ_BYTES = 4 * 2**20


class Digest:
    """A file open for writing, with its length and CRC-32."""

    def __init__(self, file: io.BufferedWriter) -> None:
        self._file = file
        self.bytes = self.crc = 0
        self.error: OSError | None = None
        """What went wrong, of which torch.save only says that the position is unexpected."""

    def write(self, data: Any) -> int:
        self.crc = zlib.crc32(data, self.crc)
        self.bytes += memoryview(data).nbytes
        try:
            return self._file.write(data)
        except OSError as error:
            self.error = error
            raise

    def tell(self) -> int:
        return self.bytes

    def flush(self) -> None:
        self._file.flush()


def write_file(path: Path, fill: Callable[[Any], None]) -> dict[str, int]:
    """Write a file and sync it; returns {"bytes": length, "crc32": digest}."""
    with path.open("wb") as file:
        digest = Digest(file)
        try:
            fill(digest)
        except RuntimeError as error:
            raise digest.error or error from error
        file.flush()
        os.fsync(file.fileno())
    return {"bytes": digest.bytes, "crc32": digest.crc}


def file_digest(path: Path) -> dict[str, int]:
    """What `write_file` returned of a file, of what lies on disk now."""
    size = crc = 0
    with path.open("rb") as file:
        while data := file.read(READ_BYTES):
            size, crc = size + len(data), zlib.crc32(data, crc)
    return {"bytes": size, "crc32": crc}


@dataclass
class Contents:
    """What a rank gives to a checkpoint."""

    boxes: list[Box]
    """Copies; each is let go of when it is written."""
    expected: dict[str, tuple[int, ...]]
    """Key and shape of the whole tensors that the checkpoint must have, since this rank has a part of them."""
    objects: list[str]
    """Keys of empty objects, which Megatron looks for."""
    own: Mapping[str, bytes]
    """This rank's other files, by name."""


def write_part(folder: Path, rank: int, contents: Contents) -> None:
    """Write a rank's tensors and files; its boxes are used up."""
    entries: list[dict[str, Any]] = []
    data = _data(rank)

    def fill(file: Digest) -> None:
        contents.boxes.reverse()
        while contents.boxes:
            piece = contents.boxes.pop()
            values = piece.values
            start, length = write_chunk(file, values)
            entry = {"key": piece.key, "shape": piece.shape, "offset": piece.offset, "sizes": tuple(values.shape)}
            dtype = str(values.dtype).removeprefix("torch.")
            entries.append(entry | {"dtype": dtype, "at": start, "length": length})
        nothing = empty_object()
        for key in contents.objects:
            entries.append({"key": key, "at": file.tell(), "length": len(nothing)})
            file.write(nothing)

    files = {data: write_file(folder / data, fill)}
    for name, content in contents.own.items():
        files[name] = write_file(folder / name, lambda file, content=content: file.write(content))
    part = folder / _part(rank)
    text = json.dumps({"data": data, "entries": entries, "files": files, "expected": contents.expected})
    write_file(part.with_suffix(".tmp"), lambda file: file.write(text.encode()))
    part.with_suffix(".tmp").rename(part)


def leave_failure(folder: Path, rank: int, error: BaseException) -> bool:
    """Take back what a rank has written and tell the first rank why; whether that could be said."""
    try:
        (folder / _data(rank)).unlink(missing_ok=True)  # or a full disk has no room for the message
        (folder / f"failed_{rank:05d}").write_text(f"{error}")
    except OSError:
        return False
    return True


def given_up(folder: Path, error: BaseException) -> bool:
    """Whether a rank failed since the first rank has given the checkpoint up, and removed its folder."""
    if not isinstance(error, OSError):
        return False
    return error.errno == errno.ESTALE or (error.errno == errno.ENOENT and not folder.is_dir())  # ESTALE: over NFS


def collect_parts(folder: Path, num_ranks: int, gone: Callable[[], bool], silence_s: float) -> list[dict[str, Any]]:
    """Every rank's part, as they come; their files are removed.

    Args:
        gone: whether waiting has become pointless.
        silence_s: how long to wait for ranks of which nothing more comes to the folder.

    Raises:
        CheckpointError: a rank could not write its part, or `gone` came true.
        RanksLostError: for so long nothing came of any rank that is waited for.
    """
    seen, since = (num_ranks, 0), time.monotonic()
    while True:
        for failure in sorted(folder.glob("failed_*")):
            raise CheckpointError(f"rank {int(failure.name.removeprefix('failed_'))}: {failure.read_text()}")
        missing = [rank for rank in range(num_ranks) if not (folder / _part(rank)).is_file()]
        if not missing:
            break
        if gone():
            raise CheckpointError(f"ranks {missing} have not written their parts")
        now = len(missing), _bytes_of(folder, missing)
        if now != seen:
            seen, since = now, time.monotonic()
        elif time.monotonic() > since + silence_s:
            raise RanksLostError(
                f"rank 0 waited for ranks {missing}: gone, or nothing more came of their parts within "
                f"cluster.trainer.collective_timeout_s = {silence_s:g} s"
            )
        time.sleep(POLL_S)
    parts = [json.loads((folder / _part(rank)).read_text()) for rank in range(num_ranks)]
    for rank in range(num_ranks):
        (folder / _part(rank)).unlink()
    return parts


def _bytes_of(folder: Path, ranks: Sequence[int]) -> int:
    """What has come of these ranks' tensors."""
    found = 0
    for rank in ranks:
        with contextlib.suppress(OSError):  # not begun, or just taken back
            found += (folder / _data(rank)).stat().st_size
    return found


def write_metadata(folder: Path, parts: list[dict[str, Any]]) -> dict[str, dict[str, int]]:
    """Write what makes all ranks' files one distributed checkpoint; returns every file's length and digest.

    Raises:
        CheckpointError: the parts do not make up whole tensors; lists them all.
    """
    tensors: dict[str, list[dict[str, Any]]] = defaultdict(list)
    objects: dict[str, Chunk] = {}
    for part in parts:
        for entry in part["entries"]:
            if "sizes" in entry:
                tensors[entry["key"]].append(entry | {"file": part["data"]})
            else:
                objects[entry["key"]] = Chunk((), (), part["data"], entry["at"], entry["length"])
    expected = {key: shape for part in parts for key, shape in part["expected"].items()}
    faults = [f"{key}: 0 of {math.prod(shape)} elements" for key, shape in expected.items() if key not in tensors]
    faults += [fault for key, entries in tensors.items() for fault in _not_whole(key, entries)]
    if faults:
        raise CheckpointError("\n  ".join(["the ranks' parts do not make up whole tensors:", *faults]))
    stored = {key: _stored(entries) for key, entries in tensors.items()}
    files = {name: digest for part in parts for name, digest in part["files"].items()}
    for name, content in metadata_files(stored, objects, "").items():
        files[name] = write_file(folder / name, lambda file, content=content: file.write(content))
    return files


def _stored(entries: list[dict[str, Any]]) -> Stored:
    first = entries[0]
    places = [Chunk(tuple(e["offset"]), tuple(e["sizes"]), e["file"], e["at"], e["length"]) for e in entries]
    return Stored(getattr(torch, first["dtype"]), tuple(first["shape"]), {place.offset: place for place in places})


def _not_whole(key: str, entries: list[dict[str, Any]]) -> Iterator[str]:
    """What is wrong with the boxes of a tensor; nothing where they cover it once."""
    if len({(e["dtype"], *e["shape"]) for e in entries}) > 1:
        yield f"{key}: parts of different tensors"
        return
    boxes = [(tuple(e["offset"]), tuple(e["sizes"])) for e in entries]
    yield from (f"{key}: {fault}" for fault in cover_faults(tuple(entries[0]["shape"]), boxes))


def _data(rank: int) -> str:
    return f"__{rank}_0.distcp"


def _part(rank: int) -> str:
    return f"part_{rank:05d}.json"
