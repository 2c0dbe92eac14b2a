"""Placement: the ranks' pieces tile every tensor, at full size too, and ranks are counted as Megatron counts them."""

import itertools
from dataclasses import replace

import pytest
from published import DEEPSEEK_V3, LLAMA31_8B, LLAMA33_70B, QWEN25_05B, QWEN25_32B, SMOLLM2_135M

from r1mega.config.cluster import TrainerLayout
from r1mega.config.training import Batch
from r1mega.families.registry import FAMILIES
from r1mega.layout.laws import check_layout
from r1mega.layout.placement import TensorPart, held, place, stage_contents, stage_layers, stages, tiling_faults


def read(hf):
    return FAMILIES[hf["model_type"]](hf)


@pytest.mark.parametrize(
    ("hf", "layout"),
    [
        (DEEPSEEK_V3, {}),
        (DEEPSEEK_V3, {"pp": 16, "dp": 64, "ep": 64}),
        (DEEPSEEK_V3, {"tp": 8, "pp": 8, "dp": 4, "ep": 32, "etp": 1}),
        (DEEPSEEK_V3, {"tp": 8, "pp": 8, "vpp": 2, "dp": 8, "ep": 64, "etp": 1}),
        (DEEPSEEK_V3, {"pp": 16, "vpp": 2, "dp": 4, "ep": 64, "tp": 16, "pipeline": "Et*3|(tt|)*29m|L"}),
        (DEEPSEEK_V3, {"tp": 4, "pp": 4, "dp": 2, "ep": 2, "etp": 4}),
        (QWEN25_32B, {"tp": 8, "pp": 4, "dp": 2}),
        (QWEN25_32B, {"tp": 4, "pp": 4, "vpp": 4}),
        (QWEN25_05B, {"tp": 2, "pp": 5}),
        (LLAMA31_8B, {"tp": 8, "dp": 2}),
        (LLAMA33_70B, {"tp": 8, "pp": 3}),
        (SMOLLM2_135M, {"tp": 3, "pp": 4}),
    ],
)
def test_every_tensor_is_tiled_at_full_size(hf, layout):
    spec, layout = read(hf), TrainerLayout(**layout)
    check_layout(spec, layout, Batch(chunk_tokens=3 * 4096))
    pieces = list(held(spec, layout))
    assert [rank for rank, _ in pieces] == list(range(layout.ranks))
    assert tiling_faults(spec, layout, pieces) == []
    assert all(of_rank for _, of_rank in pieces)


def test_every_fault_of_a_tiling_is_seen():
    spec, layout = read(SMOLLM2_135M), TrainerLayout(tp=3, pp=2)
    good = {rank: list(of_rank) for rank, of_rank in held(spec, layout)}

    def faults(rank, change):
        return tiling_faults(spec, layout, [(r, change(p) if r == rank else p) for r, p in good.items()])

    def moved(pieces):
        row, dim, ((start, stop),) = next(p for p in pieces if "layers.3.self_attention.linear_qkv" in p.row.megatron)
        rest = [p for p in pieces if p.row is not row]
        return [*rest, TensorPart(row, dim, ((start + 1, stop + 1),))]

    layer = "decoder.layers.3.self_attention.linear_qkv.weight"
    assert faults(1, moved) == [
        f"{layer}: [320, 321) is held 0 times, not 1",
        f"{layer}: [640, 641) is held 2 times, not 1",
    ]
    assert len(faults(0, lambda pieces: pieces[1:])) == 1
    assert any("holds a tensor twice" in fault for fault in faults(5, lambda pieces: [*pieces, pieces[0]]))
    assert any("outside" in f or "of 576" in f for f in faults(2, outside)), faults(2, outside)
    gone = [(r, [p for p in of_rank if p.row.megatron != layer]) for r, of_rank in good.items()]
    assert tiling_faults(spec, layout, gone) == [f"{layer}: on no rank"]


def outside(pieces):
    index = next(
        i for i, p in enumerate(pieces) if p.row.megatron.endswith("layers.2.self_attention.linear_proj.weight")
    )
    row, dim, ((start, stop),) = pieces[index]
    return [*pieces[:index], TensorPart(row, dim, ((start, stop + 1),)), *pieces[index + 1 :]]


def test_uneven_stages_give_the_first_ones_more():
    assert [len(layers) for layers in stage_layers(61, 16)] == [4] * 13 + [3] * 3
    assert [len(layers) for layers in stage_layers(61, 8)] == [8] * 5 + [7] * 3
    assert [len(layers) for layers in stage_layers(64, 8)] == [8] * 8
    for stages_of in (stage_layers(61, 16), stage_layers(7, 7)):
        assert list(itertools.chain(*stages_of)) == list(range(len(list(itertools.chain(*stages_of)))))


def test_tied_and_mtp_embeddings_stand_on_both_ends():
    places = {
        name: {row.megatron: stages(row, read(hf), TrainerLayout(pp=4)) for row in read(hf).tensors()}
        for name, hf in (("v3", DEEPSEEK_V3), ("tied", SMOLLM2_135M), ("plain", LLAMA31_8B))
    }
    embedding = "embedding.word_embeddings.weight"
    assert {name: of[embedding] for name, of in places.items()} == {"v3": (0, 3), "tied": (0, 3), "plain": (0,)}
    assert "output_layer.weight" not in places["tied"]
    assert places["plain"]["output_layer.weight"] == places["v3"]["mtp.layers.0.eh_proj.weight"] == (3,)


