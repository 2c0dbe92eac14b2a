"""Updates on one device, what is put aside and comes back, and two devices that share sequences."""

import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from gpu_data import nll

from r1mega.buffers import Float32s, Int32s
from r1mega.config.cluster import Precision
from r1mega.samples import Document, Sample

DISTRIBUTED = Path(__file__).parents[1] / "distributed"


@pytest.mark.parametrize("setting", ["off", "auto"])
def test_a_grpo_update_raises_what_was_rewarded(make, spec, request, setting):
    from r1mega.algos.grpo import GRPOLoss, documents, weighted

    if setting == "auto":
        request.getfixturevalue("engine")
    policy = make(spec, dtype="bf16", lr=1e-4, transformer_engine=setting)
    policy.refresh_reference()
    rng = random.Random(0)
    drawn = [
        Sample(*(Int32s(rng.randrange(3, 512) for _ in range(n)) for n in (20, 40)), adv, behaviour_logp=Float32s())
        for adv in (1.0, -1.0) * 4
    ]
    samples = weighted(drawn, "token_mean", max_length=64)
    bare = [Document(s.prompt_ids + s.completion_ids, len(s.prompt_ids)) for s in samples]

    def rewarded() -> float:
        sums = [float(x.sum()) for x in policy.logprobs(bare, temperature=1.0)]
        return sum(s.adv * x for s, x in zip(samples, sums, strict=True))

    old, ref = (policy.logprobs(bare, temperature=1.0, reference=r) for r in (False, True))
    assert all(torch.equal(a, b) for a, b in zip(old, ref, strict=True))  # the swap changes nothing, nor
    # does the order in which two experts' outputs, of a token, are added
    attached = [
        replace(s, old_logp=Float32s(o.numpy()), ref_logp=Float32s(r.numpy()), behaviour_logp=Float32s(o.numpy()))
        for s, o, r in zip(samples, old, ref, strict=True)
    ]
    before = rewarded()
    for _ in range(3):
        found = policy.forward_backward(documents(attached), GRPOLoss(clip_low=0.2, clip_high=0.2, kl_coef=0.01))
        assert policy.optim_step(1e-4) > 0
    assert rewarded() > before
    assert found["ratio/mean"] == pytest.approx(1.0, abs=0.2)


def allocated(policy) -> int:
    """Bytes on the device: the allocator's, or on the CPU those of the policy's storages."""
    from r1mega.trainer.offload import gradients, optimizer_tensors, weights

    if policy.mesh.device.type == "cuda":
        return torch.cuda.memory_allocated()
    tensors = [*weights(policy.model_chunks), *gradients(policy.model_chunks), *optimizer_tensors(policy.optimizer)]
    return sum({t.untyped_storage()._cdata: t.untyped_storage().size() for t in tensors}.values())


def test_what_is_put_aside_frees_the_device_and_comes_back(make, spec, documents, tmp_path):
    from r1mega.trainer.checkpoint.checkpointer import Checkpointer

    policy = make(spec, dtype="bf16", transformer_engine="off", precision=Precision(moments="bf16"))
    policy.forward_backward(documents, nll)
    policy.optim_step(1e-3)
    before, used = {n: t.clone().cpu() for n, t in policy.state().items()}, allocated(policy)
    held = sum(t.numel() * t.element_size() for t in before.values())
    policy.offload()
    assert allocated(policy) < used - 4 * held  # weights, gradients, main parameters, moments
    policy.onload()
    assert all(torch.equal(t.cpu(), before[n]) for n, t in policy.state().items())
    checkpointer = Checkpointer(policy)
    checkpointer.save(tmp_path / "step_1", {})
    first = policy.forward_backward(documents, nll)
    policy.optim_step(1e-3)
    checkpointer.load(tmp_path / "step_1")
    assert all(torch.equal(t.cpu(), before[n]) for n, t in policy.state().items())
    assert policy.forward_backward(documents, nll) == pytest.approx(first, rel=1e-3)


def test_two_devices_share_sequences(engine, tmp_path):
    """CP2 on NCCL against DP2: losses and gradients of `tests/distributed/layouts.py`, in bf16."""
    if torch.cuda.device_count() < 2:
        pytest.skip("one CUDA device")
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [sys.executable, *torchrun, str(DISTRIBUTED / "context_layouts.py"), str(tmp_path), "dp=2", "cp=2"]
    done = subprocess.run([*command, "--device", "cuda"], capture_output=True, text=True, timeout=580)
    assert done.returncode == 0, done.stdout + done.stderr
    want, got = (torch.load(tmp_path / f"{name}.pt", weights_only=False) for name in ("dp=2", "cp=2"))
    for step in range(3):
        assert got["loss"][step]["mtp_loss"] == pytest.approx(want["loss"][step]["mtp_loss"], rel=1e-2)
        assert got["norm"][step] == pytest.approx(want["norm"][step], rel=5e-2)
