"""Recipe of reinforcement learning with GRPO; the stage is `r1mega.stages.grpo`."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field

from r1mega.algos.settings import Objective
from r1mega.config.cluster import Cluster
from r1mega.config.inputs import Input
from r1mega.config.section import OnResume, Section
from r1mega.data.sources.constraints import ConstraintPrompts
from r1mega.data.sources.reasoning_gym import MadeQuestions
from r1mega.data.sources.registry import Sources
from r1mega.data.sources.source import QuestionSource
from r1mega.diagnostics.settings import Hacking, Mismatch
from r1mega.families.spec import ModelSpec
from r1mega.recipe import reward_models
from r1mega.recipe.asking import Evaluated, Sampling
from r1mega.recipe.hacking import hacking_faults
from r1mega.recipe.memory import Holds
from r1mega.recipe.mismatch import mismatch_faults
from r1mega.recipe.reward_models import reward_model_faults, reward_model_layout_faults
from r1mega.recipe.schedules import (
    ScheduledSampling,
    change_faults,
    changes_at,
    coverage_faults,
    overlong_faults,
    schedule_notes,
)
from r1mega.recipe.training import Training
from r1mega.recipe.without_truth import accuracy_faults
from r1mega.rewards.accuracy import Accuracy
from r1mega.rewards.format import Format
from r1mega.rewards.language import Language, unknown
from r1mega.rewards.own import faults as own_faults
from r1mega.rewards.registry import Rewards, lacks
from r1mega.rewards.rubric import Rubric
from r1mega.runtime.resume import counts_from_the_end


class RolloutSettings(Section):
    """One rollout: questions x G answers, split at random into mini-batches, each one optimiser step."""

    num_prompts: int = Field(gt=0)
    """Questions per rollout (report: 512, which makes 8,192 outputs at G = 16)."""
    num_minibatches: int = Field(default=1, gt=0)
    """M: mini-batches per rollout, one optimiser step each, one inner epoch (report: 16)."""
    server_length: Annotated[Literal["largest", "restart"], OnResume.FREE] = "largest"
    """For which length the rollout server is laid out where sampling.max_new_tokens is a schedule: for its largest
    value from the start; or for what holds, and started anew with the longer one, and with the policy's weights,
    where that changes. Answers are the same either way; a server for longer ones needs more memory (kv_cache_gib must
    hold one of them)."""
    replay: Annotated[Literal["journal", "live"], OnResume.FREE] = "journal"
    """What a resumed run does with answers that it sampled before: "journal" takes them from the run directory bit
    for bit; "live" samples all of them again and counts how many tokens came out the same."""
    keep_journal: Annotated[bool, OnResume.FREE] = False
    """Keep all answers ever sampled, so that the whole run can be repeated from them; otherwise those that no kept
    checkpoint needs are removed."""

    judges: Annotated[int, OnResume.FREE] = Field(default=0, ge=0)
    """Worker processes in which rules judge answers while others are sampled; 0: one a core that the first rank may
    use. Take more where a reward waits for something rather than computes."""
    max_failed: Annotated[float, OnResume.FREE] = Field(default=0.25, ge=0, le=1)
    """Share of the latest verdicts (a rollout's, and at least 64) that may be failed, through no fault of the
    answers; past it the run stops and says why. Below it training goes on without those answers."""
    false_negatives: Annotated[float, OnResume.FREE] = Field(default=0.05, ge=0, lt=1)
    """Share of right answers taken for wrong, of which every rollout logs what it would cost of the gradient's signal
    (`signal_lost/assumed`). Changes nothing that is learnt."""


class GRPO(Evaluated, Training):
    """Reinforcement learning with GRPO (report Eq. 1-3; R1-Zero: section 2.2)."""

    runs = "r1mega.stages.grpo:run"
    script = "rl_stage"
    checks_data = "r1mega.preflight.questions:check_training_questions"
    learns_from = "rewards"

    stage: Literal["grpo"]
    sampling: ScheduledSampling
    questions: Sources = Field(min_length=1)
    """What is trained on: tables [[questions]], a source each. Questions of the held-out side (one in eight,
    `r1mega.data.split`) are left out and counted, as in every stage, and so are those that the evaluation asks."""
    max_prompt_tokens: int = Field(default=0, ge=0)
    """Longest prompt to train on, template included; 0: what the model's positions leave beside
    sampling.max_new_tokens."""
    num_steps: Annotated[int, OnResume.LENGTH] = Field(gt=0)
    """Optimiser steps (one per mini-batch), the counter of the report's schedules; with `max_seconds` also set,
    whichever comes first ends the stage."""
    max_seconds: float = Field(default=0.0, ge=0)
    """End the stage after the rollout in which this much time is up (0: no bound): of sampling, judging, pushes and
    training, not of evaluations and saves. The learning rate then follows time, not steps."""
    rollout: RolloutSettings
    objective: Objective
    rewards: Rewards = Field(default_factory=lambda: {"accuracy": Accuracy(), "format": Format()})
    """What answers are worth; the report's R1-Zero adds accuracy and format with equal weight."""
    hacking: Annotated[Hacking, OnResume.FREE] = Hacking()
    mismatch: Mismatch = Mismatch()

    def faults(self) -> list[str]:
        faults, rollout = super().faults(), self.rollout
        if self.sampling.top_p < 1:
            faults.append(
                f"sampling.top_p: {self.sampling.top_p} renormalises the engine's log-probabilities over the tokens "
                "it keeps, so they would be of another distribution than the policy's, which GRPO compares with them "
                "token by token; leave it at 1 here (an evaluate stage takes it)"
            )
        outputs = rollout.num_prompts * self.objective.group_size
        if outputs % rollout.num_minibatches:
            faults.append(
                f"rollout.num_minibatches: {outputs} outputs ({rollout.num_prompts} prompts x group_size "
                f"{self.objective.group_size}) do not split evenly into {rollout.num_minibatches} mini-batches"
            )
        faults += self._schedule_faults()
        made = [source.num for source in self.questions if isinstance(source, MadeQuestions | ConstraintPrompts)]
        if len(made) == len(self.questions) and rollout.num_prompts > sum(made):
            faults.append(f"questions: num = {sum(made)} is less than one rollout's {rollout.num_prompts} prompts")
        asked = any(isinstance(reward, Language) for reward in self.rewards.values())
        targets = {
            f"questions.{i}.target_language": source.target_language for i, source in enumerate(self.questions)
        }
        faults += [f"{name}: {unknown(code)}" for name, code in targets.items() if asked and code and unknown(code)]
        if not any(reward.weight.largest for reward in self.rewards.values()):
            faults.append("rewards: every weight is 0, so there is nothing to learn")
        faults += accuracy_faults(self.rewards, self.questions)
        faults += overlong_faults(
            self.rewards,
            self.sampling.max_new_tokens,
            truncated=self.objective.truncated,
            num_steps=self.num_steps,
        )
        if "hacking" in self.model_fields_set:
            faults += hacking_faults(
                self.hacking,
                self.rewards,
                self.questions,
                num_steps=self.num_steps,
                each=self.rollout.num_minibatches,
            )
        faults += reward_model_faults(self.rewards, self.objective.truncated, self.sampling.max_new_tokens.largest)
        faults += self.health_faults(self.num_steps, "num_steps", whole=rollout.num_minibatches)
        if rollout.keep_journal and (acting := self.health.acts("roll_back")):
            faults.append(
                f'health.{acting[0]}: "roll_back" removes the answers of the weights that the run leaves, so that '
                "rollout.keep_journal, with which the whole run could be repeated from its answers, cannot hold: "
                "choose one of them"
            )
        return faults + self.warmup_faults(self.num_steps, "num_steps")

    def faults_of_code(self) -> list[str]:
        return own_faults(self.rewards)

    def rubric(self) -> Rubric:
        """What answers are worth at each step of this run."""
        rewards = {n: r.of_run(self.num_steps, self.sampling.max_new_tokens) for n, r in self.rewards.items()}
        return Rubric(rewards, self.objective.truncated)

    def lacks(self) -> Sequence[str]:
        return lacks(self.rewards)

    def notes(self) -> Sequence[str]:
        return schedule_notes(self.sampling, self.questions, self.rewards, num_steps=self.num_steps)

    def _schedule_faults(self) -> list[str]:
        """What does not happen between two rollouts, where alone it can."""
        faults: list[str] = []
        each, evaluation = self.rollout.num_minibatches, self.evaluation.every_steps
        if self.num_steps % each:
            faults.append(
                f"num_steps: {self.num_steps} optimiser steps are no whole number of rollouts of {each} steps"
            )
        if evaluation % each:
            faults.append(
                f"evaluation.every_steps: {evaluation} falls between two rollouts; use a multiple of "
                f"rollout.num_minibatches = {each}"
            )
        if (refresh := self.objective.reference_refresh_steps) % each:
            faults.append(
                f"objective.reference_refresh_steps: {refresh} falls inside a rollout; use a multiple of "
                f"rollout.num_minibatches = {each}"
            )
        changes = change_faults(self.sampling, self.questions, self.rewards, num_steps=self.num_steps, every=each)
        if self.max_seconds and (from_the_end := counts_from_the_end(self)):
            faults.append(
                f"max_seconds: {from_the_end[0]} counts from the run's last step, which nobody knows where time "
                "ends the run; use from_step there, or leave max_seconds out"
            )
        # Where it is not known when something changes, nobody can say what is asked then.
        return faults + (changes or coverage_faults(self.questions, self.rewards, num_steps=self.num_steps))

    def sampling_at(self, step: int) -> Sampling:
        """How answers are drawn at the weights after `step` steps; of a rollout that is being learnt from, how they
        were drawn."""
        return self.sampling.at(step - step % self.rollout.num_minibatches, self.num_steps)

    def changes_at(self, step: int) -> dict[str, str | int | float]:
        """The settings that are another, or begin or end to become it, from the rollout after `step` steps on, as
        `--set` names them, with their values."""
        return changes_at(self.sampling, self.questions, self.rewards, step=step, num_steps=self.num_steps)

    def server_tokens(self, step: int) -> int:
        """The longest answer for which the server is laid out after `step` steps (`rollout.server_length`)."""
        limit = self.sampling.max_new_tokens
        return limit.largest if self.rollout.server_length == "largest" else limit.largest_by(step, self.num_steps)

    def longest(self) -> tuple[int, str]:
        return self.sampling.longest + 1, "sampling.max_new_tokens"  # a prompt has one token at least

    def resolved(self, machine: Cluster) -> Self:
        if self.objective.importance is not None:
            return self
        importance = {"importance": "truncated" if machine.roundings else "none"}
        return self.model_copy(update={"objective": self.objective.model_copy(update=importance)})

    def faults_on(self, machine: Cluster, spec: ModelSpec | None) -> list[str]:
        layout = reward_model_layout_faults(self.rewards, machine.trainer, self.batch)
        # What a reward model takes of a rank follows from a layout that fits it.
        fitting = self.model_copy(update={"rewards": {}}) if layout else self
        faults = mismatch_faults(self.mismatch, machine.roundings)
        return faults + layout + super(GRPO, fitting).faults_on(machine, spec)

    def holds(self) -> Holds:
        return dataclasses.replace(
            super().holds(),
            mtp_learns=self.objective.mtp != "off",
            reference=self.objective.kl_coef > 0,
            reward_models=reward_models.specs(self.rewards),
        )

    def inputs(self) -> Sequence[Input]:
        return [*super().inputs(), *(Input(*named, model=True) for named in self.reward_models().items())]

    def reward_models(self) -> Mapping[str, Path]:
        return reward_models.folders(self.rewards)

    def tables(self) -> dict[str, Sequence[QuestionSource]]:
        return {"questions": self.questions, **super().tables()}

    def asking_only(self, tables: Mapping[str, tuple[QuestionSource, ...]]) -> dict[str, object]:
        return {
            **super().asking_only(tables),
            "questions": tuple(source.model_copy(update={"weight": None}) for source in tables["questions"]),
            "rollout": self.rollout.model_copy(update={"num_prompts": 1}),
        }
