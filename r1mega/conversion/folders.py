"""Model folders to read from: Hugging Face's and Megatron's, behind one interface, tensor by tensor.

Opening one checks it whole, before any tensor's data is read: files, headers, index, names, shapes, dtypes.
"""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from r1mega.conversion import fp8
from r1mega.conversion.hf_files import read_config, read_files
from r1mega.conversion.safetensors import Entry
from r1mega.errors import ConversionError, WeightMappingError
from r1mega.families.registry import model_of
from r1mega.families.spec import Kind, ModelSpec, Row
from r1mega.layout.sharded import places, roots
from r1mega.runtime.mapped import MappedFiles
from r1mega.trainer import torch_dist
from r1mega.trainer.manifest import MANIFEST, METADATA, read_model_fields, saved_tp
from r1mega.weights.convert import check_files, to_hf, to_megatron

FLOATS = (torch.float32, torch.bfloat16, torch.float16)
"""What weights may be stored as, FP8 blocks aside."""


class Folder(Protocol):
    """A model's weights by the rows of its family's table. Tensors are valid until `release`."""

    path: Path
    form: str
    spec: ModelSpec
    table: list[Row]
    stored_whole: bool
    """Whether Megatron's tensors are what is stored, rather than Hugging Face's."""

    def has(self, row: Row) -> bool:
        """Whether the row's tensors are there; copies need not be."""
        ...

    def dtype(self, row: Row) -> torch.dtype:
        """Of the tensors that `parts` and `whole` return."""
        ...

    def parts(self, row: Row) -> list[Tensor]:
        """The row's Hugging Face tensors, in the order of `row.hf`."""
        ...

    def whole(self, row: Row) -> Tensor:
        """The row's Megatron tensor."""
        ...

    def release(self) -> None:
        """Give the memory of the tensors that were read back."""
        ...

    def files(self) -> list[Path]:
        """What the weights lie in."""
        ...


def open_folder(path: Path) -> "HFFolder | MegatronFolder":
    """A folder of either form.

    Raises:
        ConversionError: neither.
        ConfigError, WeightMappingError, CheckpointError: what is wrong with it.
    """
    if (path / METADATA).is_file() or (path / MANIFEST).is_file():
        return MegatronFolder(path)
    if (path / "config.json").is_file() or list(path.glob("*.safetensors")):
        return HFFolder(path)
    what = "no such folder" if not path.is_dir() else "neither a Hugging Face folder nor a Megatron checkpoint"
    raise ConversionError(f"{path}: {what}; expected config.json and safetensors, or {MANIFEST} and .metadata")


class HFFolder:
    """config.json and safetensors; FP8 blocks are multiplied out to bf16."""

    form = "Hugging Face"
    stored_whole = False

    def __init__(self, path: Path) -> None:
        """Raises: ConfigError, WeightMappingError."""
        fields, self.quantised = read_config(path)
        self.path = path
        self.spec = model_of(fields, path / "config.json")
        self.table = self.spec.tensors()
        self.entries, faults = read_files(path)
        self._files = MappedFiles()
        self._check(faults)

    def _check(self, faults: list[str]) -> None:
        """Everything that can be said against the folder, at once."""
        by_name = {entry.name: entry for _, entry in self.entries}
        scales = {name for name in by_name if name.endswith(".weight" + fp8.SUFFIX)}
        try:
            check_files(self.table, [(e.name, e.shape) for _, e in self.entries if e.name not in scales])
        except WeightMappingError as e:
            faults.extend(str(e).split("\n  ")[1:])
        faults += [f for _, e in self.entries if e.name not in scales for f in self._dtype_faults(e, by_name)]
        for name in sorted(scales):
            weight = by_name.get(name.removesuffix(fp8.SUFFIX))
            if weight is None or weight.dtype is not fp8.CODES:
                faults.append(f"{name}: scales of a tensor that is not there or not FP8")
        for row in self.table:
            dtypes = {by_name[n].dtype for n in row.hf if n in by_name}
            if len(dtypes) > 1:
                faults.append(f"{', '.join(row.hf)}: dtypes differ ({_names(dtypes)}), Megatron keeps them as one")
        if faults:
            summary = f"{self.path}: the folder and the model do not map one to one ({len(faults)} faults):"
            raise WeightMappingError("\n  ".join([summary, *faults]))
        self._places = {entry.name: (file, entry) for file, entry in self.entries}

    def _dtype_faults(self, entry: Entry, by_name: Mapping[str, Entry]) -> list[str]:
        if entry.dtype in FLOATS:
            return []
        if entry.dtype is not fp8.CODES or len(entry.shape) != 2:
            return [
                f"{entry.name}: dtype {_names([entry.dtype])}; weights are read as {_names(FLOATS)} or FP8 blocks"
            ]
        if not self.quantised:
            return [f"{entry.name}: FP8, but config.json has no quantization_config"]
        scale = by_name.get(entry.name + fp8.SUFFIX)
        if scale is None:
            return [f"{entry.name + fp8.SUFFIX}: missing, {entry.name} is FP8"]
        if scale.dtype is not fp8.SCALES or scale.shape != fp8.scale_shape(entry.shape):
            wanted = f"{_names([fp8.SCALES])} {fp8.scale_shape(entry.shape)}"
            return [f"{scale.name}: {_names([scale.dtype])} {scale.shape}, expected {wanted}"]
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


