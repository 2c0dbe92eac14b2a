"""Boxes of the whole model's tensors out of a checkpoint, whatever boxes it was saved in."""

import io
import math
import pickle
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex, TensorStorageMetadata

from r1mega.errors import CheckpointError
from r1mega.trainer.holdings import Box


class Reader:
    """A checkpoint's tensors. Raises CheckpointError where the folder cannot be read."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            with (folder / ".metadata").open("rb") as file:
                metadata: Any = pickle.load(file)
            self._tensors: dict[str, TensorStorageMetadata] = {
                key: found
                for key, found in metadata.state_dict_metadata.items()
                if isinstance(found, TensorStorageMetadata)
            }
            self._places = metadata.storage_data
            self._by_corner: dict[str, dict[tuple[int, ...], ChunkStorageMetadata]] = {}
        except (OSError, EOFError, ValueError, AttributeError, pickle.UnpicklingError) as e:
            raise CheckpointError(f"{folder}/.metadata: torn or missing ({type(e).__name__}: {e})") from e

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of every tensor, whole."""
        return {key: tuple(found.size) for key, found in self._tensors.items()}

    def fill(self, wanted: Iterable[Box]) -> None:
        """Read every box into its `values`. Each stored tensor is read once, one at a time.

        Rows of padding that the checkpoint does not have are left as they are.

        Raises:
            CheckpointError: tensors that the checkpoint lacks or has in other shapes (lists all), or a torn file.
        """
        wanted = list(wanted)
        shapes = self.shapes()
        faults = {
            f"{box.key}: {_found(shapes.get(box.key))}, the model's is {list(box.shape)}"
            for box in wanted
            if not _fits(shapes.get(box.key), box)
        }
        if faults:
            raise CheckpointError("\n  ".join([f"{self.folder}: not of this model:", *sorted(faults)]))
        for (name, at, length, offset), boxes in self._reads(wanted).items():
            stored = self._read(name, at, length)
            for box in boxes:
                _copy_common(stored, offset, box)

    def _reads(self, wanted: list[Box]) -> dict[tuple[str, int, int, tuple[int, ...]], list[Box]]:
        """The stored tensors that have something of the boxes, in the order they lie on disk."""
        found: dict[tuple[str, int, int, tuple[int, ...]], list[Box]] = defaultdict(list)
        for box in wanted:
            covered = 0
            for chunk in self._chunks(box):
                if common := _common(chunk, box):
                    covered += common
                    place = self._places[MetadataIndex(box.key, chunk.offsets)]
                    found[place.relative_path, place.offset, place.length, tuple(chunk.offsets)].append(box)
            stored = ChunkStorageMetadata(torch.Size([0] * len(box.shape)), self._tensors[box.key].size)
            if covered != _common(stored, box):
                raise CheckpointError(f"{self.folder}: lacks a part of {box.key}")
        return dict(sorted(found.items()))

    def _chunks(self, box: Box) -> list[ChunkStorageMetadata]:
        """What to look at for a box: the chunk that is just this box, if there is one, or all of the tensor's."""
        if box.key not in self._by_corner:
            self._by_corner[box.key] = {tuple(c.offsets): c for c in self._tensors[box.key].chunks}
        same = self._by_corner[box.key].get(box.offset)
        return [same] if same and same.sizes == box.values.shape else self._tensors[box.key].chunks

    def _read(self, name: str, at: int, length: int) -> Tensor:
        try:
            with (self.folder / name).open("rb") as file:
                file.seek(at)
                return torch.load(io.BytesIO(file.read(length)), map_location="cpu", weights_only=True)
        except Exception as e:  # the unpickler's and zip reader's faults are of many kinds
            raise CheckpointError(f"{self.folder}/{name}: torn ({type(e).__name__}: {e})") from e


def _fits(shape: tuple[int, ...] | None, box: Box) -> bool:
    return shape == box.shape or (box.padded and shape is not None and shape[1:] == box.shape[1:])


def _found(shape: tuple[int, ...] | None) -> str:
    return "missing" if shape is None else f"has shape {list(shape)}"


def _common(chunk: ChunkStorageMetadata, box: Box) -> int:
    """How many elements two boxes have in common."""
    spans = zip(chunk.offsets, chunk.sizes, box.offset, box.values.shape, strict=True)
    return math.prod(max(0, min(x + n, y + m) - max(x, y)) for x, n, y, m in spans)


def _copy_common(stored: Tensor, offset: tuple[int, ...], box: Box) -> None:
    source, target = stored, box.values
    for dim, (x, y) in enumerate(zip(offset, box.offset, strict=True)):
        begin, end = max(x, y), min(x + stored.shape[dim], y + box.values.shape[dim])
        source, target = source.narrow(dim, begin - x, end - begin), target.narrow(dim, begin - y, end - begin)
    with torch.no_grad():
        target.copy_(source)
