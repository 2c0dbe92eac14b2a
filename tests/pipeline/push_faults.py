"""Faults of weight synchronisation, as they were reported of engines and trainers like these, to plant in a push.

Each is planted between what the trainer sends, of which it keeps the numbers, and what the engine computes with.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

Tensors = list[tuple[str, torch.Tensor]]


@dataclass
class Push:
    """One push to a fleet of stand-ins, before it is made."""

    sent: Tensors
    """What the trainer sends."""
    before: dict[str, torch.Tensor]
    """What the engines hold."""
    fleet: Sequence[Any]
    """Servers, of workers."""
    arrives: Tensors = field(default_factory=list)
    """What comes out of the wire."""
    skipped: set[int] = field(default_factory=set)
    """Workers, by id, that nothing reaches."""
    reused: torch.Tensor | None = None
    """One buffer for all that arrives."""
    afterwards: Callable[[], object] = lambda: None
    """Before the proof."""
    asleep: Callable[[], object] = lambda: None
    """Between the proof and when the engine is read back again."""

    def swap(self, one: str, other: str) -> None:
        """Let the values of two tensors arrive under each other's names."""
        values = dict(self.arrives)
        taken = {one: values[other], other: values[one]}
        self.arrives = [(n, taken.get(n, t)) for n, t in self.arrives]


@dataclass(frozen=True)
class Fault:
    name: str
    thread: str
    """Where it was reported: repository and number."""
    engine: str
    """Which stand-in it is planted in (push_mutations.py)."""
    plant: Callable[[Push], object]
    seen: str
    """What every difference that the proof names must match."""
    least: int = 1
    """Differences, at least."""


EXPERT = "model.layers.1.mlp.experts."
ROUTER_BIAS = "e_score_correction_bias"


def swapped_experts(push: Push) -> None:
    for part in ("gate_proj", "up_proj", "down_proj"):
        push.swap(f"{EXPERT}2.{part}.weight", f"{EXPERT}5.{part}.weight")


def another_order(push: Push) -> None:
    """Values go out in groups of one dtype, under names in the order of the table; equal shapes hide it."""
    push.swap(f"model.layers.1.mlp.gate.{ROUTER_BIAS}", f"model.layers.2.mlp.gate.{ROUTER_BIAS}")


def one_buffer(push: Push) -> None:
    push.reused = torch.empty(2**20, dtype=torch.uint8)


def not_this_rank(push: Push) -> None:
    push.skipped = {id(push.fleet[0].workers[1])}


def not_this_server(push: Push) -> None:
    push.skipped = {id(worker) for worker in push.fleet[1].workers}


def asleep_again(push: Push) -> None:
    """Level 2 drops the weights; whoever wakes it without a push has memory of anybody's."""

    def discard() -> None:
        layer = push.fleet[0].workers[0].model.model.layers[2]
        layer.input_layernorm.weight.data.zero_()
        layer.mlp.experts.routed_experts.w2_weight.data.zero_()

    push.asleep = discard


def old_again(push: Push) -> None:
    """What was taken along into sleep comes back, and is older than the push."""
    before = list(push.before.items())
    push.asleep = lambda: push.fleet[0].workers[0].load(before, 2**16, None)


def codes_asleep(push: Push) -> None:
    """The same of codes that their kernel does not give back."""
    layer = push.fleet[0].workers[1].model.model.layers[1].mlp.gate_up_proj
    push.asleep = layer.weight.data.view(torch.uint8).zero_


def keys_as_values(push: Push) -> None:

    def change() -> None:
        for worker in push.fleet[0].workers:
            layer = worker.model.model.layers[1].self_attn.qkv_proj
            q, kv = layer.num_heads * layer.head_size, layer.num_kv_heads * layer.head_size
            k, v = layer.bias.data[q : q + kv].clone(), layer.bias.data[q + kv :].clone()
            layer.bias.data[q : q + kv], layer.bias.data[q + kv :] = v, k

    push.afterwards = change


def with_a_draft(push: Push) -> None:
    """A second model in the worker, which drafts tokens, and which the push does not reach."""
    first, second = push.fleet
    first.workers[0].draft = second.workers[0].model
    push.skipped = {id(second.workers[0])}


def stale_absorbed(push: Push) -> None:
    layers = [m for m in push.fleet[0].workers[0].model.modules() if hasattr(m, "W_UV")]
    kept = [(m, m.W_UV.data.clone(), m.W_UK_T.data.clone()) for m in layers]

    def put_back() -> None:
        for layer, values, keys in kept:
            layer.W_UV.data.copy_(values)
            layer.W_UK_T.data.copy_(keys)

    push.afterwards = put_back


# What the tensors of a pattern are changed into.


def before(push: Push, name: str, tensor: torch.Tensor) -> torch.Tensor:
    return push.before[name]


def zeroed(push: Push, name: str, tensor: torch.Tensor) -> torch.Tensor:
    return torch.zeros_like(tensor)


def rounded(push: Push, name: str, tensor: torch.Tensor) -> torch.Tensor:
    return tensor.bfloat16().to(tensor.dtype)


def shifted(push: Push, name: str, tensor: torch.Tensor) -> torch.Tensor:
    return tensor.roll(1, 0)


def transposed(push: Push, name: str, tensor: torch.Tensor) -> torch.Tensor:
    return tensor.flatten().view(tensor.T.shape).T.contiguous()


