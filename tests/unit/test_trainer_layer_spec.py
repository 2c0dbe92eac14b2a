"""Which layers, which Adam, which dtypes: every decision, and what they make, as far as a machine without GPU can."""

import logging
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
from rounding import EPS, LAST_BITS, LOSS, furthest, last_bits, with_last_bits
from trainer_data import nll

from r1mega.config.cluster import Precision, TrainerLayout
from r1mega.errors import ConfigError

sys.path.append(str(Path(__file__).parents[1] / "distributed"))


@pytest.fixture
def layer_spec(mesh):
    from r1mega.trainer.network import layer_spec

    return layer_spec


@pytest.mark.parametrize(
    ("device", "setting", "installed", "chosen"),
    [
        ("cpu", "auto", None, "local"),
        ("cpu", "auto", (2, 11), "local"),
        ("cuda", "auto", (2, 9), "transformer_engine"),
        ("cuda", "auto", (2, 11), "transformer_engine"),
        ("cuda", "off", (2, 11), "local"),
        ("cuda", "off", None, "local"),
        ("cuda", "auto", None, "is not installed"),
        ("cuda", "auto", (2, 8), "is 2.8"),
        ("cuda", "auto", (2, 12), "is 2.12"),
    ],
)
def test_layers_are_chosen_by_device_setting_and_version(
    layer_spec, monkeypatch, caplog, device, setting, installed, chosen
):
    monkeypatch.setattr(layer_spec, "installed_engine", lambda: installed)
    layout = TrainerLayout(transformer_engine=setting)
    if chosen.startswith("is"):
        with pytest.raises(ConfigError, match=f">= 2.9 and < 2.12, which {chosen} here.*transformer_engine = 'off'"):
            layer_spec.choose_layers(device, layout)
        return
    with caplog.at_level(logging.INFO, logger="r1mega"):
        assert layer_spec.choose_layers(device, layout) == chosen
    assert bool(caplog.records) is (device == "cuda")


def test_transformer_engine_is_found_as_megatron_finds_it(layer_spec, monkeypatch):
    assert layer_spec.installed_engine() is None
    monkeypatch.setattr(layer_spec.te, "HAVE_TE", True)
    monkeypatch.setattr(layer_spec, "version", lambda name: {"transformer-engine": "2.11.0+c188b53"}[name])
    assert layer_spec.installed_engine() == (2, 11)


def test_both_kinds_of_layers_have_the_same_places(layer_spec, spec, monkeypatch):
    """Transformer Engine's stand in every place that has weights; norms apart from matrices, as in the table."""
    from megatron.core.transformer.moe.experts import TEGroupedMLP

    from r1mega.trainer.network.latent import LatentAttention
    from r1mega.trainer.network.model import MTPLayer, megatron_config

    te = layer_spec.te
    for name in ("TEColumnParallelGroupedLinear", "TERowParallelGroupedLinear"):
        monkeypatch.setattr(te, name, type(name, (), {}))
    config = megatron_config(spec, TrainerLayout(), expert_bias_rate=0.0)
    block = layer_spec.decoder_spec(spec, config, "transformer_engine")
    (mtp,) = layer_spec.mtp_spec(spec, config, "transformer_engine", MTPLayer).layer_specs
    dense, mixture = block.layer_specs[0].submodules, block.layer_specs[-1].submodules
    assert block.layer_norm is dense.input_layernorm is dense.pre_mlp_layernorm is te.TENorm
    for layer in (dense, mixture, mtp.submodules.transformer_layer.submodules):
        attention = layer.self_attention.submodules
        assert layer.self_attention.module is LatentAttention
        assert attention.core_attention is te.TEDotProductAttention
        assert attention.linear_q_down_proj is attention.linear_kv_down_proj is te.TELinear
        assert attention.linear_q_up_proj is attention.linear_kv_up_proj is te.TEColumnParallelLinear
        assert attention.linear_proj is te.TERowParallelLinear
        assert attention.q_layernorm is attention.kv_layernorm is te.TENorm
    assert dense.mlp.submodules.linear_fc1 is te.TEColumnParallelLinear
    assert dense.mlp.submodules.linear_fc2 is te.TERowParallelLinear
    experts = mixture.mlp.submodules.experts
    assert experts.module is TEGroupedMLP
    assert experts.submodules.linear_fc1 is te.TEColumnParallelGroupedLinear
    assert mixture.mlp.submodules.shared_experts.submodules.linear_fc2 is te.TERowParallelLinear
    assert mtp.module is MTPLayer
    assert mtp.submodules.eh_proj is te.TEColumnParallelLinear
    assert mtp.submodules.enorm is mtp.submodules.hnorm is mtp.submodules.layer_norm is te.TENorm
    fields = layer_spec.layer_fields("transformer_engine", "cuda", mixture=True)
    assert fields["moe_grouped_gemm"] and not fields["use_cpu_initialization"]
    assert not any(
        layer_spec.layer_fields("transformer_engine", "cuda", mixture=False)[n]
        for n in ("moe_grouped_gemm", "moe_permute_fusion")
    )
    local = layer_spec.layer_fields("local", "cpu", mixture=True)
    assert [name for name, on in local.items() if on] == ["use_cpu_initialization"]


