"""The stream of weights as sender and receiver both cut it: few byte buffers, checked and counted.

Both sides compute the same buckets from the metadata alone. Imports torch alone.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

_ALIGN = 16
"""Every tensor starts at a multiple of this in its bucket, so that it can be viewed as any dtype."""
_ROW = 1024
"""Words of a checksum that have one factor."""


class Param(NamedTuple):
    """One tensor of the stream, under its Hugging Face name."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]


def described(params: Sequence[Param]) -> dict[str, Any]:
    """The stream's metadata as vLLM's routes take it, in JSON's types and in the order of the stream."""
    return {
        "names": [param.name for param in params],
        "dtype_names": [str(param.dtype).removeprefix("torch.") for param in params],
        "shapes": [list(param.shape) for param in params],
    }


@dataclass(frozen=True)
class Bucket:
    """One broadcast: consecutive tensors in one byte buffer."""

    params: tuple[Param, ...]
    offsets: tuple[int, ...]
    num_bytes: int

    @property
    def gaps(self) -> Iterator[slice]:
        """Where no tensor is."""
        ends = [start + size(param) for param, start in zip(self.params, self.offsets, strict=True)]
        return (slice(end, start) for end, start in zip(ends, self.offsets[1:], strict=False) if end < start)

    def views(self, buffer: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
        """The tensors of a byte buffer [num_bytes], sharing its memory."""
        for param, start in zip(self.params, self.offsets, strict=True):
            flat = buffer[start : start + size(param)]
            yield param.name, flat.view(param.dtype).view(param.shape)


def buckets(params: Iterable[Param], bound_bytes: int, align: int = _ALIGN) -> list[Bucket]:
    """Cut the stream, in order, into buffers of at most `bound_bytes`; a larger tensor travels alone.

    Args:
        align: every tensor starts at a multiple of this.
    """
    cut: list[Bucket] = []
    group: list[Param] = []
    offsets: list[int] = []
    end = 0
    for param in params:
        start = -(-end // align) * align
        if group and start + size(param) > bound_bytes:
            cut.append(Bucket(tuple(group), tuple(offsets), end))
            group, offsets, start = [], [], 0
        group.append(param)
        offsets.append(start)
        end = start + size(param)
    if group:
        cut.append(Bucket(tuple(group), tuple(offsets), end))
    return cut


def packed(params: Iterable[Param], bound_bytes: int) -> list[Bucket]:
    """Cut the stream as vLLM's nccl engine does (vllm/distributed/weight_transfer/packed_tensor.py).

    Tensors lie behind each other without gaps, and a buffer ends with the tensor that makes it larger than
    `bound_bytes`. Each can be viewed as its dtype if the stream is `evened`.
    """
    cut: list[Bucket] = []
    group: list[Param] = []
    offsets: list[int] = []
    end = 0
    for param in params:
        group.append(param)
        offsets.append(end)
        end += size(param)
        if end > bound_bytes:
            cut.append(Bucket(tuple(group), tuple(offsets), end))
            group, offsets, end = [], [], 0
    if group:
        cut.append(Bucket(tuple(group), tuple(offsets), end))
    return cut


def evened(params: Sequence[Param]) -> list[Param]:
    """The order in which every tensor of a gapless buffer starts at a multiple of its element's size.

    It is the stream's own but for odd ones (bf16 tensors of an odd number of elements where there are fp32 ones as
    well), which come last, the wider dtypes first. Models as published have none.
    """
    word = _word(params)
    odd = [param for param in params if size(param) % word]
    return [p for p in params if not size(p) % word] + sorted(odd, key=lambda p: -p.dtype.itemsize)


def evened_stream(
    stream: Iterator[tuple[str, torch.Tensor]], params: Sequence[Param]
) -> Iterator[tuple[str, torch.Tensor]]:
    """The stream's tensors in the order of `evened(params)`; copies of the odd ones are kept until then."""
    word = _word(params)
    kept: list[tuple[str, torch.Tensor]] = []
    for name, tensor in stream:
        if tensor.nbytes % word:
            kept.append((name, tensor.clone()))
        else:
            yield name, tensor
        del tensor
    yield from sorted(kept, key=lambda pair: -pair[1].dtype.itemsize)


def _word(params: Sequence[Param]) -> int:
    return max((param.dtype.itemsize for param in params), default=1)


def size(param: Param) -> int:
    """In bytes."""
    return param.dtype.itemsize * int(torch.Size(param.shape).numel())


class Tally:
    """What one side saw of a push.

    The checksum is a sum of the bytes as 64-bit words, rows of 1024 of which have a factor each: a changed word
    always changes it, and so does what is lost, repeated or moved, but within a row. It takes a tenth of a
    broadcast's time; what a model holds is proven by `weights.verify`.
    """

    def __init__(self) -> None:
        self.num_tensors = self.num_bytes = self.checksum = self._rows = 0

    def add(self, bucket: Bucket, buffer: torch.Tensor) -> None:
        """buffer: [bucket.num_bytes] uint8, at a multiple of 8 bytes in memory that is its own."""
        self.num_tensors += len(bucket.params)
        self.num_bytes += bucket.num_bytes
        whole = buffer.numel() // (8 * _ROW) * 8 * _ROW
        rows = buffer[:whole].view(torch.int64).view(-1, _ROW).sum(1)
        rest = buffer[whole:].to(torch.int64) * torch.arange(1, 1 + buffer.numel() - whole)
        rows = torch.cat([rows, rest.sum().view(1)])
        factors = 2 * torch.arange(self._rows, self._rows + len(rows)) + 1
        self._rows += len(rows)
        self.checksum = int(torch.tensor(self.checksum) + (rows * factors).sum())

    def as_tensor(self) -> torch.Tensor:
        return torch.tensor([self.num_tensors, self.num_bytes, self.checksum], dtype=torch.int64)


class SourceError(RuntimeError):
    """The trainer's own weights cannot be read, or are not what they were said to be."""


def checked(
    stream: Iterator[tuple[str, torch.Tensor]], params: Sequence[Param]
) -> Iterator[tuple[str, torch.Tensor]]:
    """The stream's tensors, each checked against the metadata: its name, [shape] and dtype.

    Raises:
        SourceError: at the first name, dtype or shape out of place, and for one too many or too few.
    """
    for i, param in enumerate(params):
        name, tensor = next(stream, (None, None))
        if tensor is None:
            raise SourceError(f"the weight source ended after {i} of {len(params)} tensors; next is {param.name}")
        found = Param(str(name), tensor.dtype, tuple(tensor.shape))
        if found != param:
            raise SourceError(f"tensor {i} of the weight source is {found}, but its metadata says {param}")
        yield param.name, tensor
        del tensor  # nobody holds on to it while the source makes the next one
    if extra := next(stream, None):
        raise SourceError(f"the weight source yields more than its {len(params)} tensors: next is {extra[0]}")
