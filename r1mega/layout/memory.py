"""What the trainer's state takes on each rank, by plain arithmetic: a bound from below, activations come on top.

A parameter takes its own bytes, those of its gradient, and of the optimiser a main parameter (fp32, where the weights
are not) and two moments, which data-parallel copies divide among them where the optimiser is distributed.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from r1mega.config.cluster import TrainerLayout
from r1mega.families.spec import Kind, ModelSpec, Row
from r1mega.layout.placement import stages
from r1mega.layout.shards import axis

BYTES: Mapping[str, int] = {"fp32": 4, "bf16": 2}
GIB = 2**30
_ONE_EXPERT = ".local_experts."


@dataclass(frozen=True)
class RankMemory:
    """Bytes of one rank, and the numbers that they were multiplied from."""

    params: float
    """Parameters that it holds."""
    weights: float
    gradients: float
    optimizer: float

    @property
    def total(self) -> float:
        return self.weights + self.gradients + self.optimizer

    def __str__(self) -> str:
        parts = (("weights", self.weights), ("gradients", self.gradients), ("the optimiser's state", self.optimizer))
        told = ", ".join(f"{size / GIB:,.1f} GiB of {what}" for what, size in parts)
        return f"{self.params / 1e9:,.3g}B parameters make {told}: {self.total / GIB:,.1f} GiB before activations"


def rank_memory(
    table: Sequence[Row], spec: ModelSpec, layout: TrainerLayout, *, mtp_learns: bool = True
) -> list[RankMemory]:
    """Of a rank of each pipeline rank, all other ranks being as large.

    Args:
        table: `spec.tensors()`, which takes a while to make.
        layout: one that fits the model (`laws.check_layout`).
        mtp_learns: off, the multi-token-prediction layers are frozen: weights alone.
    """
    dense, experts = [0.0] * layout.pp, [0.0] * layout.pp
    frozen = [0.0] * layout.pp
    divided = {"tp": layout.tp, "etp": layout.expert_tp, None: 1}
    at: dict[str, tuple[int, ...]] = {}
    for row in table:
        if row.kind is Kind.COPY:
            continue
        size = math.prod(row.shape) / divided[axis(row)]
        one_expert = _ONE_EXPERT in row.megatron
        part = ".".join(row.megatron.split(".", 3)[:3])  # a layer, whose tensors are all in one place
        if part not in at:
            at[part] = stages(row, spec, layout)
        for stage in at[part]:
            if row.mtp and not mtp_learns:
                frozen[stage] += size / (layout.ep if one_expert else 1)
            elif one_expert:
                experts[stage] += size / layout.ep
            else:
                dense[stage] += size
    within = layout.tp * layout.cp * layout.dp
    copies, expert_copies = layout.cp * layout.dp, within / (layout.expert_tp * layout.ep)
    if not layout.distributed_optimizer:
        copies = expert_copies = 1
    of_weight, precision = BYTES[layout.dtype], layout.precision
    of_gradient = 4 if layout.dtype == "fp32" else BYTES[precision.gradients]
    of_state = (0 if layout.dtype == "fp32" else 4) + 2 * BYTES[precision.moments]
    return [
        RankMemory(
            params=d + e + f,
            weights=of_weight * (d + e + f),
            gradients=of_gradient * (d + e),
            optimizer=of_state * (d / copies + e / expert_copies),
        )
        for d, e, f in zip(dense, experts, frozen, strict=True)
    ]


def num_parameters(table: Sequence[Row], *, mtp: bool = True) -> int:
    """Parameters of the whole model, each counted once.

    Args:
        table: `ModelSpec.tensors()`.
        mtp: whether the multi-token-prediction layers count, which engines leave out.
    """
    rows = (row for row in table if row.kind is not Kind.COPY and (mtp or not row.mtp))
    return sum(math.prod(row.shape) for row in rows)
