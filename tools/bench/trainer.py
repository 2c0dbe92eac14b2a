"""Tokens per second of a training step (forward, backward, update) on one device: bf16 against FP8, V3-like layers.

Each variant is a process of its own, one after the other, so that one policy at a time is in memory; weights are
drawn on the device. What is read is a ratio to the first variant's median; absolute times are of this machine alone.
On the CPU only fp32 runs, to show that the measurement does.
"""

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import harness
import torch
import trainer_memory

from r1mega.buffers import Float32s, Int32s
from r1mega.config.cluster import Precision, Recompute, TrainerLayout
from r1mega.config.training import Batch, Optimizer
from r1mega.families.deepseek_v3 import read
from r1mega.families.spec import Kind, ModelSpec
from r1mega.runtime.files import write_json
from r1mega.samples import Document

# fmt: off
SHAPES: dict[str, dict[str, int]] = {
    # A layer of DeepSeek-V3 as it is, with as many experts as a rank of EP64 holds of its 256, times eight.
    "v3": {"hidden_size": 7168, "intermediate_size": 18432, "moe_intermediate_size": 2048, "num_attention_heads": 128,
           "num_key_value_heads": 128, "q_lora_rank": 1536, "kv_lora_rank": 512, "qk_nope_head_dim": 128,
           "qk_rope_head_dim": 64, "v_head_dim": 128, "n_routed_experts": 32, "vocab_size": 16384},
    "tiny": {},
}
VARIANTS: dict[str, dict[str, Any]] = {
    "fp32": {},
    "fp32_recompute": {"recompute": Recompute(granularity="full")},
    "bf16": {"dtype": "bf16"},
    "bf16_apart": {"dtype": "bf16"},
    "bf16_local": {"dtype": "bf16", "transformer_engine": "off"},
    "blockwise": {"dtype": "bf16", "precision": Precision(fp8="blockwise", moments="bf16")},
    "tensorwise": {"dtype": "bf16", "precision": Precision(fp8="tensorwise", moments="bf16")},
    "mxfp8": {"dtype": "bf16", "precision": Precision(fp8="mxfp8", moments="bf16")},
}
# fmt: on
APART = ("bf16_apart",)
"""Where weight gradients are rounded to bf16 and added apart, a micro-batch at a time; elsewhere Transformer Engine's
products add them to the fp32 sum themselves."""


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
        weights = {"weight": Float32s.repeated(1 / num_tokens, (length - 1))}
        drawn.append(Document(Int32s(rng.randrange(3, vocabulary) for _ in range(length)), 1, weights))
        left -= length
    return drawn


