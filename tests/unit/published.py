"""config.json files as published on the hub, and what is known of their sizes.

The models of the report are shipped in configs/models; the small ones here serve tests alone.
"""

import json
from pathlib import Path
from typing import Any

MODELS = Path(__file__).parents[2] / "configs/models"


def _shipped(name: str) -> dict[str, Any]:
    return json.loads((MODELS / name / "config.json").read_text())


DEEPSEEK_V3 = _shipped("DeepSeek-V3-Base")
QWEN25_32B = _shipped("Qwen2.5-32B")
LLAMA31_8B = _shipped("Llama-3.1-8B")
LLAMA33_70B = _shipped("Llama-3.3-70B-Instruct")

QWEN25_05B = {
    **QWEN25_32B,
    "hidden_size": 896,
    "intermediate_size": 4864,
    "max_position_embeddings": 32768,
    "max_window_layers": 24,
    "num_attention_heads": 14,
    "num_hidden_layers": 24,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-06,
    "sliding_window": 32768,
    "tie_word_embeddings": True,
    "use_mrope": False,
    "vocab_size": 151936,
}

QWEN3_06B = {
    "architectures": ["Qwen3ForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 151643,
    "eos_token_id": 151645,
    "head_dim": 128,
    "hidden_act": "silu",
    "hidden_size": 1024,
    "initializer_range": 0.02,
    "intermediate_size": 3072,
    "max_position_embeddings": 40960,
    "max_window_layers": 28,
    "model_type": "qwen3",
    "num_attention_heads": 16,
    "num_hidden_layers": 28,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "rope_theta": 1000000,
    "sliding_window": None,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.51.0",
    "use_cache": True,
    "use_sliding_window": False,
    "vocab_size": 151936,
}

LLAMA32_1B = {
    **LLAMA31_8B,
    "head_dim": 64,
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 16,
    "rope_scaling": {**LLAMA31_8B["rope_scaling"], "factor": 32.0},
    "tie_word_embeddings": True,
}

SMOLLM2_135M = {
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "hidden_act": "silu",
    "hidden_size": 576,
    "initializer_range": 0.041666666666666664,
    "intermediate_size": 1536,
    "is_llama_config": True,
    "max_position_embeddings": 8192,
    "model_type": "llama",
    "num_attention_heads": 9,
    "num_hidden_layers": 30,
    "num_key_value_heads": 3,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-05,
    "rope_interleaved": False,
    "rope_scaling": None,
    "rope_theta": 100000,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.40.1",
    "use_cache": True,
    "vocab_size": 49152,
}

PARAMETERS = {
    "DeepSeek-V3": (DEEPSEEK_V3, 671_026_419_200),
    "Qwen2.5-32B": (QWEN25_32B, 32_763_876_352),
    "Qwen2.5-14B": (_shipped("Qwen2.5-14B"), 14_770_033_664),
    "Qwen2.5-Math-7B": (_shipped("Qwen2.5-Math-7B"), 7_615_616_512),
    "Qwen2.5-Math-1.5B": (_shipped("Qwen2.5-Math-1.5B"), 1_543_714_304),
    "Qwen2.5-0.5B": (QWEN25_05B, 494_032_768),
    "Qwen3-0.6B": (QWEN3_06B, 596_049_920),
    "Llama-3.1-8B": (LLAMA31_8B, 8_030_261_248),
    "Llama-3.3-70B": (LLAMA33_70B, 70_553_706_496),
    "Llama-3.2-1B": (LLAMA32_1B, 1_235_814_400),
    "SmolLM2-135M": (SMOLLM2_135M, 134_515_008),
}
"""Name -> (config.json, parameters without MTP layers and without repeated tensors)."""
