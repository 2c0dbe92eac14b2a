"""Conversions of every family: bit for bit there and back, repeated heads, and mutations that each one can suffer."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conversion_data import ONE, assert_same, load_all, unique_tensors, write_folder
from safetensors.torch import save_file

from r1mega.conversion.convert import convert
from r1mega.conversion.describe import describe
from r1mega.conversion.verify import verify
from r1mega.errors import WeightMappingError
from r1mega.families.registry import model_of
from r1mega.families.score_head import with_score_head

sys.path.append(str(Path(__file__).parents[1] / "distributed"))
from family_models import DENSE, LLAMA3, MODELS

SMOLLM2 = {
    **{"model_type": "llama", **DENSE, "tie_word_embeddings": True},
    **{"hidden_size": 72, "num_attention_heads": 9, "num_key_value_heads": 3, "intermediate_size": 192},
    **{"rope_scaling": {**LLAMA3}, "vocab_size": 49},
}
SCORES = {
    f"{name}_scores": dict(with_score_head(model_of(MODELS[base], Path(name))).hf)
    for name, base in (("deepseek", "deepseek_yarn"), ("qwen2", "qwen2_tied"))
}
EVERY = {**MODELS, "smollm2": SMOLLM2, **SCORES}
HEAD = "lm_head.weight"


def make(folder, name, dtype=torch.float32, *, repeat=False):
    """(spec, tensors, folder); `repeat`: a tied head lies in the folder a second time."""
    spec = model_of(EVERY[name], folder)
    tensors = unique_tensors(spec, dtype)
    second = {HEAD: tensors["model.embed_tokens.weight"].clone()} if repeat else {}
    return spec, tensors, write_folder(folder, spec, tensors | second, num_files=2)


@pytest.mark.parametrize(("one", "others"), [(torch.float32, torch.bfloat16), (torch.float16, torch.float32)])
def test_config_json_says_the_dtype_of_most_bytes(tmp_path, one, others):
    """The first tensor alone differs; each keeps its own dtype, and the card counts them."""
    spec = model_of(EVERY["smollm2"], tmp_path)
    tensors = unique_tensors(spec, others)
    tensors["model.embed_tokens.weight"] = tensors["model.embed_tokens.weight"].to(one)
    source = write_folder(tmp_path / "a", spec, tensors)
    convert(source, tmp_path / "b", "megatron", None, ONE)
    convert(tmp_path / "b", tmp_path / "c", "hf", None, ONE)
    for folder in (tmp_path / "b", tmp_path / "c"):
        config = json.loads((folder / "config.json").read_text())
        assert config["dtype"] == config["torch_dtype"] == str(others).removeprefix("torch.")
        count = tensors["model.embed_tokens.weight"].numel()
        assert f"{str(one).removeprefix('torch.')} ({count:,})" in (folder / "README.md").read_text()
    assert_same(load_all(tmp_path / "c"), tensors)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", EVERY)
def test_every_family_there_and_back_is_bitwise(tmp_path, name, dtype):
    spec, tensors, source = make(tmp_path / "a", name, dtype)
    assert spec.vocab_size % 2  # two ranks would pad it
    convert(source, tmp_path / "b", "megatron", None, ONE)
    report = convert(tmp_path / "b", tmp_path / "c", "hf", None, replace(ONE, shard_bytes=1 << 16))
    assert (report.num_tensors, report.num_repeated) == (len(tensors), 0)
    assert_same(load_all(tmp_path / "c"), tensors)
    assert verify(source, tmp_path / "b", None).num_tensors == len(tensors)
    assert dict(model_of(spec.hf, source).hf) == dict(spec.hf)


@pytest.mark.parametrize("name", SCORES)
def test_a_reward_model_stays_one(tmp_path, name):
    _, tensors, source = make(tmp_path / "a", name)
    convert(source, tmp_path / "b", "megatron", None, ONE)
    convert(tmp_path / "b", tmp_path / "c", "hf", None, ONE)
    assert torch.equal(load_all(tmp_path / "c")["score.weight"], tensors["score.weight"])
    (architecture,) = json.loads((tmp_path / "c/config.json").read_text())["architectures"]
    assert architecture == EVERY[name]["architectures"][0] and architecture.endswith("ForSequenceClassification")
    for folder in (source, tmp_path / "b", tmp_path / "c"):
        assert f"head        one score a text ({architecture})" in describe(folder)
    assert "| head | one score a text" in (tmp_path / "c/README.md").read_text()


@pytest.mark.parametrize("name", [n for n in EVERY if "tied" in n and "deepseek" not in n] + ["smollm2"])
def test_a_repeated_tied_head_is_compared_and_not_written(tmp_path, name):
    _, tensors, source = make(tmp_path / "a", name, torch.bfloat16, repeat=True)
    assert HEAD in load_all(source) and HEAD not in tensors
    assert f"repeats     {HEAD}: equal to their originals" in describe(source)
    for form in ("megatron", "hf"):
        report = convert(source, tmp_path / form, form, None, ONE)
        assert (report.num_tensors, report.num_repeated) == (len(tensors), 1)
        assert verify(source, tmp_path / form, None).largest == 0
    assert_same(load_all(tmp_path / "hf"), tensors)


@pytest.mark.parametrize("name", ["qwen2_tied", "llama_tied", "deepseek_tied"])
def test_a_tied_head_that_differs_is_one_fault(tmp_path, name):
    _, tensors, source = make(tmp_path / "a", name, repeat=True)
    convert(source, tmp_path / "megatron", "megatron", None, ONE)
    changed = load_all(source)
    changed[HEAD].view(torch.int32)[-1, -1] ^= 1
    rewrite(source, changed)
    said = rf"{HEAD}: differs from model.embed_tokens.weight, which it should repeat"
    with pytest.raises(WeightMappingError, match=rf"contradicts itself \(1 faults\):\n  {said}"):
        convert(source, tmp_path / "out", "megatron", None, ONE)
    with pytest.raises(WeightMappingError, match=rf"{said}"):
        verify(source, tmp_path / "megatron", None)
    with pytest.raises(WeightMappingError, match=said):
        describe(source)
    changed[HEAD] = tensors["model.embed_tokens.weight"].bfloat16()  # of another dtype
    rewrite(source, changed)
    with pytest.raises(WeightMappingError, match=said):
        convert(source, tmp_path / "out", "megatron", None, ONE)
    assert not (tmp_path / "out").exists()


def rewrite(folder, tensors):
    for file in [*folder.glob("*.safetensors"), folder / "model.safetensors.index.json"]:
        file.unlink(missing_ok=True)
    save_file({n: t.contiguous() for n, t in tensors.items()}, folder / "model.safetensors")


ATTENTION = "model.layers.1.self_attn."


def key_and_value_swapped(t):
    for leaf in ("weight", "bias") if ATTENTION + "k_proj.bias" in t else ("weight",):
        k, v = (f"{ATTENTION}{x}_proj.{leaf}" for x in "kv")
        t[k], t[v] = t[v], t[k]


def groups_swapped(t):
    """The two key-value heads' query heads, keys or values change places."""
    name = ATTENTION + "q_proj.weight"
    t[name] = torch.cat(t[name].chunk(2)[::-1])


