"""Packed rows and context parallelism: who attends to whom, which rank has what, and everything in order again."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from r1mega.buffers import Int32s
from r1mega.samples import Document


@pytest.fixture(scope="module")
def built(mesh):
    """The modules under test: they meet Megatron, hence not before the mesh has mended it."""
    from r1mega.trainer import batch, context
    from r1mega.trainer.network import thd

    return batch, context, thd


def pairs_of_segments(segs, num_rows: int) -> set[tuple[int, int]]:
    """(row, row it sees) of the local attention, from its slots."""
    rows, seen = segs.rows.tolist(), set()
    empty, start = segs.padding.flatten().tolist(), 0
    for num, length in segs.batches:
        for _ in range(num):
            here = [rows[i] for i in range(start, start + length) if not empty[i]]
            seen |= {(here[i], here[j]) for i in range(len(here)) for j in range(i + 1)}
            start += length
    assert {a for a, _ in seen} == set(range(num_rows))
    return seen


def pairs_of_packed(packed) -> set[tuple[int, int]]:
    """The same of causal attention within cumulative lengths."""
    bounds = packed.cu_seqlens.tolist()
    return {(i, j) for a, b in itertools.pairwise(bounds) for i in range(a, b) for j in range(a, i + 1)}


def make(lengths):
    """Documents whose tokens are all distinct and count upwards."""
    return [Document(Int32s(range(100 * i + 3, 100 * i + 3 + n)), 1 + i % 2) for i, n in enumerate(lengths)]


@pytest.mark.parametrize("multiple_of", [(1, 1), (2, 1), (2, 2)], ids=["cp1", "cp2", "cp2tp2"])
def test_a_packed_row_attends_as_chunks_beside_each_other_do(built, multiple_of):
    """Row for row the same tokens, positions and targets; a document's token sees what it sees in the mask."""
    batch, _, _ = built
    from r1mega.config.training import Batch

    cp, tp = multiple_of
    documents, settings = make([5, 17, 8, 30, 1, 12]), Batch(chunk_tokens=64, chunks_per_micro_batch=2)
    (beside,) = batch.micro_batches(documents, settings, mtp_depths=1)
    form = batch.Form(packed=True, cp=cp, tp=tp)
    if cp > 1:  # the whole row, before it is divided
        form = batch.Form(packed=True, cp=1, tp=1)
        form = type("Padded", (batch.Form,), {"multiple": property(lambda _: batch.document_multiple(cp, tp))})(True)
    (row,) = batch.micro_batches(documents, settings, mtp_depths=1, form=form)
    assert row.input_ids.shape == (1, beside.input_ids.numel())
    ids, other = row.input_ids[0], beside.input_ids.T.flatten()  # rows of [S, B] flattened
    for a, b in zip((row.targets, *row.mtp_targets), (beside.targets, *beside.mtp_targets), strict=True):
        one = sorted(zip(ids[a.rows].tolist(), a.ids.tolist(), strict=True))
        assert one == sorted(zip(other[b.rows].tolist(), b.ids.tolist(), strict=True))
    # Tokens are distinct: what each one sees, by token.
    seen = [
        {(x[i].item(), x[j].item()) for i, j in pairs if not p[i] and not p[j]}
        for x, p, pairs in (
            (ids, row.padding_mask[0], pairs_of_packed(row.segments)),
            (other, beside.padding_mask.T.flatten(), pairs_of_segments(beside.segments, len(other))),
        )
    ]
    assert seen[0] == seen[1]
    visible_padding = [(i, j) for i, j in pairs_of_packed(row.segments) if not row.padding_mask[0, i]]
    assert not any(row.padding_mask[0, j] for _, j in visible_padding)
    assert row.segments.longest == max(row.segments.cu_seqlens.diff())
    assert row.segments.cu_seqlens.dtype is torch.int32
    real = ~row.padding_mask[0]
    places = dict(zip(ids[real].tolist(), row.position_ids[0][real].tolist(), strict=True))
    kept = ~beside.padding_mask
    assert places == dict(zip(beside.input_ids[kept].tolist(), beside.position_ids[kept].tolist(), strict=True))


def test_what_transformer_engine_is_told(built):
    _, _, thd = built
    params = thd.packed([3, 7, 2]).params
    assert params.qkv_format == "thd"
    assert params.cu_seqlens_q.tolist() == params.cu_seqlens_kv.tolist() == [0, 3, 10, 12]
    assert params.max_seqlen_q == params.max_seqlen_kv == 7
    assert params.cu_seqlens_q_padded is None


