"""RMS norm: values and gradients equal torch's."""

from types import SimpleNamespace

import torch
import torch.nn.functional as F
from rounding import assert_as_close


def test_values_and_gradients_equal_torch():
    from r1mega.trainer.network.norm import RMSNorm

    torch.manual_seed(0)
    norm = RMSNorm(SimpleNamespace(params_dtype=torch.float32, sequence_parallel=True), 16, eps=1e-6)
    assert norm.weight.sequence_parallel
    weight = torch.randn(16)
    norm.weight.data.copy_(weight)
    x, grad = torch.randn(5, 3, 16, requires_grad=True), torch.randn(5, 3, 16)
    made = [(norm(x), x, norm.weight)]
    for dtype in (torch.float32, torch.float64):
        leaves = [t.detach().to(dtype).requires_grad_() for t in (x, weight)]
        made.append((F.rms_norm(leaves[0], (16,), leaves[1], 1e-6), *leaves))
    ways = [[y.detach(), *torch.autograd.grad((y * grad).sum(), leaves)] for y, *leaves in made]
    for ours, plain, exact in zip(*ways, strict=True):
        assert_as_close(ours, plain, exact)