def nll(logp: torch.Tensor, fields: Any, _: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    return -(fields["weight"] * logp).sum(), {}


def draw_in_place(spec: ModelSpec, state: Any, seed: int, _: str = "drawn") -> None:
    """Weights of `network.initial`'s distribution, drawn where they lie: billions of numbers from one core of the
    host take longer than all that is measured, and speed asks for no particular ones."""
    torch.manual_seed(seed)
    kinds = {row.megatron: row.kind for row in spec.tensors()}
    with torch.no_grad():
        for name, tensor in state.items():
            if kinds[name] is Kind.BUFFER or name.endswith(".bias"):
                tensor.zero_()
            elif tensor.dim() == 1:
                tensor.fill_(1)
            else:
                tensor.normal_(0.0, spec.init_std)


def flops_a_token(spec: ModelSpec) -> float:
    """Of the matrix products with weights that a token meets, forwards and backwards: 6 for each such weight."""
    met = 0.0
    for row in spec.tensors():
        if row.kind is Kind.COPY or len(row.shape) != 2 or "embedding" in row.megatron:
            continue
        share = spec.moe.top_k / spec.moe.num_experts if spec.moe and ".local_experts." in row.megatron else 1.0
        met += share * row.shape[0] * row.shape[1]
    return 6 * met


def measure(options: argparse.Namespace, name: str) -> dict[str, Any]:
    """One variant, in this process: {seconds of each step, memory}, or {refused: why}."""
    from r1mega.errors import ConfigError
    from r1mega.trainer import mesh as meshes

    spec = shape(options.shape, options.layers)
    layout = TrainerLayout(threads=options.threads, **VARIANTS[name])
    needed = trainer_memory.plan(spec, layout, micro_batch_tokens=options.chunk)
    there = torch.cuda.mem_get_info()[0] if options.device == "cuda" else trainer_memory.host_bytes()
    # On the CPU the device's memory is the host's, without CUDA's part.
    asked = needed if options.device == "cuda" else {**needed, "context": 0, "host": 0}
    if why := trainer_memory.refusal(asked, device_bytes=there, host_bytes=trainer_memory.host_bytes()):
        return {"refused": why, "planned_bytes": needed}
    drawn = documents(options.tokens, options.chunk, spec.vocab_size)
    try:
        mesh = meshes.start(layout, device=options.device, seed=0)
        from r1mega.trainer.network import build
        from r1mega.trainer.policy import Policy

        build.initialise = draw_in_place
        policy = Policy.build(
            spec, mesh, Optimizer(lr=1e-5), Batch(chunk_tokens=options.chunk), mtp="off", mtp_loss_weight=0.0,
            expert_bias_rate=0.0, seed=0,
        )  # fmt: skip
    except ConfigError as error:
        return {"refused": str(error), "planned_bytes": needed}
    if name in APART:
        products = [m for m in policy.network.modules() if hasattr(m, "fuse_wgrad_accumulation")]
        if not products:
            return {"refused": "Transformer Engine's layers alone add to main gradients", "planned_bytes": needed}
        for module in products:
            module.fuse_wgrad_accumulation = False  # type: ignore[assignment]
    seconds = [step(policy, drawn, options.device) for _ in range(options.repetitions + 1)][1:]
    found = {"seconds": seconds, "planned_bytes": needed, "process": os.getpid()}
    found |= trainer_memory.peaks(options.device)
    meshes.stop()
    return found


def step(policy: Any, drawn: list[Document], device: str) -> float:
    """Seconds of an update."""
    wait(device)
    start = time.perf_counter()
    policy.forward_backward(drawn, nll)
    policy.optim_step(1e-5)
    wait(device)
    return time.perf_counter() - start


def wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def apart(options: argparse.Namespace, name: str) -> dict[str, Any]:
    """`measure` in a process of its own, which leaves the device as it found it."""
    own = [sys.executable, str(Path(__file__).resolve()), "--only", name]
    for option in ("device", "shape", "layers", "tokens", "chunk", "repetitions", "threads"):
        own += [f"--{option}", str(getattr(options, option))]
    done = subprocess.run(own, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        return {"failed": f"exit status {done.returncode}, see stderr"}
    return json.loads(done.stdout.splitlines()[-1])


def together(options: argparse.Namespace) -> dict[str, Any]:
    """All variants, and their ratios to the first that ran."""
    spec = shape(options.shape, options.layers)
    num_tokens = sum(len(d.token_ids) for d in documents(options.tokens, options.chunk, spec.vocab_size))
    found = {name: apart(options, name) for name in options.variants}
    ran = {name: one for name, one in found.items() if "seconds" in one}
    base = statistics.median(next(iter(ran.values()))["seconds"]) if ran else 0.0
    flops = flops_a_token(spec) * num_tokens
    return {
        "model": {"shape": options.shape, "layers": options.layers, "hidden_size": spec.hidden_size},
        "parameters": trainer_memory.num_parameters(spec),
        "tokens_a_step": num_tokens,
        "chunk_tokens": options.chunk,
        "repetitions": options.repetitions,
        "refused": {name: one["refused"] for name, one in found.items() if "refused" in one},
        "failed": {name: one["failed"] for name, one in found.items() if "failed" in one},
        "variants": {
            name: {
                "step_s": harness.spread(one["seconds"]),
                "tokens_per_s": harness.spread([num_tokens / s for s in one["seconds"]]),
                # Attention's own products are not counted.
                "tflop_per_s": harness.spread([flops / s / 1e12 for s in one["seconds"]]),
                "step_ratio": harness.spread([s / base for s in one["seconds"]]),
                **{key: value for key, value in one.items() if key.endswith("_bytes") or key == "process"},
            }
            for name, one in ran.items()
        },
    }


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, help="JSON file to write")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--shape", choices=list(SHAPES), help="default: v3 on cuda, tiny on the CPU")
    parser.add_argument("--variants", nargs="+", choices=list(VARIANTS), help="the first is the baseline")
    parser.add_argument("--layers", type=int, default=3, help="one dense, the others mixtures of experts")
    parser.add_argument("--tokens", type=int, help="of a step")
    parser.add_argument("--chunk", type=int, help="tokens of a micro-batch")
    parser.add_argument("--repetitions", type=int, default=7, help="steps that count, after one that does not")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", choices=list(VARIANTS), help=argparse.SUPPRESS)
    options = parser.parse_args()
    cuda = options.device == "cuda"
    options.shape = options.shape or ("v3" if cuda else "tiny")
    options.variants = options.variants or (["bf16", "blockwise", "tensorwise", "mxfp8"] if cuda else ["fp32"])
    options.tokens = options.tokens or (32768 if cuda else 2048)
    options.chunk = options.chunk or (8192 if cuda else 256)
    return options


def main() -> int:
    options = arguments()
    if options.only:
        print(json.dumps(measure(options, options.only)))
        return 0
    cuda, trainer = options.device == "cuda", harness.ROOT / "r1mega/trainer"
    sources = [
        Path(__file__).resolve(),
        *(trainer / n for n in ("network/model.py", "network/layer_spec.py", "forward.py", "network/thd.py")),
    ]
    packages = ["torch", "megatron-core", *(["transformer-engine"] if cuda else [])]
    result = {"about": " ".join((__doc__ or "").split()), **harness.provenance(packages, sources)}
    result |= together(options)
    if cuda:
        result["device"] = f"{torch.cuda.get_device_name()}, CUDA {torch.version.cuda}"
    print(json.dumps({k: result[k] for k in ("device", "variants", "refused", "failed")}))
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        write_json(options.out, result)
    return 1 if result["failed"] or not result["variants"] else 0


if __name__ == "__main__":
    sys.exit(main())
