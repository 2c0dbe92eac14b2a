"""Reinforcement learning with GRPO: R1-Zero (report 2.2), and with other settings the later RL stages.

    rollout -> verdicts -> advantages (Eq. 3) -> logprobs -> M mini-batches, one optimiser step each (Eq. 1-2)
            -> push the weights to the engine -> next rollout

A step is an optimiser step, as the report counts them; the weight version is the step it was pushed at. Rank 0
samples while the others wait (weights/live_engine.py); then every rank learns from its share.
Deviations from the report: every choice that Eq. 1-3 leave open is a setting (algos.settings.Objective); outputs
are split at random into mini-batches before packing, since packing first would sort mini-batches by length.
"""

import json
import random
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from r1mega.algos.grpo import GRPOLoss, documents, split_at_random, weighted
from r1mega.algos.settings import Objective
from r1mega.config.cluster import Cluster
from r1mega.data.special_tokens import with_ends
from r1mega.data.tokenizer import load_tokenizer
from r1mega.diagnostics.hacking import summarise as hacked
from r1mega.diagnostics.rollout import summarise
from r1mega.families.registry import read_language_model
from r1mega.recipe.grpo import GRPO
from r1mega.rewards.failures import Failures
from r1mega.rewards.pool import Pool
from r1mega.rollout.collect import GroupSource, NoGroups
from r1mega.rollout.engine import derived_seed
from r1mega.rollout.served import ServedModel
from r1mega.runtime import heartbeat
from r1mega.runtime.progress import Stopwatch
from r1mega.runtime.run_dir import RunDir
from r1mega.samples import Group, Sample
from r1mega.stages.comparing import compared_by
from r1mega.stages.held_out import HeldOut, NotHeldOut
from r1mega.stages.rank_zero import OtherRank, RankZero, rank_zero, usable
from r1mega.stages.records import Carried
from r1mega.stages.run import TrainingRun
from r1mega.stages.scorers import Load, Scorers, Scoring, refuse_without_scorer, scorers_of
from r1mega.trainer import mesh as meshes
from r1mega.trainer.mesh import Mesh
from r1mega.trainer.policy import Policy
from r1mega.trainer.rescore import attach_logprobs
from r1mega.trainer.reward_model import RewardModel
from r1mega.trainer.scatter import MiniBatches, checkpoint_files, from_checkpoint, scatter
from r1mega.weights import hf_io
from r1mega.weights.live_engine import Follower, LiveEngine, live_engine
from r1mega.weights.push import Pusher
from r1mega.weights.sender import Transfer

SHOWN = {"reward/total": "reward {:.2f}", "response_length/mean": "{:.0f} tokens", "kl/mean": "KL {:.4f}"}
"""What people watch of a rollout and its steps, behind the bar."""


NO_SCORERS: Scorers = {}


