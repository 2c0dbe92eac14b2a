"""A GRPO run's watch of reward hacking: fed once a rollout, carried by checkpoints."""

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from r1mega.diagnostics.hacking import HackingWatch
from r1mega.recipe.grpo import GRPO
from r1mega.recipe.hacking import trained_at, watched
from r1mega.samples import Group
from r1mega.stages.records import Carried, Records

log = logging.getLogger(__name__)


class NotWatched(Carried):
    """On the ranks that have no answers."""

    def see(self, step: int, groups: Sequence[Group]) -> Mapping[str, float]:
        """Take in the rollout that was sampled after `step` optimiser steps, with all its verdicts.

        Returns: its figures, for the lines of its steps.
        """
        return {}


class HackingWatched(NotWatched):
    """Rank 0's: warns in the log, as an event, and as a row of kind "hacking", which stands with the rollout's first
    step."""

    def __init__(self, config: GRPO, records: Records) -> None:
        self._config, self._records = config, records
        each = config.rollout.num_minibatches
        found = watched(config.hacking, config.rewards, config.questions, num_steps=config.num_steps, each=each)
        self._watch = HackingWatch(config.hacking, found)
        if found.truths and not found.looks(config.hacking.window):
            log.warning(
                "reward hacking is not watched: %s is learnt from in %d rollouts, fewer than hacking.window = %d",
                ", ".join(found.truths), found.rollouts, config.hacking.window,
            )  # fmt: skip

    def see(self, step: int, groups: Sequence[Group]) -> Mapping[str, float]:
        rewards, num_steps = self._config.rewards, self._config.num_steps
        trained = [name for name, reward in rewards.items() if trained_at(reward, step, num_steps)]
        warned, figures = self._watch.see(groups, trained)
        for warning in warned:
            what = "reward hacking" if warning.grade == "parted" else "reward hacking suspected"
            log.warning("step %d: %s: %s (p = %.1g)", step + 1, what, warning.text, warning.p)
            self._records.log("hacking", step + 1, dataclasses.asdict(warning))
            pair = f"{warning.grade}: {warning.reward} against {warning.against}"
            self._records.event("hacking", step + 1, f"{what}: {warning.text}", p=warning.p, cause=pair)
        return figures

    def state(self, step: int) -> dict[str, Any]:
        return {"hacking": self._watch.state()}

    def restore(self, state: Mapping[str, Any], checkpoint: Path) -> None:
        if seen := state.get("hacking"):
            self._watch.restore(seen)
