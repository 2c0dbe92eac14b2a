"""Attention by segments equals attention over the whole chunk under a block mask."""

import torch
from test_trainer_grouped import assert_attends_as_torch


def test_segments_equal_a_masked_chunk(mesh, spec):
    from r1mega.config.cluster import TrainerLayout
    from r1mega.trainer.network.attention import Attention, segments
    from r1mega.trainer.network.model import megatron_config

    torch.manual_seed(0)
    size, chunks, heads = 40, 2, 4
    bounds = [(0, 0, 17), (0, 17, 40), (1, 0, 3), (1, 3, 36), (1, 36, 40)]
    runs = [range(start * chunks + b, stop * chunks + b, chunks) for b, start, stop in bounds]
    segs = segments(runs, (size, chunks))
    owner = torch.empty(chunks, size, dtype=torch.int64)
    for i, (b, start, stop) in enumerate(bounds):
        owner[b, start:stop] = i
    visible = (owner[:, :, None] == owner[:, None, :]) & torch.ones(size, size, dtype=torch.bool).tril()
    qkv = [torch.randn(size, chunks, heads, d, requires_grad=True) for d in (64, 64, 32)]
    core = Attention(megatron_config(spec, TrainerLayout(), expert_bias_rate=0.0), softmax_scale=0.125)
    got = core(*qkv, segs)
    assert_attends_as_torch(qkv, got, attn_mask=visible[:, None], scale=0.125)


def test_every_row_has_a_slot_and_padding_has_none():
    from r1mega.trainer.network.attention import segments

    segs = segments([range(0, 20), range(20, 25), range(25, 60)], (60, 1))
    assert segs.batches == ((1, 16), (1, 32), (1, 48))
    assert torch.equal(segs.rows[segs.slots], torch.arange(60))
    assert int(segs.padding.sum()) == 16 + 32 + 48 - 60
