"""Megatron's distributed checkpoint (torch_dist), read and written chunk by chunk.

A folder holds `.metadata`, a pickle that says for each tensor which chunks it has and where in the .distcp files
they lie; in those files each chunk is a torch.save archive, a zip whose record data/0 is the tensor's bytes as they
are. Written here are the same files as `torch.distributed.checkpoint.FileSystemWriter` writes. Imports no megatron:
training checkpoints and conversions are written and read by this.
"""

import io
import json
import math
import pickle
import zipfile
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.distributed.checkpoint import metadata as dcp
from torch.distributed.checkpoint.filesystem import CURRENT_DCP_VERSION, _StorageInfo

from r1mega.errors import CheckpointError
from r1mega.families.spec import Shape
from r1mega.formats.manifest import METADATA
from r1mega.runtime.mapped import MappedFiles, raw, read_only

_DTYPES = ("float64", "float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2")
_DTYPES += ("int64", "int32", "int16", "int8", "uint8", "bool")
# fmt: off
_CLASSES = (
    "BytesStorageMetadata", "ChunkStorageMetadata", "Metadata", "MetadataIndex", "StorageMeta", "TensorProperties",
    "TensorStorageMetadata", "_MEM_FORMAT_ENCODING",
)
# fmt: on
ALLOWED = {
    *(("torch", name) for name in ("Size", *_DTYPES)),
    *(("torch.distributed.checkpoint.metadata", name) for name in _CLASSES),
    ("torch.distributed.checkpoint.filesystem", "_StorageInfo"),
    ("torch.serialization", "_get_layout"),  # a look-up in torch's own table of layouts
    ("collections", "OrderedDict"),
    *(("builtins", name) for name in ("set", "frozenset", "dict", "list", "tuple", "slice")),
}
"""What a `.metadata` may name, each by itself; everything else becomes an empty shell that is never called."""


@dataclass(frozen=True)
class StoredChunk:
    """One stored box of a tensor."""

    offset: Shape
    sizes: Shape
    file: str
    start: int
    length: int


@dataclass(frozen=True)
class StoredTensor:
    """One tensor of a checkpoint."""

    dtype: torch.dtype
    shape: Shape
    chunks: dict[Shape, StoredChunk]
    """By offset."""


class _Shell:
    """Stands for an object of a package that is not needed to read tensors."""

    def __init__(self, *args: Any, **kwargs: Any) -> None: ...

    def __setstate__(self, state: Any) -> None: ...


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if "." in name:  # protocol 4 looks it up part by part, through whatever the module has imported
            raise pickle.UnpicklingError(f"it names {module}.{name}, which no checkpoint does")
        return super().find_class(module, name) if (module, name) in ALLOWED else _Shell


def read_metadata(folder: Path) -> dict[str, StoredTensor]:
    """Every tensor of a checkpoint.

    Raises:
        CheckpointError: no readable `.metadata`, a file missing or shorter than it says, or a tensor whose chunks do
            not cover it exactly once; lists all.
    """
    file = folder / METADATA
    try:
        with file.open("rb") as handle:
            tensors, faults = _tensors(_Unpickler(handle).load())
    except OSError as e:
        raise CheckpointError(
            f"{file}: cannot be read ({e.strerror}): not a Megatron checkpoint, or half of one"
        ) from e
    except Exception as e:  # a torn pickle raises anything
        raise CheckpointError(f"{file}: torn ({type(e).__name__}: {e})") from e
    faults += _file_faults(folder, tensors.values())
    if faults:
        raise CheckpointError(f"{folder}: torn ({len(faults)} faults):\n  " + "\n  ".join(faults))
    return tensors


def _tensors(found: Any) -> tuple[dict[str, StoredTensor], list[str]]:
    """The tensors of an unpickled `.metadata`, and what is wrong with their chunks."""
    places = {(i.fqn, tuple(i.offset)): s for i, s in found.storage_data.items() if i.offset is not None}
    tensors: dict[str, StoredTensor] = {}
    faults: list[str] = []
    for key, about in found.state_dict_metadata.items():
        if not isinstance(about, dcp.TensorStorageMetadata):
            continue
        shape = tuple(about.size)
        chunks: dict[Shape, StoredChunk] = {}
        for box in about.chunks:
            offset = tuple(box.offsets)
            stored = places.get((key, offset))
            if stored is None:
                faults.append(f"{key}: chunk {offset} has no place in a file")
                continue
            if offset in chunks:
                faults.append(f"{key}: two chunks at {offset}")
            if Path(stored.relative_path).name != stored.relative_path:
                faults.append(f"{key}: chunk {offset} lies in {stored.relative_path!r}, outside the folder")
                continue
            chunks[offset] = StoredChunk(offset, tuple(box.sizes), stored.relative_path, stored.offset, stored.length)
        boxes = [(c.offset, c.sizes) for c in chunks.values()]
        faults += [f"{key}: {fault}" for fault in cover_faults(shape, boxes)]
        tensors[key] = StoredTensor(about.properties.dtype, shape, chunks)
    return tensors, faults