def change(pattern: str, into: Callable[[Push, str, torch.Tensor], torch.Tensor]) -> Callable[[Push], None]:
    def plant(push: Push) -> None:
        push.arrives = [(n, into(push, n, t) if re.search(pattern, n) else t) for n, t in push.arrives]

    return plant


def lose(pattern: str) -> Callable[[Push], None]:
    def plant(push: Push) -> None:
        push.arrives = [(n, t) for n, t in push.arrives if not re.search(pattern, n)]

    return plant


def without(mend: str) -> Callable[[Push], None]:
    """Without one of our own mends of vLLM."""

    def plant(push: Push) -> None:
        for server in push.fleet:
            for worker in server.workers:
                setattr(worker.receiver, mend, False)

    return plant


NOT_SENT_SO = "is not what was sent"
FAULTS = (
    Fault("two experts change places", "pytorch/torchtitan#1918", "v3", swapped_experts,
          r"layers\.1\.mlp\.experts\.[25]\.", 12),
    Fault("the router's bias is left out", "NVIDIA-NeMo/Megatron-Bridge#4657", "v3", lose(ROUTER_BIAS),
          rf"gate\.{ROUTER_BIAS}\[0:8\] float32 {NOT_SENT_SO}", 8),
    Fault("the router's bias is rounded to the dtype of the rest", "vllm-project/vllm#47777", "v3",
          change(ROUTER_BIAS, rounded), ROUTER_BIAS, 8),
    Fault("all is rounded on the way", "OpenRLHF/OpenRLHF#1348", "qwen2", change("", rounded), NOT_SENT_SO, 80),
    Fault("values in another order than their names", "NovaSky-AI/SkyRL#1816", "v3", another_order, ROUTER_BIAS, 8),
    Fault("a buffer is written again before it was read", "modelscope/ms-swift#10204", "v3", one_buffer,
          NOT_SENT_SO, 10),
    Fault("a tensor is freed while it is packed", "huggingface/trl#6765", "qwen2",
          change(r"layers\.0\.mlp\.up_proj", zeroed), r"layers\.0\.mlp\.up_proj", 2),
    Fault("a stage's conversion is of the step before", "NovaSky-AI/SkyRL#1345", "v3", change(r"layers\.2\.", before),
          r"layers\.2\.", 78),
    Fault("each expert-parallel rank sends its own experts alone", "verl-project/verl#7195", "v3_ep",
          lose(r"experts\.[4-7]\."), r"experts\.[4-7]\.", 24),
    Fault("a rank of the engine is not reached", "vllm-project/vllm#56950", "v3_ep", not_this_rank,
          r"dp0:pp0:pcp0:tp1:", 70),
    Fault("one server of two is not reached", "sgl-project/sglang#2050", "v3", not_this_server, r"^http://s1: ", 94),
    Fault("the experts' kernel keeps its packed copy", "NovaSky-AI/SkyRL#1680", "v3", without("repack_experts"),
          r"mlp\.experts\.", 96),
    Fault("a tied head keeps its packed copy", "vllm-project/vllm#51665", "qwen2", without("repack_heads"),
          r"the kernel of lm_head: model\.embed_tokens", 2),
    Fault("keys and values change places in a fused parameter", "ai-dynamo/modelexpress#650", "qwen2", keys_as_values,
          r"layers\.1\.self_attn\.[kv]_proj\.bias", 4),
    Fault("woken from sleep without weights", "vllm-project/vllm#29341", "v3", asleep_again, r"layers\.2\.", 9),
    Fault("woken from sleep with older weights", "huggingface/trl#5312", "v3", old_again, r"^http://s0: ", 94),
    Fault("latent attention decodes with the matrices that it absorbed before", "sgl-project/sglang#6265", "mla",
          stale_absorbed, r"kv_b_proj", 2),
    Fault("a replicated matrix is cut as if it were shared", "vllm-project/vllm#48025", "mla",
          change(r"q_a_proj", shifted), r"fused_qkv_a_proj.weight: .*q_a_proj", 4),
    Fault("an expert's matrix arrives transposed", "THUDM/slime#1840", "mla",
          change(r"experts\.3\.down_proj", transposed), r"experts\.3\.down_proj", 2),
    Fault("the draft model keeps its weights", "vllm-project/vllm#48296", "v3", with_a_draft,
          r"^http://s0: .*the draft model's |^http://s1: ", 188),
    Fault("8-bit codes arrive without their scales", "vllm-project/vllm#45835", "fp8", lose("weight_scale_inv"),
          r"weight_scale_inv", 28),
    Fault("the scales of 8-bit codes are those of before", "verl-project/verl#7136", "fp8",
          change("weight_scale_inv", before), r"weight_scale_inv", 28),
    Fault("woken from sleep without 8-bit codes", "vllm-project/vllm#16564", "fp8", codes_asleep,
          r"tp1:.*layers\.1\.mlp\.(gate|up)_proj\..*cannot be read back", 4),
    Fault("the last bucket is not sent", "NovaSky-AI/SkyRL#1471", "qwen2",
          lose(r"model\.norm|layers\.2\.mlp\.down_proj"), r"model\.norm|layers\.2\.mlp\.down_proj", 4),
)  # fmt: skip
