"""Layouts: what would train wrongly, what a GPU cannot do, and what does not divide a model is refused."""

import typing
from dataclasses import replace
from pathlib import Path

import pytest
from published import SMOLLM2_135M

from r1mega.config.cluster import Cluster, Recompute, TrainerLayout
from r1mega.config.training import Batch
from r1mega.errors import ConfigError
from r1mega.families.registry import FAMILIES, read_model
from r1mega.layout.device_laws import layout_faults
from r1mega.layout.laws import check_layout

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _in_root(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(ROOT)


@pytest.mark.parametrize(
    ("layout", "message"),
    [
        ({"cp": 2}, "context parallelism needs Transformer Engine"),
        ({"tp": 2, "sp": False}, "sp = true only"),
        ({"ep": 3, "dp": 2}, "3 does not divide the tp x dp = 2 ranks"),
        ({"tp": 2, "etp": 1}, "leave etp out"),
        ({"dtype": "bf16"}, "in fp32 only"),
        ({"precision": {"moments": "bf16"}}, "precision.moments: 'bf16'; the CPU trains in fp32 only"),
        ({"precision": {"gradients": "bf16"}}, "precision.gradients: 'bf16'"),
        ({"precision": {"fp8": "blockwise"}}, "needs Transformer Engine"),
        ({"precision": {"bf16_layers_at_end": 1}}, "of no meaning without fp8"),
        ({"offload_optimizer": True}, "in host memory"),
        ({"deterministic": True}, "on the CPU every step is"),
        ({"dp": 2, "ep": 2, "dispatcher": "flex"}, 'CUDA kernels; on the CPU set "alltoall"'),
        ({"vpp": 2}, "2 with pp = 1: chunks are interleaved between pipeline ranks; set pp"),
        ({"pp": 2, "pipeline": "Et|tt|tL"}, "3 stages, but pp 2 x vpp 1 makes 2"),
        ({"pp": 2, "pipeline": "Et|xL"}, "'x' is none of E (embedding)"),
        ({"pp": 2, "pipeline": "t|EtL"}, "E, the embedding, must stand once, and first"),
        ({"pp": 2, "pipeline": "EtL|t"}, "L, the head, must stand once, and last"),
        ({"pp": 2, "pipeline": "Et|mtL"}, "t after m"),
        ({"pp": 3, "pipeline": "Et|tm|mL"}, "m in several stages"),
        ({"pp": 2, "vpp": 2, "pipeline": "Et|tm||L"}, "m outside its rank's last chunk"),
        ({"pp": 2, "vpp": 2, "pipeline": "Et|t|m|L"}, "m on the first pipeline rank"),
        ({"recompute": {"granularity": "selective"}}, 'say what "selective" computes again'),
        ({"recompute": {"granularity": "full", "modules": ["moe"]}}, "'full' does not look at them"),
        (
            {"recompute": {"granularity": "selective", "modules": ["moe_act"]}},
            "'moe_act' is of Transformer Engine's experts",
        ),
    ],
)
def test_layouts_that_would_train_wrongly_are_refused(layout: dict, message: str):
    faults = layout_faults(Cluster(device="cpu", trainer=TrainerLayout(**layout)))
    assert any(message in fault for fault in faults), faults


@pytest.mark.parametrize(
    "layout",
    [
        {"tp": 2},
        {"dp": 2},
        {"dp": 2, "distributed_optimizer": False},
        {"dp": 2, "ep": 2, "dispatcher": "allgather"},
        {"tp": 2, "ep": 2},
        {"tp": 2, "dp": 2, "ep": 2, "etp": 2},
        {"pp": 2},
        {"pp": 2, "vpp": 2, "pipeline": "E t*3 | (t|)*2 mL"},
        {"pp": 16, "vpp": 2, "pipeline": "Et*3|(tt|)*29m|L"},
        {"recompute": {"granularity": "selective", "modules": ["core_attn", "layernorm", "mlp"]}},
        {"recompute": {"granularity": "full", "method": "block", "num_layers": 2}},
    ],
)
def test_layouts_of_every_kind_are_accepted(layout: dict):
    assert layout_faults(Cluster(device="cpu", trainer=TrainerLayout(**layout))) == []


@pytest.mark.parametrize(
    ("layout", "message"),
    [
        ({"cp": 2, "dtype": "bf16"}, ""),
        ({"dtype": "bf16", "precision": {"fp8": "blockwise", "moments": "bf16"}, "offload_optimizer": True}, ""),
        ({"cp": 2, "transformer_engine": "off"}, "context parallelism needs Transformer Engine"),
        ({"precision": {"fp8": "blockwise"}}, "needs dtype bf16, not 'fp32'"),
        ({"dtype": "bf16", "precision": {"fp8": "mxfp8"}, "transformer_engine": "off"}, "needs Transformer Engine"),
        ({"precision": {"gradients": "bf16"}, "transformer_engine": "off"}, "round away"),
        ({}, "'fp32', for which Transformer Engine has no attention over packed rows"),
        ({"dtype": "bf16", "dispatcher": "flex"}, "ep x etp is 1"),
        ({"dtype": "bf16", "dispatcher": "flex", "dp": 2, "ep": 2}, ""),
    ],
)
def test_what_is_asked_of_a_gpu_is_held_against_itself(layout: dict, message: str):
    faults = layout_faults(Cluster(device="cuda", trainer=TrainerLayout(**layout)))
    assert any(message in fault for fault in faults) if message else faults == [], faults


def test_a_recipe_is_held_against_the_gpus_that_are_named():
    layout = TrainerLayout(dtype="bf16", precision={"fp8": "mxfp8"})  # type: ignore[arg-type]
    (fault,) = layout_faults(Cluster(device="cuda", gpu="hopper", trainer=layout))
    assert "'mxfp8' needs Blackwell" in fault
    assert layout_faults(Cluster(device="cuda", gpu="blackwell", trainer=layout)) == []


@pytest.mark.parametrize("gpu", typing.get_args(typing.get_args(Cluster.model_fields["gpu"].annotation)[0]))
def test_layers_on_packed_rows_are_held_against_the_gpus_that_are_named(gpu: str):
    """cuDNN has them for compute capabilities 9.0 and 10.x (Transformer Engine 2.11, fused_attn.cpp)."""
    layout = TrainerLayout(dtype="bf16")
    faults = layout_faults(Cluster(device="cuda", gpu=gpu, trainer=layout))  # type: ignore[arg-type]
    if gpu in ("hopper", "blackwell"):
        assert faults == []
    else:
        (fault,) = faults
        assert f"cluster.gpu: '{gpu}'" in fault
        assert 'trainer.transformer_engine = "off"' in fault
    plain = layout.model_copy(update={"transformer_engine": "off"})
    assert layout_faults(Cluster(device="cuda", gpu=gpu, trainer=plain)) == []  # type: ignore[arg-type]


def test_a_repeat_that_no_model_has_is_refused():
    layout = TrainerLayout(pp=2, pipeline="Ett|(tt)*99999999999|L")
    (fault,) = layout_faults(Cluster(device="cpu", trainer=layout))
    assert "makes more than 10,000 letters" in fault


def test_bf16_layers_are_a_pipeline_ranks_at_most():
    spec = read_model(Path("configs/tiny/deepseek_v3.json"))
    precision = {"fp8": "blockwise", "bf16_layers_at_start": spec.num_layers // 2 + 1}
    layout = TrainerLayout(pp=2, dtype="bf16", precision=precision)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"Megatron takes no more than a pipeline rank's 1 layers"):
        check_layout(spec, layout, Batch(chunk_tokens=256))


def test_chunks_divide_into_blocks_and_tiles():
    spec = read_model(Path("configs/tiny/deepseek_v3.json"))
    with pytest.raises(ConfigError, match=r"256 does not divide into the 2 x cp x tp = 24 blocks"):
        check_layout(spec, TrainerLayout(cp=6, tp=2), Batch(chunk_tokens=256))
    fp8 = TrainerLayout(tp=4, dtype="bf16", precision={"fp8": "blockwise"})  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"\(cp x tp = 4\) no whole number of FP8 tiles of 128 tokens"):
        check_layout(spec, fp8, Batch(chunk_tokens=256))
    check_layout(spec, fp8, Batch(chunk_tokens=512))


