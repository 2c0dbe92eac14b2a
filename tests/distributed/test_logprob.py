"""Log-probabilities with the vocabulary split over two ranks: values, entropies and gradients are one rank's."""

from pathlib import Path

import pytest
import torch
from logprob_ranks import HIDDEN, TOKENS, VOCABULARY
from rank_pool import Pool

DTYPES = ("float32", "float64")
NAMES = ("logp", "entropy", "hidden", "weight")


@pytest.fixture(scope="module")
def folder(ranks: Pool, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("logprob")
    for num_ranks in (1, 2):
        ranks.run(num_ranks, "logprob_ranks.of", folder, DTYPES)
    return folder


def found(folder: Path, dtype: str, num_ranks: int) -> list[dict]:
    return [torch.load(folder / f"{dtype}.{rank}_of_{num_ranks}.pt") for rank in range(num_ranks)]


def whole(parts: list[dict]) -> dict[str, torch.Tensor]:
    """The hidden states' gradients are summed over the ranks, the weight's are one below another."""
    gradients = {"hidden": sum(p["hidden"] for p in parts), "weight": torch.cat([p["weight"] for p in parts])}
    return {name: parts[0][name] for name in ("logp", "entropy")} | gradients


def gap(x: torch.Tensor, exact: torch.Tensor) -> float:
    return ((x.double() - exact.double()).abs().max() / exact.abs().max()).item()


def test_two_ranks_equal_one_in_fp64(folder: Path):
    one, two = (whole(found(folder, "float64", num)) for num in (1, 2))
    # Of the longest sums. Log-probabilities and entropies are given in fp32: two roundings.
    bound = (VOCABULARY + HIDDEN) * torch.finfo(torch.float64).eps
    for name in NAMES:
        assert gap(two[name], one[name]) < (bound if name in ("hidden", "weight") else 2 * 2**-24), name


def test_two_ranks_are_as_close_to_fp64_as_one_in_fp32(folder: Path):
    exact, one, two = (whole(found(folder, *which)) for which in (("float64", 1), ("float32", 1), ("float32", 2)))
    for name in NAMES:
        # Of the few terms that are added in another order.
        assert gap(two[name], exact[name]) < 1.5 * gap(one[name], exact[name]) + 4 * 2**-24, name


@pytest.mark.parametrize("dtype", DTYPES)
def test_each_rank_has_its_part_and_nothing_as_large_as_the_logits_is_exchanged(folder: Path, dtype: str):
    first, second = found(folder, dtype, 2)
    for name in ("logp", "entropy"):
        assert torch.equal(first[name], second[name])
    for part in (first, second):
        assert part["hidden"].any() and part["weight"].any()
        assert part["forward"] == [(TOKENS,), (3, TOKENS)]  # nothing once for a tile
        assert part["backward"] == []
