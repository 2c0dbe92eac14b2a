"""What a training stage keeps of its routers' health: figures on each step's line, experts.jsonl, and warnings."""

import json
import logging
from collections.abc import Mapping
from typing import Any

from r1mega.config.training import Experts
from r1mega.diagnostics.load_balance import CollapseWatch, metrics
from r1mega.runtime.run_dir import RunDir
from r1mega.runtime.tracking import Tracker
from r1mega.samples import ExpertLoad

log = logging.getLogger(__name__)


class ExpertLog:
    """On the first rank alone."""

    def __init__(self, run_dir: RunDir, settings: Experts, tracker: Tracker) -> None:
        self._file, self._settings, self._tracker = run_dir.expert_loads, settings, tracker
        self._watch = CollapseWatch(settings)

    def state(self) -> dict[str, Any]:
        """What a checkpoint carries of it."""
        return {"experts": {"lasted": self._watch.lasted, "said": sorted(self._watch.said)}}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on where `state` was called."""
        if watched := state.get("experts"):
            self._watch.lasted, self._watch.said = dict(watched["lasted"]), set(watched["said"])

    def metrics(self, step: int, load: ExpertLoad | None) -> dict[str, float]:
        """The figures for the line of `step`; nothing for a dense model.

        Every `experts.load_every` steps a row {"step", "top_k", "tokens", "load": {layer: [choices of each expert]}}
        goes to experts.jsonl. A collapsed router is warned of in the log and as a metrics row of kind "warning".
        """
        if load is None or not load.layers:
            return {}
        every = self._settings.load_every
        if every and step % every == 0:
            tokens = max(layer.tokens for layer in load.layers.values())
            loads = {name: layer.load for name, layer in load.layers.items()}
            row = {"step": step, "top_k": load.top_k, "tokens": tokens, "load": loads}
            with self._file.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row, separators=(",", ":")) + "\n")
        if collapsed := self._watch.see(load):
            message = f"collapsed router for {self._settings.patience} steps: {'; '.join(collapsed)}"
            log.warning("step %d: %s (experts.min_load, max_share and patience define it)", step, message)
            self._tracker.log("warning", step, {"warning": message})
        return metrics(load)
