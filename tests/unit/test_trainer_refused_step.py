"""An optimiser step that is computed and not taken leaves the policy as it was, bit for bit."""

import math
from typing import Any

import pytest
import torch
from trainer_data import nll

from r1mega.errors import DivergenceError


def everything(policy: Any) -> dict[str, torch.Tensor]:
    """Weights, expert biases, moments and the optimiser's counts of steps."""
    found = {name: tensor.detach().clone() for name, tensor in policy.state().items()}
    for i, part in enumerate(getattr(policy.optimizer, "chained_optimizers", [policy.optimizer])):
        for j, group in enumerate(part.optimizer.param_groups):
            found[f"{i}/{j}/step"] = torch.tensor(group["step"])
            for k, param in enumerate(group["params"]):
                state = part.optimizer.state[param]
                found |= {f"{i}/{j}/{k}/{name}": state[name].clone() for name in ("exp_avg", "exp_avg_sq")}
    return found


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_a_step_that_is_refused_changes_nothing_and_the_next_is_as_without_it(make_policy, documents):
    policy, never = (make_policy(mtp="joint", expert_bias_rate=1e-3) for _ in range(2))
    for each in (policy, never):
        each.forward_backward(documents, nll)
        each.optim_step(1e-3)
    before = everything(policy)
    policy.forward_backward(documents[:2], nll)
    asked: list[float] = []
    norm = policy.optim_step(1e-3, accept=lambda norm: bool(asked.append(norm)))
    assert asked == [norm] and norm > 0
    assert same(everything(policy), before)
    assert not any(gradient.any() for gradient in policy.gradients().values())
    for each in (policy, never):
        each.forward_backward(documents, nll)
        assert each.optim_step(1e-3, accept=lambda norm: True) > 0
    assert same(everything(policy), everything(never)) and not same(everything(policy), before)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_no_number_is_not_applied(value: float, make_policy, documents):
    policy = make_policy(expert_bias_rate=1e-3)
    before = everything(policy)
    policy.forward_backward(documents, nll)
    next(iter(policy.gradients().values())).view(-1)[0] = value
    with pytest.raises(DivergenceError, match=f"the gradient norm is {value}"):
        policy.optim_step(1e-3)
    assert same(everything(policy), before)
