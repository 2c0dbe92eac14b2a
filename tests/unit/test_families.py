"""Families: a config.json is read strictly, and the table is complete."""

import json
import math

import pytest
from trainer_data import TINY

from r1mega.errors import ConfigError
from r1mega.families.registry import read_model
from r1mega.families.spec import Kind


@pytest.fixture
def write(tmp_path):
    def change(**fields):
        hf = {**json.loads(TINY.read_text()), **fields}
        (tmp_path / "config.json").write_text(json.dumps({k: v for k, v in hf.items() if v != "absent"}))
        return tmp_path

    return change


def test_the_tiny_model_is_read(spec):
    assert (spec.num_layers, spec.hidden_size, spec.num_experts, spec.num_mtp_layers) == (3, 128, 8, 1)
    assert spec.hf["topk_method"] == "noaux_tc"
    assert spec.hf["scoring_func"] == "sigmoid"


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"model_type": "gpt2"}, "gpt2"),
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"scoring_func": "softmax"}, "scoring_func"),
        ({"sliding_window": 4096}, "sliding_window"),
        ({"hidden_size": "absent"}, "hidden_size"),
        ({"vocab_size": -1}, "vocab_size"),
        ({"tie_word_embeddings": True}, "tie_word_embeddings"),
        ({"topk_group": 2}, "topk_group"),
        ({"rms_norm_eps": 1e-5}, "rms_norm_eps"),
        ({"rope_scaling": {"type": "linear", "factor": 2}}, "linear"),
        ({"rope_scaling": {"type": "yarn", "factor": 2}}, "original_max_position_embeddings"),
        ({"quantization_config": {"quant_method": "fp8"}}, "quantization_config"),
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
    yarn = read_model(write(rope_scaling=rope)).yarn
    assert yarn is not None
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


V3 = {
    "vocab_size": 129280,
    "hidden_size": 7168,
    "num_hidden_layers": 61,
    "num_attention_heads": 128,
    "num_key_value_heads": 128,
    "intermediate_size": 18432,
    "moe_intermediate_size": 2048,
    "n_routed_experts": 256,
    "num_experts_per_tok": 8,
    "n_group": 8,
    "topk_group": 4,
    "first_k_dense_replace": 3,
    "routed_scaling_factor": 2.5,
    "q_lora_rank": 1536,
    "kv_lora_rank": 512,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
}


def test_deepseek_v3_has_the_published_number_of_parameters(write):
    table = read_model(write(**V3)).tensors()
    numel = {True: 0, False: 0}
    for row in table:
        numel[row.mtp] += math.prod(row.shape)
    assert numel[False] == 671_026_419_200
    assert numel[False] + numel[True] == 684_489_845_504
    # fp8 scales not counted.
    assert sum(len(row.hf) for row in table) == 46_183


def test_with_vocab_changes_config_and_shapes(spec):
    other = spec.with_vocab(500, bos=5, eos=6, pad=7)
    assert other.tensors()[0].shape == (500, 128)
    assert (other.hf["vocab_size"], other.hf["eos_token_id"], other.pad) == (500, 6, 7)
    assert spec.vocab_size == 384
