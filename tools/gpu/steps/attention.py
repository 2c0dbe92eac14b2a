"""Attention alone as DeepSeek-V3 has it: 16 heads (128 over eight ranks) of 192 and 128 channels, one packed row
of 34,816 tokens in documents of all lengths, both ways: which kernel, how fast, and is it the same twice."""

import os
import random
from typing import Any

import torch
from report import Report, relative, seconds

HEADS, WIDE, NARROW = 16, 192, 128


def lengths(total: int) -> list[int]:
    """Of documents from 16 tokens to a quarter of the row, and one as long as what is left."""
    rng, drawn = random.Random(0), list[int]()
    while (left := total - sum(drawn)) > total // 3:
        drawn.append(min(left, round(16 * (total / 64) ** rng.random())))
    return [*drawn, left]


def made(te: Any) -> Any:
    return te.DotProductAttention(
        HEADS, (WIDE, NARROW), qkv_format="thd", attn_mask_type="padding_causal", softmax_scale=WIDE**-0.5,
        attention_dropout=0.0,
    )  # fmt: skip


def both_ways(module: Any, row: list[torch.Tensor], cumulative: torch.Tensor, longest: int) -> list[torch.Tensor]:
    """Output and gradients of queries, keys and values for one fixed gradient."""
    given = [x.detach().requires_grad_() for x in row]
    out = module(
        *given, cu_seqlens_q=cumulative, cu_seqlens_kv=cumulative, max_seqlen_q=longest, max_seqlen_kv=longest,
        attn_mask_type="padding_causal",
    )  # fmt: skip
    out.backward(torch.ones_like(out))
    return [out.detach(), *(x.grad for x in given)]  # type: ignore[misc]


def exact(row: list[torch.Tensor], place: slice) -> torch.Tensor:
    """A document's output in fp64. Returns [L, HEADS * NARROW]."""
    q, k, v = (x[place].double().transpose(0, 1) for x in row)
    scores = q @ k.transpose(1, 2) * WIDE**-0.5
    future = torch.ones(scores.shape[1:], dtype=torch.bool, device=scores.device).triu(1)
    return (scores.masked_fill(future, -torch.inf).softmax(-1) @ v).transpose(0, 1).flatten(1)


def main() -> None:
    report = Report(__doc__ or "")
    total = 34816 if report.cuda else 512
    documents = lengths(total)
    torch.manual_seed(0)
    row = [torch.randn(total, HEADS, d, device=report.device, dtype=torch.bfloat16) for d in (WIDE, WIDE, NARROW)]
    cumulative = torch.tensor([0, *documents]).cumsum(0).int().to(report.device)
    report.note(tokens=total, documents=len(documents), longest=max(documents))
    if not report.cuda:
        import te_python
        import te_stub

        from r1mega.config.cluster import TrainerLayout
        from r1mega.trainer import mesh

        te_stub.install()
        mesh.start(TrainerLayout(), device="cpu", seed=0)  # CUDA's names mean the CPU from here on
        import transformer_engine.pytorch as te  # pyright: ignore[reportMissingImports]

        module = made(te)
        with te_python.reaching() as kernel:
            both_ways(module, row, cumulative, max(documents))
        report.no_kernels(f"attention made and called on the packed row, up to {kernel[0]}")
    import transformer_engine.pytorch as te  # pyright: ignore[reportMissingImports]

    # Two products forwards and five backwards, of which the causal mask leaves half.
    flops = sum(n * n for n in documents) * HEADS * (WIDE + NARROW + 3 * WIDE + 2 * NARROW)
    for name, allowed in (("default", "1"), ("deterministic", "0")):
        os.environ["NVTE_ALLOW_NONDETERMINISTIC_ALGO"] = allowed
        module = made(te)
        first, second = (both_ways(module, row, cumulative, max(documents)) for _ in range(2))
        same = [torch.equal(a, b) for a, b in zip(first, second, strict=True)]
        taken = seconds(lambda module=module: both_ways(module, row, cumulative, max(documents)), "cuda")
        place = slice(0, documents[0])
        error = relative(first[0][place].flatten(1), exact(row, place))
        report.note(**{name: {
            "same_twice": dict(zip(("out", "dq", "dk", "dv"), same, strict=True)), "seconds": taken,
            "tflop_per_s": round(flops / taken / 1e12, 1), "error": error,
        }})  # fmt: skip
        assert error < 2e-2, (name, error)
        assert name == "default" or all(same), same
    from transformer_engine.pytorch.attention.dot_product_attention import (  # pyright: ignore[reportMissingImports]
        dot_product_attention as chosen,
    )

    backends = {n: v for n, v in chosen._attention_backends.items() if n.startswith("use_")}
    report.note(
        backends={n: bool(v) for n, v in backends.items()}, peak_gib=torch.cuda.max_memory_allocated() / 2**30
    )
    assert backends.get("use_fused_attention"), backends  # an unfused one is quadratic in memory


if __name__ == "__main__":
    main()