def run(
    config: GRPO,
    cluster: Cluster,
    run_dir: RunDir,
    *,
    build: Callable[..., Policy] = Policy.build,
    serve: Callable[..., ServedModel] = ServedModel,
    pusher: Callable[..., Pusher] = Pusher,
    pool: Callable[..., Pool] = Pool,
    scorers: Scorers = NO_SCORERS,
    load: Load = RewardModel,
) -> None:
    """Train for `num_steps` or `max_seconds`, from the run's last checkpoint where there is one. On every rank.

    Args:
        build: makes the policy, as `Policy.build` does.
        serve: makes what answers on rank 0, as `ServedModel` does.
        pusher: makes what gives it the policy's weights, as `Pusher` does.
        pool: makes what judges its answers on rank 0, as `Pool` does.
        scorers: of rewards that a model gives, by their names in config.rewards.
        load: loads the reward models of the others, as `RewardModel` does.

    Raises:
        ConfigError: a reward is to be given by a model that has no scorer.
        MismatchError: engine and trainer disagree on sampled tokens by more than [mismatch] allows.
        RolloutError: the engine cannot start or answer, or a rollout leaves too little to learn from.
        RewardError: more verdicts have failed than `rollout.max_failed` allows.
        Interrupted: Ctrl-C or SIGTERM; a checkpoint has been saved.
    """
    refuse_without_scorer(config, scorers)
    mesh = meshes.start(cluster.trainer, device=cluster.device, seed=config.seed)
    objective, chunk_tokens = config.objective, config.batch.chunk_tokens
    clock = {"max_seconds": config.max_seconds, "whole": config.rollout.num_minibatches}
    with TrainingRun(config, run_dir, mesh, num_steps=config.num_steps, **clock, shown=SHOWN) as run:
        part = run.enter(rank_zero(mesh, config, run_dir, run.records))
        # It starts in its own process while this one builds the policy.
        served = run.enter(part.served(serve, config, cluster, run_dir, run.interrupt, step=run.step))
        policy = _policy(config, mesh, build)
        engine = run.enter(_pushed_to(config, cluster, part, pusher)(policy, served, interrupt=run.interrupt))
        failures = Failures(config.rollout.max_failed, partial(run.records.event, "failing-verdicts"))
        judging = run.enter(part.judges(pool, config, run_dir))
        source, held_out = part.asks(config, run_dir, engine, judging, failures, run.interrupt, run.say)
        scoring = Scoring(config, mesh, policy, failures, run_dir.samples, scorers_of(config, mesh, scorers, load))
        left, hacking = LeftToLearn(config, mesh, source), part.hacking(config)
        taught = part.taught(config, run_dir, source, mesh, lambda: left.learning)
        compared = compared_by(config, cluster, policy, run.records)
        run.begin(
            policy, first_weights=lambda: _first_weights(config, policy), tokenizer=run_dir.tokenizer, taught=taught,
            carried=[left, hacking, compared], evaluation=HeldOutEvaluation(config, engine, held_out, left),
        )  # fmt: skip
        for step in run.steps():
            temperature = config.sampling_at(step).temperature  # of the rollout that is learnt from
            if not left.minibatches:
                heartbeat.phase("sampling", step)
                part.tell_changes(config, run_dir, step)
                pushed = engine.push_seconds
                with engine.alone():
                    rollout = source.next(step)
                pushed = engine.push_seconds - pushed
                groups, judged, taken = scoring.turn(rollout, step)
                shares = scatter(mesh, _minibatches(config, groups, step), chunk_tokens)
                source.handed_over()
                with Stopwatch() as watch:
                    shares = attach_logprobs(policy, shares, temperature=temperature, reference=objective.kl_coef > 0)
                seconds = {"rollout": rollout.seconds - pushed, "push": pushed, **taken, "logprobs": watch.seconds}
                apart = compared.compare(step, shares)
                figures = {**rollout.metrics, **engine.proven(), **judged, **hacking.see(step, groups)}
                left.fill(shares, figures, seconds, apart)
                run.show("answers", left.metrics)
            minibatch, metrics = left.take()
            with Stopwatch() as watch:
                lr = run.learning_rate()
                learned = policy.forward_backward(documents(minibatch), _loss(objective), temperature=temperature)
                learned |= run.update(learned, lr)
                if _refreshes_reference(objective, step + 1):
                    policy.refresh_reference()
            tokens = sum(mesh.gather_over_data(sum(len(s.prompt_ids) + len(s.completion_ids) for s in minibatch)))
            run.after_step(metrics | learned | {"tokens": tokens}, watch.seconds)
        server_gib = served.peak_rss_gib()
    run.finish(lambda: _summary(run.summary(), run_dir, server_gib))


class LeftToLearn(Carried):
    """What is left of the current rollout on this rank, and where the next one begins."""

    def __init__(self, config: GRPO, mesh: Mesh, source: GroupSource | NoGroups) -> None:
        self._config, self._mesh, self._source = config, mesh, source
        self.minibatches: MiniBatches = []
        """This rank's share of those not learnt from yet."""
        self.learning: list[Sample] = []
        """This rank's share of the mini-batch that was taken last."""
        self.metrics: dict[str, Any] = {}
        """The rollout's, for the lines of its steps."""

    def fill(
        self,
        minibatches: MiniBatches,
        metrics: Mapping[str, float],
        seconds: Mapping[str, float],
        mismatch: Mapping[str, float],
    ) -> None:
        """A new rollout's share, with logprobs attached, and its figures; `seconds` are of each phase."""
        self.minibatches = minibatches
        self.metrics = {**metrics, **{f"seconds/{phase}": s for phase, s in seconds.items()}, **mismatch}

    def take(self) -> tuple[list[Sample], dict[str, Any]]:
        """The next mini-batch and the figures for its line.

        The rollout's cost stands on its first step's line, so that the lines add up to the run's seconds.
        """
        heartbeat.phase("update")
        metrics = dict(self.metrics)
        self.metrics = {k: v for k, v in metrics.items() if not k.startswith("seconds/")}
        self.learning = self.minibatches.pop(0)
        return self.learning, metrics

    def state(self, step: int) -> dict[str, Any]:
        return {**self._source.state(step), "metrics": self.metrics}

    def files(self) -> dict[str, bytes]:
        return checkpoint_files(self._mesh, self.minibatches)

    def restore(self, state: Mapping[str, Any], checkpoint: Path) -> None:
        self._source.restore(state)
        self.metrics = state.get("metrics", {})
        self.minibatches = from_checkpoint(self._mesh, checkpoint, self._config.batch.chunk_tokens)

    def forget_before(self, step: int) -> None:
        if not self._config.rollout.keep_journal:
            self._source.forget_before(step)