def test_blocks_are_dealt_from_both_ends(built):
    _, context, _ = built
    assert context.zigzag([8, 4], 2, 0).tolist() == [0, 1, 6, 7, 8, 11]
    assert context.zigzag([8, 4], 2, 1).tolist() == [2, 3, 4, 5, 9, 10]
    with pytest.raises(ValueError, match=r"document of 6 rows .* 2 x cp = 4"):
        context.zigzag([8, 6], 2, 0)


@given(st.sampled_from([2, 3, 4]), st.lists(st.integers(1, 5), min_size=1, max_size=6))
def test_every_row_has_one_rank_and_comes_back(cp, blocks):
    from r1mega.trainer import context

    lengths = [2 * cp * n for n in blocks]
    parts = [context.zigzag(lengths, cp, rank) for rank in range(cp)]
    assert sorted(torch.cat(parts).tolist()) == list(range(sum(lengths)))
    assert len({len(part) for part in parts}) == 1
    values = torch.arange(sum(lengths)) * 7
    dealt = torch.cat([values[part] for part in parts])
    assert torch.equal(dealt[context.unzigzag(lengths, cp)], values)
    # Each rank does as much causal attention as the others: pairs (row, rows before it in its document).
    starts = torch.tensor([0, *lengths]).cumsum(0)
    before = torch.arange(sum(lengths)) - starts[torch.bucketize(torch.arange(sum(lengths)), starts, right=True) - 1]
    assert len({int((before[part] + 1).sum()) for part in parts}) == 1


@pytest.mark.parametrize(("cp", "tp"), [(2, 1), (3, 1), (2, 2)])
def test_ranks_share_the_targets_of_a_row(built, cp, tp):
    """Labels were paired before the row was cut: over the ranks every target stands once, at its own predictor."""
    batch, _, _ = built
    from r1mega.config.training import Batch

    documents, settings = make([5, 17, 8, 30, 1, 12]), Batch(chunk_tokens=96, chunks_per_micro_batch=1)
    ranks = [
        batch.micro_batches(documents, settings, mtp_depths=2, form=batch.Form(packed=True, cp=cp, rank=r, tp=tp))
        for r in range(cp)
    ]
    for parts in zip(*ranks, strict=True):
        assert len({part.documents for part in parts}) == 1
        assert len({tuple(part.segments.cu_seqlens.tolist()) for part in parts}) == 1
        assert {part.input_ids.shape for part in parts} == {(1, 96 // cp)}
        assert {tuple(part.segments.positions.shape) for part in parts} == {(96 // cp, 1)}
        for depth in range(3):
            targets = [(p.targets, *p.mtp_targets)[depth] for p in parts]
            places = torch.cat([t.places for t in targets])
            assert sorted(places.tolist()) == list(range(targets[0].total))
            for part, t in zip(parts, targets, strict=True):
                at = part.input_ids[0][t.rows]
                assert torch.equal(at + depth + 1, t.ids)  # documents count upwards
                assert not part.padding_mask[0][t.rows].any()
                if depth:
                    seen = part.ahead[depth - 1]
                    assert torch.equal(seen.ids[0][t.rows], t.ids - 1)
                    inside = ~seen.padding
                    assert torch.equal(seen.ids[inside], part.input_ids[inside] + depth)
            if depth:
                found = sum(int((~part.ahead[depth - 1].padding).sum()) for part in parts)
                assert found == sum(max(0, len(documents[i].token_ids) - depth) for i in parts[0].documents)
        whole = torch.zeros(parts[0].targets.total, dtype=torch.int64)
        for part in parts:
            whole[part.targets.places] = part.targets.ids
        order = [documents[i] for i in parts[0].documents]
        assert whole.tolist() == [x for d in order for x in d.token_ids[d.learn_from :]]


def test_gathered_values_are_in_order_and_gradients_go_home(built, monkeypatch):
    """Two ranks played one after the other; the collective adds what the other one brings."""
    _, context, _ = built
    places = [torch.tensor([0, 3, 4]), torch.tensor([1, 2])]
    values = [torch.tensor([1.0, 4.0, 5.0]), torch.tensor([2.0, 3.0])]
    for rank in (0, 1):
        other = torch.zeros(5).index_put((places[1 - rank],), values[1 - rank])
        monkeypatch.setattr(torch.distributed, "all_reduce", lambda x, group, other=other: x.add_(other))
        mine = values[rank].clone().requires_grad_()
        whole = context.gathered(mine, places[rank], 5, None)
        assert whole.tolist() == [1, 2, 3, 4, 5]
        (whole * torch.tensor([10.0, 20, 30, 40, 50])).sum().backward()
        assert mine.grad.tolist() == [[10, 40, 50], [20, 30]][rank]
