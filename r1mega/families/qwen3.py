"""Qwen3, dense: grouped-query attention with a norm over the channels of each query and key head.

Source: transformers' `Qwen3Config`. The mixture-of-experts models are another model_type and not implemented.
"""

from collections.abc import Mapping
from typing import Any

from r1mega.families.dense_decoder import Dense, read_dense
from r1mega.families.fields import yarn
from r1mega.families.qwen2 import check_full_attention
from r1mega.families.spec import ModelSpec

QWEN3 = Dense(
    family="qwen3",
    architecture="Qwen3ForCausalLM",
    qkv_bias=False,
    qk_norm=True,
    fixed={"attention_bias": (False,)},
    ignored=("sliding_window", "max_window_layers", "layer_types"),
    rope_types={"yarn": yarn},
    bos=None,
    eos=None,
    num_kv_heads=32,
    head_dim=128,
    any_head_dim=True,
)


def read(hf: Mapping[str, Any]) -> ModelSpec:
    """The model of a config.json whose model_type is qwen3.

    Raises:
        ConfigError: a field is missing, out of range, or not understood; all such fields are named.
    """
    check_full_attention(hf)
    return read_dense(QWEN3, hf)
