"""Families: a config.json is read strictly, written back whole, and its table has every tensor once."""

import json
import math
import subprocess
import sys
from dataclasses import replace

import pytest
from published import (
    DEEPSEEK_V3,
    LLAMA31_8B,
    LLAMA33_70B,
    PARAMETERS,
    QWEN3_06B,
    QWEN25_05B,
    QWEN25_32B,
    SMOLLM2_135M,
)
from trainer_data import TINY

from r1mega.errors import ConfigError
from r1mega.families.quantization import FP8
from r1mega.families.registry import FAMILIES, read_model
from r1mega.families.spec import Grouped, Kind, Latent, Llama3Scaling, Yarn

YARN = {"type": "yarn", "factor": 2, "original_max_position_embeddings": 64}


@pytest.fixture
def write(tmp_path):
    def change(**fields):
        hf = {**json.loads(TINY.read_text()), **fields}
        (tmp_path / "config.json").write_text(json.dumps({k: v for k, v in hf.items() if v != "absent"}))
        return tmp_path

    return change


def test_the_tiny_model_is_read(spec):
    assert (spec.num_layers, spec.hidden_size, spec.moe.num_experts, spec.num_mtp_layers) == (3, 128, 8, 1)
    assert spec.hf["topk_method"] == "noaux_tc"
    assert spec.hf["scoring_func"] == "sigmoid"


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"model_type": "gpt2"}, "gpt2"),
        ({"model_type": None}, "no model_type, so not the config.json of a Hugging Face model; give the folder"),
        ({"model_type": "absent"}, "no model_type"),
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"scoring_func": "softmax"}, "scoring_func"),
        ({"sliding_window": 4096}, "sliding_window"),
        ({"hidden_size": "absent"}, "hidden_size"),
        ({"vocab_size": -1}, "vocab_size"),
        ({"tie_word_embeddings": "yes"}, "tie_word_embeddings"),
        ({"first_k_dense_replace": 4}, "first_k_dense_replace"),
        ({"first_k_dense_replace": 3}, "first_k_dense_replace = 3 leaves no mixture"),
        ({"q_lora_rank": 0}, "q_lora_rank"),
        ({"head_dim": 64}, "head_dim = 64"),
        ({"routed_scaling_factor": float("nan")}, "routed_scaling_factor = nan"),
        ({"routed_scaling_factor": -1}, "routed_scaling_factor = -1"),
        ({"routed_scaling_factor": "2.5"}, "routed_scaling_factor = '2.5'"),
        ({"routed_scaling_factor": True}, "routed_scaling_factor = True"),
        ({"num_nextn_predict_layers": True}, "num_nextn_predict_layers = True"),
        ({"num_nextn_predict_layers": False}, "num_nextn_predict_layers = False"),
        ({"output_router_logits": True}, "output_router_logits"),
        ({"rope_theta": "500000"}, "rope_theta = '500000'"),
        ({"rope_theta": True}, "rope_theta = True"),
        ({"rope_scaling": {**YARN, "factor": 0.5}}, r"factor = 0\.5: must be 1 or more"),
        ({"rope_scaling": {**YARN, "beta_fast": 1, "beta_slow": 32}}, "beta_fast = 1 must not be below"),
        (
            {"rope_scaling": {**YARN, "original_max_position_embeddings": 1.5}},
            "original_max_position_embeddings = 1.5",
        ),
        ({"rope_scaling": {**YARN, "mscale": "1"}}, "mscale = '1'"),
        ({"rope_scaling": {**YARN, "mscale": True, "mscale_all_dim": 1.0}}, "mscale = True"),
        ({"eos_token_id": 384}, "eos_token_id = 384: a token id is needed, below vocab_size = 384"),
        ({"eos_token_id": [1, -1]}, "eos_token_id"),
        ({"eos_token_id": "1"}, "eos_token_id = '1'"),
        ({"bos_token_id": 1000}, "bos_token_id = 1000"),
        ({"pad_token_id": "0"}, "pad_token_id = '0'"),
        ({"architectures": ["DeepseekV3ForSequenceClassification"]}, "DeepseekV3ForSequenceClassification"),
        ({"eos_token_id": []}, "eos_token_id"),
        ({"rope_theta": 5e5, "rope_parameters": {"rope_theta": 1e4, "rope_type": "default"}}, "two values"),
        ({"rope_scaling": {"type": "yarn", "rope_type": "linear", "factor": 2}}, "two values"),
        (
            {"rope_scaling": {"type": "yarn", "factor": 2, "original_max_position_embeddings": 64, "mscale": 0.7}},
            "mscale",
        ),
        (
            {"rope_scaling": {"type": "yarn", "factor": 2, "original_max_position_embeddings": 64, "truncate": 0}},
            "truncate",
        ),
        ({"rope_scaling": {"type": "yarn", "factor": -2, "original_max_position_embeddings": 64}}, "factor = -2"),
        ({"topk_group": 2}, "topk_group"),
        (
            {"n_group": 2, "num_experts_per_tok": 4},
            "num_experts_per_tok // topk_group = 4, but must be 2 when n_group",
        ),
        ({"n_group": 4, "topk_group": 2, "num_experts_per_tok": 2}, "topk_group = 1, but must be 2 when n_group"),
        ({"rms_norm_eps": 1e-5}, "rms_norm_eps"),
        ({"rope_scaling": {"type": "linear", "factor": 2}}, "linear"),
        ({"rope_scaling": {"type": "yarn", "factor": 2}}, "original_max_position_embeddings"),
        ({"quantization_config": {"quant_method": "fp8"}}, "quantization_config"),
        ({"quantization_config": {**DEEPSEEK_V3["quantization_config"], "weight_block_size": [64, 64]}}, "64"),
    ],
)
def test_what_is_not_understood_is_refused_by_name(write, fields, named):
    with pytest.raises(ConfigError, match=named):
        read_model(write(**fields))


