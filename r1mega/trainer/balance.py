"""What the routers did with an optimiser step's tokens: counted where they choose, summed over all ranks.

Counting reads what routing computes anyway and changes none of it. Shapes: T tokens, E experts, L routers of the
whole model.
"""

from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.transformer.moe.router import TopKRouter
from torch import Tensor

from r1mega.families.spec import ModelSpec
from r1mega.samples import ExpertLoad, LayerLoad


class Router(TopKRouter):
    """Megatron's router, which also adds up what it chose and how sure it was of it, until `Balance.take`."""

    seen: Tensor | None = None
    """[2 E + 2] fp64: choices of each expert, affinity to each expert, entropy, tokens; sums over tokens."""

    def routing(self, logits: Tensor, padding_mask: Tensor | None = None) -> Any:
        """logits: [S, B, E]; padding_mask: [S, B] bool, True = padding, not counted.

        As with Megatron's own counter, only passes with a gradient count: neither scoring nor the first of the two
        passes of recomputation.
        """
        probs, routing_map = super().routing(logits, padding_mask)
        if torch.is_grad_enabled():
            with torch.no_grad():
                self._count(logits.detach().flatten(0, -2), routing_map, padding_mask)
        return probs, routing_map

    def _count(self, logits: Tensor, chosen: Tensor, padding_mask: Tensor | None) -> None:
        """logits: [T, E]; chosen: [T, E] bool. Affinities are the V3 report's s'_{i,t}, normalised to sum to 1."""
        affinity = torch.sigmoid(logits.float())
        affinity = affinity / affinity.sum(-1, keepdim=True)
        entropy = torch.special.entr(affinity).sum(-1, keepdim=True)
        columns = torch.cat([chosen.float(), affinity, entropy, torch.ones_like(entropy)], dim=-1)
        if padding_mask is not None:
            columns = columns.masked_fill(padding_mask.reshape(-1, 1), 0.0)
        total = columns.sum(0, dtype=torch.float64)
        self.seen = total if self.seen is None else self.seen + total


def count_in(layer_spec: Any) -> None:
    """Give a layer's spec the router that counts, where it has one."""
    parts: Any = getattr(layer_spec.submodules.mlp, "submodules", None)
    if hasattr(parts, "router"):
        parts.router = Router


class Balance:
    """The routers of this rank, and their places among the whole model's."""

    def __init__(self, spec: ModelSpec, state: dict[str, Tensor], modules: list[torch.nn.Module]) -> None:
        """
        Args:
            state: this rank's tensors by the names of the family's table.
            modules: of its networks.
        """
        assert spec.moe is not None
        self._moe = spec.moe
        layers = [f"decoder.layers.{i}" for i in range(spec.moe.num_dense_layers, spec.num_layers)]
        layers += [f"mtp.layers.{k}" for k in range(spec.num_mtp_layers)]
        self._names = [name.replace("decoder.layers.", "").replace(".layers.", " ") for name in layers]
        places = {
            id(tensor): next(i for i, layer in enumerate(layers) if name.startswith(f"{layer}."))
            for name, tensor in state.items()
            if name.endswith(".expert_bias")
        }
        self._routers = [(places[id(m.expert_bias)], m) for m in modules if isinstance(m, Router)]
        self._places = [place for place, _ in self._routers]
        self._biases: Tensor | None = None

    def take(self) -> Tensor:
        """What this rank's routers have added up since the last call, [L, 2 E + 2] fp64; remembers their biases."""
        device = self._routers[0][1].weight.device if self._routers else None
        width = 2 * self._moe.num_experts + 2
        taken = torch.zeros(len(self._names), width, dtype=torch.float64, device=device)
        for place, router in self._routers:
            if router.seen is not None:
                taken[place] = router.seen
                router.seen = None
        self._biases = self._current_biases()
        return taken

    def over_ranks(self, taken: Tensor) -> ExpertLoad:
        """The step's load of the whole model, the same on every rank; after the biases have moved. A collective.

        Args:
            taken: [L, 2 E + 2] fp64, what `take` returned before; summed in place.
        """
        biases = taken.new_zeros(len(self._names), 2)
        before, after = self._biases, self._current_biases()
        if before is not None and after is not None:
            sizes = torch.stack([after.abs().amax(1), (after - before).abs().amax(1)], dim=1)
            biases[self._places] = sizes.to(biases.dtype)
        same_stage: Any = parallel_state.get_tensor_and_data_parallel_group(with_context_parallel=True)
        if same_stage.size() > 1:  # sequence parallelism too: each rank routed other tokens
            dist.all_reduce(taken, group=same_stage)
        found = torch.cat([taken, biases], dim=1)
        stages: Any = parallel_state.get_pipeline_model_parallel_group()
        if stages.size() > 1:
            dist.all_reduce(found, group=stages)
        rows = found.tolist()
        layers = {name: self._layer(row) for name, row in zip(self._names, rows, strict=True) if row[-3]}
        return ExpertLoad(self._moe.top_k, layers)

    def put_back(self) -> None:
        """Undo what became of this rank's biases since `take`: the step that moved them is not taken."""
        if self._biases is not None:
            for (_, router), before in zip(self._routers, self._biases, strict=True):
                bias: Any = router.expert_bias
                bias.detach().copy_(before)

    def _current_biases(self) -> Tensor | None:
        """[routers of this rank, E] fp32; None where it has none."""
        owned: list[Any] = [router.expert_bias for _, router in self._routers]
        biases = [bias.detach() for bias in owned]
        return torch.stack(biases) if biases else None

    def _layer(self, row: list[float]) -> LayerLoad:
        num = self._moe.num_experts
        choices, affinity, (entropy, tokens, bias, bias_change) = row[:num], row[num : 2 * num], row[2 * num :]
        scale = num / (self._moe.top_k * tokens * tokens)
        return LayerLoad(
            load=tuple(int(count) for count in choices),
            tokens=int(tokens),
            entropy=entropy / tokens,
            aux_loss=scale * sum(f * p for f, p in zip(choices, affinity, strict=True)),
            bias=bias,
            bias_change=bias_change,
        )
