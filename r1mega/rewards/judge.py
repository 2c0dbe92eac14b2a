"""A model that judges: question, reference answer and answer side by side, for what no rule can decide.

    [rewards.judge]
    domains = ["stem"]
    [rewards.judge.endpoint]
    url = "http://127.0.0.1:8000/v1"
    model = "DeepSeek-V3"

The report judges so where answers have no form that a rule could read; it takes DeepSeek-V3.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import ClassVar, Literal

from pydantic import Field

from r1mega.rewards.asker import Asker, Caller, Drawn, Heard, drawn_seeds, heard
from r1mega.rewards.endpoint_reward import EndpointReward
from r1mega.rewards.gathering import gathered
from r1mega.rewards.judge_forms import ANSWER_FORMS, ANSWER_PROMPT, JudgeWords, messages, told
from r1mega.rewards.reward import Score
from r1mega.samples import Prompt, VerdictStatus

REASON_CHARACTERS = 200
"""Of the judge's words, in an answer's record."""


class AnswerWords(JudgeWords):
    """How one answer is judged beside its question's reference answer."""

    needed: ClassVar[tuple[str, ...]] = ("question", "answer")
    known: ClassVar[tuple[str, ...]] = ("question", "truth", "answer")

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

    @property
    def system_turn(self) -> str:
        """The judge's system turn."""
        return told(self.system, ANSWER_FORMS[self.form][0])


@dataclass(frozen=True)
class AnswerVerdict:
    """What the votes on an answer come to. `value` is meaningful only when `status` is scored."""

    status: VerdictStatus
    value: float = 0.0
    """Mean over the votes."""
    votes: tuple[float, ...] = ()
    reason: str = ""
    """Why there is no value; where there is one, the end of what the first vote says."""
    unreadable: int = 0
    """Replies of the judge in which no vote could be read, those that were asked for again included."""


def judge_answer(
    asker: Asker, prompt: Prompt, said: str, words: AnswerWords, on_unreadable: Callable[[], None] = lambda: None
) -> Future[AnswerVerdict]:
    """Have a judge judge an answer. All votes have to be read: otherwise it is unscorable, or failed where the
    endpoint is at fault; unscorable too where there is no reference answer and the words ask for one.

    Args:
        said: of the answer, as the judge is to see it; untrusted.
        on_unreadable: see `rewards.asker.heard`.

    The future never raises.
    """
    texts = {"question": prompt.question, "truth": prompt.truth, "answer": said}
    if not words.needs_truth:
        del texts["truth"]
    elif not prompt.truth.strip():
        reason = "the question has no reference answer to judge by"
        return gathered([], lambda _: AnswerVerdict(VerdictStatus.UNSCORABLE, reason=reason))
    sent = messages(words.system_turn, words.prompt, texts)
    drawn, tries = Drawn(words.temperature, words.max_tokens), words.retries + 1
    seeds = drawn_seeds(tries * words.votes, "judge", *texts.values())
    _, read = ANSWER_FORMS[words.form]
    asked = [
        heard(asker, sent, read, drawn, seeds[i * tries : (i + 1) * tries], on_unreadable) for i in range(words.votes)
    ]
    return gathered(asked, _verdict)


def _verdict(votes: Sequence[Heard[float]]) -> AnswerVerdict:
    unreadable = sum(vote.unreadable for vote in votes)
    missing = [vote for vote in votes if vote.value is None]
    if lost := [vote for vote in missing if vote.lost]:
        return AnswerVerdict(VerdictStatus.FAILED, reason=lost[0].reason, unreadable=unreadable)
    if missing:
        return AnswerVerdict(VerdictStatus.UNSCORABLE, reason=missing[0].reason, unreadable=unreadable)
    values = tuple(vote.value for vote in votes if vote.value is not None)
    end = " ".join(votes[0].said.split())[-REASON_CHARACTERS:]
    return AnswerVerdict(VerdictStatus.SCORED, sum(values) / len(values), values, end, unreadable)


class Judge(EndpointReward, AnswerWords):
    """What a judge says of an answer, beside the question's reference answer: 1 or 0, or a share of it.

    Equal answers to a question are judged once. A reply in which no verdict can be read is asked for again, and after
    that the answer is unscorable: it leaves its group. So is one whose question has no reference answer, unless
    `prompt` does without. An endpoint that does not answer has failed, and past `rollout.max_failed` the run stops.
    """

    kind: Literal["judge"] = "judge"

    def judged(self, caller: Caller, prompt: Prompt, said: str) -> Future[Score]:
        verdict = judge_answer(caller, prompt, said, self, caller.count_unreadable)
        return gathered([verdict], lambda found: Score(found[0].status, found[0].value, found[0].reason))
