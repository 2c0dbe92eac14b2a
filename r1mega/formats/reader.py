"""Boxes of the whole model's tensors out of a checkpoint, whatever boxes it was saved in."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from r1mega.errors import CheckpointError
from r1mega.formats.torch_dist import StoredChunk, read_chunk, read_metadata
from r1mega.runtime.mapped import MappedFiles


@dataclass(frozen=True)
class Box:
    """A box of a tensor of the whole model, and this rank's values of it."""

    key: str
    shape: tuple[int, ...]
    """Of the whole tensor."""
    offset: tuple[int, ...]
    values: Tensor
    """A view of live memory unless the box was copied; its shape is the box's."""
    padded: bool = False
    """Whether the last rows are padding, of which another layout may have another number."""


class CheckpointReader:
    """A checkpoint's tensors, of a training run or converted. Raises CheckpointError where it cannot be read."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._tensors = read_metadata(folder)
        self._files = MappedFiles()

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of every tensor, whole."""
        return {key: found.shape for key, found in self._tensors.items()}

    def fill(self, wanted: Iterable[Box]) -> None:
        """Read every box into its `values`. Each stored tensor is read once, one at a time.

        Rows of padding that the checkpoint does not have are left as they are.

        Raises:
            CheckpointError: tensors that the checkpoint lacks or has in other shapes (lists all), or a damaged file.
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
        for key, chunk, boxes in self._reads(wanted):
            stored = read_chunk(self.folder, self._files, key, self._tensors[key].dtype, chunk)
            for box in boxes:
                _copy_common(stored, chunk.offset, box)
            del stored
            self._files.release()

    def _reads(self, wanted: list[Box]) -> list[tuple[str, StoredChunk, list[Box]]]:
        """The stored chunks that have something of the boxes, and those, in the order they lie on disk."""
        found: dict[tuple[str, int], tuple[str, StoredChunk, list[Box]]] = {}
        for box in wanted:
            covered = 0
            for chunk in self._chunks(box):
                if common := _common(chunk.offset, chunk.sizes, box):
                    covered += common
                    found.setdefault((chunk.file, chunk.start), (box.key, chunk, []))[2].append(box)
            if covered != _common((0,) * len(box.shape), self._tensors[box.key].shape, box):
                raise CheckpointError(f"{self.folder}: lacks a part of {box.key}")
        return [found[place] for place in sorted(found)]

    def _chunks(self, box: Box) -> Iterable[StoredChunk]:
        """What to look at for a box: the chunk that is just this box, if there is one, or all of the tensor's."""
        chunks = self._tensors[box.key].chunks
        same = chunks.get(box.offset)
        return [same] if same and same.sizes == tuple(box.values.shape) else chunks.values()


def _fits(shape: tuple[int, ...] | None, box: Box) -> bool:
    return shape == box.shape or (box.padded and shape is not None and shape[1:] == box.shape[1:])


def _found(shape: tuple[int, ...] | None) -> str:
    return "missing" if shape is None else f"has shape {list(shape)}"


def _common(offset: tuple[int, ...], sizes: tuple[int, ...], box: Box) -> int:
    """How many elements a box has in common with another."""
    spans = zip(offset, sizes, box.offset, box.values.shape, strict=True)
    return math.prod(max(0, min(x + n, y + m) - max(x, y)) for x, n, y, m in spans)


def _copy_common(stored: Tensor, offset: tuple[int, ...], box: Box) -> None:
    source, target = stored, box.values
    for dim, (x, y) in enumerate(zip(offset, box.offset, strict=True)):
        begin, end = max(x, y), min(x + stored.shape[dim], y + box.values.shape[dim])
        source, target = source.narrow(dim, begin - x, end - begin), target.narrow(dim, begin - y, end - begin)
    with torch.no_grad():
        target.copy_(source)
