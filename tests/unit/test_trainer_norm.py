"""RMS norm: values and gradients equal torch's."""

from types import SimpleNamespace

import torch
import torch.nn.functional as F


def test_values_and_gradients_equal_torch():
    from r1mega.trainer.norm import RMSNorm

    torch.manual_seed(0)
    norm = RMSNorm(SimpleNamespace(params_dtype=torch.float32, sequence_parallel=True), 16, eps=1e-6)
    assert norm.weight.sequence_parallel
    weight = torch.randn(16)
    norm.weight.data.copy_(weight)
    weight.requires_grad_()
    x, grad = torch.randn(5, 3, 16, requires_grad=True), torch.randn(5, 3, 16)
    got = norm(x)
    want = F.rms_norm(x, (16,), weight, 1e-6)
    torch.testing.assert_close(got, want)
    ours = torch.autograd.grad((got * grad).sum(), (x, norm.weight))
    for a, b in zip(ours, torch.autograd.grad((want * grad).sum(), (x, weight)), strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)
