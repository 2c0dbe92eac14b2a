"""A model's first weights, the same whatever the layout: each tensor is drawn from the seed and its own name.

Matrices are normal with one deviation (V3 report 4.2), norms are ones, all biases are zero.
"""

import hashlib
import math
from collections.abc import Mapping
from typing import Any, Literal

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from torch import Tensor

from r1mega.families.spec import SCORE_HEAD, Kind, ModelSpec, Row
from r1mega.layout.shards import Axis, axis, padding, pieces

First = Literal["drawn", "score_head", "loaded"]
"""Which first weights are drawn: all, the score head's alone, or none, since a folder's or a checkpoint's follow."""


def initialise(spec: ModelSpec, state: Mapping[str, Tensor], seed: int, first: First = "drawn") -> None:
    """Overwrite a rank's tensors, name in the family's table -> [this rank's part] of any dtype.

    What is not drawn is made NaN, so that nothing that was not loaded after all passes for a weight.
    """
    rows = {row.megatron: row for row in spec.tensors() if row.kind is not Kind.COPY}
    with torch.no_grad():
        for name, tensor in state.items():
            if first == "drawn" or (first == "score_head" and name == SCORE_HEAD):
                tensor.copy_(local_part(rows[name], _whole(rows[name], spec.init_std, seed)))
            else:
                tensor.fill_(math.nan)


def local_part(row: Row, whole: Tensor) -> Tensor:
    """This rank's part of a whole Megatron tensor [row.shape], of its dtype, with the zeros that pad a vocabulary."""
    part, num_parts = place_on(axis(row))
    dim, ranges = pieces(row, part, num_parts)
    parts = [whole.narrow(dim, start, stop - start) for start, stop in ranges]
    if missing := padding(row, part, num_parts):
        parts.append(whole.new_zeros(missing, *whole.shape[1:]))
    return torch.cat(parts, dim)


def place_on(named: Axis | None) -> tuple[int, int]:
    """This rank's place on an axis, and the axis's size; (0, 1) on none."""
    if named == "tp":
        state = parallel_state
        return state.get_tensor_model_parallel_rank(), state.get_tensor_model_parallel_world_size()
    if named == "etp":
        group: Any = parallel_state.get_expert_tensor_parallel_group()
        return dist.get_rank(group), dist.get_world_size(group)
    return 0, 1


def _whole(row: Row, std: float, seed: int) -> Tensor:
    if row.kind is Kind.BUFFER or row.megatron.endswith(".bias"):
        return torch.zeros(row.shape)
    if len(row.shape) == 1:
        return torch.ones(row.shape)
    digest = hashlib.sha256(f"{seed}/{row.megatron}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
    return torch.empty(row.shape).normal_(0.0, std, generator=generator)
