"""Documents behind each other in one row, as Transformer Engine's attention takes them (its layout "thd").

Where each document begins is told by cumulative lengths. Padding after a document belongs to its run: attention is
causal, so no token of the document sees what follows it, and what padding computes is never read. Hence the kernels
need no gaps between sequences, and FlashAttention and cuDNN's fused attention both serve.

Shapes: T rows of a micro-batch (all chunks, padding included), D runs.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from megatron.core.packed_seq_params import PackedSeqParams
from torch import Tensor

from r1mega.trainer.context import zigzag


@dataclass(frozen=True)
class Packed:
    """Which rows of a micro-batch attend to each other; takes the place of `trainer.network.attention.Segments`."""

    cu_seqlens: Tensor
    """[D + 1] int32: where each run begins, padding counted, over all context-parallel ranks; the last is T."""
    longest: int
    """Rows of the longest run."""
    positions: Tensor
    """[T / cp, 1] int64: the place of each of this rank's rows in its run."""

    @property
    def params(self) -> PackedSeqParams:
        """What Megatron's layers hand on to Transformer Engine."""
        cu = self.cu_seqlens
        # Without cu_seqlens_*_padded, or every layer would wait for the device to compare them.
        return PackedSeqParams(
            qkv_format="thd", cu_seqlens_q=cu, cu_seqlens_kv=cu, max_seqlen_q=self.longest, max_seqlen_kv=self.longest
        )

    def to(self, device: torch.device) -> "Packed":
        cu_seqlens, positions = (to_device(x, device) for x in (self.cu_seqlens, self.positions))
        return replace(self, cu_seqlens=cu_seqlens, positions=positions)


def padded(length: int, multiple: int) -> int:
    """A document's length with its padding: the next multiple."""
    return -(-length // multiple) * multiple


def document_multiple(cp: int, tp: int) -> int:
    """What documents' lengths must be multiples of: two blocks for each context-parallel rank, and each of those
    divided by sequence parallelism; 1 where sequences are not divided."""
    return 2 * cp * tp if cp > 1 else 1


def cumulative_lengths(lengths: Sequence[int]) -> Tensor:
    """[D + 1] int32, from 0 to the sum of D lengths."""
    return torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)


def packed(lengths: Sequence[int], *, cp: int = 1, rank: int = 0) -> Packed:
    """The runs of a row, and this context-parallel rank's positions in them.

    Args:
        lengths: of every run with its padding, in order; multiples of 2 x cp where cp > 1.
    """
    positions = torch.cat([torch.arange(n) for n in lengths])
    if cp > 1:
        positions = positions[zigzag(lengths, cp, rank)]
    return Packed(cumulative_lengths(lengths), max(lengths), positions[:, None])


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """A host tensor on a device; [any shape]: to a GPU through pinned memory, while it computes."""
    return tensor if device.type == "cpu" else tensor.pin_memory().to(device, non_blocking=True)
