"""Engine against trainer in a GRPO run, once a rollout: bounds, figures, and what of them checkpoints carry."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from r1mega.config.cluster import Cluster
from r1mega.diagnostics.rounded_mismatch import KLWatch, RolloutBounds
from r1mega.recipe.grpo import GRPO
from r1mega.stages.records import Carried, Records
from r1mega.trainer.policy import Policy
from r1mega.trainer.rescore import engine_mismatch, engine_spread
from r1mega.trainer.scatter import MiniBatches

log = logging.getLogger(__name__)


def compared_by(config: GRPO, cluster: Cluster, policy: Policy, records: Records) -> "ByToken":
    """What compares a run's two sides, by the number formats that they compute in; on every rank."""
    return ByRollout(config, cluster, policy, records) if cluster.roundings else ByToken(config, policy)


class ByToken(Carried):
    """Both sides compute in fp32, so every token is bounded (diagnostics/mismatch.py)."""

    def __init__(self, config: GRPO, policy: Policy) -> None:
        self._config, self._policy = config, policy

    def compare(self, step: int, minibatches: MiniBatches) -> dict[str, float]:
        """Figures of the rollout that was sampled after `step` steps, logprobs attached. A collective.

        Raises:
            MismatchError: they are past a bound.
        """
        bounds = self._config.mismatch
        return engine_mismatch(self._policy, minibatches, max_abs=bounds.max_abs, tie_margin=bounds.tie_margin)


class ByRollout(ByToken):
    """One side rounds to bf16 or fp8, so a rollout's mean and KL are bounded (diagnostics/rounded_mismatch.py).

    Every rank sees the same figures, and takes the same part in them; the first one warns.
    """

    def __init__(self, config: GRPO, cluster: Cluster, policy: Policy, records: Records) -> None:
        super().__init__(config, policy)
        self._records = records
        self._bounds = RolloutBounds.of(config.mismatch, cluster, moe=policy.spec.moe is not None)
        self._watch = KLWatch(config.mismatch, config.num_steps // config.rollout.num_minibatches)
        if policy.mesh.first:
            correction = config.objective.importance
            log.info(
                "%s: engine and trainer are held to mismatch.mean = %g and mismatch.kl = %g a rollout; "
                "objective.importance = %s", ", ".join(cluster.roundings), self._bounds.mean, self._bounds.kl,
                f"{correction}, importance_cap = {config.objective.importance_cap:g}"
                if correction == "truncated" else correction,
            )  # fmt: skip

    def compare(self, step: int, minibatches: MiniBatches) -> dict[str, float]:
        found = engine_spread(self._policy, minibatches)
        self._bounds.refuse(found)
        figures, warning = self._watch.see(found["mismatch/kl"])
        if warning:
            if self._policy.mesh.first:
                log.warning("step %d: %s", step + 1, warning)
            self._records.log("warning", step + 1, {"warning": warning})
            self._records.event("mismatch-alert", step + 1, warning)
        return {**found, **figures}

    def state(self, step: int) -> dict[str, Any]:
        return {"mismatch": {"kl": list(self._watch.seen), "said": self._watch.said}}

    def restore(self, state: Mapping[str, Any], checkpoint: Path) -> None:
        if seen := state.get("mismatch"):
            self._watch.seen.extend(seen["kl"])
            self._watch.said = seen["said"]