def test_a_pipeline_says_where_embedding_mtp_and_head_are():
    spec = read(DEEPSEEK_V3)
    layout = TrainerLayout(pp=16, vpp=2, pipeline="Et*3|(tt|)*29m|L")
    assert stage_contents(spec, layout) == ["Ettt", *["tt"] * 29, "m", "L"]
    at = {row.megatron: stages(row, spec, layout) for row in spec.tensors()}
    assert at["embedding.word_embeddings.weight"] == (0, 14)
    assert at["mtp.layers.0.eh_proj.weight"] == (14,)
    assert at["output_layer.weight"] == (15,)
    assert at["decoder.final_layernorm.weight"] == (13,)  # with the last layer, whose output the MTP layers take
    norms = [at[f"decoder.layers.{i}.input_layernorm.weight"] for i in range(61)]
    assert norms == [(0,)] * 3 + [(1 + i // 2 if i < 30 else (i - 30) // 2,) for i in range(58)]


def test_chunks_go_round_the_ranks():
    spec = read(QWEN25_05B)
    layout = TrainerLayout(pp=2, vpp=3)
    at = {row.megatron: stages(row, spec, layout) for row in spec.tensors()}
    norms = [at[f"decoder.layers.{i}.input_layernorm.weight"] for i in range(24)]
    assert norms == [(0,)] * 4 + [(1,)] * 4 + [(0,)] * 4 + [(1,)] * 4 + [(0,)] * 4 + [(1,)] * 4
    assert at["embedding.word_embeddings.weight"] == (0, 1)
    assert at["decoder.final_layernorm.weight"] == (1,)


def test_virtual_stages_that_do_not_come_out_even_are_as_equal_as_can_be():
    """DeepSeek-V3 on configs/cluster/h800_v3.toml: 61 layers over 16 stages, of which each rank has two."""
    spec = read(DEEPSEEK_V3)
    layout = TrainerLayout(pp=8, vpp=2)
    assert stage_contents(spec, layout) == ["Etttt", *["tttt"] * 12, "ttt", "ttt", "tttmL"]
    at = {row.megatron: stages(row, spec, layout) for row in spec.tensors()}
    norms = [at[f"decoder.layers.{i}.input_layernorm.weight"][0] for i in range(61)]
    assert [norms.count(rank) for rank in range(8)] == [8, 8, 8, 8, 8, 7, 7, 7]
    assert norms[:5] == [0, 0, 0, 0, 1] and norms[32:36] == [0] * 4 and norms[-3:] == [7] * 3


@pytest.mark.parametrize(
    ("hf", "layout"),
    [
        (DEEPSEEK_V3, {"pp": 8, "vpp": 2}),
        (DEEPSEEK_V3, {"pp": 8}),
        (DEEPSEEK_V3, {"pp": 16, "vpp": 2, "pipeline": "Et*3|(tt|)*29m|L"}),
        (LLAMA33_70B, {"pp": 3, "vpp": 5}),
        (SMOLLM2_135M, {"pp": 4, "vpp": 2}),
    ],
)
def test_megatron_builds_each_layer_where_it_is_placed(mesh, monkeypatch, hf, layout):
    """Whatever comes out even: Megatron's own reading of the configuration that it is given."""
    from megatron.core import parallel_state
    from megatron.core.transformer.enums import LayerType

    from r1mega.trainer.network.model import megatron_config

    spec, layout = read(hf), TrainerLayout(**layout)
    built = megatron_config(spec, layout, expert_bias_rate=0.0).pipeline_model_parallel_layout
    monkeypatch.setattr(parallel_state, "get_virtual_pipeline_model_parallel_world_size", lambda: layout.vpp)
    at = {
        layer: (rank,)
        for rank in range(layout.pp)
        for chunk in range(layout.vpp)
        for layer in built.get_layer_id_list(LayerType.decoder, chunk, rank)
    }
    a_row = read(SMOLLM2_135M).tensors()[0]
    rows = [replace(a_row, megatron=f"decoder.layers.{i}.mlp.linear_fc2.weight") for i in range(spec.num_layers)]
    assert at == {i: stages(row, spec, layout) for i, row in enumerate(rows)}


@pytest.mark.parametrize(
    "layout",
    [
        {"tp": 2, "pp": 3, "dp": 4, "ep": 8},
        {"tp": 4, "pp": 2, "dp": 2, "ep": 2, "etp": 4},
        {"tp": 2, "etp": 1, "ep": 2},
    ],
)
def test_ranks_are_counted_as_megatron_counts_them(mesh, layout):
    from megatron.core.parallel_state import RankGenerator

    layout = TrainerLayout(**layout)
    expert_dp = layout.ranks // (layout.pp * layout.ep * layout.expert_tp)
    order = "tp-cp-ep-dp-pp"
    dense = RankGenerator(tp=layout.tp, ep=1, dp=layout.dp, pp=layout.pp, cp=1, order=order)
    experts = RankGenerator(tp=layout.expert_tp, ep=layout.ep, dp=expert_dp, pp=layout.pp, cp=1, order=order)
    at = [place(layout, rank) for rank in range(layout.ranks)]
    for generator, token, field in (
        (dense, "tp", "tp"), (dense, "dp", "dp"), (dense, "pp", "pp"),
        (experts, "tp", "etp"), (experts, "ep", "ep"), (experts, "dp", "expert_dp"), (experts, "pp", "pp"),
    ):  # fmt: skip
        for group in generator.get_ranks(token):
            assert [getattr(at[rank], field) for rank in group] == list(range(len(group)))
