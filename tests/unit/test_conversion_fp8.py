"""FP8 blocks: by hand, within half a unit in the last place, back to the same codes, and through whole folders."""

import json
from pathlib import Path

import pytest
import torch
from conversion_data import ONE, assert_same, load_all, tiny_spec, unique_tensors, write_folder
from published import DEEPSEEK_V3

from r1mega.conversion.convert import convert
from r1mega.conversion.folders import open_folder
from r1mega.errors import ConfigError, WeightMappingError
from r1mega.families.registry import model_of
from r1mega.formats import fp8
from r1mega.formats.fp8_blocks import FORMS, quantised, scale_shape

E4M3 = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn)
"""Every e4m3 number; two of them are not numbers."""


def test_a_block_by_hand():
    weight = torch.zeros(130, 129)
    weight[0, 0], weight[5, 7] = 896.0, -3.0  # the first block: scale 2
    weight[0, 128] = 0.5  # the second: scale 0.5 / 448
    weight[129, 0] = -448.0 * 3  # the third: scale 3
    codes, scales = fp8.quantise(weight)
    assert codes.dtype is torch.float8_e4m3fn
    assert scales.dtype is torch.float32
    assert torch.equal(scales, torch.tensor([[2.0, 0.5 / 448], [3.0, 1.0]]))
    assert codes[0, 0].view(torch.uint8) == 0x7E  # 448
    assert codes[5, 7].view(torch.uint8) == 0xBC  # -1.5
    assert codes[129, 0].view(torch.uint8) == 0xFE
    assert codes.float().count_nonzero() == 4
    assert torch.equal(fp8.dequantise(codes, scales, torch.float32), weight)
    assert fp8.dequantise(codes, scales).dtype is torch.bfloat16


