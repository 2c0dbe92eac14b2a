"""config.json as others publish and write it: read where nothing changes the model, else refused with a remedy."""

import math

import pytest
from published import DEEPSEEK_V3, LLAMA31_8B, QWEN3_06B, QWEN25_05B, QWEN25_32B

from r1mega.errors import ConfigError
from r1mega.families.quantization import FP8
from r1mega.families.registry import FAMILIES, with_positions
from r1mega.families.spec import Kind

QWEN25_7B = {
    **QWEN25_32B,
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_attention_heads": 28,
    "num_hidden_layers": 28,
    "num_key_value_heads": 4,
    "max_window_layers": 28,
    "vocab_size": 152064,
}
QWEN3_8B = {
    **QWEN3_06B,
    "hidden_size": 4096,
    "intermediate_size": 12288,
    "num_attention_heads": 32,
    "num_hidden_layers": 36,
    "max_window_layers": 36,
    "tie_word_embeddings": False,
}
QWEN3_4B = {
    **QWEN3_8B,
    "hidden_size": 2560,
    "intermediate_size": 9728,
    "max_position_embeddings": 262144,
    "rope_theta": 5000000,
    "tie_word_embeddings": True,
}
LLAMA2_7B = {
    "_name_or_path": "meta-llama/Llama-2-7b-hf",
    "architectures": ["LlamaForCausalLM"],
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_act": "silu",
    "hidden_size": 4096,
    "initializer_range": 0.02,
    "intermediate_size": 11008,
    "max_position_embeddings": 4096,
    "model_type": "llama",
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 32,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-05,
    "rope_scaling": None,
    "tie_word_embeddings": False,
    "torch_dtype": "float16",
    "transformers_version": "4.31.0.dev0",
    "use_cache": True,
    "vocab_size": 32000,
}
LLAMA1_7B = {
    **{k: v for k, v in LLAMA2_7B.items() if k not in ("num_key_value_heads", "rope_scaling", "pretraining_tp")},
    "max_position_embeddings": 2048,
    "max_sequence_length": 2048,
    "pad_token_id": 0,
    "rms_norm_eps": 1e-06,
}
SKIPPED = [f"model.layers.{i}.{n}" for i in range(28) for n in ("input_layernorm", "post_attention_layernorm")]
PUBLISHED = {
    "Qwen2.5-7B-Instruct": ({**QWEN25_7B, "eos_token_id": 151645}, 7_615_616_512),
    "DeepSeek-R1-Distill-Qwen-7B": ({**QWEN25_7B, "rope_theta": 10000, "use_mrope": False}, 7_615_616_512),
    "Qwen2.5-7B of Unsloth": ({**QWEN25_7B, "pad_token_id": 151654, "unsloth_fixed": True}, 7_615_616_512),
    "Qwen3-8B": (QWEN3_8B, 8_190_735_360),
    "Qwen3-4B-Instruct-2507": (QWEN3_4B, 4_022_468_096),
    "Qwen3-0.6B-FP8": (
        {**QWEN3_06B, "quantization_config": {**FP8, "modules_to_not_convert": ["lm_head", *SKIPPED]}},
        596_049_920,
    ),
    "Qwen3-0.6B of another FP8 tool": (
        {**QWEN3_06B, "quantization_config": {**FP8, "ignored_layers": ["lm_head"], "weight_per_tensor": False}},
        596_049_920,
    ),
    "Llama-7b": (LLAMA1_7B, 6_738_415_616),
    "Llama-2-7b": (LLAMA2_7B, 6_738_415_616),
    "Llama-2-7b with generation defaults": (
        {**LLAMA2_7B, "max_length": 4096, "temperature": 0.9, "top_p": 0.6, "do_sample": True, "pad_token_id": 0},
        6_738_415_616,
    ),
    "Llama-3-8B": ({**LLAMA31_8B, "rope_scaling": None, "max_position_embeddings": 8192}, 8_030_261_248),
    "Llama-3.1-8B after an SFT elsewhere": (
        {**LLAMA31_8B, "_attn_implementation_autoset": True, "use_cache": False, "dtype": "bfloat16", "unsloth_x": 1},
        8_030_261_248,
    ),
    "Llama-3.2-3B": (
        {
            **{**LLAMA31_8B, "hidden_size": 3072, "intermediate_size": 8192, "num_hidden_layers": 28},
            **{"num_attention_heads": 24, "head_dim": 128, "tie_word_embeddings": True},
            "rope_scaling": {**LLAMA31_8B["rope_scaling"], "factor": 32.0},
        },
        3_212_749_824,
    ),
    "DeepSeek-V3-0324 and R1": ({**DEEPSEEK_V3, "transformers_version": "4.46.3"}, 671_026_419_200),
    "DeepSeek-V3.1": (
        {**DEEPSEEK_V3, "quantization_config": {**FP8, "scale_fmt": "ue8m0"}},
        671_026_419_200,
    ),
}
"""Name -> (config.json as remembered, parameters that its publisher states)."""


@pytest.mark.parametrize("name", PUBLISHED)
def test_what_is_published_is_read(name):
    hf, parameters = PUBLISHED[name]
    table = FAMILIES[hf["model_type"]](hf).tensors()
    assert sum(math.prod(r.shape) for r in table if r.kind is not Kind.COPY and not r.mtp) == parameters


