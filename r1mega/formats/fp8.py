"""FP8 blocks as DeepSeek publishes them: e4m3 weights, one scale for each block of 128 x 128.

A weight w is stored as codes q and `weight_scale_inv` s, w = q * s, with s = max|w| / 448 over the block (V3 report
3.3; the published inference code's `weight_dequant`). Blocks at the lower and right edges are smaller. Scales are
fp32; DeepSeek-V3.1's are rounded up to powers of two, and Qwen3's folders keep theirs in bf16.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from r1mega.families.quantization import POWERS
from r1mega.formats.fp8_blocks import BLOCK, FORMS, scale_shape

LARGEST = 448.0
"""The largest finite e4m3 number."""
CODES, SCALES = torch.float8_e4m3fn, torch.float32
STRIP_BLOCKS = 8
"""Rows of blocks that are worked on at once: temporary memory is a few times theirs in fp32."""


def dequantise(codes: Tensor, scales: Tensor, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """Weights of their codes, on their device: multiplied in fp32, then rounded to `dtype`.

    Args:
        codes: [M, N] e4m3.
        scales: [ceil(M / 128), ceil(N / 128)] fp32 or bf16.
    """
    weight = torch.empty(codes.shape, dtype=dtype, device=codes.device)
    for rows, blocks in _strips(codes.shape[0]):
        spread = scales[blocks].float().repeat_interleave(BLOCK, 0)[: rows.stop - rows.start]
        spread = spread.repeat_interleave(BLOCK, 1)[:, : codes.shape[1]]
        weight[rows] = codes[rows].float().mul_(spread).to(dtype)
    return weight


def quantise(weight: Tensor, form: str = "fp8-block") -> tuple[Tensor, Tensor]:
    """(codes, scales) of a weight [M, N], on its device, in one of FORMS; a block of zeros has scale 1."""
    num_rows, num_columns = weight.shape
    codes = torch.empty(weight.shape, dtype=CODES, device=weight.device)
    scales = torch.empty(scale_shape(tuple(weight.shape)), dtype=SCALES, device=weight.device)
    for rows, blocks in _strips(num_rows):
        strip = weight[rows].float()
        height = rows.stop - rows.start
        padded = F.pad(strip.abs(), (0, -num_columns % BLOCK, 0, -height % BLOCK))
        amax = padded.view(-(-height // BLOCK), BLOCK, -1, BLOCK).amax((1, 3))
        scale = torch.where(amax == 0, torch.ones_like(amax), amax / LARGEST)
        if FORMS[form].get("scale_fmt") == POWERS:
            fraction, exponent = torch.frexp(scale)  # scale = fraction x 2^exponent, 1/2 <= fraction < 1
            scale = torch.ldexp(torch.ones_like(scale), exponent - (fraction == 0.5).int())
        # Of a block so small that its scale would vanish; its codes are what is left of it.
        scale = scale.clamp_min(torch.finfo(torch.float32).tiny)
        spread = scale.repeat_interleave(BLOCK, 0)[:height].repeat_interleave(BLOCK, 1)[:, :num_columns]
        codes[rows] = (strip / spread).clamp_(-LARGEST, LARGEST).to(CODES)  # the strip may be the weight itself
        scales[blocks] = scale
    return codes, scales


def within_half_a_step(weight: Tensor, codes: Tensor, scales: Tensor) -> bool:
    """Whether codes and scales are a weight [M, N] rounded to e4m3: each element within half a step of the original.

    A step is an eighth of the power of two below a number, and never less than 2^-9.
    """
    for rows, blocks in _strips(weight.shape[0]):
        height, width = rows.stop - rows.start, weight.shape[1]
        spread = scales[blocks].repeat_interleave(BLOCK, 0)[:height].repeat_interleave(BLOCK, 1)[:, :width]
        wanted = weight[rows].float() / spread
        half = wanted.abs().clamp_min_(2.0**-6).log2_().floor_().exp2_() / 16
        if not bool(((codes[rows].float() - wanted).abs_() <= half * (1 + 1e-5)).all()):
            return False
    return True


def _strips(num_rows: int) -> list[tuple[slice, slice]]:
    """(rows, rows of blocks) in pieces of STRIP_BLOCKS."""
    step = STRIP_BLOCKS * BLOCK
    return [
        (slice(start, min(start + step, num_rows)), slice(start // BLOCK, -(-min(start + step, num_rows) // BLOCK)))
        for start in range(0, num_rows, step)
    ]
