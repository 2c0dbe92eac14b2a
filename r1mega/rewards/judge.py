"""A model that judges: question, reference answer and answer side by side, for what no rule can decide.

    [rewards.judge]
    domains = ["stem"]
    [rewards.judge.endpoint]
    url = "http://127.0.0.1:8000/v1"
    model = "DeepSeek-V3"

The report judges so where answers have no form that a rule could read; it takes DeepSeek-V3.
"""

from collections.abc import Sequence
from concurrent.futures import Future
from typing import ClassVar, Literal

from pydantic import Field

from r1mega.rewards.asker import Caller, Drawn, Heard, drawn_seeds, heard
from r1mega.rewards.endpoint_reward import EndpointReward
from r1mega.rewards.gathering import gathered
from r1mega.rewards.judge_forms import ANSWER_FORMS, ANSWER_PROMPT, JudgeWords, messages, told
from r1mega.rewards.reward import Score, failed, scored, unscorable
from r1mega.samples import Prompt

REASON_CHARACTERS = 200
"""Of the judge's words, in an answer's record."""


class Judge(EndpointReward, JudgeWords):
    """What a judge says of an answer, beside the question's reference answer: 1 or 0, or a share of it.

    Equal answers to a question are judged once. A reply in which no verdict can be read is asked for again, and after
    that the answer is unscorable: it leaves its group. So is one whose question has no reference answer, unless
    `prompt` does without. An endpoint that does not answer has failed, and past `rollout.max_failed` the run stops.
    """

    needed: ClassVar[tuple[str, ...]] = ("question", "answer")
    known: ClassVar[tuple[str, ...]] = ("question", "truth", "answer")

    kind: Literal["judge"] = "judge"
    form: Literal["right", "share"] = "right"
    """right: the judge says [[right]] or [[wrong]], 1 or 0. share: a grade from 0 to 10, divided by 10."""
    votes: int = Field(default=1, gt=0)
    """Judgements of an answer, whose mean it has."""
    temperature: float = Field(default=0.0, ge=0)
    """Of the judge; several votes want more than 0, and so do replies that cannot be read."""
    prompt: str = ANSWER_PROMPT
    """The user's turn, with {question}, {truth} and {answer} in it; {truth} may be left out."""

    @property
    def needs_truth(self) -> bool:
        """Whether it judges by the question's reference answer."""
        return "{truth}" in self.prompt

    def judged(self, caller: Caller, prompt: Prompt, said: str) -> Future[Score]:
        texts = {"question": prompt.question, "truth": prompt.truth, "answer": said}
        if not self.needs_truth:
            del texts["truth"]
        elif not prompt.truth.strip():
            return gathered([], lambda _: unscorable("the question has no reference answer to judge by"))
        default, read = ANSWER_FORMS[self.form]
        sent = messages(told(self.system, default), self.prompt, texts)
        drawn, tries = Drawn(self.temperature, self.max_tokens), self.retries + 1
        seeds = drawn_seeds(tries * self.votes, "judge", *texts.values())
        asked = [
            heard(caller, sent, read, drawn, seeds[i * tries : (i + 1) * tries], caller.count_unreadable)
            for i in range(self.votes)
        ]
        return gathered(asked, _score)


def _score(votes: Sequence[Heard[float]]) -> Score:
    missing = [vote for vote in votes if vote.value is None]
    if lost := [vote for vote in missing if vote.lost]:
        return failed(lost[0].reason)
    if missing:
        return unscorable(missing[0].reason)
    values = [vote.value for vote in votes if vote.value is not None]
    return scored(sum(values) / len(values), " ".join(votes[0].said.split())[-REASON_CHARACTERS:])
