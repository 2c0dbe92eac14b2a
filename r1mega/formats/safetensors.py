"""The safetensors format, read and written without holding a file's tensors in memory.

A file is 8 bytes (the header's length, little-endian), a JSON header {name: {dtype, shape, data_offsets}}, and the
tensors' bytes one after the other without holes. Source: the format's description in its own repository; the
package writes files only from tensors that are all in memory at once. No torch: dtypes go by the format's names
(`torch_dtypes`).
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from r1mega.errors import WeightMappingError
from r1mega.families.spec import Shape

DTYPES: Mapping[str, tuple[str, int]] = {
    "F64": ("float64", 8),
    "F32": ("float32", 4),
    "F16": ("float16", 2),
    "BF16": ("bfloat16", 2),
    "F8_E4M3": ("float8_e4m3fn", 1),
    "F8_E5M2": ("float8_e5m2", 1),
    "I64": ("int64", 8),
    "I32": ("int32", 4),
    "I16": ("int16", 2),
    "I8": ("int8", 1),
    "U8": ("uint8", 1),
    "BOOL": ("bool", 1),
}
"""The format's name of a dtype -> torch's name, bytes of an element."""
DTYPE_REMEDY = (
    "weights are read as F32, BF16, F16 or FP8 blocks (F8_E4M3 with scales in F32 or BF16): fetch the model in one "
    "of these forms, or have the tool that wrote this one write it so"
)
MAX_HEADER_BYTES = 100_000_000
"""The package's own limit."""


@dataclass(frozen=True)
class Entry:
    """One tensor of a file."""

    name: str
    dtype: str
    """One of DTYPES."""
    shape: Shape
    start: int
    """Of its bytes, counted from the file's first."""

    @property
    def num_bytes(self) -> int:
        return math.prod(self.shape) * DTYPES[self.dtype][1]


def read_header(file: Path) -> list[Entry]:
    """The tensors of a file.

    Raises:
        WeightMappingError: not a whole safetensors file; says what is wrong with it.
    """
    size = file.stat().st_size
    with file.open("rb") as handle:
        length = int.from_bytes(handle.read(8), "little")
        if size < 8 or length > min(size - 8, MAX_HEADER_BYTES):
            raise WeightMappingError(
                f"{file}: truncated, or not a safetensors file: {size} bytes in all; fetch it again"
            )
        try:
            header: Any = json.loads(handle.read(length))
            header.pop("__metadata__", None)
            stored = {name: str(fields["dtype"]) for name, fields in header.items()}
        except (ValueError, KeyError, TypeError, AttributeError) as e:
            raise _no_header(file, e) from e
    if unread := [name for name, dtype in stored.items() if dtype not in DTYPES]:
        more = f" (and {len(unread) - 1} tensors more)" if unread[1:] else ""
        raise WeightMappingError(
            f"{file}: tensor {unread[0]} has dtype {stored[unread[0]]}, not read here{more}; {DTYPE_REMEDY}"
        )
    try:
        found = [_entry(name, fields, 8 + length) for name, fields in header.items()]
    except (ValueError, KeyError, TypeError) as e:
        raise _no_header(file, e) from e
    found.sort(key=lambda pair: (pair[0].start, pair[1]))
    end = 8 + length
    for entry, stop in found:
        if entry.start != end or stop - entry.start != entry.num_bytes:
            raise WeightMappingError(f"{file}: {entry.name}: its bytes do not fit its shape or its neighbours")
        end = stop
    if end != size:
        state = "truncated" if size < end else "too long"
        raise WeightMappingError(f"{file}: {state}: {size} bytes, its header promises {end}; fetch it again")
    return [entry for entry, _ in found]


def _no_header(file: Path, error: Exception) -> WeightMappingError:
    return WeightMappingError(
        f"{file}: its header is no safetensors header ({type(error).__name__}: {error}); fetch it again"
    )


def _entry(name: str, fields: Any, base: int) -> tuple[Entry, int]:
    """A tensor of a header, and the end that the header gives it."""
    start, stop = (base + int(n) for n in fields["data_offsets"])
    return Entry(name, fields["dtype"], tuple(int(n) for n in fields["shape"]), start), stop


def lay_out(tensors: Sequence[tuple[str, str, Shape]]) -> tuple[bytes, list[Entry], int]:
    """A file of these tensors: its first bytes (length and header), each tensor's place, and its size.

    Wider dtypes come first, so that every tensor is aligned to its own.

    Args:
        tensors: (name, dtype out of DTYPES, shape) of each.
    """
    order = sorted(tensors, key=lambda t: -DTYPES[t[1]][1])
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, dtype, shape in order:
        start, end = end, end + math.prod(shape) * DTYPES[dtype][1]
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    base = 8 + len(text)
    entries = [Entry(name, dtype, shape, base + header[name]["data_offsets"][0]) for name, dtype, shape in order]
    return len(text).to_bytes(8, "little") + text, entries, base + end
