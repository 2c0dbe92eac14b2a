"""Training steps through Transformer Engine's own Python, its kernels in plain PyTorch, and what they came to beside
the local layers' on the same weights: one JSON object. Run by test_te_python, since it makes torch believe in a GPU.

    python te_steps.py FOLDER: where the package transformer-engine was unpacked.
"""

import contextlib
import inspect
import json
import sys
import textwrap
from dataclasses import replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / "tools/gpu/steps"), sys.argv[1]]

import te_kernels  # noqa: E402
import te_python  # noqa: E402
import te_stub  # noqa: E402

TAKEN: list[tuple[str, dict[str, Any]]] = []
"""Kernels that were called, with what is looked at of their arguments."""


def recording(name: str, kernel: Any) -> Any:
    def call(*arguments: Any, **others: Any) -> Any:
        told: dict[str, Any] = {}
        if name == "generic_gemm":
            told = {"to": arguments[4] is not None, "adds": arguments[14], "weights": bool(arguments[3])}
        if name == "te_general_grouped_gemm":
            told = {"to": True, "adds": arguments[14], "weights": bool(arguments[3])}
        if name == "multi_tensor_adam":
            told = {"numbers": sum(t.numel() for t in arguments[2][1])}
        TAKEN.append((name, told))
        return kernel(*arguments, **others)

    return call


@contextlib.contextmanager
def on_a_gpu(*, fp32: bool = True) -> Any:
    """Tensors pass for a GPU's. With `fp32` attention takes it too, which the kernels here do and a GPU's do not.

    The output layer's product into fp32 is the one thing of this package that no CPU has.
    """
    import torch
    from transformer_engine.pytorch.attention.dot_product_attention import backends
    from transformer_engine.pytorch.attention.dot_product_attention import dot_product_attention as chosen

    from r1mega.trainer import logprob_gpu

    choose, product = chosen.dpa_utils.get_attention_backend, logprob_gpu.product

    def as_of_bf16(params: Any) -> Any:
        params.qkv_dtype = torch.bfloat16
        return choose(params)

    # Its one way to attend over packed rows refuses fp32, in which two ways to the same numbers are compared best.
    source = textwrap.dedent(inspect.getsource(backends.FusedAttention.forward))
    refused = "x.dtype in [torch.float16, torch.bfloat16]"
    assert source.count(refused) == 1
    allowed = f"({refused} or {fp32} and x.dtype is torch.float32)"
    exec(source.replace(refused, allowed), vars(backends), made := dict[str, Any]())
    forward, backends.FusedAttention.forward = backends.FusedAttention.forward, made["forward"]
    chosen.dpa_utils.get_attention_backend = as_of_bf16
    logprob_gpu.product = lambda a, b: a.float() @ b.float()
    torch.Tensor.is_cuda = property(lambda _: True)  # type: ignore[assignment]
    try:
        yield
    finally:
        del torch.Tensor.is_cuda
        logprob_gpu.product = product
        chosen.dpa_utils.get_attention_backend = choose
        backends.FusedAttention.forward = forward


def steps(policy: Any, documents: Any, nll: Any) -> dict[str, Any]:
    """Losses, gradients and weights of two updates, the first of two mini-batches that add up."""

    def learn(some: Any) -> dict[str, float]:
        for module in policy.network.modules():  # as Megatron does before the first micro-batch of each, in FP8
            if hasattr(module, "is_first_microbatch"):
                module.is_first_microbatch = True
        return policy.forward_backward(some, nll)

    losses = [learn(documents[:5]), learn(documents[5:])]
    gradients = {n: g.clone() for n, g in policy.gradients().items()}
    norms = [policy.optim_step(1e-3)]
    scored = [x.clone() for x in policy.logprobs(documents, temperature=0.7)]
    losses.append(learn(documents))
    norms.append(policy.optim_step(1e-3))
    weights = {n: t.detach().clone() for n, t in policy.state().items()}
    return {"scored": scored, "losses": losses, "gradients": gradients, "norms": norms, "weights": weights}


