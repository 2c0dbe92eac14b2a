"""The two forms a model folder is written in, a part of its rows at a time, by any process, in any order.

Each row's digests are taken of what was read, in the form in which the source stores it; the audit takes them again
of what was written, read back through the opposite mapping.
"""

import math
import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
import xxhash
from torch import Tensor

from r1mega.conversion.folders import Folder, HFFolder
from r1mega.errors import WeightMappingError
from r1mega.families.spec import Kind, Row, Shape
from r1mega.formats import fp8, fp8_blocks, torch_dist
from r1mega.formats.hf_files import shard_names, write_config, write_index
from r1mega.formats.manifest import write_weights_only
from r1mega.formats.mapping import to_hf, to_megatron
from r1mega.formats.safetensors import Entry, lay_out
from r1mega.formats.torch_dtypes import STORED, TORCH, dtype_name
from r1mega.layout.sharded import boxes, extra_states, places
from r1mega.runtime.files import LargeFile
from r1mega.runtime.mapped import raw

Form = Literal["hf", "megatron"]
DType = Literal["bf16", "fp8-block", "fp8-block-ue8m0"]
EXTRA_STATES = "__extra_state.distcp"
WRITE_BYTES = 32 * 2**20
"""Bytes written at a time, between two counts of progress."""

Count = Callable[[int], None]
"""Called with the number of bytes that were just written."""


@dataclass(frozen=True)
class Part:
    """A stretch of the table's rows that one process writes and records at once."""

    number: int
    rows: tuple[int, ...]
    num_bytes: int


class Writer(Protocol):
    """A form of folder in the making."""

    parts: list[Part]

    def create(self, out: Path) -> set[int]:
        """Make the files that parts are written into, unless they are there; parts that none of is there of."""
        ...

    def write(self, out: Path, part: Part, count: Count) -> dict[str, Any]:
        """Write a part and sync it; returns its record, plain JSON."""
        ...

    def finish(self, out: Path, records: Sequence[Mapping[str, Any]], save_id: str) -> None:
        """Write what makes the parts a folder of this form."""
        ...

    def audit(self, written: Folder, part: Part, record: Mapping[str, Any], count: Count) -> list[str]:
        """What differs between a part read back and what was read."""
        ...


def digest(tensor: Tensor) -> str:
    """Dtype, shape and XXH3 (128 bits) of the bytes: against accidents, ten times as fast as SHA-256."""
    shape = "x".join(map(str, tensor.shape))
    return f"{dtype_name(tensor.dtype)} {shape} {xxhash.xxh3_128_hexdigest(raw(tensor))}"


def _divide(sizes: Sequence[tuple[int, int]], limit: int) -> list[Part]:
    """(row, bytes) in stretches of up to `limit` bytes, at least one row each."""
    parts: list[Part] = []
    rows: list[int] = []
    total = 0
    for row, size in sizes:
        if rows and total + size > limit:
            parts.append(Part(len(parts), tuple(rows), total))
            rows, total = [], 0
        rows.append(row)
        total += size
    return [*parts, Part(len(parts), tuple(rows), total)] if rows else parts


