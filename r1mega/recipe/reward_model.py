"""Recipe of training a reward model on preferences; the stage is `r1mega.stages.reward_model`."""

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field

from r1mega.config.section import OnResume
from r1mega.data.preferences import Reading
from r1mega.data.scope import THOUGHT, Marks, Scope
from r1mega.data.settings import Balance, Objective, PreferenceData
from r1mega.families.score_head import with_score_head
from r1mega.families.spec import ModelSpec
from r1mega.recipe.memory import Holds
from r1mega.recipe.rows import TrainingOnRows

TEXTS: Mapping[Objective, int] = {"pairwise": 2, "pointwise": 1}
"""Answers that a chunk holds together at least."""


class RewardModelTraining(TrainingOnRows):
    """Training of a reward model (report 2.3.4): a policy's architecture with a scalar head, all parameters trained.

    Deviations from the report are in what it leaves open, each by name: margin, balance of the classes, expert bias.
    """

    runs = "r1mega.stages.reward_model:run"
    script = "reward_model_stage"
    checks_data = "r1mega.preflight.preferences:check_preferences"
    learns_from = "preferences"
    head = "score"

    stage: Literal["reward_model"]
    objective: Objective
    """pairwise: Bradley-Terry on chosen and rejected (the report's helpfulness); pointwise: safe or unsafe (its
    harmlessness)."""
    scope: Scope
    """summary: of an answer the final summary alone is read (helpfulness); response: thinking and summary
    (harmlessness)."""
    marks: Marks = THOUGHT
    """What opens an answer's thinking and what closes it, where scope = "summary"."""
    margin: Literal["none", "gap"] = "none"
    """Of a pair, by how much the chosen answer's score is to exceed the other's: nothing, or `margin_scale` times the
    gap that the row gives. The report does not say."""
    margin_scale: float = Field(default=1.0, gt=0, le=1e6)
    """Logits for each point of the gap."""
    balance: Balance = "none"
    """Of labelled answers: none: each weighs the same; classes: safe and unsafe ones weigh the same over the data,
    whatever their numbers. The report does not say."""
    data: Annotated[PreferenceData, OnResume.FILES_BY_TOKENS]
    num_epochs: Annotated[int, OnResume.LENGTH] = Field(default=1, gt=0)
    """Passes over the data, each in its own order (report: 1)."""
    batch_size: int = Field(default=256, gt=0)
    """Pairs, or labelled answers, of an optimiser step (report: 256)."""
    expert_bias: Literal["frozen", "update"] = "frozen"
    """Whether the router's load-balancing bias moves at each optimiser step."""
    expert_bias_rate: float = Field(default=0.001, ge=0)

    @property
    def reading(self) -> Reading:
        """What is read of a row."""
        return Reading(self.data, self.objective, self.scope, self.marks, gaps=self.margin == "gap")

    def faults(self) -> list[str]:
        faults, given = super().faults(), self.model_fields_set
        if self.model.path is None:
            faults.append(
                "model.path: a reward model starts from a model's weights and its tokenizer: give the folder that "
                "has them, of a language model or of a reward model"
            )
        texts = TEXTS[self.objective]
        if self.batch.chunk_tokens < texts * self.data.max_tokens:
            times = "2 x " if texts == 2 else ""
            whole = "both answers of a pair" if texts == 2 else "whole answers"
            faults.append(
                f"batch.chunk_tokens: {self.batch.chunk_tokens} is less than {times}data.max_tokens = "
                f"{texts * self.data.max_tokens}, and a chunk holds {whole}"
            )
        if self.objective == "pointwise" and self.margin != "none":
            faults.append('margin: is between two answers, and objective = "pointwise" has one; leave it out')
        if self.margin == "none" and "margin_scale" in given:
            faults.append('margin_scale: has no effect where margin = "none"; set margin = "gap", or leave it out')
        if self.objective == "pairwise" and self.balance != "none":
            faults.append('balance: is of labels, and objective = "pairwise" has none; leave it out')
        if self.objective == "pairwise" and "label" in self.data.model_fields_set:
            faults.append('data.label: is a column of labels, and objective = "pairwise" has none; leave it out')
        if self.scope == "response" and "marks" in given:
            faults.append('marks: have no effect where scope = "response", which is read whole; leave them out')
        if not all(self.marks):
            faults.append(
                f"marks: {list(self.marks)}: one is empty: give what opens the thinking, and what closes it"
            )
        return faults

    def longest(self) -> tuple[int, str]:
        return self.data.max_tokens, "data.max_tokens"

    def holds(self) -> Holds:
        return dataclasses.replace(super().holds(), mtp_learns=False)

    def adapted(self, spec: ModelSpec) -> ModelSpec:
        """The architecture with a scalar head in place of its output head and MTP layers."""
        return with_score_head(spec)
