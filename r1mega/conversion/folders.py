"""Model folders to read from: Hugging Face's and Megatron's, behind one interface, tensor by tensor.

Opening one checks it whole, before any tensor's data is read: files, headers, index, names, shapes, dtypes.
"""

from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from r1mega.errors import ConversionError, WeightMappingError
from r1mega.families.registry import model_of
from r1mega.families.spec import ModelSpec, Row
from r1mega.formats import torch_dist
from r1mega.formats.hf_folder import HFFolder
from r1mega.formats.hf_headers import FLOATS
from r1mega.formats.manifest import MANIFEST, METADATA, read_model_fields, saved_tp
from r1mega.formats.mapping import to_hf
from r1mega.formats.torch_dtypes import STORED, TORCH, dtype_name, dtype_names
from r1mega.layout.sharded import places, roots
from r1mega.runtime.mapped import MappedFiles


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
    if (path / "run.json").is_file():
        steps = sorted(path.glob("checkpoints/step_*"), key=lambda f: (len(f.name), f.name))
        inside = [str(f) for f in (path / "hf", *steps) if f.is_dir()]
        has = f"give one of {', '.join(inside)}" if inside else "it has no weights yet"
        raise ConversionError(f"{path}: a run directory, not a model's folder; {has}")
    if (path / "config.json").is_file() or list(path.glob("*.safetensors")):
        return HFFolder(path)
    what = "no such folder" if not path.is_dir() else "neither a Hugging Face folder nor a Megatron checkpoint"
    raise ConversionError(f"{path}: {what}; expected config.json and safetensors, or {MANIFEST} and .metadata")


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
            elif STORED.get(stored.dtype) not in FLOATS:
                read = dtype_names([TORCH[dtype] for dtype in FLOATS])
                faults.append(f"{name}: dtype {dtype_name(stored.dtype)}; weights are read as {read}")
        model_roots = roots(self.table)
        faults += [
            f"{key}: unmapped, no row of the table has it"
            for key in self._tensors
            if key not in known and key.split(".", 1)[0] in model_roots
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
