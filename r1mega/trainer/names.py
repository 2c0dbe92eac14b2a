"""A rank's tensor names as the whole model counts them.

Megatron numbers layers within a pipeline stage and experts within an expert-parallel rank; the families' tables
number both over the model.
"""

import re
from typing import Any

from megatron.core import parallel_state
from megatron.core.transformer.transformer_layer import get_transformer_layer_offset

_LAYER = re.compile(r"^decoder\.layers\.(\d+)\.")
_EXPERT = re.compile(r"\.local_experts\.(\d+)\.")


def whole_model_name(name: str, config: Any) -> str:
    """The name in the family's table of a tensor that this rank calls `name`."""
    first_layer = get_transformer_layer_offset(config)
    first_expert = parallel_state.get_expert_model_parallel_rank() * (
        (config.num_moe_experts or 0) // config.expert_model_parallel_size
    )
    name = _LAYER.sub(lambda m: f"decoder.layers.{int(m[1]) + first_layer}.", name)
    return _EXPERT.sub(lambda m: f".local_experts.{int(m[1]) + first_expert}.", name)
