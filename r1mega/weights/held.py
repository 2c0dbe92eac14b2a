"""Runs in a vLLM worker: which boxes of which Hugging Face tensors it holds, and where.

A worker has a part of some tensors, several in one (q, k and v; gate and up), and others whole. `Boxes` says which,
from the layers' own sizes and ranks: a second reading of vLLM's layout, beside the loaders that filled it.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from vllm.model_executor.layers.linear import LinearBase, QKVParallelLinear, RowParallelLinear
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead, VocabParallelEmbedding

from r1mega.weights import read_back


class HeldBox(NamedTuple):
    """A part of a tensor: rows 64 to 128 of model.layers.0.self_attn.q_proj.weight start at (64, 0)."""

    name: str
    start: tuple[int, ...]
    """Row and column, or row alone, of its first element in the whole tensor."""
    shape: tuple[int, ...]
    dtype: torch.dtype
    """In which it is computed with."""
    place: str
    """The engine's own name of what it is in."""
    values: Tensor | None
    """[shape]; None: its kernel does not give it back, or it was not asked for."""


class Boxes:
    """What a vLLM model holds.

    Args:
        values: whether what is in the boxes is read; it takes a product with a unit matrix for each weight on a CPU.
    """

    def __init__(self, model: Any, *, values: bool) -> None:
        self._fused = {name: tuple(parts) for name, parts in model.packed_modules_mapping.items()}
        self._modules = dict(model.named_modules())
        self._names = {id(module): name for name, module in self._modules.items()}
        tables: dict[str, Any] = {n: m for n, m in self._modules.items() if isinstance(m, VocabParallelEmbedding)}
        self._embeddings = {table.weight.data_ptr(): name for name, table in tables.items() if not _is_head(table)}
        self._values = values

    def __iter__(self) -> Iterator[HeldBox]:
        for name, layer in self._modules.items():
            yield from self.of(name, layer)

    def of(self, name: str, layer: Any, *, loading: bool = False) -> Iterator[HeldBox]:
        """Those of one module, without its children.

        Args:
            loading: it was just filled, and its kernel has not made anything else of it.
        """
        mine = {own: p for own, p in layer.named_parameters(recurse=False) if p is not None}
        if "w13_weight" in mine:
            yield from self._experts(name.removesuffix(".routed_experts"), layer, loading)
            mine = {own: p for own, p in mine.items() if not own.startswith(("w13_", "w2_"))}
        elif isinstance(layer, VocabParallelEmbedding):
            yield from self._vocabulary(name, layer, loading)
            mine.pop("weight")
        elif isinstance(layer, LinearBase):
            yield from self._linear(name, layer, loading)
            mine = {own: p for own, p in mine.items() if not own.startswith(("weight", "bias"))}
        elif "W_UV" in mine and "W_UK_T" in mine:
            yield from self._absorbed(name, layer)
            mine = {own: p for own, p in mine.items() if own not in ("W_UV", "W_UK_T")}
        for own, tensor in mine.items():
            place = f"{name}.{own}"
            # The experts' own reference to the bias of their router.
            sent_as = place.replace(".experts.routed_experts.e_score_", ".gate.e_score_")
            yield HeldBox(sent_as, (0,) * tensor.ndim, tuple(tensor.shape), tensor.dtype, place, self._read(tensor))

    def _read(self, tensor: Tensor) -> Tensor | None:
        return tensor.detach() if self._values else None

    # ---- linear layers ------------------------------------------------------------------------------------------

    def _linear(self, name: str, layer: Any, loading: bool) -> Iterator[HeldBox]:
        prefix, _, own = name.rpartition(".")
        children = [f"{prefix}.{child}" for child in self._fused.get(own, (own,))]
        starts, sizes = _rows_of(layer)
        columns = read_back.columns_of(layer)
        column = layer.tp_rank * columns if _cuts_columns(layer) else 0
        whole = read_back.matrix(layer, loading=loading) if self._values else None
        of_all = [(child, row, size) for child, row, size in zip(children, starts, sizes, strict=True)]
        yield from _stacked(of_all, "weight", column, columns, _dtype(layer, layer.weight), f"{name}.weight", whole)
        if layer.bias is not None:
            values = self._read(layer.bias)
            yield from _stacked(of_all, "bias", None, 0, layer.bias.dtype, f"{name}.bias", values)
        if (block := read_back.scale_block(layer)) is not None:
            high, wide = block
            of_all = [(child, row // high, -(-size // high)) for child, row, size in of_all]
            scales = layer.weight_scale_inv if loading and self._values else None
            place, columns = f"{name}.weight_scale_inv", -(-columns // wide)
            yield from _stacked(of_all, "weight_scale_inv", column // wide, columns, torch.float32, place, scales)

    # ---- embedding and head -------------------------------------------------------------------------------------

    def _vocabulary(self, name: str, layer: Any, loading: bool) -> Iterator[HeldBox]:
        """The table, and beside it what a head multiplies with: they may be two, of which one is stale."""
        shard = layer.shard_indices
        start, shape = (shard.org_vocab_start_index, 0), (shard.num_org_elements, layer.embedding_dim)
        is_head = _is_head(layer)
        of = self._embeddings.get(layer.weight.data_ptr(), name) if is_head else name
        dtype = layer.weight.dtype

        def rows(whole: Tensor | None) -> Tensor | None:
            return None if whole is None else whole[: shape[0]]

        yield HeldBox(f"{of}.weight", start, shape, dtype, f"{name}.weight", rows(self._read(layer.weight)))
        if is_head and not loading and read_back.has_own_copy(layer):
            whole = read_back.matrix(layer) if self._values else None
            yield HeldBox(f"{of}.weight", start, shape, dtype, f"the kernel of {name}", rows(whole))

    # ---- experts ------------------------------------------------------------------------------------------------

    def _experts(self, name: str, layer: Any, loading: bool) -> Iterator[HeldBox]:
        config = layer.moe_config
        rows, columns = config.intermediate_size_per_partition_unpadded, config.hidden_dim_unpadded
        start = 0 if config.moe_parallel_config.use_ep else config.moe_parallel_config.tp_rank * rows
        found = read_back.experts(layer, loading=loading) if self._values else None
        yield from self._of_experts(
            name, "weight", layer, found, (start, rows, columns), _dtype(layer, layer.w13_weight)
        )
        if (block := read_back.scale_block(layer)) is not None:
            high, wide = block
            place = (start // high, -(-rows // high), -(-columns // wide))
            scales = (layer.w13_weight_scale_inv, layer.w2_weight_scale_inv) if loading and self._values else None
            yield from self._of_experts(name, "weight_scale_inv", layer, scales, place, torch.float32)

    def _of_experts(
        self,
        name: str,
        suffix: str,
        layer: Any,
        found: tuple[Tensor, Tensor] | None,
        size: tuple[int, int, int],
        dtype: torch.dtype,
    ) -> Iterator[HeldBox]:
        """size: first row of gate and up here, their rows and columns."""
        start, rows, columns = size
        slots = layer._expert_map.tolist() if layer._expert_map is not None else range(layer.local_num_experts)
        for expert, slot in enumerate(slots):
            if slot < 0:  # another rank's
                continue
            gate = up = down = None
            if found is not None:
                w13, w2 = (part[slot] for part in found)
                half = w13.shape[0] // 2
                gate, up, down = w13[:rows, :columns], w13[half : half + rows, :columns], w2[:columns, :rows]
            of, place = f"{name}.{expert}", f"{name}, slot {slot} of"
            yield HeldBox(f"{of}.gate_proj.{suffix}", (start, 0), (rows, columns), dtype, f"{place} w13", gate)
            yield HeldBox(f"{of}.up_proj.{suffix}", (start, 0), (rows, columns), dtype, f"{place} w13", up)
            yield HeldBox(f"{of}.down_proj.{suffix}", (0, start), (columns, rows), dtype, f"{place} w2", down)

    # ---- latent attention -----------------------------------------------------------------------------------------

    def _absorbed(self, name: str, layer: Any) -> Iterator[HeldBox]:
        """kv_b_proj again, as decoding computes with it: of each head its keys' part, and its values' transposed.

        Nothing of it where that is made of 8-bit codes and scales, and is neither.
        """
        if read_back.scale_block(layer.kv_b_proj) is not None:
            return
        heads, nope, latent = layer.W_UK_T.shape  # W_UV: [heads, latent, v]
        rows = heads * (nope + layer.W_UV.shape[2])
        values = None
        if self._values:
            values = torch.cat([layer.W_UK_T.detach(), layer.W_UV.detach().transpose(1, 2)], 1).flatten(0, 1)
        of, start = f"{self._names[id(layer.kv_b_proj)]}.weight", (layer.kv_b_proj.tp_rank * rows, 0)
        yield HeldBox(of, start, (rows, latent), layer.W_UV.dtype, f"{name}.W_UK_T and W_UV", values)


def _is_head(layer: Any) -> bool:
    return isinstance(layer, ParallelLMHead)


def _cuts_columns(layer: Any) -> bool:
    """Whether ranks share a linear layer's columns; otherwise its rows, or none."""
    return isinstance(layer, RowParallelLinear)


def _dtype(layer: Any, weight: Tensor) -> torch.dtype:
    """In which a layer's weights are loaded, whatever its kernel makes of 8-bit ones."""
    return weight.dtype if read_back.scale_block(layer) is None else torch.float8_e4m3fn


def _rows_of(layer: Any) -> tuple[list[int], list[int]]:
    """First row in the whole tensor, and number of rows, of each matrix that a linear layer has one above another."""
    rank = layer.tp_rank
    if _cuts_columns(layer):
        return [0], [layer.output_size]
    if isinstance(layer, QKVParallelLinear):
        kv = rank // layer.num_kv_head_replicas
        heads = ((rank, layer.num_heads, layer.head_size), (kv, layer.num_kv_heads, layer.head_size),
                 (kv, layer.num_kv_heads, layer.v_head_size))  # fmt: skip
        return [place * number * size for place, number, size in heads], [n * size for _, n, size in heads]
    sizes = list(layer.output_partition_sizes)
    whole = sum(sizes) == layer.output_size  # each rank has all
    return [0 if whole else rank * size for size in sizes], sizes


def _stacked(
    parts: Sequence[tuple[str, int, int]],
    suffix: str,
    column: int | None,
    columns: int,
    dtype: torch.dtype,
    place: str,
    whole: Tensor | None,
) -> Iterator[HeldBox]:
    """parts: of each matrix in `whole`, from above, the name, first row in its own tensor and rows; column: None for
    a bias."""
    first = 0
    for name, row, size in parts:
        start = (row,) if column is None else (row, column)
        shape = (size,) if column is None else (size, columns)
        values = None if whole is None else whole[first : first + size].detach()
        yield HeldBox(f"{name}.{suffix}", start, shape, dtype, place, values)
        first += size
