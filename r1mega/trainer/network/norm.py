"""RMS norm for the local (not Transformer Engine) layers.

torch's own is a chain of ten passes over the activations on the CPU, forwards and backwards; this is six.
Megatron's wrapper of it refuses sequence parallelism. Shapes: H channels, `...` any leading dimensions.
"""

from typing import Any

import torch
from torch import Tensor


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        wide = x.float()
        norm = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
        scale = norm.square_().div_(x.size(-1)).add_(eps).rsqrt_()
        ctx.save_for_backward(x, weight, scale)
        return (wide * scale).type_as(x).mul_(weight)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:  # type: ignore[override]
        x, weight, scale = ctx.saved_tensors
        normed = x.float() * scale
        grad = grad.float()
        grad_weight = (grad * normed).flatten(0, -2).sum(0).type_as(weight)
        grad_normed = grad * weight
        shift = torch.linalg.vecdot(grad_normed, normed).unsqueeze(-1).div_(x.size(-1))
        return grad_normed.addcmul_(normed, shift, value=-1).mul_(scale).type_as(x), grad_weight, None


class RMSNorm(torch.nn.Module):
    """y = x / sqrt(mean(x^2) + eps) * weight, statistics in fp32; x: [..., H]."""

    def __init__(self, config: Any, hidden_size: int, eps: float = 1e-6, **_: Any) -> None:
        super().__init__()
        self.eps = eps
        self.weight = torch.nn.Parameter(torch.ones(hidden_size, dtype=config.params_dtype))
        self.weight.sequence_parallel = config.sequence_parallel  # type: ignore[attr-defined]

    def forward(self, x: Tensor) -> Tensor:
        return _RMSNorm.apply(x, self.weight, self.eps)  # type: ignore[return-value]