class MegatronFolder:
    """A distributed checkpoint of a training run, or a converted model; the weights alone are looked at."""

    form = "Megatron"
    stored_whole = True

    def __init__(self, path: Path) -> None:
        """Raises: CheckpointError, ConfigError, WeightMappingError."""
        self.path = path
        self.spec = model_of(read_model_fields(path), path / MANIFEST)
        self.table = self.spec.tensors()
        self._tensors = torch_dist.read_metadata(path)
        self._files = MappedFiles()
        self._places = places(self.table, tp=saved_tp(path))
        self._check()

    def _check(self) -> None:
        faults, known = [], set()
        for name, place in self._places.items():
            known.add(place.key)
            stored = self._tensors.get(place.key)
            if stored is None:
                faults.append(f"{name}: missing")
            elif stored.shape != place.shape:
                faults.append(f"{name}: {stored.shape} in the checkpoint, {place.shape} by the table")
            elif stored.dtype not in FLOATS:
                faults.append(f"{name}: dtype {_names([stored.dtype])}; weights are read as {_names(FLOATS)}")
        ours = roots(self.table)
        faults += [
            f"{key}: unmapped, no row of the table has it"
            for key in self._tensors
            if key not in known and key.split(".", 1)[0] in ours
        ]
        if faults:
            summary = f"{self.path}: the checkpoint and the model do not map one to one ({len(faults)} faults):"
            raise WeightMappingError("\n  ".join([summary, *faults]))

    def has(self, row: Row) -> bool:
        return True

    def dtype(self, row: Row) -> torch.dtype:
        return self._tensors[self._places[row.megatron].key].dtype

    def whole(self, row: Row) -> Tensor:
        place = self._places[row.megatron]
        stored = self._tensors[place.key]
        found = torch_dist.read_box(self.path, self._files, place.key, stored, place.offset, place.sizes)
        return found.reshape(row.shape)

    def parts(self, row: Row) -> list[Tensor]:
        return [tensor for _, tensor in to_hf(row, self.whole(row))]

    def release(self) -> None:
        self._files.release()

    def files(self) -> list[Path]:
        keys = {place.key for place in self._places.values()}
        names = {chunk.file for key in keys for chunk in self._tensors[key].chunks.values()}
        return [self.path / METADATA, *sorted(self.path / name for name in names)]


def _names(dtypes: Collection[torch.dtype]) -> str:
    return ", ".join(sorted(str(d).removeprefix("torch.") for d in dtypes))


def check_copies(folder: Folder) -> int:
    """Compare what a Hugging Face folder repeats with its originals, bit by bit; returns how many tensors those are.

    Raises:
        WeightMappingError: lists every copy that differs.
    """
    if not isinstance(folder, HFFolder):
        return 0
    if faults := folder.repetition_faults():
        summary = f"{folder.path}: the folder contradicts itself ({len(faults)} faults):"
        raise WeightMappingError("\n  ".join([summary, *faults]))
    return len(folder.repeated())


def equal(a: Tensor, b: Tensor) -> bool:
    """Bitwise, a stretch at a time: memory for the comparison does not grow with the tensor."""
    if a.dtype is not b.dtype or a.shape != b.shape:
        return False
    integer: Any = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[a.dtype.itemsize]
    flat_a, flat_b = a.contiguous().view(-1).view(integer), b.contiguous().view(-1).view(integer)
    step = 1 << 22
    return all(torch.equal(x, y) for x, y in zip(flat_a.split(step), flat_b.split(step), strict=True))
