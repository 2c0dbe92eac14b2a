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


def test_host_memory_is_in_segments_and_used_again(mesh, monkeypatch):
    """Storages larger and smaller than a segment, in turns; hardly more than they need is taken."""
    from r1mega.trainer import offload

    monkeypatch.setattr(offload, "SEGMENT_BYTES", 256)
    tensors = [torch.randn(n) for n in (1, 150, 3, 64, 77)]
    before, aside = [t.clone() for t in tensors], offload.Aside()
    for _ in range(2):
        aside.put([*tensors[:2], torch.zeros(500)])
        aside.put(tensors[2:])
        assert 1180 <= aside._room.num_bytes < 1200  # of 295 numbers; zeros take nothing
        aside.take()
        assert all(torch.equal(a, b) for a, b in zip(tensors, before, strict=True))


def test_host_copies_share_allocations_of_one_dtype(mesh, monkeypatch):
    from r1mega.trainer import offload

    monkeypatch.setattr(offload, "SEGMENT_BYTES", 1024)
    named = {
        f"{i}": torch.randn(n, 10).to(d) for i, (n, d) in enumerate([(10, torch.float32), (10, torch.bfloat16)] * 3)
    }
    named["large"] = torch.randn(300, 10)
    copies = offload.host_copies(named)
    assert list(copies) == list(named)
    assert all(torch.equal(copies[n], t) and copies[n].dtype is t.dtype for n, t in named.items())
    sizes = sorted({c.untyped_storage().data_ptr(): c.untyped_storage().nbytes() for c in copies.values()}.values())
    assert sizes == [400, 600, 800, 12000]
    named["0"].zero_()
    assert copies["0"].any()


def test_stages_go_and_come_by_themselves(make_policy, documents):
    """The optimiser and the gradients leave while the weights are read; nothing is computed before all is back."""
    plain, moved = make_policy(mtp="joint"), make_policy(mtp="joint")
    for policy in (plain, moved):
        policy.forward_backward(documents, nll)
        policy.optim_step(1e-3)
    before = {n: t.clone() for n, t in moved.state().items()}
    held = {stage: list(moved._memory._of(stage)) for stage in ("optimizer", "gradients", "weights")}
    moved.offload("optimizer", "gradients")
    assert moved.aside == ("optimizer", "gradients")
    sizes = {stage: {t.untyped_storage().size() for t in tensors} for stage, tensors in held.items()}
    assert sizes["optimizer"] == sizes["gradients"] == {0}
    assert 0 not in sizes["weights"]
    assert all(torch.equal(t, before[n]) for n, t in moved.state().items())
    for verb in (lambda: moved.forward_backward(documents, nll), lambda: moved.optim_step(1e-3)):
        with pytest.raises(RuntimeError, match="optimizer, gradients are offloaded: call onload"):
            verb()
    moved.offload()
    with pytest.raises(RuntimeError, match="weights are offloaded"):
        moved.state()
    moved.onload("weights")
    assert all(torch.equal(t, before[n]) for n, t in moved.state().items())
    moved.onload()
    assert moved.aside == ()
    after = [(p.forward_backward(documents, nll), p.optim_step(1e-3)) for p in (plain, moved)]
    assert after[0] == after[1]
    assert all(torch.equal(a, b) for a, b in zip(plain.state().values(), moved.state().values(), strict=True))


def test_copies_of_weights_in_fp8_go_with_the_weights(make_policy):
    policy = make_policy()
    layer = policy.network.decoder.layers[0]
    layer._fp8_workspaces = {"weight": torch.ones(3)}
    policy.offload("optimizer")
    assert layer._fp8_workspaces
    policy.offload()
    assert layer._fp8_workspaces == {}
    policy.onload()


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
    from r1mega.trainer.offload import gradients, optimizer_tensors, weights
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
        others = (*weights(policy.model_chunks), *gradients(policy.model_chunks))
        lent = {t.untyped_storage().data_ptr() for t in others}
        held = {id(t): t.untyped_storage() for t in optimizer_tensors(policy.optimizer)}
        own = [s for s in held.values() if s.size() == 0 or s.data_ptr() not in lent]
        assert own
        assert all((s.size() == 0) is offload for s in own)
        checkpointer.load(tmp_path / str(offload))
        policy.forward_backward(documents, nll)
        policy.optim_step(1e-3)
        found.append({n: t.clone() for n, t in policy.state().items()})
    assert all(torch.equal(a, b) for a, b in zip(*(f.values() for f in found), strict=True))