CHANGES_NOTHING = {
    "_attn_implementation_autoset": True,
    "_flash_attn_2_enabled": False,
    "attn_implementation": None,
    "unsloth_version": "2025.3.19",
    "unsloth_fixed": True,
    "tokenizer_class": None,
    "is_decoder": False,
    "is_encoder_decoder": False,
    "add_cross_attention": False,
    "cross_attention_hidden_size": None,
    "tie_encoder_decoder": False,
    "pruned_heads": {},
    "torchscript": False,
    "gradient_checkpointing": True,
    "max_length": 20,
    "min_length": 0,
    "num_beams": 1,
    "num_beam_groups": 1,
    "temperature": 0.6,
    "top_k": 50,
    "top_p": 0.95,
    "do_sample": False,
    "repetition_penalty": 1.05,
    "bad_words_ids": None,
    "decoder_start_token_id": None,
    "prefix": None,
    "task_specific_params": None,
    "finetuning_task": None,
    "torch_dtype": "float32",
    "dtype": "bfloat16",
    "model_max_length": 131072,
}


@pytest.mark.parametrize("hf", [QWEN25_05B, QWEN3_06B, LLAMA31_8B, DEEPSEEK_V3])
def test_marks_of_other_trainers_change_nothing(hf):
    """All at once, and they come back with the file."""
    marks = {**CHANGES_NOTHING, "model_max_length": hf["max_position_embeddings"]}
    plain, marked = (FAMILIES[hf["model_type"]](fields) for fields in (hf, {**hf, **marks}))
    names = [name for name in plain.__dataclass_fields__ if name != "hf"]
    assert all(getattr(plain, name) == getattr(marked, name) for name in names)
    assert all(marked.hf[name] == value for name, value in marks.items())


@pytest.mark.parametrize(
    ("hf", "fields", "named"),
    [
        # What would change the model, each by a value that is false in Python or nearly so.
        (LLAMA31_8B, {"is_causal": False}, "is_causal = False: only True is implemented"),
        (LLAMA31_8B, {"is_encoder_decoder": True}, "is_encoder_decoder = True"),
        (LLAMA31_8B, {"is_encoder_decoder": 0}, "is_encoder_decoder = 0"),
        (LLAMA31_8B, {"partial_rotary_factor": 0}, "partial_rotary_factor = 0"),
        (LLAMA31_8B, {"logits_scaling": 0}, "logits_scaling = 0"),
        (LLAMA31_8B, {"sliding_window": 0}, "sliding_window = 0"),
        (LLAMA31_8B, {"pruned_heads": {"0": [1]}}, "pruned_heads"),
        (LLAMA31_8B, {"rope_scaling": False}, "rope_scaling = False: an object is needed"),
        (LLAMA31_8B, {"rope_parameters": []}, r"rope_parameters = \[\]: an object is needed"),
        (LLAMA31_8B, {"pretraining_tp": 0}, "pretraining_tp = 0"),
        (LLAMA31_8B, {"num_local_experts": 8}, "num_local_experts = 8"),
        (LLAMA31_8B, {"use_bidirectional_attention": True}, "use_bidirectional_attention"),
        (LLAMA31_8B, {"quantization_config": []}, r"quantization_config = \[\]: expected an object"),
        (QWEN3_06B, {"layer_types": []}, "layer_types"),
        (QWEN25_05B, {"num_experts": False}, "num_experts = False"),
        (DEEPSEEK_V3, {"attention_bias": 0}, "attention_bias = 0"),
        # A remedy each.
        (LLAMA31_8B, {"foo": 0, "bar": None}, "foo = 0, bar = None: not known here: take out of config.json what"),
        (
            QWEN25_7B,
            {"dual_chunk_attention_config": {"chunk_size": 262144}},
            "dual_chunk_.*: take out of config.json",
        ),
        (LLAMA2_7B, {"max_sequence_length": 2048}, "must not be below max_position_embeddings = 4096.*make the two"),
        (LLAMA31_8B, {"quantization": {"bits": 4, "group_size": 64}}, "not read; fetch the model's bf16 weights"),
        (
            LLAMA31_8B,
            {"quantization_config": {"quant_method": "fbgemm_fp8", "activation_scale_ub": 1200.0}},
            "quant_method = 'fbgemm_fp8': only 'fp8' is read.*; fetch the model's bf16 weights",
        ),
        (QWEN3_06B, {"quantization_config": {**FP8, "scale_fmt": "e5m2"}}, "scale_fmt = 'e5m2'.*fetch the model"),
        (QWEN3_06B, {"quantization_config": {**FP8, "weight_per_tensor": True}}, "weight_per_tensor = True"),
        (QWEN3_06B, {"quantization_config": {**FP8, "kv_cache_scheme": {}}}, "kv_cache_scheme"),
        (
            LLAMA31_8B,
            {"rope_scaling": {**LLAMA31_8B["rope_scaling"], "x": 0}},
            "{'x': 0} of type 'llama3': not known",
        ),
    ],
)
def test_what_changes_the_model_is_judged_by_its_meaning(hf, fields, named):
    with pytest.raises(ConfigError, match=named):
        FAMILIES[hf["model_type"]]({**hf, **fields})


def test_values_that_mean_nothing_are_taken_as_such():
    """Experts of which there are none, a window that is null, a rope field at its default."""
    yarn = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768, "finetuned": True}
    hf = {**QWEN25_7B, "rope_scaling": {**yarn, "attention_factor": None}, "num_experts": 0}
    assert FAMILIES["qwen2"](hf).rope == FAMILIES["qwen2"]({**QWEN25_7B, "rope_scaling": yarn}).rope
    hf = {**LLAMA31_8B, "sliding_window": None, "use_sliding_window": False, "partial_rotary_factor": 1.0}
    assert FAMILIES["llama"](hf).rope == FAMILIES["llama"](LLAMA31_8B).rope


def test_a_longer_context_is_written_under_each_of_its_names():
    spec = with_positions(FAMILIES["llama"](LLAMA1_7B), 8192)
    assert (spec.hf["max_sequence_length"], spec.hf["max_position_embeddings"]) == (8192, 8192)
    assert FAMILIES["llama"](spec.hf).max_positions == 8192
