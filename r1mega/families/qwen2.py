"""Qwen2 and Qwen2.5: grouped-query attention with biases on queries, keys and values.

Source: transformers' `Qwen2Config`. Sliding-window attention is not implemented, and no published base model uses it.
"""

from collections.abc import Mapping
from typing import Any

from r1mega.errors import ConfigError
from r1mega.families.dense_decoder import Dense, read_dense
from r1mega.families.fields import yarn
from r1mega.families.spec import ModelSpec

QWEN2 = Dense(
    family="qwen2",
    architecture="Qwen2ForCausalLM",
    qkv_bias=True,
    qk_norm=False,
    fixed={},
    ignored=("sliding_window", "max_window_layers", "layer_types"),
    rope_types={"yarn": yarn},
    bos=None,
    eos=None,
    num_kv_heads=32,
    head_dim=None,
    any_head_dim=False,  # vLLM takes hidden_size / num_attention_heads whatever the field says
)


def read(hf: Mapping[str, Any]) -> ModelSpec:
    """The model of a config.json whose model_type is qwen2.

    Raises:
        ConfigError: a field is missing, out of range, or not understood; all such fields are named.
    """
    check_full_attention(hf)
    return read_dense(QWEN2, hf)


def check_full_attention(hf: Mapping[str, Any]) -> None:
    """Refuse layers that do not attend to every earlier token, which Qwen lists from transformers 5 on.

    Raises:
        ConfigError: another layer type, or a list of another length than there are layers.
    """
    types = hf.get("layer_types")
    if types is not None and types != ["full_attention"] * hf.get("num_hidden_layers", 0):
        raise ConfigError(f"layer_types = {types!r}: only full_attention, once for each layer, is implemented")
