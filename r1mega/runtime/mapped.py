"""Files as memory: tensors that are windows into a file, read by the kernel when touched and given back after."""

import mmap
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from r1mega.families.spec import Shape

READ_AHEAD_BYTES = 2**18
"""Windows from which on a file is read before it is touched."""


class MappedFiles:
    """Files opened on first use. `release` gives the pages that were touched back to the kernel."""

    def __init__(self) -> None:
        self._maps: dict[Path, mmap.mmap] = {}
        self._touched: list[tuple[mmap.mmap, int, int]] = []

    def window(self, file: Path, start: int, num_bytes: int) -> memoryview:
        """A part of a file."""
        if file not in self._maps:
            with file.open("rb") as handle:
                self._maps[file] = mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ)
        mapped = self._maps[file]
        first = start - start % mmap.PAGESIZE
        self._touched.append((mapped, first, start + num_bytes - first))
        if num_bytes >= READ_AHEAD_BYTES and start + num_bytes <= len(mapped):
            # All of it at once, where touching it would read a little at a time.
            mapped.madvise(mmap.MADV_WILLNEED, first, start + num_bytes - first)
        return memoryview(mapped)[start : start + num_bytes]

    def tensor(self, file: Path, start: int, dtype: torch.dtype, shape: Shape) -> Tensor:
        """A tensor whose memory is the file; not to be used after `release`."""
        num_bytes = torch.Size(shape).numel() * dtype.itemsize
        if not num_bytes:
            return torch.empty(shape, dtype=dtype)
        return read_only(self.window(file, start, num_bytes), dtype).view(shape)

    def release(self) -> None:
        for mapped, start, length in self._touched:
            mapped.madvise(mmap.MADV_DONTNEED, start, length)
        self._touched.clear()


def read_only(data: memoryview, dtype: torch.dtype) -> Tensor:
    """A flat tensor over memory that must not be written; an operation in place on it ends the process."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given buffer is not writable")
        return torch.frombuffer(data, dtype=dtype)


def raw(tensor: Tensor) -> memoryview:
    """The bytes of a tensor, in place where it is contiguous."""
    flat = tensor.contiguous().view(-1)
    if not flat.numel():
        return memoryview(b"")
    array: Any = flat.view(torch.uint8).numpy()
    return memoryview(array)