def test_a_missing_file_and_broken_json_are_config_errors(tmp_path):
    with pytest.raises(ConfigError, match="cannot be read"):
        read_model(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ConfigError, match="not JSON"):
        read_model(tmp_path)


def test_the_published_yarn_fields_are_read(write):
    rope = {
        "type": "yarn",
        "factor": 40,
        "original_max_position_embeddings": 4096,
        "beta_fast": 32,
        "beta_slow": 1,
        "mscale": 1.0,
        "mscale_all_dim": 1.0,
    }
    yarn = read_model(write(rope_scaling=rope)).rope.scaling
    assert isinstance(yarn, Yarn)
    assert (yarn.factor, yarn.mscale_all_dim) == (40.0, 1.0)


def test_every_name_of_the_table_appears_once(spec):
    hf = [name for row in spec.tensors() for name in row.hf]
    assert len(hf) == len(set(hf))
    megatron = [row.megatron for row in spec.tensors() if row.kind is not Kind.COPY]
    assert len(megatron) == len(set(megatron))


def test_a_table_without_query_compression(write):
    names = {n for row in read_model(write(q_lora_rank=None)).tensors() for n in row.hf}
    assert "model.layers.0.self_attn.q_proj.weight" in names
    assert not any("q_a_proj" in n for n in names)


@pytest.mark.parametrize("name", PARAMETERS)
def test_published_models_have_their_number_of_parameters(name):
    hf, parameters = PARAMETERS[name]
    table = FAMILIES[hf["model_type"]](hf).tensors()
    assert sum(math.prod(r.shape) for r in table if r.kind is not Kind.COPY and not r.mtp) == parameters


def test_deepseek_v3_as_published_repeats_embedding_and_head():
    table = FAMILIES["deepseek_v3"](DEEPSEEK_V3).tensors()
    assert sum(math.prod(row.shape) for row in table) == 684_489_845_504
    assert sum(len(row.hf) for row in table) == 46_183  # fp8 scales not counted
    copies = {row.hf[0]: row.megatron for row in table if row.kind is Kind.COPY}
    assert copies == {
        "model.layers.61.embed_tokens.weight": "embedding.word_embeddings.weight",
        "model.layers.61.shared_head.head.weight": "output_layer.weight",
    }
    assert sum(math.prod(r.shape) for r in table if r.kind is not Kind.COPY) == 682_636_487_424
    assert sum(math.prod(r.shape) for r in table if r.kind is Kind.BUFFER and not r.mtp) == 14_848


def test_published_facts_are_read():
    v3, qwen, llama = (FAMILIES[hf["model_type"]](hf) for hf in (DEEPSEEK_V3, QWEN25_32B, LLAMA33_70B))
    assert v3.attention == Latent(1536, 512, 128, 64, 128)
    assert v3.rope.scaling == Yarn(40.0, 4096, 32.0, 1.0, 1.0, 1.0)
    assert (v3.moe.num_dense_layers, v3.moe.top_k, v3.moe.routed_scaling) == (3, 8, 2.5)
    assert qwen.attention == Grouped(8, 128, qkv_bias=True, qk_norm=False)
    assert llama.rope.scaling == Llama3Scaling(8.0, 1.0, 4.0, 8192)
    assert llama.ends == (128001, 128008, 128009)
    assert llama.pad == 128001
    assert FAMILIES["qwen3"](QWEN3_06B).attention == Grouped(8, 128, qkv_bias=False, qk_norm=True)
    assert FAMILIES["llama"](SMOLLM2_135M).attention == Grouped(3, 64, qkv_bias=False, qk_norm=False)