def test_grouped_experts_bear_the_tables_names(make_policy):
    from r1mega.trainer.network.names import whole_model_name

    config = make_policy().network.config
    name = whole_model_name("decoder.layers.1.mlp.experts.linear_fc1.weight11", config, tied=False)
    assert name == "decoder.layers.1.mlp.experts.local_experts.11.linear_fc1.weight"
    same = "decoder.layers.0.mlp.linear_fc1.weight"
    assert whole_model_name(same, config, tied=False) == same


@pytest.mark.parametrize("family", ["deepseek_v3", "llama"])
def test_packed_rows_train_as_chunks_beside_each_other(make_policy, documents, family):
    """All that runs on a GPU but the kernel, for which a stand-in attends: losses, gradients, scores, margins."""
    from packed_attention import in_place_of_the_kernel

    changes: dict = {"mtp": "joint"}
    if family == "llama":
        from test_trainer_grouped import FAMILIES, LLAMA

        changes = {"spec": FAMILIES["llama"](LLAMA)}
    plain = make_policy(**changes, chunks_per_micro_batch=3)
    with in_place_of_the_kernel():
        row = make_policy(**changes, chunks_per_micro_batch=3)
    a, b = (p.forward_backward(documents, nll) for p in (plain, row))
    assert a == pytest.approx(b, rel=LOSS)
    moved = with_last_bits(make_policy(**changes, chunks_per_micro_batch=3))
    moved.forward_backward(documents, nll)
    ours, theirs, last = (p.gradients() for p in (plain, row, moved))
    for name, x in ours.items():
        assert furthest([x], [theirs[name]]) <= LAST_BITS * furthest([x], [last[name]]) + EPS * 1e-3, name
    last_bits(ours.values(), last.values())
    scored = [p.logprobs(documents, temperature=0.7) for p in (plain, row, moved)]
    assert furthest(scored[0], scored[1]) <= last_bits(scored[0], scored[2])
    if family == "deepseek_v3":
        margins = [p.routing_margins(documents[:3]) for p in (plain, row, moved)]
        assert furthest(margins[0], margins[1]) <= last_bits(margins[0], margins[2])


# ---- precision ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("recipe", "fp8", "name"),
    [("blockwise", "e4m3", "blockwise"), ("tensorwise", "hybrid", "tensorwise"), ("mxfp8", "e4m3", "mxfp8")],
)
def test_recipes_become_megatrons(mesh, spec, recipe, fp8, name):
    from r1mega.trainer import precision
    from r1mega.trainer.network.model import megatron_config

    layout = TrainerLayout(dtype="bf16", precision=Precision(fp8=recipe, bf16_layers_at_end=1))
    fields = precision.model_fields(layout)
    assert (fields["fp8"], fields["fp8_recipe"]) == (fp8, name)
    assert (fields["num_layers_at_start_in_bf16"], fields["num_layers_at_end_in_bf16"]) == (0, 1)
    assert fields["first_last_layers_bf16"] is fields["bf16"] is True
    if recipe == "blockwise":  # Megatron takes them
        monkey = pytest.MonkeyPatch()
        with monkey.context() as m:
            m.setattr("megatron.core.transformer.transformer_config.is_te_min_version", lambda *_: True)
            config = megatron_config(spec, layout, expert_bias_rate=0.0)
        assert (config.fp8, config.fp8_recipe, config.params_dtype) == ("e4m3", "blockwise", torch.bfloat16)


