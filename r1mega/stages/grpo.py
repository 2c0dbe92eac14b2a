"""Reinforcement learning with GRPO: R1-Zero (report 2.2), and with other settings the later RL stages.

    rollout -> verdicts -> advantages (Eq. 3) -> logprobs -> M mini-batches, one optimiser step each (Eq. 1-2)
            -> push the weights to the engine -> next rollout

A step is an optimiser step, as the report counts them; the weight version is the step it was pushed at.
Deviations from the report: every choice that Eq. 1-3 leave open is a setting (config.schema.Objective); outputs
are split at random into mini-batches before packing, since packing first would sort mini-batches by length.
"""

import dataclasses
import logging
import random
from collections.abc import Sequence
from typing import Any

from r1mega.algos.advantage import samples_from_groups
from r1mega.algos.grpo import GRPOLoss, documents
from r1mega.algos.schedule import learning_rate
from r1mega.config.schema import GRPO, Cluster
from r1mega.data.prompts import PromptStream, held_out_prompts, prompts, read_jsonl, train_prompts
from r1mega.data.template import TINY
from r1mega.data.tokenizer import load_tokenizer
from r1mega.errors import DataError, RolloutError
from r1mega.evaluation.metrics import evaluate
from r1mega.evaluation.mismatch import mismatch
from r1mega.evaluation.rollouts import rollout_metrics, transcripts
from r1mega.families.registry import check_lengths, check_tokenizer, read_model
from r1mega.rewards.rubric import judge
from r1mega.rollout.engine import Engine, Request, derived_seed
from r1mega.rollout.fleet import Fleet
from r1mega.rollout.server import Server
from r1mega.runtime import files
from r1mega.runtime.interrupt import Interrupt
from r1mega.runtime.progress import Bar, Stopwatch
from r1mega.runtime.resources import peak_rss_gib
from r1mega.runtime.run_dir import RunDir
from r1mega.runtime.tracking import Tracker
from r1mega.samples import Document, Group, Prompt, Sample
from r1mega.trainer import mesh
from r1mega.trainer.policy import Policy
from r1mega.weights import hf_io
from r1mega.weights.push import Pusher
from r1mega.weights.source import PolicySource

log = logging.getLogger(__name__)

Metrics = dict[str, Any]

MAX_EMPTY_ROLLOUTS = 10
"""Rollouts in a row that leave nothing to learn from before the run gives up."""


def run(config: GRPO, cluster: Cluster, run_dir: RunDir) -> None:
    """Train to `config.num_steps`, from the run's last checkpoint where there is one.

    Raises:
        MismatchError: engine and trainer disagree on sampled tokens by more than `mismatch.max_abs`.
        RolloutError: the engine cannot start or answer, or a rollout leaves too little to learn from.
        Interrupted: Ctrl-C or SIGTERM; a checkpoint has been saved.
    """
    assert config.model.path is not None, "config.checks demands it"
    tokenizer = load_tokenizer(config.model.path)
    if config.questions is not None:
        train = prompts(read_jsonl(config.questions), tokenizer, TINY)
    else:
        train = train_prompts(config.tasks, config.num_questions, config.seed, tokenizer)
    held_out = held_out_prompts(config.tasks, config.evaluation, tokenizer)
    if common := {p.question for p in train} & {p.question for p in held_out}:
        raise DataError(f"{len(common)} of {config.questions}'s questions are held out for evaluation: take them out")
    for name, asked in (("trained_on", train), ("held_out", held_out)):
        files.write_jsonl(run_dir.path / f"{name}.jsonl", ({"question": p.question} for p in asked))
    spec = read_model(config.model.path)
    check_tokenizer(spec, tokenizer, config.model.path)
    longest = max(len(p.token_ids) for p in [*train, *held_out]) + config.sampling.max_new_tokens
    check_lengths(longest, spec, config.batch)
    server = Server(
        config.model.path,
        cluster.rollout,
        max_model_len=longest,
        seed=config.seed,
        log_file=run_dir.logs / "vllm.log",
    )
    with Interrupt() as interrupt, server:
        # The server starts in its own process while this one builds the policy.
        stream = PromptStream(train, config.seed)
        policy, step = _policy(config, cluster, run_dir, stream)
        pusher = Pusher(PolicySource(policy, include_mtp=False), [server])
        pusher.prepare()
        server.wait_ready()
        interrupt.leave_if_received("stopped before the first step; start again")
        trainer = Trainer(config, run_dir, policy, Fleet([server]), pusher, stream, step)
        trainer.loop(held_out, interrupt)
        rss = {"trainer": peak_rss_gib(), "server": peak_rss_gib(server.pid, tree=True)}
    hf_io.export(policy, run_dir.hf, tokenizer_dir=config.model.path)
    files.write_json(run_dir.path / "summary.json", _summary(run_dir, rss))


