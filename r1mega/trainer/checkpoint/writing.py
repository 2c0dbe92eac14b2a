"""A rank's files of a checkpoint.

The format is Megatron's `torch_dist`, which is PyTorch's distributed checkpoint: `__RANK_0.distcp` holds tensors one
after the other, `.metadata` says where. Ranks speak through the folder alone, which all of them reach: each leaves
`part_RANK.json` when its files are on disk, or `failed_RANK`. So all of this runs in threads while training goes on,
in which no collective may be entered; `publishing` is what rank 0 does with the parts.
"""

import errno
import io
import json
import os
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from r1mega.formats.reader import Box
from r1mega.formats.torch_dist import empty_object, write_chunk
from r1mega.formats.torch_dtypes import dtype_name

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


def data_file(rank: int) -> str:
    """A rank's tensors."""
    return f"__{rank}_0.distcp"


def part_file(rank: int) -> str:
    """What a rank says it has written, there when its files are on disk."""
    return f"part_{rank:05d}.json"


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
    data = data_file(rank)

    def fill(file: Digest) -> None:
        contents.boxes.reverse()
        while contents.boxes:
            piece = contents.boxes.pop()
            values = piece.values
            start, length = write_chunk(file, values)
            entry = {"key": piece.key, "shape": piece.shape, "offset": piece.offset, "sizes": tuple(values.shape)}
            entries.append(entry | {"dtype": dtype_name(values.dtype), "at": start, "length": length})
        nothing = empty_object()
        for key in contents.objects:
            entries.append({"key": key, "at": file.tell(), "length": len(nothing)})
            file.write(nothing)

    files = {data: write_file(folder / data, fill)}
    for name, content in contents.own.items():
        files[name] = write_file(folder / name, lambda file, content=content: file.write(content))
    part = folder / part_file(rank)
    text = json.dumps({"data": data, "entries": entries, "files": files, "expected": contents.expected})
    write_file(part.with_suffix(".tmp"), lambda file: file.write(text.encode()))
    # The name last: rank 0 takes a part that is there for written and synced.
    part.with_suffix(".tmp").rename(part)


def leave_failure(folder: Path, rank: int, error: BaseException) -> bool:
    """Take back what a rank has written and leave word of why for rank 0; whether that could be written."""
    try:
        (folder / data_file(rank)).unlink(missing_ok=True)  # or a full disk has no room for the message
        (folder / f"failed_{rank:05d}").write_text(f"{error}")
    except OSError:
        return False
    return True


def given_up(folder: Path, error: BaseException) -> bool:
    """Whether a rank failed because rank 0 has given the checkpoint up, and removed its folder."""
    if not isinstance(error, OSError):
        return False
    return error.errno == errno.ESTALE or (error.errno == errno.ENOENT and not folder.is_dir())  # ESTALE: over NFS
