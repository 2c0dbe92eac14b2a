"""A dozen of Transformer Engine's kernels in plain PyTorch, by what its Python asks of each.

Enough for a training step in bf16 or fp32 through its own autograd functions, on a machine without a GPU. What is not
here stops a step, by its name.

Shapes: T tokens, H channels, E experts, D documents, N query heads, G key-value heads.
"""

import itertools
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

DTYPES = {"kFloat32": torch.float32, "kBFloat16": torch.bfloat16}


def dtype_of(named: Any) -> torch.dtype:
    """PyTorch's of the library's."""
    return DTYPES[repr(named).rpartition(".")[2]]


def rmsnorm_fwd(x: Tensor, weight: Tensor, eps: float, out: Any, quantizer: Any, dtype: Any, *_: Any) -> Any:
    """x: [T, H]; returns the norm of the asked dtype, nothing, and 1 / rms, [T] fp32."""
    assert out is None and quantizer is None, "no FP8 here"
    scale = torch.rsqrt(x.float().square().mean(-1) + eps)
    return (x.float() * scale[:, None] * weight.float()).to(dtype_of(dtype)), None, scale


def rmsnorm_bwd(grad: Tensor, x: Tensor, scale: Tensor, weight: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    normed, pulled = x.float() * scale[:, None], grad.float() * weight.float()
    grad_x = (pulled - normed * (pulled * normed).mean(-1, keepdim=True)) * scale[:, None]
    return grad_x.to(x.dtype), (grad.float() * normed).sum(0).to(weight.dtype)


def _product(a: Tensor, transa: bool, b: Tensor, transb: bool) -> Tensor:
    """op(b) op(a), which is how a library that counts columns first sees op(a) op(b); fp32."""
    left, right = b.flatten(0, -2).float(), a.flatten(0, -2).float()
    return (left.T if transb else left) @ (right.T if transa else right)


def generic_gemm(
    a: Tensor, transa: bool, b: Tensor, transb: bool, out: Tensor | None, quantizer: Any, dtype: Any,
    bias: Tensor | None, bias_dtype: Any, gelu: bool, gelu_in: Any, grad: bool, workspace: Any, size: int,
    accumulate: bool, split: bool, **others: Any,
) -> tuple[Tensor, Tensor | None, None, None]:  # fmt: skip
    """The product, added to `out` or written there where it is given; on the way back the bias's gradient too."""
    assert quantizer is None and not gelu and others.get("comm_overlap") is None, "no FP8, no overlap here"
    found = _product(a, transa, b, transb)
    bias_grad = b.flatten(0, -2).float().sum(0).to(bias.dtype) if grad and bias is not None else None
    if bias is not None and not grad:
        found += bias.float()
    if not transb:
        found = found.view(*b.shape[:-1], found.shape[-1])
    if out is None:
        return found.to(dtype_of(dtype) if dtype is not None else a.dtype), bias_grad, None, None
    (out.add_ if accumulate else out.copy_)(found.view(out.shape))
    return out, bias_grad, None, None


def te_general_grouped_gemm(
    a: list[Tensor], transa: bool, b: list[Tensor], transb: bool, out: list[Tensor], dtype: Any, splits: list[int],
    bias: list[Tensor], bias_dtype: Any, single: bool, gelu_in: Any, grad: bool, workspaces: Any, size: int,
    accumulate: bool, *_: Any,
) -> list[Tensor]:  # fmt: skip
    """As many products; into parts of one output where it is `single`."""
    assert not any(one.numel() for one in bias), "experts have no bias here"
    outs = list(out[0].split(splits)) if single else out
    for one, left, right in zip(outs, a, b, strict=True):
        found = _product(left, transa, right, transb).view(one.shape)
        (one.add_ if accumulate else one.copy_)(found)
    return bias


def _attend(q: Tensor, k: Tensor, v: Tensor, offsets: list[int], scale: float) -> Tensor:
    """Causal attention of each document to itself.

    q: [T, N, C]; k: [T, G, C]; v: [T, G, C']; returns [T, N, C'] fp32.
    """
    outs, shared = [], q.shape[1] // k.shape[1]
    for begin, end in itertools.pairwise(offsets):
        here = slice(begin, end)
        queries, keys, values = (x[here].float().transpose(0, 1) for x in (q, k, v))
        keys, values = keys.repeat_interleave(shared, 0), values.repeat_interleave(shared, 0)
        scores = queries @ keys.transpose(1, 2) * scale
        future = torch.ones(end - begin, end - begin, dtype=torch.bool).triu(1)
        outs.append((scores.masked_fill(future, -torch.inf).softmax(-1) @ values).transpose(0, 1))
    return torch.cat(outs)


def _asked(layout: Any, mask: Any, cumulative: Tensor, padded: Tensor | None, rows: int) -> list[int]:
    """Where documents begin, of an attention that is one of those that this can do."""
    assert repr(layout).endswith("NVTE_THD_THD_THD"), layout
    assert repr(mask).endswith("PADDING_CAUSAL_MASK"), mask
    assert padded is None or torch.equal(padded, cumulative), "gaps between documents"
    offsets = cumulative.tolist()
    assert offsets[-1] == rows, (offsets, rows)
    return offsets


def fused_attn_fwd(
    longest_q: int, longest_kv: int, training: bool, scale: float, dropout: float, fill: bool, layout: Any, bias: Any,
    mask: Any, softmax: Any, window: Any, cu_q: Tensor, cu_kv: Tensor, q: Tensor, k: Tensor, v: Tensor, dtype: Any,
    padded_q: Tensor | None, padded_kv: Tensor | None, *_: Any,
) -> list[Tensor]:  # fmt: skip
    """Output [T, N, C'], and what the way back is given again."""
    offsets = _asked(layout, mask, cu_q, padded_q, len(q))
    assert dropout == 0.0 and torch.equal(cu_q, cu_kv)
    assert longest_q >= max(b - a for a, b in itertools.pairwise(offsets))
    return [_attend(q, k, v, offsets, scale).to(q.dtype), torch.zeros(1), torch.zeros(2)]


def fused_attn_bwd(
    longest_q: int, longest_kv: int, scale: float, dropout: float, fill: bool, layout: Any, bias: Any, mask: Any,
    softmax: Any, window: Any, deterministic: bool, cu_q: Tensor, cu_kv: Tensor, q: Tensor, k: Tensor, v: Tensor,
    out: Tensor, grad: Tensor, dtype: Any, grads_dtype: Any, aux: list[Tensor], padded_q: Tensor | None, *_: Any,
) -> list[Any]:  # fmt: skip
    offsets = _asked(layout, mask, cu_q, padded_q, len(q))
    with torch.enable_grad():
        given = [x.detach().requires_grad_() for x in (q, k, v)]
        found = _attend(given[0], given[1], given[2], offsets, scale)
        return [*torch.autograd.grad(found, given, grad.view(found.shape).float()), None, None]


def multi_tensor_adam(
    chunk: int, skip: Tensor, lists: list[list[Tensor]], lr: float, beta1: float, beta2: float, eps: float, step: int,
    mode: int, corrects: int, decay: float,
) -> None:  # fmt: skip
    """AdamW on lists of gradients, parameters and moments, all fp32."""
    assert mode == 1 and corrects == 1
    for grad, param, m, v in zip(*lists, strict=True):
        assert m.dtype is v.dtype is torch.float32
        m.lerp_(grad.float(), 1 - beta1)
        v.mul_(beta2).addcmul_(grad.float(), grad.float(), value=1 - beta2)
        update = (m / (1 - beta1**step)) / ((v / (1 - beta2**step)).sqrt() + eps)
        param.sub_(lr * (update + decay * param))


def multi_tensor_l2norm(chunk: int, skip: Tensor, lists: list[list[Tensor]], per_tensor: bool = False) -> Any:
    assert not per_tensor
    return torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(t.float()) for t in lists[0]]))[None], None


