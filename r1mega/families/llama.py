"""Llama 2 and 3.x, and models of the same form such as SmolLM2.

Source: transformers' `LlamaConfig`.
"""

from collections.abc import Mapping
from typing import Any

from r1mega.families.dense_decoder import Dense, read_dense
from r1mega.families.fields import llama3, yarn
from r1mega.families.spec import ModelSpec

LLAMA = Dense(
    family="llama",
    architecture="LlamaForCausalLM",
    qkv_bias=False,
    qk_norm=False,
    fixed={
        "attention_bias": (False,),
        "mlp_bias": (False,),
        # Written by the exporters of SmolLM2.
        "is_llama_config": (True,),
        "rope_interleaved": (False,),
    },
    ignored=(),
    rope_types={"llama3": llama3, "yarn": yarn},
    bos=1,
    eos=2,
    num_kv_heads=None,
    head_dim=None,
    any_head_dim=True,
)


def read(hf: Mapping[str, Any]) -> ModelSpec:
    """The model of a config.json whose model_type is llama.

    Raises:
        ConfigError: a field is missing, out of range, or not understood; all such fields are named.
    """
    return read_dense(LLAMA, hf)
