"""A kernel in Triton, whose launcher the machine's C compiler makes."""

import torch
import triton  # pyright: ignore[reportMissingImports]
import triton.language as tl  # pyright: ignore[reportMissingImports]

BLOCK = 1024


@triton.jit
def _double(source, target, SIZE: tl.constexpr):
    places = tl.program_id(0) * SIZE + tl.arange(0, SIZE)
    tl.store(target + places, tl.load(source + places) * 2)


def doubled(given: torch.Tensor) -> torch.Tensor:
    """2 * given, of a multiple of 1,024 numbers."""
    out = torch.empty_like(given)
    _double[(given.numel() // BLOCK,)](given, out, SIZE=BLOCK)  # pyright: ignore[reportIndexIssue]
    return out