class HeldOutEvaluation:
    """Held-out questions between two rollouts; with the first and the last weights greedily as well."""

    def __init__(
        self, config: GRPO, engine: LiveEngine | Follower, held_out: HeldOut | NotHeldOut, left: LeftToLearn
    ) -> None:
        self._config, self._engine, self._held_out, self._left = config, engine, held_out, left

    def due(self, step: int, *, last: bool) -> bool:
        return not self._left.minibatches and (last or step % self._config.evaluation.every_steps == 0)

    def run(self, step: int, *, last: bool) -> None:
        with self._engine.alone():
            self._held_out.evaluate(step, greedy=last or step == 0)


def _policy(config: GRPO, mesh: Mesh, build: Callable[..., Policy]) -> Policy:
    objective, path = config.objective, _base(config)
    return build(
        mesh.from_first(lambda: with_ends(read_language_model(path), load_tokenizer(path))),
        mesh,
        config.optimizer,
        config.batch,
        mtp=objective.mtp,
        mtp_loss_weight=objective.mtp_loss_weight,
        expert_bias_rate=objective.expert_bias_rate if objective.expert_bias == "update" else 0.0,
        seed=config.seed,
        first="loaded",
    )


def _pushed_to(config: GRPO, cluster: Cluster, part: RankZero | OtherRank, pusher: Callable[..., Pusher]) -> Any:
    """Makes the engine that is always at the policy's weights, as `live_engine` does."""
    pushing = partial(live_engine, transfer=Transfer.of(cluster), room=part.room(config), pusher=pusher)
    pushing = partial(pushing, colocated=cluster.placed == "colocated")
    return partial(pushing, on_recovery=part.log_recovery, on_lengthened=part.log_lengthened)


def _first_weights(config: GRPO, policy: Policy) -> None:
    hf_io.load_into(policy, _base(config))
    if config.objective.kl_coef > 0:
        policy.refresh_reference()


def _base(config: GRPO) -> Path:
    assert config.model.path is not None, "the recipe demands it"
    return config.model.path


def _weighted(minibatch: list[Sample], config: GRPO, step: int) -> list[Sample]:
    """A mini-batch of the rollout after `step` steps."""
    return weighted(minibatch, config.objective.reduction, max_length=config.sampling_at(step).max_new_tokens)


def _minibatches(config: GRPO, groups: Sequence[Group], step: int) -> list[list[Sample]]:
    """What is learnt from of a rollout; the split is of run and step alone, so that a resumed run agrees."""
    rng = random.Random(derived_seed(config.seed, "split", step, ""))
    minibatches = split_at_random(usable(config, groups), config.rollout.num_minibatches, rng)
    return [_weighted(minibatch, config, step) for minibatch in minibatches]


def _refreshes_reference(objective: Objective, step: int) -> bool:
    """Whether the weights after `step` steps become the reference."""
    refresh = objective.reference_refresh_steps
    return objective.kl_coef > 0 and refresh > 0 and step % refresh == 0


def _loss(objective: Objective) -> GRPOLoss:
    return GRPOLoss(
        clip_low=objective.clip_low,
        clip_high=objective.clip_high,
        kl_coef=objective.kl_coef,
        kl_estimator=objective.kl_estimator,
        ratio=objective.ratio,
        importance_cap=objective.importance_cap if objective.importance == "truncated" else None,
    )


def _summary(run: Mapping[str, Any], run_dir: RunDir, server_gib: float) -> dict[str, Any]:
    """summary.json, from the metrics on disk, so that a resumed run counts all of its parts."""
    memory = {**run["peak_rss_gib"], "server": server_gib}
    asked = json.loads(run_dir.questions.read_text(encoding="utf-8"))
    data = {
        f"{what}, {label}: {counted}": num
        for what, sources in asked.items()
        for label, counts in sources.items()
        for counted, num in counts.items()
        if num or counted == "read"
    }
    kept = {name: run[name] for name in ("stage", "steps", "experts", "incidents") if name in run}
    rows = run_dir.metrics()
    return {**kept, **summarise(rows), "hacking": hacked(rows), "peak_rss_gib": memory, "data": data}
