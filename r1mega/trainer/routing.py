"""How close the router's choice of experts was to going another way.

Trainer and engine round differently. Where two experts (or groups of experts) tie to within that rounding, they may
choose different ones, and from there on the answer's log-probabilities differ by far more than rounding: in fp32
about once in some 100,000 tokens. A difference after such a tie is no fault; without one it is.

Shapes: T tokens, E experts, S x B the positions of a micro-batch.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from megatron.core.transformer.moe.router import TopKRouter
from torch import Tensor


def selection_margin(scores: Tensor, *, num_groups: int, group_top_k: int, top_k: int) -> Tensor:
    """By how much the last chosen expert or group leads the first one left out.

    Args:
        scores: [T, E] fp32, what experts are chosen by: sigmoid of the logits plus the expert bias.
        num_groups, group_top_k, top_k: as in the V3 report (2.1.2): the group_top_k groups with the best sum of
            their top_k / group_top_k best scores stay, then the top_k experts within them.

    Returns:
        [T] fp32, the smaller of both leads; infinite where nothing is left out.
    """
    by_group = scores.unflatten(-1, (num_groups, -1))
    group_scores = by_group.topk(top_k // group_top_k, dim=-1).values.sum(-1)
    kept = torch.zeros_like(group_scores).scatter_(1, group_scores.topk(group_top_k, dim=-1).indices, 1.0)
    within = by_group.masked_fill(kept[..., None] == 0, -math.inf).flatten(1)
    leads = [_lead(group_scores, group_top_k), _lead(within, top_k)]
    return torch.minimum(*leads)


def _lead(scores: Tensor, kept: int) -> Tensor:
    if kept == scores.size(-1):
        return scores.new_full(scores.shape[:1], math.inf)
    best = scores.topk(kept + 1, dim=-1).values
    return best[:, kept - 1] - best[:, kept]


@contextmanager
def recorded_margins(network: torch.nn.Module) -> Iterator[list[Tensor]]:
    """While entered, every router's forward pass appends its [S * B] margins, in the order of the hidden states."""
    margins: list[Tensor] = []

    def record(router: Any, inputs: tuple[Tensor, ...], output: Any) -> None:
        config = router.config
        scores = torch.sigmoid(router.gating(inputs[0]).float()).flatten(0, -2) + router.expert_bias
        margins.append(
            selection_margin(
                scores,
                num_groups=config.moe_router_num_groups or 1,
                group_top_k=config.moe_router_group_topk or 1,
                top_k=router.topk,
            )
        )

    hooks = [m.register_forward_hook(record) for m in network.modules() if isinstance(m, TopKRouter)]
    try:
        yield margins
    finally:
        for hook in hooks:
            hook.remove()