def one_group_swapped_in_the_bias(t):
    name = ATTENTION + "k_proj.bias"
    t[name] = torch.cat(t[name].chunk(2)[::-1])


def square_kernel_transposed(t):
    name = ATTENTION + "q_proj.weight"
    assert t[name].shape == t[name].T.shape
    t[name] = t[name].T


def norms_swapped(t):
    a, b = (f"{ATTENTION}{x}_norm.weight" for x in "qk")
    t[a], t[b] = t[b], t[a]


SEEN = [
    ("qwen2", key_and_value_swapped, ["k_proj.weight", "v_proj.weight", "k_proj.bias", "v_proj.bias"]),
    ("qwen3", key_and_value_swapped, ["k_proj.weight", "v_proj.weight"]),
    ("llama3", groups_swapped, ["q_proj.weight"]),
    ("qwen2_tied", groups_swapped, ["q_proj.weight"]),
    ("qwen2", one_group_swapped_in_the_bias, ["k_proj.bias"]),
    ("llama_tied", square_kernel_transposed, ["q_proj.weight"]),
    ("qwen3_tied", norms_swapped, ["q_norm.weight", "k_norm.weight"]),
]


@pytest.mark.parametrize(("name", "change", "named"), SEEN)
def test_mutations_that_keep_every_shape_are_seen_by_verify(tmp_path, name, change, named):
    _, tensors, source = make(tmp_path / "a", name)
    convert(source, tmp_path / "right", "megatron", None, ONE)
    change(tensors)
    rewrite(source, tensors)
    convert(source, tmp_path / "wrong", "megatron", None, ONE)
    for a, b in ((source, tmp_path / "right"), (tmp_path / "wrong", tmp_path / "right")):
        with pytest.raises(WeightMappingError) as fault:
            verify(a, b, None)
        lines = str(fault.value).splitlines()[1:]
        assert {line.split(":")[0].strip() for line in lines} == {ATTENTION + n for n in named}


