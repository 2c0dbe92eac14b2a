"""The whole trainer through Transformer Engine's own Python, its kernels in plain PyTorch: constructors, names,
autograd functions and its Adam, against the local layers on the same weights and documents."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(sys.prefix) / "te_python"


@pytest.fixture(scope="module")
def told() -> dict:
    """What te_steps.py came to, in a process of its own: it makes torch believe in a GPU."""
    if not (PACKAGE / ".installed").is_file():
        reason = "Transformer Engine's Python is not there; `make te-python` installs it"
        (pytest.fail if os.environ.get("CI") or os.environ.get("R1MEGA_CI") else pytest.skip)(reason)
    command = [sys.executable, "-W", "ignore", str(Path(__file__).with_name("te_steps.py")), str(PACKAGE)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("family", ["deepseek_v3", "qwen2"])
def test_a_step_is_the_local_layers_to_rounding(told, family):
    """In fp32: two mini-batches that add up, an update, scores, another update. Numbers are in parts of each tensor's
    largest; an update divides a gradient by its size, so where that is next to nothing rounding decides its sign."""
    apart = told[family]["apart"]
    assert apart["losses"] < 1e-6
    assert apart["norms"] < 2e-6
    assert apart["gradients"] < 1e-5
    assert apart["scores"] < 5e-5
    assert apart["weights"] < 1e-2
    used = {"rmsnorm_fwd", "rmsnorm_bwd", "generic_gemm", "fused_attn_fwd", "fused_attn_bwd", "multi_tensor_adam"}
    used |= {"te_general_grouped_gemm"} if family == "deepseek_v3" else set()
    assert used <= set(told[family]["kernels"])


@pytest.mark.parametrize("family", ["deepseek_v3", "qwen2"])
def test_every_product_adds_its_weights_gradient_to_the_main_one(told, family):
    """In the first micro-batch of a mini-batch too, though Megatron says in FP8 that it is the first."""
    products, added = told[family]["of_weights"]
    assert products == added > 20


def test_bf16_moments_are_widened_a_part_at_a_time(told):
    """By Transformer Engine's own Adam, whose every group makes one step however many its parts are."""
    found = told["bf16"]
    assert found["class"] == ["transformer_engine.pytorch.optimizers.fused_adam"]
    assert found["moments"] == ["torch.bfloat16"]
    assert sum(found["numbers"]) == found["parameters"] > 5e6
    assert max(found["numbers"]) == found["largest"] < 3e5
    assert set(found["steps"]) == {3}
    assert found["losses"][2] < found["losses"][1] < found["losses"][0]
