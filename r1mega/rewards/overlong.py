"""Overlong shaping: an answer near the length limit is worth less, before it is cut (DAPO). Not of the report."""

from collections.abc import Sequence
from typing import Literal, Self

from pydantic import Field, model_validator

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
    max_tokens: int = Field(gt=0)
    """L: the longest answer that is not punished in full; no more than sampling.max_new_tokens."""
    buffer: int = Field(gt=0)
    """b: tokens before L over which the punishment grows from 0 to 1."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.buffer > self.max_tokens:
            raise ValueError(
                f"buffer: {self.buffer} tokens before a limit of {self.max_tokens} would begin before the answer"
            )
        return self

    def judge(self, prompt: Prompt, answer: Answer, group: Sequence[Answer]) -> Score:
        over = answer.num_tokens - (self.max_tokens - self.buffer)
        return scored(-min(max(over / self.buffer, 0.0), 1.0))