def test_a_layout_that_does_not_divide_the_model_is_refused_with_every_size():
    spec = read_model(Path("configs/tiny/deepseek_v3.json"))
    with pytest.raises(ConfigError, match=r"(?s)pp = 4 is more than the model's 3 layers"):
        check_layout(spec, TrainerLayout(pp=4), Batch(chunk_tokens=256))
    with pytest.raises(ConfigError, match=r"(?s)4 fault.*tp = 3 .*4 attention heads.*ep = 3 .*8 experts") as raised:
        check_layout(spec, TrainerLayout(tp=3, ep=3), Batch(chunk_tokens=258))
    assert "tokens of a chunk" not in str(raised.value)
    check_layout(spec, TrainerLayout(tp=2, ep=2), Batch(chunk_tokens=256))
    check_layout(spec, TrainerLayout(pp=2), Batch(chunk_tokens=256))  # 2 layers and 1
    block = TrainerLayout(recompute={"granularity": "full", "method": "block"})  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="block' with a mixture of experts"):
        check_layout(spec, block, Batch(chunk_tokens=256))
    check_layout(read_model(Path("configs/tiny/qwen2.json")), block, Batch(chunk_tokens=256))


@pytest.mark.parametrize(
    ("layout", "message"),
    [
        ({"pp": 2, "vpp": 2}, r"vpp = 2 x pp = 2 makes 4 stages of the model's 3 layers .*: say in .*pipeline"),
        ({"pp": 2, "pipeline": "Ett|ttmL"}, r"has 4 t, the model 3 layers"),
        ({"pp": 2, "pipeline": "Ett|tL"}, r"has 0 m, the model 1 MTP layers"),
    ],
)
def test_a_pipeline_that_is_not_the_models_is_refused(layout: dict, message: str):
    spec = read_model(Path("configs/tiny/deepseek_v3.json"))
    with pytest.raises(ConfigError, match=message):
        check_layout(spec, TrainerLayout(**layout), Batch(chunk_tokens=256))
    check_layout(spec, TrainerLayout(pp=2, vpp=2, pipeline="Et|t||tmL"), Batch(chunk_tokens=256))
    tied = replace(spec, tied=True)
    with pytest.raises(ConfigError, match=r"head is its embedding .* m belongs into L's stage"):
        check_layout(tied, TrainerLayout(pp=3, pipeline="Ettt|m|L"), Batch(chunk_tokens=256))


