"""One number for a box of a tensor, the same for whoever holds it: the trainer, which sends it, and the engine.

    sum over rows i and columns j of  a[i] * b[j] * word[i, j]   mod 2^64

`word` is the element's bits as an integer, `a` and `b` are fixed pseudo-random odd numbers, and i and j are places in
the whole tensor. So the number of a tensor is the sum of the numbers of the boxes that it is cut into, in whatever
order; a changed element always changes it (odd numbers have inverses), and elements, rows or columns that swapped
places leave it with a chance of about 2^-63. It guards against faults and not against intent. It needs integer
products and sums alone, which every device computes alike.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

_CHUNK = 2**22
"""Elements that are widened to 64 bits at once: 32 MiB each for the words and their products."""
_WORDS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def digest(values: Tensor, start: Sequence[int] = (0, 0)) -> Tensor:
    """The number of a box of a tensor, [] int64 on the device of `values`.

    Args:
        values: [rows, columns] or [rows], any dtype and strides. Minus zero counts as zero: who reads weights back
            through the kernel that multiplies with them cannot tell the two apart.
        start: row and column of the first element in the whole tensor.
    """
    matrix = values.detach()
    matrix = matrix.unsqueeze(1) if matrix.ndim == 1 else matrix
    rows, columns = matrix.shape
    word = _WORDS[matrix.element_size()]
    lowest = torch.iinfo(word).min if matrix.dtype.is_floating_point else None  # the bits of minus zero
    total = torch.zeros((), dtype=torch.int64, device=matrix.device)
    of_column = coefficients(start[1] if len(start) > 1 else 0, columns, seed=1, device=matrix.device)
    of_row = coefficients(start[0], rows, seed=2, device=matrix.device)
    step = max(1, _CHUNK // max(columns, 1))
    for first in range(0, rows, step):
        words = matrix[first : first + step].contiguous().view(word)
        if lowest is not None:
            words = words.masked_fill(words == lowest, 0)
        by_row = (words.to(torch.int64) * of_column).sum(1)
        total += (by_row * of_row[first : first + step]).sum()
    return total


def coefficients(start: int, number: int, *, seed: int, device: torch.device | str = "cpu") -> Tensor:
    """[number] int64, odd: those of places start, start + 1, ... (splitmix64, Steele et al. 2014)."""
    x = torch.arange(start, start + number, dtype=torch.int64, device=device)
    x = (x + seed * 2**32) * _signed(0x9E3779B97F4A7C15)
    x = (x ^ _shifted(x, 30)) * _signed(0xBF58476D1CE4E5B9)
    x = (x ^ _shifted(x, 27)) * _signed(0x94D049BB133111EB)
    return (x ^ _shifted(x, 31)) | 1


def _shifted(x: Tensor, bits: int) -> Tensor:
    """`x` as unsigned numbers, shifted right."""
    return (x >> bits) & (2 ** (64 - bits) - 1)


def _signed(constant: int) -> int:
    return constant - 2**64 if constant >= 2**63 else constant