@pytest.mark.parametrize("name", PARAMETERS)
def test_a_config_comes_back_whole(name, tmp_path):
    """Through the spec and a file: the same spec, every published field, nothing that says FP8."""
    hf, _ = PARAMETERS[name]
    spec = FAMILIES[hf["model_type"]](hf)
    (tmp_path / "config.json").write_text(json.dumps(dict(spec.hf)))
    assert read_model(tmp_path) == spec
    assert read_model(tmp_path).hf == spec.hf
    lost = {k for k, v in hf.items() if spec.hf.get(k, "absent") != v}
    assert lost == ({"quantization_config"} if name == "DeepSeek-V3" else set())


WRITTEN_BY_TRANSFORMERS = """
import json, sys
from transformers import AutoConfig
for line in sys.stdin:
    print(AutoConfig.for_model(**json.loads(line)).to_json_string(use_diff=False).replace("\\n", " "))
"""


def test_what_transformers_writes_is_read_as_the_same_model():
    """Transformers 5 names rope and layers otherwise, and writes every default out."""
    names = [*PARAMETERS]
    # Without the quantization_config, of which it would load the FP8 kernels.
    plain = [{k: v for k, v in PARAMETERS[name][0].items() if k != "quantization_config"} for name in names]
    lines = "\n".join(map(json.dumps, plain))
    command = [sys.executable, "-W", "ignore", "-c", WRITTEN_BY_TRANSFORMERS]
    result = subprocess.run(command, input=lines, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-2000:]
    written = [json.loads(line) for line in result.stdout.splitlines()]
    assert len(written) == len(names)
    for name, config in zip(names, written, strict=True):
        assert "rope_parameters" in config
        mine, theirs = (FAMILIES[hf["model_type"]](hf) for hf in (PARAMETERS[name][0], config))
        assert replace(theirs, hf={}) == replace(mine, hf={}), name