def test_without_fp8_nothing_of_it_is_said(mesh):
    from r1mega.trainer import precision

    exact = TrainerLayout()
    assert precision.model_fields(exact) == {
        "params_dtype": torch.float32,
        "pipeline_dtype": torch.float32,
        "bf16": False,
    }
    assert precision.gradient_fields(exact) == {"grad_reduce_in_fp32": True}
    half = TrainerLayout(dtype="bf16", precision=Precision(gradients="bf16"))
    assert precision.gradient_fields(half) == {"grad_reduce_in_fp32": False}
    assert precision.optimizer_fields(half) == {"params_dtype": torch.bfloat16, "bf16": True}
    precision.check_device("none")


def test_a_recipe_the_gpu_lacks_is_refused_in_the_librarys_words(mesh, monkeypatch):
    from r1mega.trainer import precision

    quantization: object = ModuleType("transformer_engine.pytorch.quantization")
    quantization.is_fp8_block_scaling_available = lambda return_reason: (True, "")  # type: ignore[attr-defined]
    quantization.is_fp8_available = quantization.is_fp8_block_scaling_available  # type: ignore[attr-defined]
    quantization.is_mxfp8_available = lambda return_reason: (False, "Capability 10.0 or higher required.")  # type: ignore[attr-defined]
    package = ModuleType("transformer_engine.pytorch")
    package.quantization = quantization  # type: ignore[attr-defined]
    for name, module in (
        ("transformer_engine", ModuleType("transformer_engine")),
        ("transformer_engine.pytorch", package),
    ):
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H200")
    precision.check_device("blockwise")
    with pytest.raises(ConfigError, match=r"fp8 = 'mxfp8' on NVIDIA H200: Capability 10.0"):
        precision.check_device("mxfp8")


@pytest.mark.parametrize(
    ("capability", "cudnn", "grouped", "refused"),
    [
        ((9, 0), 91900, True, ""),
        ((10, 3), 90600, True, ""),
        ((9, 0), 90100, False, ""),
        ((8, 0), 91900, False, r"NVIDIA Some is 8\.0"),
        ((12, 0), 91900, False, r"NVIDIA Some is 12\.0"),
        ((9, 0), 90501, True, r"needs cuDNN 9\.6\.0, PyTorch .* has 9\.5\.1"),
        ((9, 0), 8907, False, r"needs cuDNN 9\.1\.0, PyTorch .* has"),
        ((9, 0), None, False, r"has none"),
    ],
)
def test_a_gpu_without_attention_over_packed_rows_is_refused(
    mesh, spec, monkeypatch, capability, cudnn, grouped, refused
):
    from r1mega.trainer import precision
    from r1mega.trainer.network import build

    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA Some")
    monkeypatch.setattr(torch.backends.cudnn, "version", lambda: cudnn)
    if not refused:
        precision.check_attention(grouped=grouped)
        return
    with pytest.raises(ConfigError, match=refused) as caught:
        precision.check_attention(grouped=grouped)
    assert "transformer_engine = 'off'" in str(caught.value)
    if not grouped:  # the model here has latent attention
        with pytest.raises(ConfigError, match=refused):
            build.build_model_chunks(spec, mesh, "transformer_engine", mtp="off", expert_bias_rate=0.0, seed=0)


@pytest.mark.parametrize("mtp", ["off", "joint"])
def test_everything_is_on_the_device_before_it_is_wrapped(mesh, spec, monkeypatch, mtp):
    """Routers, norms, whole matrices and frozen layers too, with the meta device in a GPU's place."""
    import dataclasses

    from r1mega.trainer.network import build

    monkeypatch.setattr(torch.cuda, "current_device", lambda: torch.device("meta"))
    monkeypatch.setattr(build, "DistributedDataParallel", lambda config, ddp_config, module: module)
    elsewhere = dataclasses.replace(mesh, device=torch.device("meta"))
    (network,) = build.build_model_chunks(spec, elsewhere, "local", mtp=mtp, expert_bias_rate=0.0, seed=0)
    placed = {**dict(network.named_parameters()), **dict(network.named_buffers())}
    assert any("router" in n for n in placed)
    assert any(n.startswith("mtp.") for n in placed)
    assert [n for n, t in placed.items() if t.device.type != "meta"] == []


# ---- optimiser ----------------------------------------------------------------------------------------------


class Kernel(torch.optim.Optimizer):
    """A FusedAdam of some package, with Transformer Engine's arguments."""

    def __init__(self, params, lr, exp_avg_dtype=torch.float32, exp_avg_sq_dtype=torch.float32):
        super().__init__(params, {"lr": lr})
        self.dtypes = exp_avg_dtype, exp_avg_sq_dtype


