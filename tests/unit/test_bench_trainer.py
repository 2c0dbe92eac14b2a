"""tools/bench/trainer.py: what it needs is known before it is made and fits one GPU; variants share no process."""

import dataclasses
import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from r1mega.config.cluster import TrainerLayout

BENCH = Path(__file__).parents[2] / "tools/bench"
DEVICE_BYTES, HOST_BYTES = 139 << 30, 128 << 30


@pytest.fixture(scope="module")
def bench():
    """The two modules, as a script's folder gives them."""
    sys.path.insert(0, str(BENCH))
    yield importlib.import_module("trainer"), importlib.import_module("trainer_memory")
    sys.path.remove(str(BENCH))


@pytest.mark.parametrize("variant", ["bf16", "bf16_apart", "bf16_local", "blockwise", "tensorwise", "mxfp8"])
@pytest.mark.parametrize(("layers", "chunk"), [(2, 8192), (3, 8192), (2, 16384)])
def test_what_a_gpu_measures_fits_one(bench, variant, layers, chunk):
    trainer, memory = bench
    layout = TrainerLayout(**trainer.VARIANTS[variant])
    needed = memory.plan(trainer.shape("v3", layers), layout, micro_batch_tokens=chunk)
    assert memory.refusal(needed, device_bytes=DEVICE_BYTES, host_bytes=HOST_BYTES) == ""
    assert needed["weights"] > 4e9  # it is a large one all the same


def test_what_does_not_fit_is_refused_with_the_remedy(bench):
    trainer, memory = bench
    needed = memory.plan(trainer.shape("v3", 8), TrainerLayout(dtype="bf16"), micro_batch_tokens=8192)
    why = memory.refusal(needed, device_bytes=DEVICE_BYTES, host_bytes=HOST_BYTES)
    assert "GiB of device memory" in why
    assert "fewer --layers" in why
    small = memory.plan(trainer.shape("tiny", 2), TrainerLayout(), micro_batch_tokens=256)
    assert "GiB of host memory" in memory.refusal(small, device_bytes=DEVICE_BYTES, host_bytes=1 << 30)


@pytest.mark.parametrize("variant", ["fp32", "bf16", "blockwise"])
def test_the_plan_counts_every_byte_of_a_policys_state(bench, mesh, variant):
    """Weights, gradients and the optimiser's, against the tensors of one that was built (without FP8's kernels)."""
    from r1mega.config.training import Batch, Optimizer
    from r1mega.trainer.offload import gradients, optimizer_tensors, weights
    from r1mega.trainer.policy import Policy

    trainer, memory = bench
    spec = trainer.shape("tiny", 2)
    layout = TrainerLayout(**trainer.VARIANTS[variant])
    needed = memory.plan(spec, layout, micro_batch_tokens=256)
    without = layout.precision.model_copy(update={"fp8": "none"})
    place = dataclasses.replace(mesh, layout=layout.model_copy(update={"precision": without}))
    policy = Policy.build(
        spec, place, Optimizer(lr=1e-3), Batch(chunk_tokens=64), mtp="off", mtp_loss_weight=0.0,
        expert_bias_rate=0.0, seed=0,
    )  # fmt: skip
    storages = {
        t.untyped_storage().data_ptr(): t.untyped_storage().size()
        for t in (
            *weights(policy.model_chunks),
            *gradients(policy.model_chunks),
            *optimizer_tensors(policy.optimizer),
        )
    }
    planned = needed["weights"] + needed["gradients"] + needed["optimizer"]
    # Megatron pads its buffers; expert biases are fp32, with counters beside them.
    assert planned <= sum(storages.values()) <= planned * 1.01
    assert (needed["fp8"] > 0) is (needed["step"] > 0) is (variant == "blockwise")


def test_weights_drawn_in_place_are_distributed_as_first_weights_are(bench, spec):
    from r1mega.families.spec import Kind

    trainer, _ = bench
    rows = [row for row in spec.tensors() if row.kind is not Kind.COPY]
    state = {row.megatron: torch.full(row.shape, 7.0) for row in rows}
    trainer.draw_in_place(spec, state, 0)
    for row in rows:
        tensor = state[row.megatron]
        if row.kind is Kind.BUFFER:
            assert not tensor.any()
        elif len(row.shape) == 1:
            assert torch.equal(tensor, torch.ones(row.shape))
        else:
            error = float(tensor.std()) / spec.init_std - 1
            assert abs(error) < 5 / (2 * tensor.numel()) ** 0.5  # five times its deviation


def test_each_variant_is_a_process_of_its_own(tmp_path):
    out = tmp_path / "bench.json"
    command = [
        sys.executable, str(BENCH / "trainer.py"), "--variants", "fp32", "fp32_recompute", "bf16", "--layers", "2",
        "--tokens", "256", "--chunk", "64", "--repetitions", "1", "--out", str(out),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(out.read_text())
    processes = {one["process"] for one in found["variants"].values()}
    assert len(processes) == 2
    assert os.getpid() not in processes
    assert found["variants"]["fp32"]["step_ratio"]["median"] == 1.0
    assert "only fp32 is supported on cpu" in found["refused"]["bf16"]
    assert (found["failed"], found["tokens_a_step"]) == ({}, 256)