def _policy(config: GRPO, cluster: Cluster, run_dir: RunDir, stream: PromptStream) -> tuple[Policy, int]:
    """The policy and the steps it has taken, at the run's last checkpoint or at the stage's initial weights.

    `stream` is set to the checkpoint's place.
    """
    assert config.model.path is not None
    objective = config.objective
    policy = Policy.build(
        read_model(config.model.path),
        mesh.start(cluster.trainer, device=cluster.device, seed=config.seed),
        config.optimizer,
        config.batch,
        mtp=objective.mtp,
        mtp_loss_weight=objective.mtp_loss_weight,
        expert_bias_rate=objective.expert_bias_rate if objective.expert_bias == "update" else 0.0,
        seed=config.seed,
    )
    checkpoint = run_dir.latest_checkpoint()
    if checkpoint is not None:
        state = policy.load(checkpoint)
        step = int(state["step"])
        stream.restore(state["prompts"])
        run_dir.rewind(step)
        log.info("resumed from %s", checkpoint)
        return policy, step
    run_dir.rewind(-1)
    hf_io.load_into(policy, config.model.path)
    if objective.kl_coef > 0:
        policy.refresh_reference()
    return policy, 0


class Trainer:
    """The loop; its state is the policy, the engine's weights and the number of optimiser steps taken."""

    def __init__(
        self,
        config: GRPO,
        run_dir: RunDir,
        policy: Policy,
        engine: Engine,
        pusher: Pusher,
        stream: PromptStream,
        step: int,
    ) -> None:
        self.config, self.run_dir, self.policy = config, run_dir, policy
        self.engine, self.pusher, self.stream, self.step = engine, pusher, stream, step
        self.empty_rollouts = 0
        self.tracker = Tracker(run_dir.path, config.wandb, config, resume=step > 0)
        objective = config.objective
        self.loss = GRPOLoss(
            clip_low=objective.clip_low,
            clip_high=objective.clip_high,
            kl_coef=objective.kl_coef,
            kl_estimator=objective.kl_estimator,
            ratio=objective.ratio,
            importance_cap=objective.importance_cap if objective.importance == "truncated" else None,
        )

    def loop(self, held_out: list[Prompt], interrupt: Interrupt) -> None:
        """Rollout, learn, push, until `num_steps` optimiser steps are taken."""
        config = self.config
        self.pusher.push(self.step)
        if self.step == 0:
            self.evaluate(held_out, greedy=True)
        interrupt.leave_if_received(f"stopped at step {self.step}; continue with --resume")
        with Bar("grpo", config.num_steps, done=self.step) as bar:
            while self.step < config.num_steps:
                with Stopwatch() as watch:
                    groups = self.roll_out(self.stream.take(config.rollout.num_prompts))
                metrics = rollout_metrics(groups) | {"seconds/rollout": watch.seconds}
                samples = self.usable(groups)
                if not samples:
                    continue
                self.learn(samples, metrics)
                bar.advance(self.step - bar.done, note=f"reward {metrics['reward/total']:.3f}")
                last = self.step >= config.num_steps
                if last or self.step % config.evaluation.every_steps == 0:
                    self.evaluate(held_out, greedy=last)
                if last or self.step % config.save.every_steps == 0 or interrupt.received:
                    self.save()
                interrupt.leave_if_received(f"saved at step {self.step}; continue with --resume")
        self.tracker.close()

    def roll_out(self, prompts: list[Prompt]) -> list[Group]:
        """G answers to each prompt from the current weights, each with its verdict."""
        config = self.config
        answers = self.engine.generate(
            [Request(p, config.objective.group_size, self.seed("rollout", self.step, p.id)) for p in prompts],
            temperature=config.sampling.temperature,
            max_new_tokens=config.sampling.max_new_tokens,
            version=self.step,
        )
        groups = [
            Group(p, cs, tuple(judge(p, c, config.rewards, config.objective.truncated) for c in cs))
            for p, cs in zip(prompts, answers, strict=True)
        ]
        files.write_jsonl(self.run_dir.samples / f"step_{self.step}.jsonl", transcripts(self.step, groups))
        return groups

    def usable(self, groups: list[Group]) -> list[Sample]:
        """What the rollout teaches; empty where it is less than a sample per mini-batch, and other prompts are due.

        Raises:
            RolloutError: that was so `MAX_EMPTY_ROLLOUTS` times in a row.
        """
        config, objective = self.config, self.config.objective
        samples = samples_from_groups(groups, std=objective.std, constant_groups=objective.constant_groups)
        if len(samples) >= config.rollout.num_minibatches:
            self.empty_rollouts = 0
            return samples
        self.empty_rollouts += 1
        log.warning("step %d: %d usable answers in the rollout; taking other prompts", self.step, len(samples))
        if self.empty_rollouts == MAX_EMPTY_ROLLOUTS:
            self.save()
            raise RolloutError(
                f"step {self.step}: {MAX_EMPTY_ROLLOUTS} rollouts in a row left fewer usable answers than the "
                f"{config.rollout.num_minibatches} mini-batches; objective.constant_groups and objective.truncated "
                f"decide what is usable, {self.run_dir.samples} holds the answers"
            )
        return []

    def learn(self, samples: list[Sample], metrics: Metrics) -> None:
        """One pass over the rollout, an optimiser step per mini-batch; then the new weights go to the engine."""
        config = self.config
        with Stopwatch() as watch:
            samples = self.attach_logprobs(samples)
        metrics |= {"seconds/logprobs": watch.seconds} | self.mismatch(samples)
        for index, minibatch in enumerate(split_at_random(samples, config.rollout.num_minibatches, self.rng())):
            with Stopwatch() as watch:
                learned = self.update(minibatch)
            # The rollout's cost stands on its first step's line, so that the lines add up to the run's seconds.
            shared = metrics if index == 0 else {k: v for k, v in metrics.items() if not k.startswith("seconds/")}
            row = shared | learned | {"seconds/update": watch.seconds}
            if index == config.rollout.num_minibatches - 1:
                row["seconds/push"] = self.pusher.push(self.step).seconds
            self.tracker.log("train", self.step, row | {"weight_version": self.step})

    def attach_logprobs(self, samples: list[Sample]) -> list[Sample]:
        """The samples with the old policy's and the reference's logprobs, both at the sampling temperature."""
        bare = [_document(s) for s in samples]
        temperature = self.config.sampling.temperature
        old = self.policy.logprobs(bare, temperature=temperature)
        if self.config.objective.kl_coef == 0:
            return [dataclasses.replace(s, old_logp=tuple(o.tolist())) for s, o in zip(samples, old, strict=True)]
        ref = self.policy.logprobs(bare, temperature=temperature, reference=True)
        return [
            dataclasses.replace(s, old_logp=tuple(o.tolist()), ref_logp=tuple(r.tolist()))
            for s, o, r in zip(samples, old, ref, strict=True)
        ]

    def mismatch(self, samples: list[Sample]) -> Metrics:
        """Engine against trainer on every sampled token (evaluation/mismatch.py)."""
        bounds = self.config.mismatch

        def margins_of(some: Sequence[Sample]) -> list[list[float]]:
            return [m.tolist() for m in self.policy.routing_margins([_document(s) for s in some])]

        return mismatch(samples, margins_of, max_abs=bounds.max_abs, tie_margin=bounds.tie_margin)

    def update(self, minibatch: list[Sample]) -> Metrics:
        """One optimiser step of Eq. 1 on one mini-batch."""
        config = self.config
        lr = learning_rate(config.optimizer, self.step, self.step / config.num_steps)
        batch = documents(minibatch, config.objective.reduction, max_length=config.sampling.max_new_tokens)
        learned = self.policy.forward_backward(batch, self.loss, temperature=config.sampling.temperature)
        grad_norm = self.policy.optim_step(lr)
        self.step += 1
        refresh = config.objective.reference_refresh_steps
        if config.objective.kl_coef > 0 and refresh and self.step % refresh == 0:
            self.policy.refresh_reference()
        return learned | {"grad_norm": grad_norm, "lr": lr, "tokens": sum(len(d.token_ids) for d in batch)}

    def evaluate(self, held_out: list[Prompt], *, greedy: bool) -> None:
        """Held-out questions with the current weights; on the first and last also greedily."""
        config = self.config
        kinds = {"eval": (config.sampling.temperature, config.evaluation.samples_per_question)}
        if greedy:
            kinds["eval_greedy"] = (0.0, 1)
        for kind, (temperature, num_samples) in kinds.items():
            answers = self.engine.generate(
                # The same seeds at every evaluation: the curve shows the weights, not the draw.
                [Request(p, num_samples, self.seed("eval", 0, p.id)) for p in held_out],
                temperature=temperature,
                max_new_tokens=config.sampling.max_new_tokens,
                version=self.step,
            )
            result = evaluate(held_out, [c for group in answers for c in group])
            self.tracker.log(kind, self.step, result.metrics() | {"result": result.to_json()})

    def save(self) -> None:
        state = {"step": self.step, "prompts": self.stream.state()}
        self.policy.save(self.run_dir.checkpoint(self.step), state)
        self.run_dir.prune_checkpoints(self.config.save.keep_last)

    def rng(self) -> random.Random:
        """The source of this rollout's split into mini-batches; from run and step alone, so a resumed run agrees."""
        return random.Random(self.seed("split", self.step, ""))

    def seed(self, purpose: str, step: int, name: str) -> int:
        """This run's seed for one draw (rollout/engine.py)."""
        return derived_seed(self.config.seed, purpose, step, name)


