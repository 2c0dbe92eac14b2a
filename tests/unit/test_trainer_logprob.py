"""Log-probabilities in blocks: equal to log_softmax, values and gradients, whatever the block."""

import pytest
import torch
import torch.distributed as dist


@pytest.mark.parametrize("block", [3, 7, 2048])
def test_values_and_gradients_equal_log_softmax(mesh, monkeypatch, block):
    from r1mega.trainer import logprob

    monkeypatch.setattr(logprob, "BLOCK_TOKENS", block)
    torch.manual_seed(0)
    hidden = torch.randn(7, 5, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(11, 5, dtype=torch.float64, requires_grad=True)
    targets = torch.randint(0, 11, (7,))
    scale = torch.randn(7)
    got = logprob.target_logprobs(hidden, weight, targets, temperature=0.7, group=dist.group.WORLD)
    got_grads = torch.autograd.grad((got * scale).sum(), (hidden, weight))
    want = ((hidden @ weight.T) / 0.7).log_softmax(-1).gather(1, targets[:, None])[:, 0]
    want_grads = torch.autograd.grad((want * scale).sum(), (hidden, weight))
    assert got.dtype is torch.float32
    torch.testing.assert_close(got.double(), want, atol=1e-5, rtol=0)
    for g, w in zip(got_grads, want_grads, strict=True):
        torch.testing.assert_close(g, w, atol=1e-5, rtol=1e-5)


def test_no_targets_give_no_logprobs_but_a_graph(mesh):
    from r1mega.trainer.logprob import target_logprobs

    hidden = torch.randn(0, 5, requires_grad=True)
    none = torch.zeros(0, dtype=torch.int64)
    logp = target_logprobs(hidden, torch.randn(11, 5), none, temperature=1.0, group=dist.group.WORLD)
    logp.sum().backward()
    assert logp.shape == (0,)
