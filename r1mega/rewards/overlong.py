"""Overlong shaping: an answer near the length limit is worth less, before it is cut (DAPO). Not of the report."""

from collections.abc import Sequence
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from r1mega.config.scheduled import Scheduled
from r1mega.rewards.reward import Answer, RuleReward, Score, scored
from r1mega.samples import Prompt


class Overlong(RuleReward):
    """DAPO's soft overlong punishment (arXiv 2503.14476, Eq. 13), which the report does not have. Of an answer of n
    tokens, with L = max_tokens and b = buffer:

        0               n <= L - b
        (L - b - n) / b     L - b < n <= L
        -1              n > L

    An answer that is cut is to be judged as it stands for it (`objective.truncated = "judge"`) or to be left out
    ("mask"): with "zero" it would be worth more than one that ends just before the limit.
    """

    kind: Literal["overlong"] = "overlong"
    max_tokens: Scheduled[Annotated[int, Field(gt=0)]] | None = None
    """L: the longest answer that is not punished in full; no more than sampling.max_new_tokens. Left out: that limit,
    as it is at each step."""
    buffer: int = Field(gt=0)
    """b: tokens before L over which the punishment grows from 0 to 1."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.max_tokens is not None and self.buffer > (least := self.max_tokens.smallest):
            raise ValueError(f"buffer: {self.buffer} tokens before a limit of {least} would begin before the answer")
        return self

    def of_run(self, num_steps: int, max_new_tokens: Scheduled[int]) -> Self:
        limit = (self.max_tokens or max_new_tokens).of_run(num_steps)
        return super().of_run(num_steps, max_new_tokens).model_copy(update={"max_tokens": limit})

    def at(self, step: int) -> Self:
        assert self.max_tokens is not None, "of a run"
        return self.model_copy(update={"max_tokens": Scheduled[int].always(self.max_tokens.at(step))})

    def schedule_faults(self, num_steps: int, every: int) -> list[str]:
        own = self.max_tokens.faults(num_steps, every) if self.max_tokens is not None else []
        return super().schedule_faults(num_steps, every) + [f"max_tokens.{fault}" for fault in own]

    def judge(self, prompt: Prompt, answer: Answer, group: Sequence[Answer]) -> Score:
        assert self.max_tokens is not None and self.max_tokens.constant, "of a run, at a step"
        over = answer.num_tokens - (self.max_tokens.largest - self.buffer)
        return scored(-min(max(over / self.buffer, 0.0), 1.0))
