"""What an engine holds on each GPU, by plain arithmetic: a bound from below, activations and CUDA graphs come on top.

While weights are pushed, vLLM keeps every tensor that it receives of a module until the module is complete, and only
then cuts its own share out of them (model_executor/model_loader/reload/layerwise.py, vLLM 0.32: arguments are kept
before any slicing). All experts of a layer are one module, of which every worker receives the whole. Beside weights
and cache there must be room for the largest module, whole, for a rank's own new share of it, and for what is on its
way: twice the module where one rank holds it all.
"""

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from r1mega.config.cluster import Cluster, RolloutLayout
from r1mega.families.spec import OUTPUT_LAYER, Kind, ModelSpec, Row, Shard
from r1mega.layout.memory import BYTES, GIB
from r1mega.layout.shards import axis

FP8_BLOCK = 128
"""Values to a side of the blocks that have a scale, in fp32."""
_ONE_EXPERT = ".local_experts."


@dataclass(frozen=True)
class EngineMemory:
    """Bytes on one GPU of a server."""

    params: float
    """Parameters that it holds."""
    weights: float
    cache: float
    """Of keys and values."""
    module: str
    """The largest module, by the Megatron name of its first tensor."""
    received: float
    """Of that module, whole, while it is pushed; with the rank's own new share of it."""
    buckets: float
    """Of the two messages of weights that may be on their way at once."""

    @property
    def reload(self) -> float:
        """What a push needs beside weights and cache."""
        return self.received + self.buckets

    @property
    def total(self) -> float:
        return self.weights + self.cache + self.reload

    def __str__(self) -> str:
        return (
            f"{self.params / 1e9:,.3g}B parameters make {self.weights / GIB:,.1f} GiB of weights; keys and values "
            f"take {self.cache / GIB:,.1f} GiB, and a push, in which vLLM keeps {self.module} whole beside the "
            f"rank's new share of it, {self.reload / GIB:,.1f} GiB: {self.total / GIB:,.1f} GiB before activations"
        )


def engine_memory(table: Sequence[Row], spec: ModelSpec, machine: Cluster) -> EngineMemory:
    """Of each GPU of a server; all of its ranks hold as much.

    Args:
        table: `spec.tensors()`; layers of multi-token prediction are left out, as the engine leaves them out.
    """
    layout, fp8 = machine.rollout, machine.weights.fp8
    params = weights = 0.0
    whole: dict[str, float] = defaultdict(float)
    own: dict[str, float] = defaultdict(float)
    for row in table:
        if row.mtp or row.kind is Kind.COPY:
            continue
        share, each = _share(row, spec, layout), _bytes_of_each(row, layout, fp8=fp8)
        size = math.prod(row.shape)
        params += size * share
        weights += size * share * each
        module = _module(row)
        own[module] += size * share * each
        whole[module] += size * (each if fp8 else max(each, BYTES[machine.trainer.dtype]))
    largest = max(whole, key=lambda module: whole[module] + own[module])
    bucket = machine.weights.bucket_mib * 2**20
    return EngineMemory(
        params=params,
        weights=weights,
        cache=layout.kv_cache_gib * GIB,
        module=largest,
        received=whole[largest] + own[largest],
        buckets=2 * (min(bucket, 64 * 2**20) if machine.transport == "gloo" else bucket),
    )


def _share(row: Row, spec: ModelSpec, layout: RolloutLayout) -> float:
    """The part of a tensor that a rank holds. Key-value heads are repeated where there are more ranks than heads."""
    if row.shard in (Shard.EXPERT_ROWS, Shard.EXPERT_COLUMNS):
        return 1 / (layout.tp * layout.dp)
    if axis(row) is None:
        return 1.0
    if row.kind is Kind.QKV:
        queries, *others = (math.prod(shape) for shape in row.hf_shapes)
        held = queries / layout.tp + sum(others) / row.groups * math.ceil(row.groups / layout.tp)
        return held / math.prod(row.shape)
    return 1 / layout.tp


def _bytes_of_each(row: Row, layout: RolloutLayout, *, fp8: bool) -> float:
    """Bytes of a value. Embedding, head, router and norms are never FP8."""
    if row.kind is Kind.BUFFER:
        return 4
    projection = len(row.shape) == 2 and "_proj" in row.hf[0]
    if fp8 and projection and row.megatron != OUTPUT_LAYER:
        return 1 + 4 / FP8_BLOCK**2
    return BYTES[layout.dtype]


def _module(row: Row) -> str:
    """What vLLM loads as one: a layer's experts together, otherwise a tensor."""
    before, found, _ = row.megatron.partition(_ONE_EXPERT)
    return f"all experts of {before.removesuffix('.experts')}" if found else row.megatron.removesuffix(".weight")
