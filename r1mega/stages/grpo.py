"""Reinforcement learning with GRPO: R1-Zero (report 2.2), and with other settings the later RL stages.

    rollout -> verdicts -> advantages (Eq. 3) -> logprobs -> M mini-batches, one optimiser step each (Eq. 1-2)
            -> push the weights to the engine -> next rollout

A step is an optimiser step, as the report counts them; the weight version is the step it was pushed at. The first
rank samples while the others wait (weights/live_engine.py); then every rank learns from its share.
Deviations from the report: every choice that Eq. 1-3 leave open is a setting (algos.settings.Objective); outputs
are split at random into mini-batches before packing, since packing first would sort mini-batches by length.
"""

import contextlib
import dataclasses
import logging
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from r1mega.algos.grpo import GRPOLoss, documents, weighted
from r1mega.algos.schedule import learning_rate
from r1mega.buffers import Float32s
from r1mega.config.cluster import Cluster
from r1mega.data.special_tokens import with_ends
from r1mega.data.tokenizer import load_tokenizer
from r1mega.diagnostics.mismatch import answers_past, measure, mismatch
from r1mega.families.registry import read_model
from r1mega.recipe.grpo import GRPO
from r1mega.rollout.collect import GroupSource, NoGroups
from r1mega.rollout.engine import derived_seed
from r1mega.rollout.served import NotServed, ServedModel
from r1mega.runtime import files
from r1mega.runtime.interrupt import Interrupt, Interrupted, Stopped
from r1mega.runtime.progress import Bar, Stopwatch
from r1mega.runtime.resources import peak_rss_gib
from r1mega.runtime.run_dir import RunDir, checkpoint_step
from r1mega.samples import NO_LOGP, Document, Sample
from r1mega.stages.experts import ExpertLog
from r1mega.stages.held_out import HeldOut, NotHeldOut
from r1mega.stages.outcome import note, summary
from r1mega.stages.rank_zero import RankZero, rank_zero, usable
from r1mega.trainer import mesh
from r1mega.trainer.policy import Policy
from r1mega.trainer.scatter import MiniBatches, decode, encode, redivide, scatter
from r1mega.weights import hf_io
from r1mega.weights.live_engine import Follower, LiveEngine, live_engine
from r1mega.weights.push import Pusher
from r1mega.weights.saves import Saves, last_checkpoint

log = logging.getLogger(__name__)

Metrics = dict[str, Any]

PENDING = "rollout.npz"
"""In a checkpoint: what a data-parallel rank had not yet learnt from."""


def run(
    config: GRPO,
    cluster: Cluster,
    run_dir: RunDir,
    *,
    build: Callable[..., Policy] = Policy.build,
    serve: Callable[..., ServedModel] = ServedModel,
    pusher: Callable[..., Pusher] = Pusher,
) -> None:
    """Train to `config.num_steps`, from the run's last checkpoint where there is one. Every rank calls this.

    Args:
        build: makes the policy, as `Policy.build` does.
        serve: makes what answers on the first rank, as `ServedModel` does.
        pusher: makes what gives it the policy's weights, as `Pusher` does.

    Raises:
        MismatchError: engine and trainer disagree on sampled tokens by more than `mismatch.max_abs`.
        RolloutError: the engine cannot start or answer, or a rollout leaves too little to learn from.
        Interrupted: Ctrl-C or SIGTERM; a checkpoint has been saved.
    """
    assert config.model.path is not None, "the recipe demands it"
    ours = mesh.start(cluster.trainer, device=cluster.device, seed=config.seed)
    with Interrupt() as interrupt, contextlib.ExitStack() as stack:
        checkpoint = last_checkpoint(ours, run_dir)
        step = checkpoint_step(checkpoint) if checkpoint else 0
        first: RankZero | None = None
        served: ServedModel | NotServed = NotServed()
        if ours.first:
            first = stack.enter_context(rank_zero(config, run_dir, step if checkpoint else -1))
            served = first.served(serve, config, cluster, run_dir, interrupt, step=step)
        stack.enter_context(served)
        policy = _policy(config, ours, build)
        saves = stack.enter_context(Saves(policy, run_dir, config.save, run_dir.tokenizer))
        recovered = first.log_recovery if first is not None else lambda version, recovery: None
        live = live_engine(
            policy, served, interrupt=interrupt, address=cluster.address, on_recovery=recovered, pusher=pusher
        )
        engine = stack.enter_context(live)
        bar = Bar("grpo", config.num_steps, done=step, silent=not ours.first)
        trainer = Trainer(config, run_dir, policy, engine, first, interrupt, step, saves, bar)
        if checkpoint is not None:
            trainer.load(checkpoint)
        else:
            hf_io.load_into(policy, config.model.path)
            if config.objective.kl_coef > 0:
                policy.refresh_reference()
        trainer.loop()
        trainer.finish_saving()
        rss = {"trainer": sum(ours.gather(peak_rss_gib())), "server": served.peak_rss_gib()}
    identity = run_dir.lineage.policy(trainer.step)
    hf_io.export(policy, run_dir.hf, tokenizer_dir=run_dir.tokenizer, identity=identity)
    if ours.first:
        files.write_json(run_dir.path / "summary.json", summary(run_dir, rss))


