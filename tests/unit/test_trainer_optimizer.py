"""The optimiser against PyTorch's own: AdamW, its clipping, and what Megatron makes of our settings on the way."""

import math
from dataclasses import replace

import pytest
import torch
from rounding import EPS, assert_as_close
from trainer_data import make_documents, nll

from r1mega.config.cluster import TrainerLayout

LR = 0.01
ADAMS = [
    {"betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.1},
    {"betas": (0.6, 0.99), "eps": 1e-3, "weight_decay": 0.0},
    {"betas": (0.0, 0.5), "eps": 0.1, "weight_decay": 0.5},
]
"""No two settings of one are alike, and in the last two eps is of the order of the gradients."""


@pytest.fixture
def adam(mesh):
    """Imported after the mesh, and not while other tests are collected."""
    from r1mega.trainer.optimizer import Adam

    return Adam


@pytest.mark.parametrize("settings", ADAMS)
def test_adam_is_torchs_adamw(adam, settings):
    """Six steps whose gradients differ in size, so that corrections and moments all matter; fp64 is exact."""
    start = [torch.randn(70, 5), torch.randn(110)]
    ours, theirs = ([torch.nn.Parameter(t.clone()) for t in start] for _ in range(2))
    exact = [torch.nn.Parameter(t.double()) for t in start]
    optimizer = adam(ours, LR, **settings)
    for param in ours:
        optimizer.initialize_state(param)
    references = [torch.optim.AdamW(params, LR, **settings, foreach=False) for params in (theirs, exact)]
    for step in range(6):
        for a, b, c in zip(ours, theirs, exact, strict=True):
            a.grad = torch.randn_like(a) * 10.0 ** (step % 3 - 2)
            b.grad, c.grad = a.grad.clone(), a.grad.double()
        optimizer.step()
        for reference in references:
            reference.step()
        for a, b, c in zip(ours, theirs, exact, strict=True):
            assert_as_close(a, b, c)
    for a, b, c in zip(ours, theirs, exact, strict=True):
        moments = optimizer.state[a], references[0].state[b], references[1].state[c]
        for name in ("exp_avg", "exp_avg_sq"):
            assert_as_close(*(moment[name] for moment in moments))


@pytest.mark.parametrize("moments", [torch.float32, torch.bfloat16])
def test_a_step_in_parts_is_the_whole_step(adam, monkeypatch, moments):
    """Bit for bit; parameters without a gradient in one part and another; and few moments in fp32 at a time."""
    from r1mega.trainer import optimizer as ours

    sizes, start = (70, 300, 1, 40, 40), torch.Generator().manual_seed(3)
    seen, update = [], adam._update
    monkeypatch.setattr(
        adam, "_update", lambda self, group, params: seen.append(params) or update(self, group, params)
    )
    found = []
    for limit in (1 << 30, 4 * 100):
        monkeypatch.setattr(ours, "PART_BYTES", limit)
        start.manual_seed(3)
        params = [torch.nn.Parameter(torch.randn(n, generator=start)) for n in sizes]
        kind = ours.with_moments(adam, {"exp_avg_dtype": moments, "exp_avg_sq_dtype": moments})
        made = kind([{"params": params}], LR, (0.6, 0.99), 1e-3, 0.1)
        for param in params:
            made.initialize_state(param)
        seen.clear()
        for _ in range(3):
            for param in params[:4]:
                param.grad = torch.randn(param.shape, generator=start)
            made.step()
        assert made.param_groups[0]["step"] == 3
        assert made.param_groups[0]["params"] == params
        found.append([*params, *(t for p in params for t in made.state[p].values())])
    assert [sum(p.numel() for p in part) for part in seen] == [70, 300, 41] * 3
    assert all(torch.equal(a, b) and a.dtype is b.dtype for a, b in zip(*found, strict=True))
    assert found[0][-1].dtype is moments


def reference_of(policy, settings):
    """torch's AdamW in fp64 over copies of a policy's weights by name; decay for matrices alone."""
    exact = {n: torch.nn.Parameter(p.detach().double()) for n, p in policy.network.named_parameters()}
    groups = [
        {"params": [p for p in exact.values() if p.dim() > 1], "weight_decay": settings["weight_decay"]},
        {"params": [p for p in exact.values() if p.dim() == 1], "weight_decay": 0.0},
    ]
    betas = settings["beta1"], settings["beta2"]
    return exact, torch.optim.AdamW(groups, LR, betas=betas, eps=settings["eps"], foreach=False)


@pytest.mark.parametrize("distributed_optimizer", [True, False])
@pytest.mark.parametrize("clip_grad", [0.0, 0.05])
def test_a_policys_steps_are_torchs_adamw_on_its_gradients(mesh, make_policy, clip_grad, distributed_optimizer):
    """Four steps at rates of their own; with clipping, torch's clip_grad_norm_ first. eps is of the gradients' order:
    without one, Adam's step would not depend on the gradient's scale, and clipping would change nothing."""
    layout = TrainerLayout(threads=1, distributed_optimizer=distributed_optimizer)
    settings = {"beta1": 0.6, "beta2": 0.9, "eps": 1e-3, "weight_decay": 0.3}
    optimizer = {**settings, "clip_grad": clip_grad}
    policy = make_policy(mesh=replace(mesh, layout=layout), mtp="joint", optimizer=optimizer)
    exact, reference = reference_of(policy, settings)
    for step, lr in enumerate((1e-2, 3e-3, 2e-2, 0.0)):
        policy.forward_backward(make_documents(4, seed=step), nll)
        for name, param in policy.network.named_parameters():
            exact[name].grad = param.main_grad.double()
        norm = math.sqrt(sum(float(p.grad.square().sum()) for p in exact.values()))
        if clip_grad:
            assert norm > 4 * clip_grad
            torch.nn.utils.clip_grad_norm_(exact.values(), clip_grad, foreach=False)
        for group in reference.param_groups:
            group["lr"] = lr
        reference.step()
        # fp32 sums of 500,000 squares of one sign, in trees
        assert policy.optim_step(lr) == pytest.approx(norm, rel=64 * EPS)
        for name, param in policy.network.named_parameters():
            # A weight is below 2 and rounded once a step; an update is at most some 4 rates, of some ten roundings.
            bound = (step + 1) * EPS * (2 + 64 * 4 * 2e-2)
            assert (param.double() - exact[name]).abs().max() <= bound, (step, name)
    begin = make_policy(mtp="joint").network.named_parameters()
    assert max(float((exact[n] - p).detach().abs().max()) for n, p in begin) > 1e-2
