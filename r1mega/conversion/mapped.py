"""Files as memory: tensors that are windows into a file, read by the kernel when touched and given back after."""

import mmap
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from r1mega.families.spec import Shape


class MappedFiles:
    """Files opened on first use. `release` gives the pages that were touched back to the kernel."""

    def __init__(self) -> None:
        self._maps: dict[Path, mmap.mmap] = {}
        self._touched: list[tuple[mmap.mmap, int, int]] = []

    def window(self, file: Path, start: int, num_bytes: int) -> memoryview:
        """A part of a file."""
        if file not in self._maps:
            with file.open("rb") as handle:
                # Private and writable, for torch warns of buffers it may not write; nothing writes.
                flags, access = mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE
                self._maps[file] = mmap.mmap(handle.fileno(), 0, flags=flags, prot=access)
        mapped = self._maps[file]
        first = start - start % mmap.PAGESIZE
        self._touched.append((mapped, first, start + num_bytes - first))
        return memoryview(mapped)[start : start + num_bytes]

    def tensor(self, file: Path, start: int, dtype: torch.dtype, shape: Shape) -> Tensor:
        """A tensor whose memory is the file; not to be used after `release`."""
        num_bytes = torch.Size(shape).numel() * dtype.itemsize
        if not num_bytes:
            return torch.empty(shape, dtype=dtype)
        return torch.frombuffer(self.window(file, start, num_bytes), dtype=dtype).view(shape)

    def release(self) -> None:
        for mapped, start, length in self._touched:
            mapped.madvise(mmap.MADV_DONTNEED, start, length)
        self._touched.clear()


def raw(tensor: Tensor) -> memoryview:
    """The bytes of a tensor, in place where it is contiguous."""
    flat = tensor.contiguous().view(-1)
    if not flat.numel():
        return memoryview(b"")
    array: np.ndarray = flat.view(torch.uint8).numpy()
    return memoryview(array)
