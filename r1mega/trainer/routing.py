"""How close the router's choice of experts was to going another way.

Trainer and engine round differently. Where two experts (or groups of experts) tie to within that rounding, they may
choose different ones, and from there on the answer's log-probabilities differ by far more than rounding: in fp32
about once in some 100,000 tokens. A difference after such a tie is no fault; without one it is.

Shapes: T tokens, E experts, S x B the positions of a micro-batch.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state
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


class Margins:
    """What `recorded_margins` saw: of each router of this rank one tensor a micro-batch, in their order."""

    def __init__(self) -> None:
        self.by_router: dict[TopKRouter, list[Tensor]] = {}

    def smallest(self, num_positions: int, micro_batch: int) -> Tensor:
        """[num_positions] fp32 on the host, the smallest margin over all layers at each row of [S, B] flattened.

        A collective of the ranks that share the model; infinite where there is no router.
        """
        tp: Any = parallel_state.get_tensor_model_parallel_group()
        smallest = torch.full((num_positions // tp.size(),), math.inf)
        for margins in self.by_router.values():
            smallest = torch.minimum(smallest, margins[micro_batch].cpu())
        if tp.size() > 1:  # sequence parallelism: each rank routed its part of the positions
            whole = torch.empty(num_positions)
            dist.all_gather_into_tensor(whole, smallest, group=tp)
            smallest = whole
        pp: Any = parallel_state.get_pipeline_model_parallel_group()
        if pp.size() > 1:
            dist.all_reduce(smallest, op=dist.ReduceOp.MIN, group=pp)
        return smallest


@contextmanager
def recorded_margins(networks: Sequence[torch.nn.Module]) -> Iterator[Margins]:
    """While entered, every router's forward pass records its margins, in the order of its rank's positions."""
    recorded = Margins()

    def record(router: Any, inputs: tuple[Tensor, ...], output: Any) -> None:
        config = router.config
        scores = torch.sigmoid(router.gating(inputs[0]).float()).flatten(0, -2) + router.expert_bias
        margins = selection_margin(
            scores,
            num_groups=config.moe_router_num_groups or 1,
            group_top_k=config.moe_router_group_topk or 1,
            top_k=router.topk,
        )
        recorded.by_router.setdefault(router, []).append(margins)

    modules = (m for network in networks for m in network.modules())
    hooks = [m.register_forward_hook(record) for m in modules if isinstance(m, TopKRouter)]
    try:
        yield recorded
    finally:
        for hook in hooks:
            hook.remove()
