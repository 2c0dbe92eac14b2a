"""Load balance of a mixture of experts: how evenly each layer's experts are used, and when a router has collapsed.

The report's routers are balanced by a bias alone (V3 report 2.1.2), so what shows that balancing has failed is the
load itself. Load is relative: 1 is the even share, tokens x top_k / experts.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from r1mega.config.training import Experts
from r1mega.samples import ExpertLoad, LayerLoad

WORST: Mapping[str, Callable[..., float]] = {
    "max_violation": max,
    "mean_violation": max,
    "least_load": min,
    "entropy": min,
    "aux_loss": max,
    "bias": max,
    "bias_change": max,
}
"""Figure of a layer -> which end of it is the bad one."""


def relative_load(layer: LayerLoad) -> list[float]:
    """Each expert's load over the even one; all 0 where nothing was routed."""
    even = sum(layer.load) / len(layer.load)
    return [count / even if even else 0.0 for count in layer.load]


def dropped(layer: LayerLoad, top_k: int) -> int:
    """Choices that were not served, because an expert had no room."""
    return layer.tokens * top_k - sum(layer.load)


def figures(layer: LayerLoad) -> dict[str, float]:
    """What is logged of one layer.

    max_violation is max load - 1 (MaxVio of the auxiliary-loss-free balancing), mean_violation the mean of
    |load - 1|, least_load the smallest load, over the experts; the rest as in `LayerLoad`.
    """
    load = relative_load(layer)
    return {
        "max_violation": max(load) - 1.0,
        "mean_violation": sum(abs(share - 1.0) for share in load) / len(load),
        "least_load": min(load),
        "entropy": layer.entropy,
        "aux_loss": layer.aux_loss,
        "bias": layer.bias,
        "bias_change": layer.bias_change,
    }


def metrics(step: ExpertLoad) -> dict[str, float]:
    """experts/NAME/mean and experts/NAME/worst over the layers for each of `figures`, and experts/dropped in all."""
    layers = [figures(layer) for layer in step.layers.values()]
    if not layers:
        return {}
    found: dict[str, float] = {"experts/dropped": sum(dropped(x, step.top_k) for x in step.layers.values())}
    for name, worst in WORST.items():
        values = [layer[name] for layer in layers]
        found[f"experts/{name}/mean"] = sum(values) / len(values)
        found[f"experts/{name}/worst"] = worst(values)
    return found


def summarise(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """A run's closing figures from its metrics' train rows: means over the last twentieth; dropped in all."""
    rows = [row for row in rows if "experts/dropped" in row]
    if not rows:
        return {}
    last = rows[-max(1, len(rows) // 20) :]

    def mean(key: str) -> float:
        return sum(row[key] for row in last) / len(last)

    return {
        "max violation": mean("experts/max_violation/mean"),
        "max violation, worst layer": mean("experts/max_violation/worst"),
        "least load, worst layer": mean("experts/least_load/worst"),
        "dropped choices": sum(row["experts/dropped"] for row in rows),
    }


class CollapseWatch:
    """Notices a router that has collapsed: the same fault of the same layer for `patience` steps in a row."""

    def __init__(self, settings: Experts) -> None:
        self._settings = settings
        self.lasted: dict[str, int] = {}
        """Steps in a row of "LAYER/FAULT", which a resumed run goes on counting."""
        self.said: set[str] = set()
        """What was warned of and has not recovered."""

    def see(self, step: ExpertLoad) -> list[str]:
        """The layers that count as collapsed from this step on, in words; each is said once until it recovers."""
        new: list[str] = []
        for name, layer in step.layers.items():
            for fault, text in self._faults(layer).items():
                key = f"{name}/{fault}"
                self.lasted[key] = self.lasted.get(key, 0) + 1 if text else 0
                if not text:
                    self.said.discard(key)
                elif self.lasted[key] >= self._settings.patience and key not in self.said:
                    self.said.add(key)
                    new.append(f"layer {name}: {text}")
        return new

    def _faults(self, layer: LayerLoad) -> dict[str, str]:
        """Fault -> what is seen of it in this step, or nothing."""
        settings, load = self._settings, relative_load(layer)
        least, most = load.index(min(load)), load.index(max(load))
        share = layer.load[most] / max(layer.tokens, 1)
        starved = load[least] < settings.min_load
        crowded = share > settings.max_share
        return {
            "starved": f"expert {least} gets {load[least]:.2g} of the even load" if starved else "",
            "crowded": f"expert {most} is chosen by {share:.0%} of the tokens" if crowded else "",
        }
