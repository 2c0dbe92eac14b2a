"""A Hugging Face folder of weights to read from: the one reader, of conversions and of stages that start from one.

Opening it checks it whole, before any tensor's data is read: files, headers, index, names, shapes, dtypes.
"""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from r1mega.errors import WeightMappingError
from r1mega.families.registry import model_of
from r1mega.families.spec import Kind, ModelSpec, Row
from r1mega.formats import fp8
from r1mega.formats.hf_files import read_config, read_files
from r1mega.formats.inverse_frequencies import difference, is_buffer
from r1mega.formats.mapping import check_files, to_megatron
from r1mega.formats.safetensors import DTYPE_REMEDY, NAMES, Entry
from r1mega.runtime.mapped import MappedFiles

FLOATS = (torch.float32, torch.bfloat16, torch.float16)
"""What weights may be stored as, FP8 blocks aside."""


class HFFolder:
    """config.json and safetensors; FP8 blocks are multiplied out to bf16.

    Inverse frequencies of rotary positions, which old folders keep beside the weights, must be those of the model's
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
        if spec is not None and not (path / "config.json").is_file():
            self.quantised = False
        else:
            fields, self.quantised = read_config(path)
            spec = spec or model_of(fields, path / "config.json")
        self.path, self.spec = path, spec
        self.left_out: list[str] = []
        self.table = self.spec.tensors()
        self.entries, faults = read_files(path)
        self._files = MappedFiles()
        self._check(faults)

    def _check(self, faults: list[str]) -> None:
        """Everything that can be said against the folder, at once."""
        by_name = {entry.name: entry for _, entry in self.entries}
        scales = {name for name in by_name if name.endswith(".weight" + fp8.SUFFIX)}
        self.left_out = [name for name in by_name if is_buffer(self.spec, name)]
        weights = [e for _, e in self.entries if e.name not in scales and e.name not in self.left_out]
        try:
            check_files(self.table, [(e.name, e.shape) for e in weights])
        except WeightMappingError as e:
            faults.extend(str(e).split("\n  ")[1:])
        faults += [f for e in weights for f in self._dtype_faults(e, by_name)]
        for name in sorted(scales):
            weight = by_name.get(name.removesuffix(fp8.SUFFIX))
            if weight is None or weight.dtype is not fp8.CODES:
                faults.append(f"{name}: scales of a tensor that is not there or not FP8")
        for row in self.table:
            dtypes = {by_name[n].dtype for n in row.hf if n in by_name}
            if len(dtypes) > 1:
                faults.append(f"{', '.join(row.hf)}: dtypes differ ({names_of(dtypes)}), Megatron keeps them as one")
        self._places = {entry.name: (file, entry) for file, entry in self.entries}
        faults += [f"{n}: {fault}" for n in self.left_out if (fault := difference(self.spec, self.stored(n)))]
        self.release()
        if faults:
            summary = f"{self.path}: the folder and the model do not map one to one ({len(faults)} faults):"
            raise WeightMappingError("\n  ".join([summary, *faults]))

    def _dtype_faults(self, entry: Entry, by_name: Mapping[str, Entry]) -> list[str]:
        if entry.dtype in FLOATS:
            return []
        if entry.dtype is not fp8.CODES or len(entry.shape) != 2:
            return [f"tensor {entry.name} has dtype {NAMES[entry.dtype]}, not read here; {DTYPE_REMEDY}"]
        if not self.quantised:
            return [
                f"{entry.name}: FP8, but config.json has no quantization_config; fetch config.json again, it belongs "
                "to other weights"
            ]
        scale = by_name.get(entry.name + fp8.SUFFIX)
        if scale is None:
            return [f"{entry.name + fp8.SUFFIX}: missing, {entry.name} is FP8"]
        if scale.dtype not in fp8.READ_SCALES or scale.shape != fp8.scale_shape(entry.shape):
            wanted = f"{names_of(fp8.READ_SCALES)} {fp8.scale_shape(entry.shape)}"
            return [f"{scale.name}: {names_of([scale.dtype])} {scale.shape}, expected {wanted}"]
        return []

    def has(self, row: Row) -> bool:
        return all(name in self._places for name in row.hf)

    def dtype(self, row: Row) -> torch.dtype:
        stored = self._places[row.hf[0]][1].dtype
        return torch.bfloat16 if stored is fp8.CODES else stored

    def stored(self, name: str) -> Tensor:
        """A tensor as it lies in its file."""
        file, entry = self._places[name]
        return self._files.tensor(file, entry.start, entry.dtype, entry.shape)

    def scales_of(self, name: str) -> list[str]:
        """The name of a tensor's scales, if it has any."""
        return [name + fp8.SUFFIX] if self._places[name][1].dtype is fp8.CODES else []

    def parts(self, row: Row) -> list[Tensor]:
        return [self._read(name) for name in row.hf]

    def tensor(self, name: str) -> Tensor | None:
        """A tensor by its Hugging Face name, FP8 blocks multiplied out; None where the folder leaves it out."""
        return self._read(name) if name in self._places else None

    def _read(self, name: str) -> Tensor:
        tensor = self.stored(name)
        if tensor.dtype is fp8.CODES:
            tensor = fp8.dequantise(tensor, self.stored(name + fp8.SUFFIX))
        return tensor

    def repeated(self) -> list[str]:
        """Names under which the folder has a tensor a second time."""
        names = [name for row in self.table for name in (row.hf if row.kind is Kind.COPY else row.also)]
        return [name for name in names if name in self._places]

    def repetition_faults(self) -> list[str]:
        """What it repeats and is not, bit by bit, its original."""
        originals = {row.megatron: row for row in self.table if row.kind is not Kind.COPY}
        faults = []
        for row in self.table:
            names = [n for n in (row.hf if row.kind is Kind.COPY else row.also) if n in self._places]
            original = originals[row.megatron]
            for name in names:
                if not equal(self._read(name), self.whole(original)):
                    faults.append(f"{name}: differs from {', '.join(original.hf)}, which it should repeat")
                self.release()
        return faults

    def whole(self, row: Row) -> Tensor:
        return to_megatron(row, self.parts(row))

    def release(self) -> None:
        self._files.release()

    def files(self) -> list[Path]:
        return sorted({file for file, _ in self.entries})


def names_of(dtypes: Collection[torch.dtype]) -> str:
    """Their names, for a message."""
    return ", ".join(sorted(str(d).removeprefix("torch.") for d in dtypes))


def equal(a: Tensor, b: Tensor) -> bool:
    """Bitwise, a stretch at a time: memory for the comparison does not grow with the tensor."""
    if a.dtype is not b.dtype or a.shape != b.shape:
        return False
    integer: Any = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[a.dtype.itemsize]
    flat_a, flat_b = a.contiguous().view(-1).view(integer), b.contiguous().view(-1).view(integer)
    step = 1 << 22
    return all(torch.equal(x, y) for x, y in zip(flat_a.split(step), flat_b.split(step), strict=True))
