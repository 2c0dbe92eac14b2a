"""A rank's tensor names as the whole model counts them.

Megatron numbers layers within a stage of the pipeline and experts within an expert-parallel rank; the families'
tables number both over the model.
"""

import re
from collections.abc import Mapping
from typing import Any, TypeVar

from megatron.core import parallel_state
from megatron.core.transformer.transformer_layer import get_transformer_layer_offset
from torch import Tensor

T = TypeVar("T")

_LAYER = re.compile(r"^decoder\.layers\.(\d+)\.")
_EXPERT = re.compile(r"\.local_experts\.(\d+)\.")
_GROUPED = re.compile(r"\.experts\.(linear_fc[12])\.weight(\d+)$")
"""Transformer Engine keeps a rank's experts in one module."""


def whole_model_name(name: str, config: Any, *, tied: bool, chunk: int | None = None) -> str:
    """The name in the family's table of a tensor that this rank calls `name`.

    Args:
        tied: whether the output head is the embedding, of which the last pipeline stage then holds a copy as its
            head; Megatron keeps both equal.
        chunk: which of this rank's chunks of layers calls it so, where it has several.
    """
    if tied and name == "output_layer.weight":
        return "embedding.word_embeddings.weight"
    first_layer = get_transformer_layer_offset(config, chunk)
    first_expert = parallel_state.get_expert_model_parallel_rank() * (
        (config.num_moe_experts or 0) // config.expert_model_parallel_size
    )
    name = _GROUPED.sub(r".experts.local_experts.\2.\1.weight", name)
    name = _LAYER.sub(lambda m: f"decoder.layers.{int(m[1]) + first_layer}.", name)
    return _EXPERT.sub(lambda m: f".local_experts.{int(m[1]) + first_expert}.", name)


def by_whole_model_names(network: Any, tensors: Mapping[str, T]) -> dict[str, T]:
    """What a network (`network.model.PolicyModel`) has by names of its own, by the names of the family's table."""
    tied, chunk = network.share_embeddings_and_output_weights, network.vp_stage
    return {whole_model_name(n, network.config, tied=tied, chunk=chunk): t for n, t in tensors.items()}


def own_tensors(network: Any) -> dict[str, Tensor]:
    """A network's live parameters and persistent buffers by its own names."""
    tensors = network.state_dict(keep_vars=True).items()
    # Transformer Engine keeps its FP8 recipe among them.
    return {n: t for n, t in tensors if isinstance(t, Tensor) and not n.endswith("_extra_state")}