def cover_faults(shape: Shape, boxes: Sequence[tuple[Shape, Shape]]) -> list[str]:
    """What keeps boxes (offset, sizes) from covering a tensor exactly once, no element left to chance."""
    for offset, sizes in boxes:
        if not len(offset) == len(sizes) == len(shape) or not all(
            0 <= o <= o + n <= s for o, n, s in zip(offset, sizes, shape, strict=True)
        ):
            return [f"a chunk of {sizes} at {offset} lies outside of {shape}"]
    held, whole = sum(math.prod(sizes) for _, sizes in boxes), math.prod(shape)
    if held != whole:
        return [f"its {len(boxes)} chunks do not make up {shape}: {held} of {whole} elements"]
    return ["its chunks overlap"] if len(boxes) > 1 and _overlap(boxes) else []


def _overlap(boxes: Sequence[tuple[Shape, Shape]]) -> bool:
    """Whether two boxes have an element in common.

    Sorted by their first corner, only boxes whose first axis still reaches the next one's need to be looked at.
    """
    open_boxes: list[tuple[Shape, Shape]] = []
    for box in sorted(boxes):
        first = box[0][0]
        open_boxes = [(offset, sizes) for offset, sizes in open_boxes if offset[0] + sizes[0] > first]
        if any(_meet(box, other) for other in open_boxes):
            return True
        open_boxes.append(box)
    return False


def _meet(a: tuple[Shape, Shape], b: tuple[Shape, Shape]) -> bool:
    return all(x < y + m and y < x + n for x, n, y, m in zip(*a, *b, strict=True))


def _file_faults(folder: Path, tensors: Iterable[StoredTensor]) -> list[str]:
    ends: dict[str, int] = {}
    for tensor in tensors:
        for chunk in tensor.chunks.values():
            ends[chunk.file] = max(ends.get(chunk.file, 0), chunk.start + chunk.length)
    faults = []
    for name, end in sorted(ends.items()):
        size = (folder / name).stat().st_size if (folder / name).is_file() else None
        if size is None or size < end:
            state = "missing" if size is None else f"truncated: {size} bytes"
            faults.append(f"{name}: {state}, at least {end} are needed")
    return faults


def read_box(folder: Path, files: MappedFiles, key: str, tensor: StoredTensor, offset: Shape, sizes: Shape) -> Tensor:
    """[sizes]: a box of a stored tensor: a window into the file where one chunk is exactly it, else put together.

    Raises:
        CheckpointError: a chunk is damaged.
    """
    exact = tensor.chunks.get(offset)
    if exact is not None and exact.sizes == sizes:
        return read_chunk(folder, files, key, tensor.dtype, exact)
    whole = torch.empty(sizes, dtype=tensor.dtype)
    for chunk in tensor.chunks.values():
        low = [max(a, b) for a, b in zip(offset, chunk.offset, strict=True)]
        ends = zip(offset, sizes, chunk.offset, chunk.sizes, strict=True)
        high = [min(a + n, b + m) for a, n, b, m in ends]
        if all(a < b for a, b in zip(low, high, strict=True)):
            there = tuple(slice(a - o, b - o) for a, b, o in zip(low, high, chunk.offset, strict=True))
            here = tuple(slice(a - o, b - o) for a, b, o in zip(low, high, offset, strict=True))
            whole[here] = read_chunk(folder, files, key, tensor.dtype, chunk)[there]
    return whole


