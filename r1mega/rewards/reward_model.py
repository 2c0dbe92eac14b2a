"""The score of a reward model that was trained on preferences: helpfulness, harmlessness (report, stage 4).

    [rewards.helpful]
    kind = "reward_model"
    path = "../../runs/r1/helpful_rm/hf"    # a folder that a reward_model stage, or transformers, has written
    scope = "summary"                       # what stands behind the thinking; "response" is the whole answer
    domains = ["helpful"]

It reads the question and the part of the answer that `scope` names, in its own chat template
(`data.preference_text`), on the trainer's ranks between rollout and update. An answer that has no such part (its
thought never ends) is worth what `missing` says, and so is one that is longer than the model has positions: a policy
must not escape a bad score by being hard to read. Both are counted.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import Field, field_validator

from r1mega.config.section import AnchoredPath
from r1mega.data.scope import THOUGHT, Marks, Scope, scoped
from r1mega.rewards.reward import ModelReward, Score, ToRead, Unread, scored
from r1mega.samples import Completion, Document, Prompt

TEMPLATE_FILES = ("tokenizer_config.json", "chat_template.jinja")
"""Beside a model's weights and tokenizer, what decides which tokens it reads."""


class LearntReward(ModelReward):
    """The scalar that a reward model gives an answer."""

    outcomes: ClassVar[tuple[str, ...]] = ("missing", "too_long")

    kind: Literal["reward_model"] = "reward_model"
    path: AnchoredPath
    """A Hugging Face folder of a sequence classifier with one output, with its tokenizer and chat template. Rewards
    of one folder share one loaded model."""
    scope: Scope
    """What of an answer it reads (report: helpfulness the final summary only, harmlessness the whole response)."""
    marks: Marks = THOUGHT
    """What opens and closes the thinking in the policy's own template; they may be the same."""
    squash: Literal["none", "sigmoid"] = "none"
    """sigmoid: 1 / (1 + exp(-score)), in (0, 1), as a pointwise model's chance that the answer is safe; none: the
    score itself, of any size. The report does not say which it adds."""
    missing: Annotated[float, Field(strict=True)] | Literal["lowest"] = "lowest"
    """What an answer is worth of which there is nothing to read, or more than the model has positions: a number, or
    "lowest", the lowest value that this model gives an answer of the same rollout (0 where it gives none)."""

    @field_validator("missing", mode="before")
    @classmethod
    def _number_or_lowest(cls, missing: object) -> object:
        number = isinstance(missing, int | float) and not isinstance(missing, bool) and math.isfinite(missing)
        if not number and missing != "lowest":
            raise ValueError('should be a finite number, or "lowest"')
        return missing

    @field_validator("marks")
    @classmethod
    def _written(cls, marks: Marks) -> Marks:
        if not all(mark.strip() for mark in marks):
            raise ValueError("should be two texts, what opens the thinking and what closes it; neither may be blank")
        return marks

    def beside(self) -> Mapping[str, Sequence[Path]]:
        return {"path": tuple(self.path / name for name in TEMPLATE_FILES)}

    def documents(self, asked: Sequence[tuple[Prompt, Completion]]) -> Sequence[Document | ToRead | Score | Unread]:
        parts = [scoped(prompt.prefill + answer.text, self.scope, self.marks) for prompt, answer in asked]
        nothing = Unread("missing", f"there is no {self.scope} to read")
        return [
            nothing if part is None else ToRead(prompt.question, part)
            for (prompt, _), part in zip(asked, parts, strict=True)
        ]

    def value(self, score: float) -> float:
        if self.squash == "none" or not math.isfinite(score):
            return score
        # Of either sign without overflow.
        return 1 / (1 + math.exp(-score)) if score >= 0 else math.exp(score) / (1 + math.exp(score))

    def unread(self, why: Unread, values: Sequence[float]) -> Score:
        return scored(min(values, default=0.0) if self.missing == "lowest" else self.missing, why.reason)
