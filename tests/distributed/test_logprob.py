"""Log-probabilities with the vocabulary split over two ranks: values, entropies and gradients are one rank's."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

VOCABULARY, HIDDEN, TOKENS, TEMPERATURE = 1000, 48, 61, 0.8


def rank_results(rank: int, num_ranks: int, folder: str, dtype: torch.dtype) -> None:
    """One rank's part: what `target_logprobs` gives for its slice of the weight, to folder/RANK_of_NUM.pt."""
    from r1mega.trainer import logprob

    torch.set_num_threads(1)
    store = dist.FileStore(f"{folder}/store_{num_ranks}", num_ranks)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=num_ranks)
    logprob.TILE_BYTES, logprob.TILE_IDS = 17 * 150 * dtype.itemsize, 150  # neither divides what it has to
    collectives = []
    all_reduce = dist.all_reduce
    dist.all_reduce = lambda x, **options: collectives.append(tuple(x.shape)) or all_reduce(x, **options)

    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(TOKENS, HIDDEN, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
    weight = torch.randn(VOCABULARY, HIDDEN, generator=generator, dtype=torch.float64).mul_(2 * HIDDEN**-0.5)
    part = weight.chunk(num_ranks)[rank].to(dtype).requires_grad_()
    targets = torch.randint(VOCABULARY, (TOKENS,), generator=generator)
    half = VOCABULARY // 2
    targets[:4] = torch.tensor([0, half - 1, half, VOCABULARY - 1])
    # A token whose likeliest ids are all on the second rank, and one certain of an id there.
    with torch.no_grad():
        hidden[4] = weight[half:].mean(0).to(dtype) * 100
        hidden[5] = weight[targets[5].clamp(min=half)].to(dtype) * 30
    scale = torch.randn(TOKENS, generator=generator)
    logp, entropy = logprob.target_logprobs(
        hidden, part, targets, temperature=TEMPERATURE, group=dist.group.WORLD, entropy=True
    )
    forward = list(collectives)
    grads = torch.autograd.grad((logp * scale).sum(), (hidden, part))
    found = {"logp": logp.detach(), "entropy": entropy, "hidden": grads[0], "weight": grads[1]}
    found |= {"forward": forward, "backward": collectives[len(forward) :]}
    torch.save(found, f"{folder}/{rank}_of_{num_ranks}.pt")
    dist.destroy_process_group()


def run(num_ranks: int, folder: Path, dtype: torch.dtype) -> list[dict]:
    mp.spawn(rank_results, (num_ranks, str(folder), dtype), nprocs=num_ranks)
    return [torch.load(folder / f"{rank}_of_{num_ranks}.pt") for rank in range(num_ranks)]


def relative(x: torch.Tensor, exact: torch.Tensor) -> float:
    return ((x - exact).abs().max() / exact.abs().max()).item()


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-6), (torch.float64, 1e-14)], ids=str)
def test_two_ranks_equal_one(tmp_path: Path, dtype: torch.dtype, bound: float):
    (one,) = run(1, tmp_path, dtype)
    first, second = run(2, tmp_path, dtype)
    for name in ("logp", "entropy"):
        assert torch.equal(first[name], second[name])
        assert relative(first[name], one[name]) < max(bound, 2e-7)  # both are given in fp32
    assert relative(first["hidden"] + second["hidden"], one["hidden"]) < bound
    assert relative(torch.cat((first["weight"], second["weight"])), one["weight"]) < bound
    # Each rank had a part in it.
    assert all(part[name].any() for part in (first, second) for name in ("hidden", "weight"))
    # Nothing as large as the logits is exchanged, and nothing at all once for a tile.
    for part in (first, second):
        assert part["forward"] == [(TOKENS,), (3, TOKENS)]
        assert part["backward"] == []
