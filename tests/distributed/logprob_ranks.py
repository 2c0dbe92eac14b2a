"""On every rank: log-probabilities with the vocabulary split over the ranks.

`of(FOLDER, DTYPE)`: what `target_logprobs` gives for this rank's slice of the weight goes to
FOLDER/DTYPE.RANK_of_NUM.pt. The inputs are the same numbers in every dtype, so float64's are exact for float32's.
"""

from pathlib import Path
from unittest import mock

import torch
import torch.distributed as dist

from r1mega.config.cluster import TrainerLayout
from r1mega.trainer import mesh as meshes

VOCABULARY, HIDDEN, TOKENS, TEMPERATURE = 1000, 48, 61, 0.8


def inputs() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """hidden [T, H], weight [V, H], targets [T] and the gradient [T], in fp32."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(TOKENS, HIDDEN, generator=generator)
    weight = torch.randn(VOCABULARY, HIDDEN, generator=generator).mul_(2 * HIDDEN**-0.5)
    targets = torch.randint(VOCABULARY, (TOKENS,), generator=generator)
    half = VOCABULARY // 2
    targets[:4] = torch.tensor([0, half - 1, half, VOCABULARY - 1])
    # A token whose likeliest ids are all on the second rank, and one certain of an id there.
    hidden[4] = weight[half:].mean(0) * 100
    hidden[5] = weight[targets[5].clamp(min=half)] * 30
    return hidden, weight, targets, torch.randn(TOKENS, generator=generator)


def split(rank: int, num_ranks: int, dtype: torch.dtype) -> dict:
    from r1mega.trainer import logprob

    hidden, weight, targets, scale = inputs()
    hidden = hidden.to(dtype).requires_grad_()
    part = weight.chunk(num_ranks)[rank].to(dtype).requires_grad_()
    collectives = []
    all_reduce = dist.all_reduce

    def counted(x, **options):
        collectives.append(tuple(x.shape))
        return all_reduce(x, **options)

    with (
        mock.patch.multiple(logprob, TILE_BYTES=17 * 150 * dtype.itemsize, TILE_IDS=150),  # divide nothing
        mock.patch.object(dist, "all_reduce", counted),
    ):
        logp, entropy = logprob.target_logprobs(
            hidden, part, targets, temperature=TEMPERATURE, group=dist.group.WORLD, entropy=True
        )
        num_forward = len(collectives)
        grads = torch.autograd.grad((logp * scale).sum(), (hidden, part))
    found = {"logp": logp.detach(), "entropy": entropy, "hidden": grads[0], "weight": grads[1]}
    return found | {"forward": collectives[:num_forward], "backward": collectives[num_forward:]}


def of(folder: Path, dtype: str) -> None:
    from r1mega.runtime import env

    launch = env.launch()
    rank, num_ranks = (launch.rank, launch.world_size) if launch else (0, 1)
    meshes.start(TrainerLayout(tp=num_ranks, threads=1), device="cpu", seed=0)
    torch.save(split(rank, num_ranks, getattr(torch, dtype)), folder / f"{dtype}.{rank}_of_{num_ranks}.pt")
