"""Everything here needs a CUDA device and skips without one. Run it by itself: `pytest tests/gpu`.

Most of it needs Transformer Engine too. None of it has been run yet (docs/measurements/README.md). With
R1MEGA_GPU_TESTS_DEVICE=cpu what needs neither kernels nor Transformer Engine runs on the CPU, dtypes and all: a
rehearsal of the tests themselves (tools/gpu/check.sh).
"""

import dataclasses
import json
import os
import random
from pathlib import Path

import pytest
import torch

from r1mega.buffers import Float32s, Int32s
from r1mega.config.cluster import TrainerLayout
from r1mega.config.training import Batch, Optimizer
from r1mega.families.deepseek_v3 import read
from r1mega.families.spec import ModelSpec
from r1mega.samples import Document

TINY = Path(__file__).parents[2] / "configs/tiny/deepseek_v3.json"


def pytest_collection_modifyitems(items) -> None:
    for item in items:
        if Path(__file__).parent in Path(item.path).parents:
            item.add_marker(pytest.mark.gpu)


DEVICE = os.environ.get("R1MEGA_GPU_TESTS_DEVICE", "cuda")


@pytest.fixture(autouse=True, scope="session")
def device():
    if DEVICE == "cpu":
        return torch.device("cpu")
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    if getattr(torch.cuda, "r1mega_stub", False):
        pytest.skip("CPU tests have replaced torch.cuda in this process; run tests/gpu by itself")
    return torch.device("cuda", 0)


@pytest.fixture(scope="session")
def engine(device):
    """Transformer Engine."""
    if device.type == "cpu":
        pytest.skip("Transformer Engine's layers need CUDA kernels")
    return pytest.importorskip("transformer_engine.pytorch")


@pytest.fixture(scope="session")
def spec() -> ModelSpec:
    """A DeepSeek-V3 whose sizes FP8 tiles and attention kernels take."""
    sizes = {
        "hidden_size": 256, "intermediate_size": 512, "moe_intermediate_size": 256, "num_hidden_layers": 3,
        "num_attention_heads": 4, "num_key_value_heads": 4, "q_lora_rank": 128, "kv_lora_rank": 128,
        "qk_nope_head_dim": 64, "qk_rope_head_dim": 64, "v_head_dim": 128, "vocab_size": 512,
        "initializer_range": 0.02,
    }  # fmt: skip
    return read(
        {k: v for k, v in json.loads(TINY.read_text()).items() if k not in ("head_dim", "qk_head_dim")} | sizes
    )


@pytest.fixture
def make(device):
    """A policy on the device, at a layout."""
    from r1mega.trainer import mesh

    def build(spec: ModelSpec, *, mtp="off", lr=1e-3, chunk_tokens=256, **layout):
        asked = TrainerLayout(**layout)
        on_cpu = device.type == "cpu"  # where a stage trains in fp32 alone
        ours = mesh.start(TrainerLayout() if on_cpu else asked, device=device.type, seed=0)
        ours = dataclasses.replace(ours, layout=asked)
        from r1mega.trainer.policy import Policy

        return Policy.build(
            spec, ours, Optimizer(lr=lr), Batch(chunk_tokens=chunk_tokens, chunks_per_micro_batch=4),
            mtp=mtp, mtp_loss_weight=0.3, expert_bias_rate=0.0, seed=0,
        )  # fmt: skip

    yield build
    mesh.stop()


@pytest.fixture(scope="session")
def documents() -> list[Document]:
    rng = random.Random(7)
    drafts = [Document(Int32s(rng.randrange(3, 512) for _ in range(rng.randint(20, 250))), 1) for _ in range(24)]
    total = sum(d.num_targets for d in drafts)
    return [
        Document(d.token_ids, d.learn_from, {"weight": Float32s.repeated(1 / total, d.num_targets)}) for d in drafts
    ]