@pytest.mark.parametrize(
    ("device", "moments", "there", "chosen"),
    [
        ("cpu", "fp32", ("transformer_engine", "apex"), "torch"),
        ("cuda", "fp32", ("transformer_engine", "apex"), "transformer_engine"),
        ("cuda", "bf16", ("transformer_engine", "apex"), "transformer_engine"),
        ("cuda", "fp32", ("apex",), "apex"),
        ("cuda", "bf16", ("apex",), "torch"),
        ("cuda", "fp32", (), "torch"),
    ],
)
def test_the_best_adam_there_is_is_taken(mesh, monkeypatch, caplog, device, moments, there, chosen):
    from r1mega.trainer import optimizer

    def find(module):
        if any(module == optimizer.KERNELS[name] for name in there):
            return SimpleNamespace(FusedAdam=Kernel)
        raise ImportError(module)

    monkeypatch.setattr(optimizer.importlib, "import_module", find)
    with caplog.at_level(logging.INFO, logger="r1mega"):
        name, adam = optimizer.choose_adam(device, moments)
    assert name == chosen
    assert issubclass(adam, Kernel if chosen != "torch" else optimizer.Adam)
    assert (f"{chosen}'s Adam, moments in {moments}" in caplog.text) is (device == "cuda")
    made = adam(
        [torch.nn.Parameter(torch.zeros(2))],
        lr=1.0,
        **({} if issubclass(adam, Kernel) else {"betas": (0.9, 0.99), "eps": 1e-8, "weight_decay": 0.0}),
    )
    wanted = torch.bfloat16 if moments == "bf16" else torch.float32
    assert set(getattr(made, "dtypes", None) or made.moments.values()) == {wanted}


def test_bf16_moments_are_rounded_and_the_arithmetic_is_not(mesh):
    """One step from known moments, against fp32 arithmetic on the same rounded numbers; then two from nothing."""
    from r1mega.trainer.optimizer import Adam

    torch.manual_seed(0)
    start, settings = torch.randn(500), {"lr": 1e-2, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.1}
    weights = {}
    for dtype in (torch.float32, torch.bfloat16):
        param = torch.nn.Parameter(start.clone())
        adam = Adam([param], **settings, exp_avg_dtype=dtype, exp_avg_sq_dtype=dtype)
        adam.initialize_state(param)
        torch.manual_seed(1)
        for step in range(2):
            param.grad = torch.randn(500)
            adam.step()
            weights[dtype, step] = param.detach().clone()
        assert {t.dtype for t in adam.state[param].values()} == {dtype}
    assert torch.equal(weights[torch.float32, 0], weights[torch.bfloat16, 0])  # moments are rounded after their use
    gap = (weights[torch.float32, 1] - weights[torch.bfloat16, 1]).abs().max()
    assert 0 < gap < 1e-4


def test_weights_in_bf16_have_main_parameters_in_fp32(mesh, spec, documents):
    """What a GPU runs: bf16 weights, fp32 main parameters and gradients, bf16 moments; the loss falls."""
    import dataclasses

    from r1mega.config.training import Batch, Optimizer
    from r1mega.trainer.checkpoint.slices import find_slices
    from r1mega.trainer.offload import optimizer_tensors
    from r1mega.trainer.policy import Policy

    layout = TrainerLayout(dtype="bf16", precision=Precision(moments="bf16"))
    policy = Policy.build(
        spec, dataclasses.replace(mesh, layout=layout), Optimizer(lr=3e-3), Batch(chunk_tokens=64),
        mtp="off", mtp_loss_weight=0.3, expert_bias_rate=0.0, seed=0,
    )  # fmt: skip
    kept = {n: t.dtype for n, t in policy.state().items()}
    assert {d for n, d in kept.items() if "expert_bias" not in n} == {torch.bfloat16}
    assert {d for n, d in kept.items() if "expert_bias" in n} == {torch.float32}
    assert {t.dtype for t in policy.gradients().values()} == {torch.float32}
    assert {t.dtype for t in optimizer_tensors(policy.optimizer)} == {torch.float32, torch.bfloat16}
    losses = []
    for _ in range(4):
        losses.append(policy.forward_backward(documents, nll)["loss"])
        policy.optim_step(3e-3)
    assert losses[-1] < losses[0] - 0.3
    states = {
        box.key.split(".")[2]: box.values.dtype
        for box in find_slices(policy).live
        if box.key.startswith("optimizer.")
    }
    assert states == {"param": torch.float32, "exp_avg": torch.bfloat16, "exp_avg_sq": torch.bfloat16}
