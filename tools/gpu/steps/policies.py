"""The small DeepSeek-V3 and the documents of tests/gpu, and policies of them at a layout."""

import dataclasses
import json
import random
from typing import Any

from report import ROOT

from r1mega.buffers import Float32s, Int32s
from r1mega.config.cluster import TrainerLayout
from r1mega.config.training import Batch, Optimizer
from r1mega.families.deepseek_v3 import read
from r1mega.families.spec import ModelSpec
from r1mega.samples import Document

SIZES = {
    "hidden_size": 256, "intermediate_size": 512, "moe_intermediate_size": 256, "num_hidden_layers": 3,
    "num_attention_heads": 4, "num_key_value_heads": 4, "q_lora_rank": 128, "kv_lora_rank": 128,
    "qk_nope_head_dim": 64, "qk_rope_head_dim": 64, "v_head_dim": 128, "vocab_size": 512, "initializer_range": 0.02,
}  # fmt: skip


def small() -> ModelSpec:
    """Sizes that FP8 tiles and attention kernels take."""
    hf = json.loads((ROOT / "configs/tiny/deepseek_v3.json").read_text())
    return read({k: v for k, v in hf.items() if k not in ("head_dim", "qk_head_dim")} | SIZES)


def documents() -> list[Document]:
    rng = random.Random(7)
    drafts = [Document(Int32s(rng.randrange(3, 512) for _ in range(rng.randint(20, 250))), 1) for _ in range(24)]
    total = sum(d.num_targets for d in drafts)
    return [
        Document(d.token_ids, d.learn_from, {"weight": Float32s.repeated(1 / total, d.num_targets)}) for d in drafts
    ]


def nll(logp: Any, fields: Any, _: Any) -> tuple[Any, dict[str, Any]]:
    return -(fields["weight"] * logp).sum(), {}


def make(device: str, *, spec: ModelSpec | None = None, mtp: str = "off", **layout: Any) -> Any:
    """A policy with random weights of seed 0. On the CPU, which trains in fp32, a layout's bf16 is obeyed all the
    same: what is rehearsed there is dtypes and code, not numbers."""
    from r1mega.trainer import mesh

    asked = TrainerLayout(**layout)
    ours = mesh.start(asked if device == "cuda" else TrainerLayout(), device=device, seed=0)
    ours = dataclasses.replace(ours, layout=asked)
    from r1mega.trainer.policy import Policy

    return Policy.build(
        spec or small(), ours, Optimizer(lr=1e-3), Batch(chunk_tokens=256, chunks_per_micro_batch=4), mtp=mtp,  # type: ignore[arg-type]
        mtp_loss_weight=0.3, expert_bias_rate=0.0, seed=0,
    )  # fmt: skip


def whereabouts(policy: Any) -> set[str]:
    """Types of the devices on which its parameters and buffers are."""
    networks = policy.networks
    return {t.device.type for n in networks for t in (*n.parameters(), *n.buffers())}
