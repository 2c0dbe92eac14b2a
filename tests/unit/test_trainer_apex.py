"""apex's fused Adam where a package of that name is installed: a stand-in with its arguments, found by its import."""

import sys
from pathlib import Path

import pytest
import torch
from trainer_data import nll

APEX = '''
import torch


class FusedAdam(torch.optim.Optimizer):
    """With apex's arguments and state: the step in the group, moments made at the first step, no initialize_state."""

    steps = 0

    def __init__(
        self, params, lr=1e-3, bias_correction=True, betas=(0.9, 0.999), eps=1e-8, adam_w_mode=True, weight_decay=0.0,
        amsgrad=False, set_grad_none=True, capturable=False, master_weights=False,
    ):
        assert adam_w_mode and bias_correction and not amsgrad
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self):
        FusedAdam.steps += 1
        for group in self.param_groups:
            group["step"] = group.get("step", 0) + 1
            (b1, b2), t = group["betas"], group["step"]
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if not state:
                    state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(p), torch.zeros_like(p)
                m, v = state["exp_avg"], state["exp_avg_sq"]
                m.mul_(b1).add_(p.grad, alpha=1 - b1)
                v.mul_(b2).addcmul_(p.grad, p.grad, value=1 - b2)
                update = (m / (1 - b1**t)) / ((v / (1 - b2**t)).sqrt() + group["eps"])
                p.sub_(group["lr"] * (update + group["weight_decay"] * p))
'''


@pytest.fixture
def apex(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A package apex that can be imported, as where NVIDIA's is installed, and no Transformer Engine."""
    package = tmp_path / "apex/optimizers"
    package.mkdir(parents=True)
    (tmp_path / "apex/__init__.py").touch()
    (package / "__init__.py").write_text(APEX)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(sys.modules, "transformer_engine.pytorch.optimizers", None)
    yield
    for name in [n for n in sys.modules if n.partition(".")[0] == "apex"]:
        del sys.modules[name]


def test_a_policy_learns_with_apexs_adam_where_it_is_and_as_well_without(make_policy, documents, monkeypatch, apex):
    """The choice is made as on a GPU; three steps of each, from the same weights."""
    from r1mega.trainer import optimizer

    choose, found = optimizer.choose_adam, {}
    for device, module in (("cpu", "r1mega.trainer.optimizer"), ("cuda", "apex.optimizers")):
        monkeypatch.setattr(optimizer, "choose_adam", lambda _, moments, device=device: choose(device, moments))
        policy = make_policy()
        parts = getattr(policy.optimizer, "chained_optimizers", [policy.optimizer])
        assert {type(part.optimizer).__module__ for part in parts} == {module}
        for _ in range(3):
            policy.forward_backward(documents, nll)
            policy.optim_step(1e-3)
        found[module] = {name: value.detach().clone() for name, value in policy.network.named_parameters()}
    assert sys.modules["apex.optimizers"].FusedAdam.steps >= 3
    for name, value in found["r1mega.trainer.optimizer"].items():
        torch.testing.assert_close(found["apex.optimizers"][name], value, rtol=1e-5, atol=1e-6, msg=name)