def test_what_a_model_does_not_have_cannot_be_set():
    spec, batch = FAMILIES["llama"](SMOLLM2_135M), Batch(chunk_tokens=256)
    with pytest.raises(ConfigError, match=r"dispatcher = 'alltoall', but the model has no experts"):
        check_layout(spec, TrainerLayout(dispatcher="alltoall"), batch)
    for module in ("moe", "shared_experts"):
        recompute = Recompute(granularity="selective", modules=(module,))
        with pytest.raises(ConfigError, match=f"the model has no part '{module}'"):
            check_layout(spec, TrainerLayout(recompute=recompute), batch)


def test_a_dense_model_is_held_to_its_key_value_heads_and_ids():
    spec = FAMILIES["llama"](SMOLLM2_135M)
    check_layout(spec, TrainerLayout(tp=3, pp=7, dp=2), Batch(chunk_tokens=255))
    with pytest.raises(ConfigError, match=r"(?s)tp = 9 does not divide .*3 key-value heads .* divisors of 3"):
        check_layout(spec, TrainerLayout(tp=9), Batch(chunk_tokens=9 * 64))
    with pytest.raises(ConfigError, match=r"ep = 2, but the model has no experts"):
        check_layout(spec, TrainerLayout(dp=2, ep=2), Batch(chunk_tokens=256))
    few = spec.with_vocab(4, bos=0, eos=1, pad=2)
    with pytest.raises(ConfigError, match=r"tp = 3 leaves ranks without any of the 4 ids"):
        check_layout(few, TrainerLayout(tp=3), Batch(chunk_tokens=255))