def split_at_random(samples: list[Sample], num_minibatches: int, rng: random.Random) -> list[list[Sample]]:
    """The rollout's outputs shuffled into mini-batches whose sizes differ by at most one."""
    shuffled = rng.sample(samples, len(samples))
    return [shuffled[i::num_minibatches] for i in range(num_minibatches)]


def _document(sample: Sample) -> Document:
    """A sample whose completion is to be scored."""
    return Document(sample.prompt_ids + sample.completion_ids, len(sample.prompt_ids))


def _summary(run_dir: RunDir, rss: dict[str, float]) -> dict[str, Any]:
    """summary.json, from the metrics on disk, so that a resumed run counts all of its parts."""
    rows = run_dir.metrics()
    train = [r for r in rows if r["kind"] == "train"]
    evals = {kind: [r for r in rows if r["kind"] == kind] for kind in ("eval", "eval_greedy")}
    phases = {p: sum(r.get(f"seconds/{p}", 0.0) for r in train) for p in ("rollout", "logprobs", "update", "push")}
    sampled = sum(r["rollout/tokens"] for r in train if "seconds/rollout" in r)
    return {
        "stage": "grpo",
        "seconds": sum(phases.values()),
        "seconds_by_phase": phases,
        "steps": train[-1]["step"],
        "tokens_per_second": {
            "rollout": sampled / phases["rollout"],
            "train": sum(r["tokens"] for r in train) / phases["update"],
        },
        "peak_rss_gib": rss,
        "mismatch": {
            "mean": sum(r["mismatch/mean"] for r in train) / len(train),
            "max": max(r["mismatch/max"] for r in train),
            "max_untied": max(r["mismatch/max_untied"] for r in train),
            "answers_after_tie": sum(r["mismatch/answers_after_tie"] for r in train if "seconds/rollout" in r),
        },
        "eval": {
            "before": evals["eval"][0]["result"],
            "after": evals["eval"][-1]["result"],
            "greedy_before": evals["eval_greedy"][0]["result"],
            "greedy_after": evals["eval_greedy"][-1]["result"],
        },
    }