@pytest.mark.parametrize("wrong", ["order", "groups"])
def test_the_audit_sees_a_fused_tensor_laid_out_wrongly(tmp_path, monkeypatch, wrong):
    """What to_megatron would do if it forgot the interleaving, or took value heads for key heads."""
    from r1mega.conversion import writers
    from r1mega.families.spec import Kind

    original = writers.to_megatron

    def bad(row, parts):
        if row.kind is not Kind.QKV:
            return original(row, parts)
        return original(row, [parts[0], parts[2], parts[1]]) if wrong == "order" else torch.cat(list(parts))

    _, _, source = make(tmp_path / "a", "qwen2")
    monkeypatch.setattr(writers, "to_megatron", bad)
    with pytest.raises(WeightMappingError, match=r"not what was read") as fault:
        convert(source, tmp_path / "out", "megatron", None, ONE)
    assert "k_proj.bias" in str(fault.value) and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "change", "named"),
    [
        ("qwen2", lambda t: t.pop(ATTENTION + "k_proj.bias"), r"\(1 faults\).*k_proj.bias: missing"),
        ("llama3", lambda t: t.update({ATTENTION + "q_proj.bias": torch.zeros(96)}), r"q_proj.bias: unmapped"),
        ("qwen3", lambda t: t.pop(ATTENTION + "k_norm.weight"), r"\(1 faults\).*k_norm.weight: missing"),
        (
            "qwen3",
            lambda t: t.update({ATTENTION + "o_proj.weight": t[ATTENTION + "o_proj.weight"].T}),
            r"\(1 faults\).*o_proj.weight: shape \(160, 64\)",
        ),
        ("qwen2", lambda t: t.pop(HEAD), r"\(1 faults\).*lm_head.weight: missing"),
    ],
)
def test_mutations_that_break_the_mapping_are_refused(tmp_path, name, change, named):
    _, tensors, source = make(tmp_path / "a", name)
    change(tensors)
    rewrite(source, tensors)
    for act in (lambda: convert(source, tmp_path / "out", "megatron", None, ONE), lambda: describe(source)):
        with pytest.raises(WeightMappingError, match="(?s)" + named):
            act()


@pytest.mark.parametrize("name", EVERY)
def test_fp8_blocks_of_every_family_come_back_as_their_values(tmp_path, name):
    """Codes and scales are written, and what they stand for is what to-megatron then reads."""
    _, _, source = make(tmp_path / "a", name, torch.bfloat16)
    convert(source, tmp_path / "fp8", "hf", "fp8-block", ONE)
    convert(tmp_path / "fp8", tmp_path / "megatron", "megatron", None, ONE)
    convert(tmp_path / "megatron", tmp_path / "again", "hf", None, ONE)
    assert verify(tmp_path / "fp8", tmp_path / "again", None).largest == 0
    assert any(t.dtype is torch.float8_e4m3fn for t in load_all(tmp_path / "fp8").values())
