"""Rules that the tests of judging have asked in workers; without what takes long to import there."""

import time
from collections.abc import Sequence
from typing import Literal

from r1mega.rewards.reward import Answer, RuleReward, Score, scored
from r1mega.samples import Prompt


class Slow(RuleReward):
    """Takes a while, as a reward does that asks somebody else; worth the answer's length."""

    kind: Literal["slow"] = "slow"
    seconds: float = 0.0

    def judge(self, prompt: Prompt, answer: Answer, group: Sequence[Answer]) -> Score:
        time.sleep(self.seconds)
        return scored(float(len(answer.text)))


class Fragile(RuleReward):
    """What an answer says happens to the worker, or to the value."""

    kind: Literal["fragile"] = "fragile"

    def judge(self, prompt: Prompt, answer: Answer, group: Sequence[Answer]) -> Score:
        if "spin" in answer.text:
            while True:
                pass
        if "sleep" in answer.text:
            time.sleep(1_000)
        if "fill" in answer.text:
            kept = [bytearray(10**7) for _ in range(10**6)]
            return scored(float(len(kept)))
        if "raise" in answer.text:
            raise OSError("no such model server")
        return scored(float("nan") if "nan" in answer.text else 1.0)


class Longest(RuleReward):
    """1 for the longest answer to a question."""

    kind: Literal["longest"] = "longest"
    whole_group = True

    def judge(self, prompt: Prompt, answer: Answer, group: Sequence[Answer]) -> Score:
        return scored(float(answer.num_tokens == max(other.num_tokens for other in group)))