@pytest.mark.parametrize("shape", [(128, 128), (300, 200), (1, 1), (1500, 130), (127, 400)])
@pytest.mark.parametrize("scale", [1e-20, 1.0, 1e20])
def test_an_element_is_off_by_half_a_step_at_most(shape, scale):
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(1)) * scale
    codes, scales = fp8.quantise(weight)
    assert tuple(scales.shape) == scale_shape(shape)
    spread = scales.repeat_interleave(128, 0)[: shape[0]].repeat_interleave(128, 1)[:, : shape[1]].double()
    scaled = weight.double() / spread
    # Steps of e4m3: an eighth of the power of two below a number, and never less than 2^-9.
    step = torch.exp2(scaled.abs().clamp_min(2.0**-6).log2().floor()) / 8
    assert ((codes.double() - scaled).abs() <= step / 2 + scaled.abs() * torch.finfo(torch.float32).eps).all()
    assert (codes.float().abs().view(-1).max() == 448) or shape == (1, 1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_codes_survive_a_way_through_weights(dtype):
    """As DeepSeek writes them, a block's largest code is 448: then the same codes come back."""
    generator = torch.Generator().manual_seed(2)
    numbers = E4M3[E4M3.float().isfinite()]
    codes = numbers.view(torch.uint8)[torch.randint(0, 254, (300, 260), generator=generator)].view(fp8.CODES)
    for i in range(0, 300, 128):
        for j in range(0, 260, 128):
            codes.view(torch.uint8)[i, j] = 0x7E
    scales = torch.rand(scale_shape((300, 260)), generator=generator) * 1e-3 + 1e-5
    again, scales_again = fp8.quantise(fp8.dequantise(codes, scales, dtype))
    # Zero has two codes, and -0 stays -0.
    assert torch.equal(again.view(torch.uint8), codes.view(torch.uint8))
    assert ((scales_again - scales).abs() <= scales * torch.finfo(dtype).eps).all()


def test_deepseek_v3_has_the_published_number_of_scales():
    rows = model_of(DEEPSEEK_V3, Path("config.json")).tensors()
    scales = [name for row in rows for name in row.hf if quantised(row, name)]
    assert len(scales) == 45_808
    left = {name.split(".layers.")[-1].split(".", 1)[-1] for row in rows for name in row.hf} - {
        name.split(".layers.")[-1].split(".", 1)[-1] for name in scales
    }
    assert {n for n in left if "norm" not in n} == {
        "embed_tokens.weight",
        "weight",  # of lm_head
        "mlp.gate.weight",
        "mlp.gate.e_score_correction_bias",
        "eh_proj.weight",
        "shared_head.head.weight",
    }


@pytest.fixture
def published(tmp_path):
    """A folder as DeepSeek publishes them, and its tensors."""
    spec = tiny_spec(moe_intermediate_size=96)  # ragged blocks
    plain = unique_tensors(spec, torch.bfloat16)
    generator = torch.Generator().manual_seed(3)
    tensors = {}
    for row in spec.tensors():
        for name, shape in zip(row.hf, row.hf_shapes, strict=True):
            tensors[name] = plain[name]
            if quantised(row, name):
                codes, scales = fp8.quantise(torch.randn(shape, generator=generator) * 0.02)
                tensors |= {name: codes, name + "_scale_inv": scales}
    write_folder(tmp_path / "published", spec, tensors, num_files=2, quantization_config=dict(FORMS["fp8-block"]))
    return tmp_path / "published", tensors


def test_a_published_folder_is_read_and_written(published, tmp_path):
    folder, tensors = published
    convert(folder, tmp_path / "megatron", "megatron", None, ONE)
    convert(tmp_path / "megatron", tmp_path / "bf16", "hf", None, ONE)
    for name, tensor in load_all(tmp_path / "bf16").items():
        wanted = tensors[name]
        if name + "_scale_inv" in tensors:
            wanted = fp8.dequantise(wanted, tensors[name + "_scale_inv"])
        assert tensor.dtype is wanted.dtype
        assert torch.equal(tensor, wanted)
    assert "quantization_config" not in json.loads((tmp_path / "bf16" / "config.json").read_text())

    convert(tmp_path / "megatron", tmp_path / "fp8", "hf", "fp8-block", ONE)
    again = load_all(tmp_path / "fp8")
    scales = {n for n in tensors if n.endswith("_scale_inv")}
    assert scales
    assert_same(
        {n: t for n, t in again.items() if n not in scales}, {n: t for n, t in tensors.items() if n not in scales}
    )
    for name in scales:
        assert torch.allclose(again[name], tensors[name], rtol=2**-8, atol=0)
    assert json.loads((tmp_path / "fp8" / "config.json").read_text())["quantization_config"] == FORMS["fp8-block"]


def weight_dequant(codes, scales):
    """As DeepSeek's inference code does it for each block: x.to(float32) * s."""
    weight = codes.float()
    for i in range(scales.shape[0]):
        for j in range(scales.shape[1]):
            weight[i * 128 : (i + 1) * 128, j * 128 : (j + 1) * 128] *= scales[i, j].float()
    return weight.bfloat16()


def test_scales_in_bf16_are_read_as_the_numbers_they_are(published, tmp_path):
    """As in Qwen3's folders: multiplied in fp32, through both forms."""
    folder, tensors = published
    tensors = {n: t.bfloat16() if n.endswith("_scale_inv") else t for n, t in tensors.items()}
    listed = {**FORMS["fp8-block"], "modules_to_not_convert": ["lm_head"]}
    spec = tiny_spec(moe_intermediate_size=96)
    folder = write_folder(tmp_path / "qwen3", spec, tensors, quantization_config=listed)
    convert(folder, tmp_path / "megatron", "megatron", None, ONE)
    convert(tmp_path / "megatron", tmp_path / "bf16", "hf", None, ONE)
    for name, tensor in load_all(tmp_path / "bf16").items():
        scales = tensors.get(name + "_scale_inv")
        assert torch.equal(tensor, tensors[name] if scales is None else weight_dequant(tensors[name], scales)), name


def test_scales_that_are_powers_of_two_come_back_bit_for_bit(tmp_path):
    """DeepSeek-V3.1's form: the largest code of a block is above 224, and weights are exact in bf16."""
    spec = tiny_spec(moe_intermediate_size=96)
    tensors = unique_tensors(spec, torch.bfloat16)
    generator = torch.Generator().manual_seed(4)
    numbers = E4M3[E4M3.float().isfinite()].view(torch.uint8)
    for row in spec.tensors():
        for name, shape in zip(row.hf, row.hf_shapes, strict=True):
            if quantised(row, name):
                codes = numbers[torch.randint(0, len(numbers), shape, generator=generator)]
                codes[::128, ::128] = 0x78  # 256: amax / 448 is not a power of two
                exponents = torch.randint(-20, -3, scale_shape(shape), generator=generator)
                tensors[name] = codes.view(fp8.CODES)
                tensors[name + "_scale_inv"] = 2.0**exponents
    v31 = {**FORMS["fp8-block"], "scale_fmt": "ue8m0"}
    folder = write_folder(tmp_path / "published", spec, tensors, quantization_config=v31)
    convert(folder, tmp_path / "megatron", "megatron", None, ONE)
    convert(tmp_path / "megatron", tmp_path / "again", "hf", "fp8-block-ue8m0", ONE)
    again = load_all(tmp_path / "again")
    assert_same(again, tensors)
    assert json.loads((tmp_path / "again/config.json").read_text())["quantization_config"] == v31
    assert "scales powers of two" in (tmp_path / "again/README.md").read_text()


def test_powers_of_two_by_hand():
    weight = torch.zeros(128, 384)
    weight[0, 0], weight[0, 128], weight[0, 256] = 448.0 * 4, 449.0 * 4, 225.0
    codes, scales = fp8.quantise(weight, "fp8-block-ue8m0")
    assert scales.tolist() == [[4.0, 8.0, 1.0]]
    assert codes[0, ::128].float().tolist() == [448.0, 224.0, 224.0]  # 224.5 and 225, rounded to a step of 16


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda t: t.pop("model.layers.0.mlp.up_proj.weight_scale_inv"), "up_proj.weight_scale_inv: missing"),
        (
            lambda t: t.update({"model.norm.weight_scale_inv": torch.ones(1, 1)}),
            r"model.norm.weight_scale_inv: scales of a tensor",
        ),
        (
            lambda t: t.update({"model.layers.0.mlp.up_proj.weight_scale_inv": torch.ones(1, 1)}),
            r"\(1, 1\), expected bfloat16, float32 \(2, 1\)",
        ),
        (
            lambda t: t.update({"model.layers.0.mlp.up_proj.weight_scale_inv": torch.ones(2, 1).half()}),
            r"float16 \(2, 1\), expected bfloat16, float32 \(2, 1\)",
        ),
    ],
)
def test_scales_that_do_not_fit_are_named(published, tmp_path, change, named):
    _, tensors = published
    change(tensors)
    spec = tiny_spec(moe_intermediate_size=96)
    folder = write_folder(tmp_path / "wrong", spec, tensors, quantization_config=dict(FORMS["fp8-block"]))
    with pytest.raises(WeightMappingError, match=named):
        open_folder(folder)


