"""What a training run writes down of itself: metrics on rank 0, and what checkpoints carry beside the weights."""

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, Self

from r1mega.config.training import Experts, Health, Optimizer, Save
from r1mega.diagnostics.load_balance import CollapseWatch
from r1mega.diagnostics.load_balance import metrics as expert_metrics
from r1mega.runtime.events import Events
from r1mega.runtime.run_dir import RunDir
from r1mega.runtime.tracking import Tracker
from r1mega.samples import ExpertLoad
from r1mega.trainer.mesh import Mesh

log = logging.getLogger(__name__)


class TrainingSettings(Protocol):
    """What the skeleton reads of a training stage's config."""

    @property
    def stage(self) -> str: ...
    @property
    def optimizer(self) -> Optimizer: ...
    @property
    def experts(self) -> Experts: ...
    @property
    def health(self) -> Health: ...
    @property
    def save(self) -> Save: ...


class Carried:
    """What a stage keeps beside its policy, saves with each checkpoint and goes on with; by default nothing."""

    def state(self, step: int) -> dict[str, Any]:
        """Plain JSON of the run after `step` steps; rank 0's counts."""
        return {}

    def files(self) -> dict[str, bytes]:
        """This rank's own files in the checkpoint, by name."""
        return {}

    def restore(self, state: Mapping[str, Any], checkpoint: Path) -> None:
        """Go on where `state` was called, at any layout.

        Args:
            state: all of the checkpoint's, rank 0's.
            checkpoint: the folder that has the ranks' `files`.
        """

    def forget_before(self, step: int) -> None:
        """On rank 0: no checkpoint is kept of an earlier step any more."""


class Records(Carried):
    """Metrics of a run and its routers' health. This class is every rank's but rank 0's, and writes nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None: ...

    def log(self, kind: str, step: int, metrics: Mapping[str, Any]) -> None:
        """Append a row of a kind to metrics.jsonl."""

    def step(self, step: int, metrics: Mapping[str, Any], load: ExpertLoad | None) -> None:
        """Append the row of an optimiser step, with the figures of the experts' load where the model has experts."""

    def event(self, kind: str, step: int, text: str, **figures: Any) -> None:
        """Append to events.jsonl (`Events.say`)."""

    def sync(self) -> None:
        """Make what was logged survive the machine: a checkpoint must not know more steps than the metrics do."""


class FirstRanksRecords(Records):
    """Rank 0's: metrics.jsonl and its mirror, experts.jsonl, and a warning where a router collapses."""

    def __init__(self, run_dir: RunDir, settings: TrainingSettings) -> None:
        self._tracker = Tracker(run_dir.path, run_dir.mirror)
        self._events = Events(run_dir.path)
        self._loads, self._experts = run_dir.expert_loads, settings.experts
        self._watch = CollapseWatch(settings.experts)

    def __exit__(self, *error: object) -> None:
        self._tracker.close()

    def log(self, kind: str, step: int, metrics: Mapping[str, Any]) -> None:
        self._tracker.log(kind, step, dict(metrics))

    def step(self, step: int, metrics: Mapping[str, Any], load: ExpertLoad | None) -> None:
        """Every `experts.load_every` steps a row {"step", "top_k", "tokens", "load": {layer: [choices of each
        expert]}} goes to experts.jsonl as well. A collapsed router is warned of in the log and as a metrics row of
        kind "warning", and as an event, once.
        """
        figures = {} if load is None or not load.layers else self._health(step, load)
        self._tracker.log("train", step, {**metrics, **figures})

    def _health(self, step: int, load: ExpertLoad) -> dict[str, float]:
        every = self._experts.load_every
        if every and step % every == 0:
            tokens = max(layer.tokens for layer in load.layers.values())
            loads = {name: layer.load for name, layer in load.layers.items()}
            row = {"step": step, "top_k": load.top_k, "tokens": tokens, "load": loads}
            with self._loads.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row, separators=(",", ":")) + "\n")
        if collapsed := self._watch.see(load):
            message = f"collapsed router for {self._experts.patience} steps: {'; '.join(collapsed)}"
            log.warning("step %d: %s (experts.min_load, max_share and patience define it)", step, message)
            self._tracker.log("warning", step, {"warning": message})
            self.event("collapsed", step, message)
        return expert_metrics(load)

    def event(self, kind: str, step: int, text: str, **figures: Any) -> None:
        self._events.say(kind, text, step=step, **figures)

    def sync(self) -> None:
        self._tracker.sync()

    def state(self, step: int) -> dict[str, Any]:
        return {"experts": {"lasted": self._watch.lasted, "said": sorted(self._watch.said)}}

    def restore(self, state: Mapping[str, Any], checkpoint: Path) -> None:
        if watched := state.get("experts"):
            self._watch.lasted, self._watch.said = dict(watched["lasted"]), set(watched["said"])


def records_of(mesh: Mesh, settings: TrainingSettings, run_dir: RunDir) -> Records:
    """What this rank writes down of a run."""
    return FirstRanksRecords(run_dir, settings) if mesh.first else Records()
