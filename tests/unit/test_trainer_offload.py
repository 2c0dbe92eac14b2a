"""What is put aside comes back bit for bit, and training goes on as if nothing had been."""

import dataclasses

import pytest
import torch
from trainer_data import nll


def test_storages_come_back_and_views_with_them(mesh):
    from r1mega.trainer.offload import Aside

    whole = torch.randn(1000)
    view, zeros = whole[10:20].view(2, 5), torch.zeros(64)
    before, aside = whole.clone(), Aside()
    aside.put([view, whole, zeros])
    assert aside.num_bytes == 4000 + 256
    assert whole.untyped_storage().size() == zeros.untyped_storage().size() == 0
    aside.put([whole])  # is there already
    assert aside.num_bytes == 4256
    aside.take()
    assert torch.equal(whole, before)
    assert torch.equal(view, before[10:20].view(2, 5))
    assert not zeros.any()
    assert aside.num_bytes == 0
    whole.add_(1)
    aside.put([whole])  # the host's memory is used again
    aside.take()
    assert torch.equal(whole, before + 1)


def test_training_goes_on_bit_for_bit(make_policy, documents):
    plain, moved = make_policy(mtp="joint"), make_policy(mtp="joint")
    losses = {}
    for name, policy in (("plain", plain), ("moved", moved)):
        policy.refresh_reference()
        losses[name] = []
        for _ in range(2):
            losses[name].append(policy.forward_backward(documents, nll))
            if name == "moved":  # between backward and update: gradients are not zero
                policy.offload()
                policy.offload()
                with pytest.raises(RuntimeError, match="onload"):
                    policy.forward_backward(documents, nll)
                with pytest.raises(RuntimeError, match="onload"):
                    policy.optim_step(1e-3)
                policy.onload()
            losses[name].append({"norm": policy.optim_step(1e-3)})
    assert losses["plain"] == losses["moved"]
    assert all(torch.equal(a, b) for a, b in zip(plain.state().values(), moved.state().values(), strict=True))
    scored = [p.logprobs(documents, temperature=1.0, reference=True) for p in (plain, moved)]
    assert all(torch.equal(a, b) for a, b in zip(*scored, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(plain.state().values(), moved.state().values(), strict=True))


def test_the_optimiser_waits_on_the_host(mesh, spec, documents, tmp_path):
    """With offload_optimizer its state is away except in an update, a save and a load; nothing else changes."""
    from r1mega.config.cluster import TrainerLayout
    from r1mega.config.training import Batch, Optimizer
    from r1mega.trainer.checkpoint.checkpointer import Checkpointer
    from r1mega.trainer.offload import optimizer_tensors, weights_and_gradients
    from r1mega.trainer.policy import Policy

    found = []
    for offload in (False, True):
        layout = TrainerLayout(offload_optimizer=offload)
        policy = Policy.build(
            spec, dataclasses.replace(mesh, layout=layout), Optimizer(lr=1e-3), Batch(chunk_tokens=64),
            mtp="off", mtp_loss_weight=0.3, expert_bias_rate=0.0, seed=0,
        )  # fmt: skip
        checkpointer = Checkpointer(policy)
        for step in range(2):
            policy.forward_backward(documents, nll)
            policy.optim_step(1e-3)
            if step == 0:
                checkpointer.save(tmp_path / str(offload), {"step": step})
        weights = {t.untyped_storage().data_ptr() for t in weights_and_gradients(policy.model_chunks)}
        held = {id(t): t.untyped_storage() for t in optimizer_tensors(policy.optimizer)}
        own = [s for s in held.values() if s.size() == 0 or s.data_ptr() not in weights]
        assert own
        assert all((s.size() == 0) is offload for s in own)
        checkpointer.load(tmp_path / str(offload))
        policy.forward_backward(documents, nll)
        policy.optim_step(1e-3)
        found.append({n: t.clone() for n, t in policy.state().items()})
    assert all(torch.equal(a, b) for a, b in zip(*(f.values() for f in found), strict=True))