@pytest.mark.parametrize(
    ("field", "value"), [("fmt", "e5m2"), ("weight_block_size", [64, 64]), ("quant_method", "awq"), ("bits", 4)]
)
def test_another_quantisation_is_refused_by_name(published, field, value):
    folder, _ = published
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"][field] = value
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match=field):
        open_folder(folder)


def test_fp8_without_a_word_in_the_config_is_refused(published):
    folder, _ = published
    config = json.loads((folder / "config.json").read_text())
    del config["quantization_config"]
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(WeightMappingError, match="no quantization_config"):
        open_folder(folder)


def test_weights_that_are_no_numbers_are_not_quantised(tmp_path):
    spec = tiny_spec()
    tensors = unique_tensors(spec)
    tensors["model.layers.1.mlp.experts.3.up_proj.weight"][0, 0] = float("nan")
    folder = write_folder(tmp_path / "nan", spec, tensors)
    with pytest.raises(WeightMappingError, match=r"experts\.3\.up_proj\.weight: not finite"):
        convert(folder, tmp_path / "out", "hf", "fp8-block", ONE)


def test_the_audit_holds_fp8_blocks_against_the_source(tmp_path, monkeypatch):
    """Digests of what was written say nothing of whether it was quantised well."""
    spec = tiny_spec()
    folder = write_folder(tmp_path / "a", spec, unique_tensors(spec))
    original = fp8.quantise

    def one_code_off(weight, form):
        codes, scales = original(weight, form)
        if tuple(weight.shape) == (128, 256):
            codes.view(torch.uint8)[5, 7] ^= 1
        return codes, scales

    monkeypatch.setattr(fp8, "quantise", one_code_off)
    with pytest.raises(WeightMappingError, match=r"\(1 faults\).*\n.*layers\.0\.mlp\.down_proj.*half a step"):
        convert(folder, tmp_path / "out", "hf", "fp8-block", ONE)
