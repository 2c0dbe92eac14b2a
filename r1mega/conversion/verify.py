"""Whether two model folders, of either form, hold the same model: bit by bit, or to a stated tolerance."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from r1mega.conversion.folders import Folder, HFFolder, open_folder
from r1mega.errors import WeightMappingError
from r1mega.families.spec import Kind, ModelSpec, Row
from r1mega.formats.hf_folder import equal
from r1mega.runtime.progress import Bar

STEP = 1 << 22
"""Elements compared at a time."""


@dataclass(frozen=True)
class Same:
    """What two folders that agree have in common."""

    num_tensors: int
    largest: float
    """Largest absolute difference of two elements; 0 where bitwise equality was asked for."""


def verify(a: Path, b: Path, tolerance: float | None) -> Same:
    """Compare every tensor under its Hugging Face name, FP8 blocks multiplied out unless both folders have them.

    What a folder repeats must be its original bit by bit, whatever the tolerance.

    Args:
        tolerance: largest absolute difference of two elements; dtypes may differ. None: same dtype, same bits.

    Raises:
        WeightMappingError: lists every difference, of tensors and of the configs.
        ConfigError, ConversionError, CheckpointError: a folder that cannot be read.
    """
    left, right = open_folder(a), open_folder(b)
    faults = _config_faults(left.spec, right.spec)
    for folder in (left, right):
        faults += [
            f"{folder.path}: {f}" for f in (folder.repetition_faults() if isinstance(folder, HFFolder) else ())
        ]
    by_names = {row.hf: row for row in right.table}
    unknown = [", ".join(row.hf) for row in left.table if row.hf not in by_names]
    unknown += [", ".join(r.hf) for r in right.table if r.hf not in {row.hf for row in left.table}]
    faults += [f"{names}: in one folder's model only" for names in unknown]
    found = _Comparison(left, right, tolerance)
    with Bar("comparing", len(left.table), unit="row") as bar:
        for row in left.table:
            if row.hf in by_names:
                faults += found.compare(row, by_names[row.hf])
            bar.advance()
    if faults:
        raise WeightMappingError("\n  ".join([f"{a} and {b} differ ({len(faults)} differences):", *faults]))
    return Same(found.num_tensors, found.largest)


class _Comparison:
    def __init__(self, left: Folder, right: Folder, tolerance: float | None) -> None:
        self._left, self._right, self._tolerance = left, right, tolerance
        self._stored = (
            isinstance(left, HFFolder) and isinstance(right, HFFolder) and left.quantised == right.quantised
        )
        self.num_tensors, self.largest = 0, 0.0

    def compare(self, a: Row, b: Row) -> list[str]:
        """Differences between a row of the one folder and the same of the other."""
        if a.kind is Kind.COPY and not (self._left.has(a) and self._right.has(b)):
            return []  # a repetition may be left out
        if self._stored and self._tolerance is None:
            pairs = self._pairs_as_stored(a)
        else:
            pairs = list(zip(a.hf, self._left.parts(a), self._right.parts(b), strict=True))
        faults = [fault for name, x, y in pairs for fault in self._difference(name, x, y)]
        self._left.release()
        self._right.release()
        return faults

    def _pairs_as_stored(self, row: Row) -> list[tuple[str, Tensor, Tensor]]:
        assert isinstance(self._left, HFFolder)
        assert isinstance(self._right, HFFolder)
        names = [n for name in row.hf for n in (name, *self._left.scales_of(name))]
        others = {n for name in row.hf for n in (name, *self._right.scales_of(name))}
        if set(names) != others:
            return list(zip(row.hf, self._left.parts(row), self._right.parts(row), strict=True))
        return [(name, self._left.stored(name), self._right.stored(name)) for name in names]

    def _difference(self, name: str, x: Tensor, y: Tensor) -> list[str]:
        self.num_tensors += 1
        if x.shape != y.shape:
            return [f"{name}: shapes {tuple(x.shape)} and {tuple(y.shape)}"]
        if self._tolerance is None:
            if x.dtype is not y.dtype:
                return [f"{name}: dtypes {x.dtype} and {y.dtype}; give --tolerance to compare values"]
            if equal(x, y):
                return []
        num_different, largest = _distance(x, y)
        if self._tolerance is None:
            return [f"{name}: {num_different} of {x.numel()} elements differ, by up to {largest:.3g}"]
        self.largest = max(self.largest, largest)
        if largest <= self._tolerance:  # false where it is not a number
            return []
        return [f"{name}: differs by up to {largest:.3g}, more than {self._tolerance:g}"]


def _distance(x: Tensor, y: Tensor) -> tuple[int, float]:
    """(elements that differ, the largest absolute difference); equal infinities do not, what is no number does."""
    count, largest = 0, 0.0
    for a, b in zip(x.reshape(-1).split(STEP), y.reshape(-1).split(STEP), strict=True):
        u, v = a.double(), b.double()
        apart = u != v
        count += int(apart.sum())
        if apart.any():
            gap = (u[apart] - v[apart]).abs().max().item()
            largest = gap if gap != gap or largest != largest else max(largest, gap)
    return count, largest


def _config_faults(a: ModelSpec, b: ModelSpec) -> list[str]:
    """What two config.json say differently of the model, however each writes it."""
    left, right = _facts(a), _facts(b)
    names = [name for name in {**left, **right} if left.get(name) != right.get(name)]
    return [f"config.json: {name} = {left.get(name)!r} and {right.get(name)!r}" for name in names]


def _facts(part: Any, prefix: str = "") -> dict[str, Any]:
    """Every field of a spec and of its parts, `hf` aside, which is how the file writes them."""
    found: dict[str, Any] = {}
    for field in dataclasses.fields(part):
        value = getattr(part, field.name)
        if field.name == "eos":
            value = part.ends
        if dataclasses.is_dataclass(value):
            found |= _facts(value, f"{prefix}{field.name}.")
        elif field.name not in ("hf", "rows"):
            found[prefix + field.name] = value
    return found