def apart(found: dict[str, Any], want: dict[str, Any]) -> dict[str, float]:
    """The furthest that each kind of number is away, in parts of its tensor's largest."""

    def furthest(a: Any, b: Any) -> float:
        return float((a.double() - b.double()).abs().max() / b.double().abs().max().clamp(min=1e-12))

    def pairs(what: str) -> Any:
        return zip(found[what], want[what], strict=True)

    assert found["gradients"].keys() == want["gradients"].keys()
    assert found["weights"].keys() == want["weights"].keys()
    return {
        "scores": max(furthest(a, b) for a, b in pairs("scored")),
        "losses": max(abs(a[n] - b[n]) / abs(b[n]) for a, b in pairs("losses") for n in b),
        "norms": max(abs(a - b) / b for a, b in pairs("norms")),
        "gradients": max(furthest(g, want["gradients"][n]) for n, g in found["gradients"].items()),
        "weights": max(furthest(w, want["weights"][n]) for n, w in found["weights"].items()),
    }


def compared(spec: Any, documents: Any, nll: Any) -> dict[str, Any]:
    """A model's steps in fp32 beside the local layers', and which kernels they took."""
    local = te_python.policy(spec=spec, dtype="fp32", moments="fp32", device="cpu")
    ours = te_python.policy(spec=spec, dtype="fp32", moments="fp32")
    want = steps(local, documents, nll)
    TAKEN.clear()
    with on_a_gpu():
        found = steps(ours, documents, nll)
    of_weights = [call for _, call in TAKEN if call.get("weights")]
    return {
        "apart": apart(found, want),
        "kernels": sorted({kernel for kernel, _ in TAKEN}),
        "of_weights": [len(of_weights), sum(call["to"] and call["adds"] for call in of_weights)],
    }


def in_bf16(documents: Any, nll: Any) -> dict[str, Any]:
    """Three updates of a bf16 policy: their losses, and what Transformer Engine's Adam was given in the last, at most
    100,000 parameters at a time or a larger one."""
    from r1mega.trainer import optimizer

    optimizer.PART_BYTES = 4 * 100_000
    policy = te_python.policy(mtp="off")
    losses = []
    with on_a_gpu(fp32=False):
        for _ in range(3):
            TAKEN.clear()
            losses.append(policy.forward_backward(documents, nll)["loss"])
            policy.optim_step(1e-3)
    parts = [part.optimizer for part in policy.optimizer.chained_optimizers]
    groups = [group for part in parts for group in part.param_groups if group["params"]]
    return {
        "losses": losses,
        "class": sorted({type(part).__mro__[1].__module__ for part in parts}),
        "moments": sorted({str(t.dtype) for part in parts for state in part.state.values() for t in state.values()}),
        "numbers": [call["numbers"] for kernel, call in TAKEN if kernel == "multi_tensor_adam"],
        "largest": max(p.numel() for group in groups for p in group["params"]),
        "parameters": sum(p.numel() for group in groups for p in group["params"]),
        "steps": [group["step"] for group in groups],
    }


def main() -> None:
    te_kernels.KERNELS.update({name: recording(name, kernel) for name, kernel in te_kernels.KERNELS.items()})
    told: dict[str, Any] = {"version": te_stub.install(kernels=True)}
    from policies import documents, nll, small

    from r1mega.buffers import Int32s
    from r1mega.families.registry import read_model

    drawn = documents()[:10]
    for name, spec in (("deepseek_v3", small()), ("qwen2", read_model(ROOT / "configs/tiny/qwen2.json"))):
        few = (Int32s(i % spec.vocab_size for i in d.token_ids) for d in drawn)
        told[name] = compared(spec, [replace(d, token_ids=ids) for d, ids in zip(drawn, few, strict=True)], nll)
    told["bf16"] = in_bf16(drawn, nll)
    print(json.dumps(told))


if __name__ == "__main__":
    main()