def multi_tensor_scale(chunk: int, skip: Tensor, lists: list[list[Tensor]], scale: Any) -> None:
    for source, target in zip(*lists, strict=True):
        target.copy_(source * scale)


KERNELS = {
    kernel.__name__: kernel
    for kernel in (
        rmsnorm_fwd, rmsnorm_bwd, generic_gemm, te_general_grouped_gemm, fused_attn_fwd, fused_attn_bwd,
        multi_tensor_adam, multi_tensor_l2norm, multi_tensor_scale,
    )
}  # fmt: skip
"""Of the compiled library, by their names there."""

# ---- of tokens to experts, which are in Triton ---------------------------------------------------------------


def make_row_id_map(routing_map: Tensor, num_tokens: int, num_experts: int) -> Tensor:
    """[T, 2 E + 1] int32 in the form that its documentation has: of each token the rows that it goes to, the experts
    whose they are, and how many. routing_map: [T, E] bool."""
    rows = torch.zeros(num_tokens, 2 * num_experts + 1, dtype=torch.int32)
    place = routing_map.T.flatten().cumsum(0).view(num_experts, num_tokens) - 1
    for token in range(num_tokens):
        experts = routing_map[token].nonzero()[:, 0]
        rows[token, : len(experts)] = place[experts, token]
        rows[token, num_experts : num_experts + len(experts)] = experts
        rows[token, -1] = len(experts)
    return rows


def _pairs(rows: Tensor, num_experts: int) -> tuple[Tensor, Tensor, Tensor]:
    """Token, row and expert of every choice."""
    counts = rows[:, -1]
    chosen = torch.arange(num_experts)[None] < counts[:, None]
    tokens = chosen.nonzero()[:, 0]
    return tokens, rows[:, :num_experts][chosen].long(), rows[:, num_experts : 2 * num_experts][chosen].long()


def permute_with_mask_map(
    x: Tensor,
    rows: Tensor,
    probs: Tensor | None,
    scale: Any,
    num_tokens: int,
    num_experts: int,
    num_out: int,
    *_: Any,
) -> tuple[Tensor, None, Tensor | None]:
    tokens, places, experts = _pairs(rows, num_experts)
    out = x.new_zeros(num_out, x.shape[1])
    out[places] = x[tokens]
    if probs is None:
        return out, None, None
    permuted = probs.new_zeros(num_out)
    permuted[places] = probs[tokens, experts]
    return out, None, permuted


def unpermute_with_mask_map(
    x: Tensor,
    rows: Tensor,
    merging: Tensor | None,
    permuted: Tensor | None,
    num_tokens: int,
    num_experts: int,
    *_: Any,
) -> tuple[Tensor, Tensor | None]:
    tokens, places, experts = _pairs(rows, num_experts)
    taken = x[places].float()
    if merging is not None:
        taken = taken * merging[tokens, experts].float()[:, None]
    out = torch.zeros(num_tokens, x.shape[1]).index_add_(0, tokens, taken).to(x.dtype)
    if permuted is None:
        return out, None
    probs = permuted.new_zeros(num_tokens, num_experts)
    probs[tokens, experts] = permuted[places]
    return out, probs


def put_into(permutation: ModuleType) -> None:
    """Into Transformer Engine's module of the autograd functions that call them."""
    of_triton = permutation.triton_permutation
    for function in (make_row_id_map, permute_with_mask_map, unpermute_with_mask_map):
        setattr(of_triton, function.__name__, function)
