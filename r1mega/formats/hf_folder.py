"""A Hugging Face folder of weights to read from: the one reader, of conversions and of stages that start from one.

Opening it checks it whole, before any weight's data is read (`hf_headers`).
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from r1mega.families.spec import Kind, ModelSpec, Row
from r1mega.formats import fp8, fp8_blocks
from r1mega.formats.hf_headers import HFHeaders
from r1mega.formats.inverse_frequencies import difference
from r1mega.formats.mapping import to_megatron
from r1mega.formats.torch_dtypes import TORCH
from r1mega.runtime.mapped import MappedFiles


class HFFolder(HFHeaders):
    """config.json and safetensors; FP8 blocks are multiplied out to bf16.

    Inverse frequencies of rotary positions, which old folders keep with the weights, must be those of the model's
    own positions, and are left out.
    """

    form = "Hugging Face"
    stored_whole = False

    def __init__(self, path: Path, spec: ModelSpec | None = None) -> None:
        """Check the folder against its own config.json, or against `spec`, which it then need not state.

        Raises:
            ConfigError: config.json is missing, not understood, or quantised in another way than DeepSeek's.
            WeightMappingError: everything that is wrong with files, index, names, shapes and dtypes.
        """
        super().__init__(path, spec)
        self._files = MappedFiles()
        faults = ((name, difference(self.spec, self.stored(name))) for name in self.left_out)
        self.faults += [f"{name}: {fault}" for name, fault in faults if fault]
        self.release()
        self.refuse_faults()

    def has(self, row: Row) -> bool:
        return all(name in self.places for name in row.hf)

    def dtype(self, row: Row) -> torch.dtype:
        stored = TORCH[self.places[row.hf[0]][1].dtype]
        return torch.bfloat16 if stored is fp8.CODES else stored

    def stored(self, name: str) -> Tensor:
        """A tensor as it lies in its file: [its shape] of the dtype there."""
        file, entry = self.places[name]
        return self._files.tensor(file, entry.start, TORCH[entry.dtype], entry.shape)

    def scales_of(self, name: str) -> list[str]:
        """The name of a tensor's scales, if it has any."""
        return [name + fp8_blocks.SUFFIX] if self.places[name][1].dtype == fp8_blocks.CODES else []

    def parts(self, row: Row) -> list[Tensor]:
        """The row's Hugging Face tensors, [row.hf_shapes] of `dtype(row)`, in the order of `row.hf`."""
        return [self._read(name) for name in row.hf]

    def tensor(self, name: str) -> Tensor | None:
        """[its shape]: a tensor by its Hugging Face name, FP8 multiplied out; None where the folder lacks it."""
        return self._read(name) if name in self.places else None

    def _read(self, name: str) -> Tensor:
        tensor = self.stored(name)
        if tensor.dtype is fp8.CODES:
            tensor = fp8.dequantise(tensor, self.stored(name + fp8_blocks.SUFFIX))
        return tensor

    def repeated(self) -> list[str]:
        """Names under which the folder has a tensor a second time."""
        names = [name for row in self.table for name in (row.hf if row.kind is Kind.COPY else row.also)]
        return [name for name in names if name in self.places]

    def repetition_faults(self) -> list[str]:
        """What it repeats and is not, bit by bit, its original."""
        originals = {row.megatron: row for row in self.table if row.kind is not Kind.COPY}
        faults = []
        for row in self.table:
            names = [n for n in (row.hf if row.kind is Kind.COPY else row.also) if n in self.places]
            original = originals[row.megatron]
            for name in names:
                if not equal(self._read(name), self.whole(original)):
                    faults.append(f"{name}: differs from {', '.join(original.hf)}, which it should repeat")
                self.release()
        return faults

    def whole(self, row: Row) -> Tensor:
        """The row's Megatron tensor, [row.shape] of `dtype(row)`."""
        return to_megatron(row, self.parts(row))

    def release(self) -> None:
        self._files.release()


def equal(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors, [any shape] of any dtype, are one bitwise.

    A stretch at a time: memory for the comparison does not grow with the tensor.
    """
    if a.dtype is not b.dtype or a.shape != b.shape:
        return False
    integer: Any = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[a.dtype.itemsize]
    flat_a, flat_b = a.contiguous().view(-1).view(integer), b.contiguous().view(-1).view(integer)
    step = 1 << 22
    return all(torch.equal(x, y) for x, y in zip(flat_a.split(step), flat_b.split(step), strict=True))
