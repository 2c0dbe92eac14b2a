"""Rows between Megatron and Hugging Face: bitwise both ways, cut and put together at every tensor-parallel size."""

from dataclasses import replace

import pytest
import torch
from published import DEEPSEEK_V3, LLAMA31_8B, QWEN25_05B, QWEN25_32B

from r1mega.families.registry import FAMILIES
from r1mega.families.spec import Kind, Row, Shard
from r1mega.layout.shards import padding, part_shape, pieces

QKV = Row("qkv", ("q", "k", "v"), ((24, 5), (8, 5), (8, 5)), Kind.QKV, Shard.ROWS, groups=4)
BIAS = Row("bias", ("q", "k", "v"), ((24,), (8,), (8,)), Kind.QKV, Shard.ROWS, groups=4)
ENDS = {"bos_token_id": 1, "eos_token_id": 2}
GATED = Row("fc1", ("gate", "up"), ((12, 5), (12, 5)), Kind.GATED, Shard.ROWS)


def numbered(*shape: int, start: int = 0) -> torch.Tensor:
    size = torch.Size(shape).numel()
    return torch.arange(start, start + size, dtype=torch.float32).view(shape)


@pytest.mark.parametrize("row", [QKV, BIAS, GATED, Row("x", ("x",), ((6, 5),), Kind.DIRECT, Shard.ROWS)])
def test_rows_are_bitwise_both_ways(mesh, row):
    from r1mega.formats.mapping import to_hf, to_megatron

    parts = [numbered(*shape, start=1000 * i) for i, shape in enumerate(row.hf_shapes)]
    whole = to_megatron(row, parts)
    assert whole.shape == row.shape
    back = dict(to_hf(row, whole))
    assert list(back) == list(row.hf)
    assert all(torch.equal(a, b) for a, b in zip(back.values(), parts, strict=True))
    other = numbered(*row.shape)
    assert torch.equal(to_megatron(row, [t for _, t in to_hf(row, other)]), other)


def test_a_fused_row_goes_by_key_value_heads(mesh):
    """Six query heads of 4 channels over 2 key-value heads: q0 q1 q2 k0 v0 q3 q4 q5 k1 v1."""
    from r1mega.formats.mapping import to_megatron

    row = Row("qkv", ("q", "k", "v"), ((24,), (8,), (8,)), Kind.QKV, Shard.ROWS, groups=2)
    whole = to_megatron(row, [numbered(24), numbered(8, start=100), numbered(8, start=200)])
    heads = [head[0].item() for head in whole.view(-1, 4)]
    assert heads == [0, 4, 8, 100, 200, 12, 16, 20, 104, 204]


@pytest.mark.parametrize("num_parts", [1, 2, 4])
@pytest.mark.parametrize("row", [QKV, BIAS, GATED])
def test_parts_make_up_the_whole(row, num_parts):
    whole, covered = numbered(*row.shape), torch.zeros(row.shape)
    for part in range(num_parts):
        dim, ranges = pieces(row, part, num_parts)
        assert dim == 0
        assert sum(stop - start for start, stop in ranges) == part_shape(row, num_parts)[0]
        assert padding(row, part, num_parts) == 0
        for start, stop in ranges:
            covered[start:stop] += whole[start:stop]
    assert torch.equal(covered, whole)


def test_a_rank_gets_whole_query_groups():
    """What tensor parallelism cuts is what a model of fewer heads would have."""
    dim, ranges = pieces(QKV, 1, 2)
    assert (dim, ranges) == (0, [(20, 40)])
    assert 20 % (QKV.shape[0] // QKV.groups) == 0


@pytest.mark.parametrize(
    ("hf", "tp", "share"),
    [
        (QWEN25_05B, 8, 18992),
        (QWEN25_32B, 8, 19008),
        (DEEPSEEK_V3, 8, 16160),
        (LLAMA31_8B, 7, 18323),
        ({**LLAMA31_8B, "vocab_size": 49153, **ENDS}, 8, 6145),
        ({**LLAMA31_8B, "vocab_size": 101, **ENDS}, 8, 13),
    ],
)
def test_the_vocabulary_is_padded_to_equal_shares(hf, tp, share):
    spec = FAMILIES[hf["model_type"]](hf)
    row = spec.tensors()[0]
    assert row.shape[0] == hf["vocab_size"]
    assert part_shape(row, tp) == (share, hf["hidden_size"])
    ends = [pieces(row, part, tp)[1][0] for part in range(tp)]
    assert [start for start, _ in ends] == [share * part for part in range(tp)]
    assert ends[-1][1] == hf["vocab_size"]
    assert [padding(row, part, tp) for part in range(tp)] == [0] * (tp - 1) + [share * tp - hf["vocab_size"]]


def test_a_repeated_tied_head_is_read_and_must_be_equal(mesh):
    from r1mega.errors import WeightMappingError
    from r1mega.formats.one_to_one import check_files
    from r1mega.trainer.network.filling import fill

    row = Row("embedding", ("embed",), ((4, 3),), Kind.DIRECT, Shard.VOCAB, also=("lm_head",))
    check_files([row], [("embed", (4, 3))])
    check_files([row], [("embed", (4, 3)), ("lm_head", (4, 3))])
    with pytest.raises(WeightMappingError, match="lm_head: shape"):
        check_files([row], [("embed", (4, 3)), ("lm_head", (5, 3))])
    with pytest.raises(WeightMappingError, match="lm_head: unmapped"):
        check_files([replace(row, also=())], [("embed", (4, 3)), ("lm_head", (4, 3))])
    state = {"embedding": torch.zeros(4, 3)}
    files = {"embed": numbered(4, 3), "lm_head": numbered(4, 3)}
    fill([row], files.get, state)
    assert torch.equal(state["embedding"], numbered(4, 3))
    files["lm_head"][2, 1] += 1
    with pytest.raises(WeightMappingError, match="lm_head: differs"):
        fill([row], files.get, state)
