"""A mixture of experts without the distributed optimizer, MTP layers that are frozen, norms computed again without
Transformer Engine: what would once have failed on a GPU alone."""

from typing import Any

from policies import documents, make, nll, whereabouts
from report import Report, relative

RECOMPUTE = {"granularity": "selective", "modules": ("layernorm", "mlp")}


def main() -> None:
    report = Report(__doc__ or "")
    drawn, updates = documents(), {}
    local: dict[str, Any] = {"dtype": "bf16", "transformer_engine": "off"}
    changes: dict[str, dict[str, Any]] = {
        "distributed": {},
        "plain": {"distributed_optimizer": False},
        "recomputed": {"recompute": RECOMPUTE},
    }
    for name, layout in changes.items():
        policy = make(report.device, **local, **layout)
        assert whereabouts(policy) == {report.device}, whereabouts(policy)
        loss = policy.forward_backward(drawn, nll)["loss"]
        gradients = {n: g.float().cpu() for n, g in policy.gradients().items()}
        norm = policy.optim_step(1e-3)
        after = policy.forward_backward(drawn, nll)["loss"]
        updates[name] = loss, gradients, after
        report.note(**{name: {"loss": loss, "norm": norm, "loss_after": after}})
        assert after < loss, (name, loss, after)
    loss, gradients, after = updates["distributed"]
    for name in ("plain", "recomputed"):
        # The same kernels in the same order; only sums by scattered addition may differ, and CUDA's do.
        worst = max(relative(updates[name][1][n], g) for n, g in gradients.items())
        report.note(**{f"{name}_worst_gradient": worst})
        assert abs(updates[name][0] - loss) < 1e-3 * loss
        assert worst < 2e-2
        assert abs(updates[name][2] - after) < 1e-2 * after
    frozen = make(report.device, mtp="off", **local)
    report.note(
        frozen=sum(not p.requires_grad for p in frozen.network.parameters()), devices=list(whereabouts(frozen))
    )
    joint = make(report.device, mtp="joint", **local)
    found = joint.forward_backward(drawn, nll)
    joint.optim_step(1e-3)
    report.note(mtp_loss=found["mtp_loss"])
    assert 0 < found["mtp_loss"] < 100


if __name__ == "__main__":
    main()
