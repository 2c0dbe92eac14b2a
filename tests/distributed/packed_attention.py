"""Attention as Transformer Engine's is called, on the CPU: packed rows, also divided over context-parallel ranks.

It stands in for the kernel alone: everything that a GPU run does around it is what is tested.
"""

from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from megatron.core import parallel_state
from megatron.core.transformer.module import MegatronModule

from r1mega.trainer import policy
from r1mega.trainer.batch import Form
from r1mega.trainer.context import unzigzag, zigzag
from r1mega.trainer.network import layer_spec


class _AllRows(torch.autograd.Function):
    """Every rank's rows, in the row's order."""

    @staticmethod
    def forward(ctx: Any, mine, lengths, group):
        ctx.lengths, ctx.group = lengths, group
        parts = [torch.empty_like(mine) for _ in range(group.size())]
        dist.all_gather(parts, mine.contiguous(), group=group)
        return torch.cat(parts)[unzigzag(lengths, group.size())]

    @staticmethod
    def backward(ctx: Any, grad):
        grad = grad.contiguous()
        dist.all_reduce(grad, group=ctx.group)
        return grad[zigzag(ctx.lengths, ctx.group.size(), ctx.group.rank())], None, None


class PackedAttention(MegatronModule):
    def __init__(self, config, softmax_scale, **_):
        super().__init__(config=config)
        self.softmax_scale = softmax_scale

    def forward(self, query, key, value, attention_mask, *, packed_seq_params, **_):
        """query, key: [T / cp, N, D]; value: [T / cp, N, Dv]; returns [T / cp, N * Dv]."""
        assert attention_mask is None
        assert packed_seq_params.qkv_format == "thd"
        lengths = packed_seq_params.cu_seqlens_q.diff().tolist()
        assert max(lengths) == packed_seq_params.max_seqlen_q
        group: Any = parallel_state.get_context_parallel_group()
        rows = zigzag(lengths, group.size(), group.rank()) if group.size() > 1 else torch.arange(len(query))
        if group.size() > 1:
            key, value = (_AllRows.apply(x, lengths, group) for x in (key, value))
        owner = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
        visible = (owner[rows][:, None] == owner) & (rows[:, None] >= torch.arange(len(owner)))
        q, k, v = (x.transpose(0, 1)[None] for x in (query, key, value))
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=visible, scale=self.softmax_scale, enable_gqa=True)
        return out[0].transpose(0, 1).flatten(1)


@contextmanager
def in_place_of_the_kernel():
    """Policies built meanwhile pack rows and attend as on a GPU."""
    build, attention = policy.Policy.build.__func__, layer_spec.Attention  # type: ignore[attr-defined]

    def packed(cls, spec, mesh, *arguments, **others):
        built = build(cls, spec, mesh, *arguments, **others)
        built.form = Form(packed=True, cp=mesh.layout.cp, rank=mesh.context_rank, tp=mesh.layout.tp)
        return built

    policy.Policy.build, layer_spec.Attention = classmethod(packed), PackedAttention
    try:
        yield
    finally:
        policy.Policy.build, layer_spec.Attention = classmethod(build), attention
