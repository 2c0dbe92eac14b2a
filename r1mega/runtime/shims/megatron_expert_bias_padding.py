"""megatron-core 0.16.1: a padding mask breaks the routing counts behind the expert bias.

What breaks: `TopKRouter._apply_expert_bias` combines a routing map [tokens, experts] with a padding mask [tokens]:
an error for most sizes, and silently wrong counts where there are as many tokens as experts.
Not about CPUs. Goes when: upstream writes `padding_mask.unsqueeze(-1)` there.
"""

from typing import Any

import torch

PACKAGE = "megatron-core"
VERSIONS = ("0.16.1",)


def count(self: Any, routing_map: torch.Tensor, padding_mask: torch.Tensor | None = None) -> None:
    """Add this micro-batch's tokens per expert to the router's counter; only where gradients are wanted.

    Args:
        routing_map: [tokens, experts] bool.
        padding_mask: [tokens] bool, True = padding, not counted.
    """
    if self.enable_expert_bias and torch.is_grad_enabled():
        with torch.no_grad():
            if padding_mask is not None:
                routing_map = routing_map & ~padding_mask.unsqueeze(-1)
            self.local_tokens_per_expert += routing_map.sum(dim=0)


def apply() -> None:
    """Replace the method. Idempotent."""
    from megatron.core.transformer.moe.router import TopKRouter

    TopKRouter._apply_expert_bias = count
