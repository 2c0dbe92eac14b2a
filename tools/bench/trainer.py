"""Tokens per second of a training step (forward, backward, update) on one device: bf16 against FP8, V3-like layers.

The variants take turns in one process, each with a policy of its own; while one runs, the others are put aside in
host memory. What is read is a ratio to the first variant's median; absolute times are of this machine alone. On the
CPU only fp32 runs, to show that the measurement does.
"""

import argparse
import json
import random
import statistics
import time
from pathlib import Path
from typing import Any

import harness
import torch

from r1mega.config.cluster import Precision, TrainerLayout
from r1mega.config.training import Batch, Optimizer
from r1mega.families.deepseek_v3 import read
from r1mega.families.spec import ModelSpec
from r1mega.runtime.files import write_json
from r1mega.samples import Document
from r1mega.trainer import mesh as meshes

# fmt: off
SHAPES: dict[str, dict[str, int]] = {
    # A layer of DeepSeek-V3 as it is, with as many experts as a rank of EP64 holds of its 256, times eight.
    "v3": {"hidden_size": 7168, "intermediate_size": 18432, "moe_intermediate_size": 2048, "num_attention_heads": 128,
           "num_key_value_heads": 128, "q_lora_rank": 1536, "kv_lora_rank": 512, "qk_nope_head_dim": 128,
           "qk_rope_head_dim": 64, "v_head_dim": 128, "n_routed_experts": 32, "vocab_size": 16384},
    "tiny": {},
}
# fmt: on
VARIANTS: dict[str, dict[str, Any]] = {
    "fp32": {},
    "bf16": {"dtype": "bf16"},
    "blockwise": {"dtype": "bf16", "precision": Precision(fp8="blockwise", moments="bf16")},
    "tensorwise": {"dtype": "bf16", "precision": Precision(fp8="tensorwise", moments="bf16")},
    "mxfp8": {"dtype": "bf16", "precision": Precision(fp8="mxfp8", moments="bf16")},
}


def shape(name: str, num_layers: int) -> ModelSpec:
    hf = json.loads((harness.ROOT / "configs/tiny/deepseek_v3.json").read_text())
    hf = {k: v for k, v in hf.items() if k not in ("head_dim", "qk_head_dim")}
    layers = {"num_hidden_layers": num_layers, "first_k_dense_replace": 1, "num_nextn_predict_layers": 0}
    return read({**hf, **SHAPES[name], **layers, "max_position_embeddings": 163840})


def documents(num_tokens: int, chunk: int, vocabulary: int) -> list[Document]:
    """Lengths between an eighth of a chunk and a whole one."""
    rng, left, drawn = random.Random(0), num_tokens, list[Document]()
    while left > 8:
        length = min(left, rng.randint(max(8, chunk // 8), chunk))
        weights = {"weight": (1 / num_tokens,) * (length - 1)}
        drawn.append(Document(tuple(rng.randrange(3, vocabulary) for _ in range(length)), 1, weights))
        left -= length
    return drawn


def nll(logp: torch.Tensor, fields: Any, _: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    return -(fields["weight"] * logp).sum(), {}


def measure(options: argparse.Namespace) -> dict[str, Any]:
    spec = shape(options.shape, options.layers)
    drawn = documents(options.tokens, options.chunk, spec.vocab_size)
    num_tokens = sum(len(d.token_ids) for d in drawn)
    policies: dict[str, Any] = {}
    refused: dict[str, str] = {}
    for name in options.variants:
        layout = TrainerLayout(threads=options.threads, **VARIANTS[name])
        try:
            mesh = meshes.start(layout, device=options.device, seed=0)
            from r1mega.trainer.policy import Policy

            policies[name] = Policy.build(
                spec, mesh, Optimizer(lr=1e-5), Batch(chunk_tokens=options.chunk), mtp="off", mtp_loss_weight=0.0,
                expert_bias_rate=0.0, seed=0,
            )  # fmt: skip
            policies[name].offload()
        except meshes.ConfigError as error:
            refused[name] = str(error)
    seconds: dict[str, list[float]] = {name: [] for name in policies}
    for turn in range(options.repetitions + 1):
        for name, policy in policies.items():
            policy.onload()
            taken = step(policy, drawn, options.device)
            policy.offload()
            if turn:
                seconds[name].append(taken)
    first = next(iter(seconds), None)
    return {
        "model": {"shape": options.shape, "layers": options.layers, "hidden_size": spec.hidden_size},
        "tokens_a_step": num_tokens,
        "chunk_tokens": options.chunk,
        "repetitions": options.repetitions,
        "refused": refused,
        "variants": {
            name: {
                "step_s": harness.spread(taken),
                "tokens_per_s": harness.spread([num_tokens / s for s in taken]),
                "step_ratio": harness.spread([s / statistics.median(seconds[first]) for s in taken]) if first else {},
            }
            for name, taken in seconds.items()
        },
    }


def step(policy: Any, drawn: list[Document], device: str) -> float:
    """Seconds of an update, once through before it so that kernels are chosen and weights are in place."""
    policy.forward_backward(drawn, nll)
    wait(device)
    start = time.perf_counter()
    policy.forward_backward(drawn, nll)
    policy.optim_step(1e-5)
    wait(device)
    return time.perf_counter() - start


def wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, help="JSON file to write")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--shape", choices=list(SHAPES), help="default: v3 on cuda, tiny on the CPU")
    parser.add_argument("--variants", nargs="+", choices=list(VARIANTS), help="the first is the baseline")
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--tokens", type=int, help="of a step")
    parser.add_argument("--chunk", type=int)
    parser.add_argument("--repetitions", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    cuda = options.device == "cuda"
    options.shape = options.shape or ("v3" if cuda else "tiny")
    options.variants = options.variants or (["bf16", "blockwise", "tensorwise", "mxfp8"] if cuda else ["fp32"])
    options.tokens = options.tokens or (32768 if cuda else 2048)
    options.chunk = options.chunk or (8192 if cuda else 256)
    trainer = harness.ROOT / "r1mega/trainer"
    sources = [
        Path(__file__).resolve(),
        *(trainer / n for n in ("model.py", "layer_spec.py", "forward.py", "thd.py")),
    ]
    packages = ["torch", "megatron-core", "r1mega", *(["transformer-engine"] if cuda else [])]
    result = {"about": " ".join((__doc__ or "").split()), **harness.provenance(packages, sources)}
    if cuda:
        result["device"] = f"{torch.cuda.get_device_name()}, CUDA {torch.version.cuda}"
    result |= measure(options)
    print(json.dumps({k: result[k] for k in ("device", "variants", "refused")}))
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        write_json(options.out, result)
    meshes.stop()


if __name__ == "__main__":
    main()