class HFWriter:
    """safetensors of up to `shard_bytes`; a shard is one file that several processes may write into."""

    def __init__(self, source: Folder, dtype: DType | None, shard_bytes: int, part_bytes: int) -> None:
        self._source, self._dtype = source, dtype
        self._form = dtype if dtype in fp8_blocks.FORMS else None
        self._outputs = [self._output(row) for row in source.table]
        sizes = [(i, sum(_num_bytes(t) for t in tensors)) for i, tensors in enumerate(self._outputs)]
        shards = _divide(sizes, shard_bytes)
        self.parts = []
        self._file_of: list[str] = []
        """Of each part."""
        self._files: list[tuple[str, bytes, int]] = []
        self._places: dict[str, tuple[str, Entry]] = {}
        self._total = sum(size for _, size in sizes)
        for name, shard in zip(shard_names(len(shards)), shards, strict=True):
            header, entries, size = lay_out([(n, STORED[d], s) for i in shard.rows for n, d, s in self._outputs[i]])
            self._files.append((name, header, size))
            self._places |= {entry.name: (name, entry) for entry in entries}
            for part in _divide([sizes[i] for i in shard.rows], part_bytes):
                self._file_of.append(name)
                self.parts.append(Part(len(self.parts), part.rows, part.num_bytes))

    def _output(self, row: Row) -> list[tuple[str, torch.dtype, Shape]]:
        """(name, dtype, shape) of what a row becomes; a weight's scales follow it."""
        found = []
        for name, shape in zip(row.hf, row.hf_shapes, strict=True):
            if self._form is not None and fp8_blocks.quantised(row, name):
                found.append((name, fp8.CODES, shape))
                found.append((name + fp8_blocks.SUFFIX, fp8.SCALES, fp8_blocks.scale_shape(shape)))
            else:
                found.append((name, self._plain_dtype(row), shape))
        return found

    def _plain_dtype(self, row: Row) -> torch.dtype:
        if self._dtype is None:
            return self._original(row)
        return torch.float32 if row.kind is Kind.BUFFER else torch.bfloat16

    def _original(self, row: Row) -> torch.dtype:
        """The source's dtype of a row; a copy that it leaves out has its original's."""
        if self._source.has(row):
            return self._source.dtype(row)
        return self._source.dtype(self._written_from(row))

    def _written_from(self, row: Row) -> Row:
        """The row whose tensors are read: the same, or the original of a copy that the source leaves out."""
        if self._source.has(row):
            return row
        return next(r for r in self._source.table if r.megatron == row.megatron and r.kind is not Kind.COPY)

    def create(self, out: Path) -> set[int]:
        made: set[str] = set()
        for name, header, size in self._files:
            if not (out / name).is_file() or (out / name).stat().st_size != size:
                made.add(name)
                with (out / name).open("wb") as file:
                    file.write(header)
                    file.truncate(size)
                    file.flush()
                    os.fsync(file.fileno())
        return {part.number for part in self.parts if self._file_of[part.number] in made}

    def write(self, out: Path, part: Part, count: Count) -> dict[str, Any]:
        digests: dict[str, list[str]] = {}
        with LargeFile(out / self._file_of[part.number], new=False) as file:
            for i in part.rows:
                tensors, digests[str(i)] = self._convert(self._source.table[i])
                for name, tensor in tensors:
                    _, entry = self._places[name]
                    assert (tensor.dtype, tuple(tensor.shape)) == (TORCH[entry.dtype], entry.shape), name
                    _write_at(file, raw(tensor), entry.start, count)
                self._source.release()
            file.sync()
        return {"part": part.number, "digests": digests}

    def _convert(self, row: Row) -> tuple[list[tuple[str, Tensor]], list[str]]:
        """What is written of a row, and the digests that the audit must find."""
        origin = self._written_from(row)
        plain = self._plain_dtype(row)
        lossy = self._lossy(row)
        if self._source.stored_whole:
            whole = self._source.whole(origin)
            whole = whole if lossy else whole.to(plain)
            found, digests = list(to_hf(row, whole)), [] if lossy else [digest(whole)]
        else:
            parts = [t if lossy else t.to(plain) for t in self._source.parts(origin)]
            found, digests = list(zip(row.hf, parts, strict=True)), [] if lossy else [digest(t) for t in parts]
        if self._form is None or not lossy:
            return found, digests
        quantised = []
        for name, tensor in found:
            codes, scales = fp8.quantise(tensor, self._form)
            if not scales.isfinite().all():
                raise WeightMappingError(f"{name}: not finite, so it has no FP8 form; the source is damaged")
            quantised += [(name, codes), (name + fp8_blocks.SUFFIX, scales)]
        return quantised, [digest(t) for _, t in quantised]

    def _lossy(self, row: Row) -> bool:
        """Whether a row is written as FP8 blocks."""
        return self._form is not None and any(fp8_blocks.quantised(row, name) for name in row.hf)

    def finish(self, out: Path, records: Sequence[Mapping[str, Any]], save_id: str) -> None:
        dtype = _most((self._plain_dtype(row), row) for row in self._source.table)
        quantization = fp8_blocks.FORMS[self._form] if self._form is not None else None
        write_config(out, self._source.spec.hf, dtype_name(dtype), quantization)
        if len(self._files) > 1:
            write_index(out, {name: file for name, (file, _) in self._places.items()}, self._total)

    def _distance_faults(self, row: Row, written: HFFolder) -> list[str]:
        """Tensors of a row whose FP8 blocks are not the source's weights, rounded."""
        pairs = zip(row.hf, self._source.parts(self._written_from(row)), strict=True)
        return [
            f"{name}: its FP8 blocks are further from the source than half a step"
            for name, weight in pairs
            if not fp8.within_half_a_step(weight, written.stored(name), written.stored(name + fp8_blocks.SUFFIX))
        ]

    def audit(self, written: Folder, part: Part, record: Mapping[str, Any], count: Count) -> list[str]:
        assert isinstance(written, HFFolder)
        faults = []
        for i in part.rows:
            row = self._source.table[i]
            if self._lossy(row):
                names = [name for name, _, _ in self._outputs[i]]
                found = [digest(written.stored(name)) for name in names]
                faults += self._distance_faults(row, written)
                self._source.release()
            elif self._source.stored_whole:
                names, found = [", ".join(row.hf)], [digest(written.whole(row))]
            else:
                names, found = list(row.hf), [digest(t) for t in written.parts(row)]
            faults += _differences(names, found, record["digests"][str(i)])
            written.release()
            count(sum(_num_bytes(t) for t in self._outputs[i]))
        return faults