@pytest.mark.parametrize(
    ("hf", "fields", "named"),
    [
        (QWEN25_32B, {"use_sliding_window": True}, "use_sliding_window"),
        (QWEN25_32B, {"layer_types": ["full_attention"] * 63 + ["sliding_attention"]}, "layer_types"),
        (QWEN25_32B, {"head_dim": 64}, "head_dim = 64"),
        (QWEN25_32B, {"use_mrope": True}, "use_mrope"),
        (QWEN25_32B, {"num_key_value_heads": 7}, "num_key_value_heads = 7"),
        (QWEN25_32B, {"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "dynamic"),
        (QWEN25_32B, {"quantization_config": {"quant_method": "awq"}}, "quantization_config"),
        (QWEN25_32B, {"eos_token_id": None}, "eos_token_id"),
        (QWEN25_05B, {"num_experts": 4}, "num_experts"),
        (QWEN3_06B, {"attention_bias": True}, "attention_bias"),
        (QWEN3_06B, {"head_dim": 33}, "head_dim = 33"),
        (LLAMA31_8B, {"attention_bias": True}, "attention_bias"),
        (LLAMA31_8B, {"mlp_bias": True}, "mlp_bias"),
        (LLAMA31_8B, {"sliding_window": 4096}, "sliding_window"),
        (LLAMA31_8B, {"hidden_act": "gelu"}, "hidden_act"),
        (LLAMA31_8B, {"rms_norm_eps": 0}, "rms_norm_eps"),
        (LLAMA31_8B, {"rope_interleaved": True}, "rope_interleaved"),
        (LLAMA31_8B, {"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        (LLAMA31_8B, {"logits_scaling": 2.0}, "logits_scaling"),
        (LLAMA31_8B, {"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "low_freq_factor"),
        (LLAMA31_8B, {"rope_scaling": {**LLAMA31_8B["rope_scaling"], "attention_factor": 2.0}}, "attention_factor"),
        (LLAMA31_8B, {"vocab_size": None}, "vocab_size"),
        (LLAMA31_8B, {"architectures": ["LlamaForSequenceClassification"]}, "LlamaForSequenceClassification"),
        (LLAMA31_8B, {"architectures": ["LlamaModel"]}, "LlamaModel"),
        (LLAMA31_8B, {"rope_scaling": {**LLAMA31_8B["rope_scaling"], "factor": 0.5}}, "factor = 0.5"),
        (LLAMA31_8B, {"rope_theta": "500000"}, "rope_theta"),
        (LLAMA31_8B, {"pad_token_id": -1}, "pad_token_id"),
    ],
)
def test_what_a_dense_family_does_not_have_is_refused_by_name(hf, fields, named):
    with pytest.raises(ConfigError, match=named):
        FAMILIES[hf["model_type"]]({**hf, **fields})


def test_a_tied_head_has_no_row_of_its_own(write):
    """vLLM ties the dense families' heads; DeepSeek's it reads under its own name."""
    tied = FAMILIES["qwen2"](QWEN25_05B).tensors()
    assert not any(row.megatron == "output_layer.weight" for row in tied)
    assert not any("lm_head.weight" in row.hf for row in tied)
    assert tied[0].also == ("lm_head.weight",)
    deepseek = read_model(write(tie_word_embeddings=True)).tensors()
    heads = {row.hf[0]: (row.megatron, row.kind) for row in deepseek}
    assert not any(row.megatron == "output_layer.weight" for row in deepseek)
    assert heads["lm_head.weight"] == ("embedding.word_embeddings.weight", Kind.COPY)
    assert heads["model.layers.3.shared_head.head.weight"] == ("embedding.word_embeddings.weight", Kind.COPY)


def test_dense_and_mixed_layers_follow_first_k_dense_replace(write):
    for dense in range(4):
        spec = read_model(write(first_k_dense_replace=dense, num_nextn_predict_layers=0))
        names = {n for row in spec.tensors() for n in row.hf}
        assert [f"model.layers.{i}.mlp.gate.weight" in names for i in range(3)] == [i >= dense for i in range(3)]
        assert [f"model.layers.{i}.mlp.up_proj.weight" in names for i in range(3)] == [i < dense for i in range(3)]


def test_with_vocab_changes_config_and_shapes(spec):
    other = spec.with_vocab(500, bos=5, eos=6, pad=7)
    assert other.tensors()[0].shape == (500, 128)
    assert (other.hf["vocab_size"], other.hf["eos_token_id"], other.pad) == (500, 6, 7)
    assert spec.vocab_size == 384


@pytest.mark.parametrize("hf", [DEEPSEEK_V3, QWEN25_05B, QWEN3_06B, LLAMA31_8B])
def test_fp8_blocks_are_no_part_of_any_family(hf):
    """As DeepSeek publishes them, and as vLLM's tools write them; the model is the same."""
    plain = FAMILIES[hf["model_type"]]({k: v for k, v in hf.items() if k != "quantization_config"})
    for changed in ({}, {"modules_to_not_convert": ["lm_head"]}):
        spec = FAMILIES[hf["model_type"]]({**hf, "quantization_config": {**FP8, **changed}})
        assert spec == plain and "quantization_config" not in spec.hf
    short = {k: v for k, v in FP8.items() if k != "fmt"}
    assert FAMILIES[hf["model_type"]]({**hf, "quantization_config": short}) == plain


def test_dimensions_that_are_null_are_left_out(write):
    spec = read_model(write(head_dim=None, qk_head_dim=None, num_key_value_heads=None, output_router_logits=False))
    assert "head_dim" not in spec.hf and spec.hf["num_key_value_heads"] == spec.num_heads


def test_null_key_value_heads_are_as_many_as_heads_and_none_said_the_librarys_default():
    """As transformers reads them."""
    from transformers import LlamaConfig, Qwen2Config, Qwen3Config

    heads = {"num_attention_heads": 64, "hidden_size": 8192}
    for hf, config in ((QWEN25_05B, Qwen2Config), (QWEN3_06B, Qwen3Config), (LLAMA31_8B, LlamaConfig)):
        absent = {**{k: v for k, v in hf.items() if k != "num_key_value_heads"}, **heads}
        for fields in (absent, {**absent, "num_key_value_heads": None}, {**absent, "num_key_value_heads": 16}):
            read = FAMILIES[hf["model_type"]](fields)
            theirs = {k: v for k, v in fields.items() if k not in ("model_type", "architectures")}
            assert read.attention.num_kv_heads == config(**theirs).num_key_value_heads
            assert read.hf["num_key_value_heads"] == read.attention.num_kv_heads