def _policy(config: GRPO, ours: mesh.Mesh, build: Callable[..., Policy]) -> Policy:
    assert config.model.path is not None
    objective, path = config.objective, config.model.path
    return build(
        ours.from_first(lambda: with_ends(read_model(path), load_tokenizer(path))),
        ours,
        config.optimizer,
        config.batch,
        mtp=objective.mtp,
        mtp_loss_weight=objective.mtp_loss_weight,
        expert_bias_rate=objective.expert_bias_rate if objective.expert_bias == "update" else 0.0,
        seed=config.seed,
    )


class Trainer:
    """The loop; its state is the policy, the optimiser steps taken, and what is left of the current rollout."""

    def __init__(
        self,
        config: GRPO,
        run_dir: RunDir,
        policy: Policy,
        engine: LiveEngine | Follower,
        first: RankZero | None,
        interrupt: Interrupt,
        step: int,
        saves: Saves,
        bar: Bar,
    ) -> None:
        """first: on the first rank alone."""
        self.saves, self.bar, self.engine = saves, bar, engine
        self.config, self.run_dir, self.policy, self.mesh = config, run_dir, policy, policy.mesh
        self.interrupt, self.step = interrupt, step
        self.tracker = first.tracker if first is not None else None
        self.pending: MiniBatches = []
        """This rank's share of the mini-batches that the current rollout still holds."""
        self.metrics: Metrics = {}
        """Of the current rollout, until its first step's line."""
        self.experts = ExpertLog(run_dir, config.experts, self.tracker) if self.tracker is not None else None
        self.source: GroupSource | NoGroups = NoGroups()
        self.held_out: HeldOut | NotHeldOut = NotHeldOut()
        if first is not None and isinstance(engine, LiveEngine):
            self.source, self.held_out = first.asks(config, run_dir, engine, bar.say)
        objective = config.objective
        self.loss = GRPOLoss(
            clip_low=objective.clip_low,
            clip_high=objective.clip_high,
            kl_coef=objective.kl_coef,
            kl_estimator=objective.kl_estimator,
            ratio=objective.ratio,
            importance_cap=objective.importance_cap if objective.importance == "truncated" else None,
        )

    def loop(self) -> None:
        """Rollout, learn, push, until `num_steps` optimiser steps are taken."""
        with self.bar:
            try:
                self._loop()
            except Stopped as stopped:  # while the first rank sampled; what came is in the journal
                self.finish_saving()
                # Where the step has a checkpoint, it is of this very state.
                if not self.mesh.from_first(self.run_dir.checkpoint(self.step).exists):
                    self.save()
                    self.finish_saving()
                raise Interrupted(stopped.signum, f"saved at step {self.step}; continue with --resume") from None

    def _loop(self) -> None:
        config = self.config
        self.saves.make_up(self.step)
        if not self.pending and (
            self.step in (0, config.num_steps) or self.step % config.evaluation.every_steps == 0
        ):
            self.evaluate()  # at the start, or the one that was broken off
        while self.step < config.num_steps:
            if not self.pending:
                self.next_rollout()
                self.bar.say("answers", note(self.metrics))
            learned = self.update(self.pending.pop(0))
            self.bar.advance(1, note=note(self.metrics | learned))
            last = self.step >= config.num_steps
            if not self.pending and (last or self.step % config.evaluation.every_steps == 0):
                self.evaluate()
            stop = self.mesh.from_first(lambda: self.interrupt.received)
            self.check_saves()
            if last or stop or self.step % config.save.every_steps == 0:
                self.save()
            self.saves.export_if_due(self.step)
            if stop:
                self.finish_saving()
                raise Interrupted(stop, f"saved at step {self.step}; continue with --resume")

    def evaluate(self) -> None:
        """Held-out questions with the current weights; with the first and last ones greedily as well."""
        with self.engine.alone():
            self.held_out.evaluate(self.step, greedy=self.step in (0, self.config.num_steps))

    # ---- one rollout ------------------------------------------------------------------------------------

    def next_rollout(self) -> None:
        """A new rollout's mini-batches, this rank's share, with both policies' logprobs."""
        pushing, objective = self.engine.push_seconds, self.config.objective
        with self.engine.alone():
            rollout = self.source.next(self.step)
        pushing = self.engine.push_seconds - pushing
        self.metrics = {
            **rollout.metrics,
            "seconds/rollout": rollout.seconds - pushing,
            "seconds/push": pushing,
        }
        samples = usable(self.config, rollout.groups)
        minibatches = [
            weighted(m, objective.reduction, max_length=self.config.sampling.max_new_tokens)
            for m in split_at_random(samples, self.config.rollout.num_minibatches, self._rng())
        ]
        share = scatter(self.mesh, minibatches if self.mesh.first else None, self.config.batch.chunk_tokens)
        self.source.handed_over()
        with Stopwatch() as watch:
            self.pending = self.attach_logprobs(share)
        self.metrics |= {"seconds/logprobs": watch.seconds} | self.mismatch([s for m in self.pending for s in m])

    def attach_logprobs(self, minibatches: MiniBatches) -> MiniBatches:
        """The samples with the old policy's and the reference's logprobs, both at the sampling temperature."""
        bare = [_document(s) for m in minibatches for s in m]
        temperature = self.config.sampling.temperature
        old = [Float32s(o.numpy()) for o in self.policy.logprobs(bare, temperature=temperature)]
        ref = [NO_LOGP] * len(bare)
        if self.config.objective.kl_coef > 0:
            scored = self.policy.logprobs(bare, temperature=temperature, reference=True)
            ref = [Float32s(r.numpy()) for r in scored]
        both = iter(zip(old, ref, strict=True))
        return [[_with_logprobs(s, *next(both)) for s in m] for m in minibatches]

    def mismatch(self, samples: list[Sample]) -> Metrics:
        """Engine against trainer on every sampled token of all ranks (diagnostics/mismatch.py)."""
        bounds = self.config.mismatch
        past = answers_past(samples, bounds.max_abs)
        margins: list[Float32s] = []
        if self.mesh.max_over_data(len(past)):
            margins = [Float32s(m.numpy()) for m in self.policy.routing_margins([_document(s) for s in past])]
        parts = self.mesh.gather_over_data(measure(samples, margins, max_abs=bounds.max_abs))
        return mismatch(parts, max_abs=bounds.max_abs, tie_margin=bounds.tie_margin)

    def update(self, minibatch: list[Sample]) -> Metrics:
        """One optimiser step of Eq. 1 on one mini-batch; what the loss says of it."""
        config = self.config
        with Stopwatch() as watch:
            lr = learning_rate(config.optimizer, self.step, self.step / config.num_steps)
            learned = self.policy.forward_backward(
                documents(minibatch), self.loss, temperature=config.sampling.temperature
            )
            grad_norm = self.policy.optim_step(lr)
            self.step += 1
            refresh = config.objective.reference_refresh_steps
            if config.objective.kl_coef > 0 and refresh and self.step % refresh == 0:
                self.policy.refresh_reference()
        tokens = sum(self.mesh.gather_over_data(sum(len(s.prompt_ids) + len(s.completion_ids) for s in minibatch)))
        if self.tracker is not None and self.experts is not None:
            learned |= self.experts.metrics(self.step, self.policy.expert_load)
            row = self.metrics | learned | {"grad_norm": grad_norm, "lr": lr, "tokens": tokens}
            self.tracker.log("train", self.step, row | {"seconds/update": watch.seconds})
        # The rollout's cost stands on its first step's line, so that the lines add up to the run's seconds.
        self.metrics = {k: v for k, v in self.metrics.items() if not k.startswith("seconds/")}
        return learned

    def _rng(self) -> random.Random:
        """The source of this rollout's split into mini-batches; from run and step alone, so a resumed run agrees."""
        return random.Random(derived_seed(self.config.seed, "split", self.step, ""))

    # ---- checkpoints ------------------------------------------------------------------------------------

    def save(self) -> None:
        """A checkpoint of everything that a resumed run needs, the rest of the rollout included."""
        state: dict[str, Any] = {"step": self.step}
        if self.tracker is not None:
            self.tracker.sync()
            state |= self.source.state(self.step) | {"metrics": self.metrics}
            state |= self.experts.state() if self.experts is not None else {}
        mine = {self._pending_file(): encode(self.pending)} if self.mesh.leads_copy else {}
        self.saves.checkpoint(self.step, state, mine)

    def check_saves(self) -> None:
        """Between two steps: what came of the last save. Raises as `Saves.check`."""
        self.saves.check()
        if self.mesh.first and self.saves.settled() and not self.config.rollout.keep_journal:
            self.source.forget_before(min(self.run_dir.saved_steps()))

    def finish_saving(self) -> None:
        """Wait for the last save. Raises as `Saves.check`."""
        self.saves.wait()
        self.check_saves()

    def _pending_file(self) -> str:
        return f"{self.mesh.data_rank:05d}.{PENDING}"

    def load(self, checkpoint: Path) -> None:
        """Go on where `save` was called, at any layout."""
        state = self.saves.resume(checkpoint)
        self.metrics = state.get("metrics", {})
        self.source.restore(state)
        if self.experts is not None:
            self.experts.restore(state)
        files = sorted(checkpoint.glob(f"*.{PENDING}"))
        if len(files) == self.mesh.layout.dp:
            self.pending = decode((checkpoint / self._pending_file()).read_bytes())
        else:
            shares = [decode(file.read_bytes()) for file in files]
            self.pending = redivide(shares, self.mesh.layout.dp, self.config.batch.chunk_tokens)[self.mesh.data_rank]
        log.info("resumed from %s", checkpoint)


def split_at_random(samples: list[Sample], num_minibatches: int, rng: random.Random) -> MiniBatches:
    """The rollout's outputs shuffled into mini-batches whose sizes differ by at most one."""
    shuffled = rng.sample(samples, len(samples))
    return [shuffled[i::num_minibatches] for i in range(num_minibatches)]


def _document(sample: Sample) -> Document:
    """A sample whose completion is to be scored."""
    return Document(sample.prompt_ids + sample.completion_ids, len(sample.prompt_ids))


def _with_logprobs(sample: Sample, old: Float32s, ref: Float32s) -> Sample:
    return dataclasses.replace(sample, old_logp=old, ref_logp=ref)