class MegatronWriter:
    """A distributed checkpoint of the weights alone, one .distcp file a part, loadable into any layout."""

    def __init__(self, source: Folder, part_bytes: int) -> None:
        self._source = source
        self._places = places(source.table)
        rows = [i for i, row in enumerate(source.table) if row.kind is not Kind.COPY]
        self.parts = _divide([(i, self._size(i)) for i in rows], part_bytes)

    def _size(self, i: int) -> int:
        row = self._source.table[i]
        return torch.Size(row.shape).numel() * self._source.dtype(row).itemsize

    def create(self, out: Path) -> set[int]:
        return {part.number for part in self.parts if not (out / _data_file(part)).is_file()}

    def write(self, out: Path, part: Part, count: Count) -> dict[str, Any]:
        name = _data_file(part)
        digests: dict[str, list[str]] = {}
        chunks: list[Any] = []
        with LargeFile(out / name, new=True) as file:
            for i in part.rows:
                row = self._source.table[i]
                if self._source.stored_whole:
                    whole = self._source.whole(row)
                    digests[str(i)] = [digest(whole)]
                else:
                    parts = self._source.parts(row)
                    digests[str(i)] = [digest(p) for p in parts]
                    whole = to_megatron(row, parts)
                place = self._places[row.megatron]
                stacked = whole.reshape(place.sizes)
                dtype = dtype_name(whole.dtype)
                for offset, sizes in boxes(row, place):
                    here = tuple(slice(o - p, o - p + n) for o, p, n in zip(offset, place.offset, sizes, strict=True))
                    start, length = torch_dist.write_chunk(file, stacked[here])
                    chunks.append([place.key, dtype, place.shape, offset, sizes, start, length])
                count(whole.nbytes)
                del whole, stacked
                self._source.release()
            file.sync()
        return {"part": part.number, "digests": digests, "file": name, "chunks": chunks}

    def finish(self, out: Path, records: Sequence[Mapping[str, Any]], save_id: str) -> None:
        tensors: dict[str, torch_dist.StoredTensor] = {}
        faults = []
        for record in records:
            for key, dtype, shape, offset, sizes, start, length in record["chunks"]:
                tensor = torch_dist.StoredTensor(getattr(torch, dtype), tuple(shape), {})
                tensor = tensors.setdefault(key, tensor)
                if tensor.dtype is not getattr(torch, dtype):
                    faults.append(f"{key}: dtypes differ between its experts, Megatron keeps them as one")
                chunk = torch_dist.StoredChunk(tuple(offset), tuple(sizes), record["file"], start, length)
                tensor.chunks[chunk.offset] = chunk
        if faults:
            raise WeightMappingError("\n  ".join([f"{len(faults)} faults:", *faults]))
        nothing = torch_dist.empty_object()
        (out / EXTRA_STATES).write_bytes(nothing)
        blob = torch_dist.StoredChunk((), (), EXTRA_STATES, 0, len(nothing))
        objects = dict.fromkeys(extra_states(self._source.table), blob)
        for name, content in torch_dist.metadata_files(tensors, objects, save_id).items():
            (out / name).write_bytes(content)
        rows = (row for row in self._source.table if row.kind is not Kind.COPY)
        dtype = _most((self._source.dtype(row), row) for row in rows)
        config = write_config(out, self._source.spec.hf, dtype_name(dtype))
        write_weights_only(out, config, {})

    def audit(self, written: Folder, part: Part, record: Mapping[str, Any], count: Count) -> list[str]:
        faults = []
        for i in part.rows:
            row = self._source.table[i]
            if self._source.stored_whole:
                names, found = [row.megatron], [digest(written.whole(row))]
            else:
                names, found = list(row.hf), [digest(t) for t in written.parts(row)]
            faults += _differences(names, found, record["digests"][str(i)])
            written.release()
            count(self._size(i))
        return faults


def make_writer(source: Folder, form: Form, dtype: DType | None, *, shard_bytes: int, part_bytes: int) -> Writer:
    """The writer of a form."""
    if form == "hf":
        return HFWriter(source, dtype, shard_bytes, part_bytes)
    return MegatronWriter(source, part_bytes)


def _most(rows: Iterable[tuple[torch.dtype, Row]]) -> torch.dtype:
    """The dtype of most bytes: what config.json calls a model whose tensors, which keep their own, have several."""
    sizes: Counter[torch.dtype] = Counter()
    for dtype, row in rows:
        sizes[dtype] += math.prod(row.shape) * dtype.itemsize
    return sizes.most_common(1)[0][0]


def _data_file(part: Part) -> str:
    return f"__{part.number}_0.distcp"


def _differences(names: Sequence[str], found: Sequence[str], wanted: Sequence[str]) -> list[str]:
    if len(found) != len(wanted):
        return [f"{', '.join(names)}: {len(found)} tensors written, {len(wanted)} read"]
    return [f"{name}: written as {a}, read as {b}" for name, a, b in zip(names, found, wanted, strict=True) if a != b]


def _num_bytes(tensor: tuple[str, torch.dtype, Shape]) -> int:
    return torch.Size(tensor[2]).numel() * tensor[1].itemsize


def _write_at(file: LargeFile, data: memoryview, start: int, count: Count) -> None:
    for at in range(0, len(data), WRITE_BYTES):
        count(file.write_at(data[at : at + WRITE_BYTES], start + at))
