"""One number for a box of a tensor, against the same sum in Python's own integers."""

import pytest
import torch

from r1mega.weights.digest import coefficients, digest

ALL = 2**64


def splitmix(place: int, seed: int) -> int:
    """Steele et al., Fast Splittable Pseudorandom Number Generators, Figure 16; made odd."""
    x = (place + seed * 2**32) * 0x9E3779B97F4A7C15 % ALL
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 % ALL
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB % ALL
    return (x ^ (x >> 31)) | 1


def by_hand(words: list[list[int]], row: int = 0, column: int = 0) -> int:
    return sum(
        splitmix(row + i, 2) * splitmix(column + j, 1) * word for i, of_row in enumerate(words)
        for j, word in enumerate(of_row)
    ) % ALL  # fmt: skip


def matrix(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def test_splitmix_is_the_published_one() -> None:
    """The first number of seed 0 is 16294208416658607535: of one step of the counter."""
    assert coefficients(1, 1, seed=0).item() % ALL == 16294208416658607535


@pytest.mark.parametrize(
    ("dtype", "word"),
    [(torch.float32, torch.int32), (torch.bfloat16, torch.int16), (torch.float8_e4m3fn, torch.int8)],
)
def test_it_is_the_sum_of_the_bits_times_two_numbers_of_their_place(dtype: torch.dtype, word: torch.dtype) -> None:
    values = matrix(5, 7).to(dtype)
    assert digest(values).item() % ALL == by_hand(values.view(word).tolist())
    box = values[2:4, 3:6]
    assert digest(box, (2, 3)).item() % ALL == by_hand(box.contiguous().view(word).tolist(), 2, 3)


def test_a_bias_is_a_column() -> None:
    values = matrix(6)
    assert digest(values, (4,)).item() % ALL == by_hand([[w] for w in values.view(torch.int32).tolist()], 4)


@pytest.mark.parametrize("dim", [0, 1])
def test_the_parts_of_a_tensor_add_up(dim: int) -> None:
    values, start = matrix(64, 48), [0, 0]
    total = 0
    for part in values.split((5, 20, 23, 16)[: 4 - dim], dim):
        total += digest(part, start).item()
        start[dim] += part.shape[dim]
    assert (total - digest(values).item()) % ALL == 0


def test_large_tensors_are_summed_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    values = matrix(33, 9)
    whole = digest(values).item()
    monkeypatch.setattr("r1mega.weights.digest._CHUNK", 20)
    assert digest(values).item() == whole


def test_whatever_changes_changes_it() -> None:
    values = matrix(16, 16)
    seen = {digest(values).item()}
    for i in range(16):
        for bit in (0, 31):  # the least of the mantissa; the sign
            other = values.clone()
            other.view(torch.int32)[i, 15 - i] ^= 1 << bit if bit < 31 else -(2**31)
            seen.add(digest(other).item())
        swapped = torch.arange(16)
        swapped[i], swapped[(i + 1) % 16] = (i + 1) % 16, i
        seen |= {digest(values[swapped]).item(), digest(values[:, swapped]).item()}
    seen |= {digest(values.T).item(), digest(values.flip(0)).item(), digest(values, (1, 0)).item()}
    seen |= {digest(torch.zeros(16, 16)).item(), digest(values.bfloat16().float()).item()}
    assert len(seen) == 1 + 16 * 4 + 5


def test_minus_zero_counts_as_zero_and_nothing_else_does() -> None:
    values = matrix(3, 3)
    values[1] = 0.0
    minus = values.clone()
    minus[1] = -0.0
    assert digest(values).item() == digest(minus).item() == digest(values).item()
    assert digest(torch.tensor([[-(2**31)]], dtype=torch.int32)).item() != 0


def test_strides_do_not_matter() -> None:
    values = matrix(8, 6)
    assert digest(values.T).item() == digest(values.T.contiguous()).item()