def read_chunk(folder: Path, files: MappedFiles, key: str, dtype: torch.dtype, chunk: StoredChunk) -> Tensor:
    """[chunk.sizes] dtype: a stored chunk, as a window into its file, whose checksum is right.

    Raises:
        CheckpointError: it is damaged.
    """
    where = f"{folder / chunk.file}: {key} at {chunk.offset}"
    try:
        window = files.window(folder / chunk.file, chunk.start, chunk.length)
        with zipfile.ZipFile(_Reader(window)) as archive:
            record = next(info for info in archive.infolist() if info.filename.endswith("/data/0"))
            # The record's bytes begin after its local header, whose lengths are its own.
            local = window[record.header_offset : record.header_offset + 30]
            start = record.header_offset + 30 + sum(int.from_bytes(local[i : i + 2], "little") for i in (26, 28))
        with torch.serialization.skip_data():  # shape and strides alone
            reader: Any = _Reader(window)
            about = torch.load(reader, map_location="cpu", weights_only=True)
    except Exception as e:  # a damaged archive raises anything
        raise CheckpointError(f"{where}: damaged ({type(e).__name__}: {e})") from e
    if tuple(about.shape) != chunk.sizes or about.dtype != dtype:
        raise CheckpointError(f"{where}: holds {about.dtype} {tuple(about.shape)}, not {dtype} {chunk.sizes}")
    data = window[start : start + record.file_size]
    if zlib.crc32(data) != record.CRC:
        raise CheckpointError(f"{where}: damaged (its checksum is not that of its bytes); restore the file")
    stored = read_only(data, dtype)
    return stored.as_strided(about.shape, about.stride(), about.storage_offset())


class _Reader(io.RawIOBase):
    """A memoryview as a file, which copies only what is read of it."""

    def __init__(self, data: memoryview) -> None:
        self._data, self._at = data, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + (0, self._at, len(self._data))[whence]
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: Any) -> int:
        count = max(0, min(len(buffer), len(self._data) - self._at))
        buffer[:count] = self._data[self._at : self._at + count]
        self._at += count
        return count


class Output(Protocol):
    """A file open for writing."""

    def write(self, data: Any, /) -> int: ...

    def flush(self) -> None: ...

    def tell(self) -> int: ...


def write_chunk(file: Output, tensor: Tensor) -> tuple[int, int]:
    """Append a chunk, [any shape] of any dtype; returns (start, length) in the file."""
    start = file.tell()
    # torch.save writes the whole storage behind a view: this one ends where the tensor ends.
    own = torch.frombuffer(raw(tensor), dtype=tensor.dtype).view(tensor.shape) if tensor.numel() else tensor
    try:
        torch.save(own, file)  # pyright: ignore[reportArgumentType] (writes, and nothing else)
    except RuntimeError as e:
        # What closes its archive fails in turn and hides that the disk is full.
        raise (e.__context__ if isinstance(e.__context__, OSError) else e) from None
    return start, file.tell() - start


def metadata_files(
    tensors: Mapping[str, StoredTensor], objects: Mapping[str, StoredChunk], save_id: str
) -> dict[str, bytes]:
    """The files, by name, that make .distcp files a checkpoint that `dist_checkpointing.load` reads.

    Args:
        objects: keys of empty objects, and where one lies.
        save_id: any name of this checkpoint.
    """
    about: dict[str, Any] = {}
    storage: dict[dcp.MetadataIndex, _StorageInfo] = {}
    for key, tensor in tensors.items():
        boxes = [dcp.ChunkStorageMetadata(torch.Size(c.offset), torch.Size(c.sizes)) for c in tensor.chunks.values()]
        properties = dcp.TensorProperties(dtype=tensor.dtype)
        about[key] = dcp.TensorStorageMetadata(properties, torch.Size(tensor.shape), boxes)
        for i, c in enumerate(tensor.chunks.values()):
            storage[dcp.MetadataIndex(key, c.offset, i)] = _StorageInfo(c.file, c.start, c.length)
    for key, blob in objects.items():
        about[key] = dcp.BytesStorageMetadata()
        storage[dcp.MetadataIndex(key)] = _StorageInfo(blob.file, blob.start, blob.length)
    whole = dcp.Metadata(about, None, storage, dcp.StorageMeta(save_id=save_id), CURRENT_DCP_VERSION)
    common = io.BytesIO()
    torch.save({}, common)  # Megatron wants one
    config = {"sharded_backend": "torch_dist", "sharded_backend_version": 1}
    config |= {"common_backend": "torch", "common_backend_version": 1}
    return {
        METADATA: pickle.dumps(whole),
        "common.pt": common.getvalue(),
        "metadata.json": json.dumps(config).encode(),
    }


def empty_object() -> bytes:
    """What stands for every extra state: one object a rank, as Megatron has it."""
    data = io.BytesIO()
    torch.save([None], data)
    return data.getvalue()
