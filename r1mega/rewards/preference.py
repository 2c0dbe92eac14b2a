"""Which of two answers to a question a judge prefers: several votes, the order drawn anew for each.

    verdict = compare(asker, "Write a haiku.", ("Rain on ...", "I cannot."), Comparing(), seed=7).result()
    verdict.gap, verdict.preferred(min_gap=1.0)         # 2.5, 0

The report's reward model data: a judge sees the answers as A and B, four times, assigned at random because of its
position bias; the pair is kept where the mean difference exceeds 1 (`Comparing`).
"""

import math
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import ClassVar, Literal

from pydantic import Field, ValidationInfo, field_validator

from r1mega.rewards.asker import Asker, Drawn, Heard, drawn_from, drawn_seeds, heard, missing_votes
from r1mega.rewards.gathering import gathered
from r1mega.rewards.judge_forms import PAIR_FORMS, PAIR_PROMPT, WIDEST, JudgeWords, messages, told
from r1mega.samples import VerdictStatus

Pair = tuple[str, str]


class Comparing(JudgeWords):
    """How two answers are compared."""

    needed: ClassVar[tuple[str, ...]] = ("question", "answer_a", "answer_b")
    known: ClassVar[tuple[str, ...]] = needed

    votes: int = Field(default=4, gt=0)
    """Judgements of a pair (report: 4)."""
    order: Literal["balanced", "independent"] = "balanced"
    """Which answer a vote shows first. independent: drawn for each by itself, which is the report to the letter.
    balanced: each as often as the other, in an order drawn at random, so that the mean gap of a judge that always
    prefers the first is exactly 0; the odd vote's is drawn. A deviation from the report."""
    form: Literal["verdict", "ratings"] = "verdict"
    """verdict: one of [[A>>B]] [[A>B]] [[A=B]] [[B>A]] [[B>>A]], which count 3, 1, 0, -1, -3. ratings: both from 1 to
    10, of which the difference counts."""
    min_gap: float = Field(default=1.0, ge=0)
    """A pair is kept where the mean gap is more than this, either way (report: 1)."""
    temperature: float = Field(default=0.7, ge=0)
    """Of the judge, whose votes should differ where it is in doubt."""
    max_characters: int = Field(default=60_000, gt=0)
    """Of question and both answers together; a pair that is longer is unscorable, without asking."""
    prompt: str = PAIR_PROMPT
    """The user's turn, with {question}, {answer_a} and {answer_b} in it."""

    @field_validator("min_gap")
    @classmethod
    def _can_be_exceeded(cls, min_gap: float, info: ValidationInfo) -> float:
        if min_gap >= (widest := WIDEST.get(info.data.get("form", ""), math.inf)):
            raise ValueError(f'no gap of form = "{info.data["form"]}" is more than {widest:g}; lower it')
        return min_gap


@dataclass(frozen=True)
class JudgedVote:
    """One judgement of a pair."""

    first: int
    """Index of the answer that was shown first, as A."""
    gap: float
    """How much better the judge finds answer 0 than answer 1."""

    @property
    def for_first(self) -> bool | None:
        """Whether it prefers the one that was shown first; None where it prefers neither."""
        return None if not self.gap else (self.gap > 0) == (self.first == 0)


@dataclass(frozen=True)
class PairVerdict:
    """What the votes on a pair come to. `gap` is meaningful only when `status` is scored."""

    status: VerdictStatus
    gap: float = 0.0
    """Mean over the votes; positive where answer 0 is better."""
    votes: tuple[JudgedVote, ...] = ()
    """Those that could be read, in the order in which they were drawn."""
    characters: tuple[int, int] = (0, 0)
    """Lengths of both answers."""
    reason: str = ""
    unreadable: int = 0
    """Replies of the judge in which no vote could be read, those that were asked for again included."""

    @property
    def scored(self) -> bool:
        return self.status is VerdictStatus.SCORED

    def preferred(self, min_gap: float) -> int | None:
        """Index of the better answer, where the mean gap is more than `min_gap`; None: the pair is not kept."""
        return None if not self.scored or abs(self.gap) <= min_gap else int(self.gap < 0)


def compare(asker: Asker, question: str, answers: Pair, settings: Comparing, *, seed: int) -> Future[PairVerdict]:
    """Have a judge compare two answers to a question.

    All votes have to be read: otherwise the pair is unscorable, or failed where the endpoint is at fault. Two equal
    answers have gap 0, and nobody is asked.

    Args:
        answers: as the judge is to see them; untrusted.
        seed: the run's; orders and the judge's seeds follow from it, the question and the answers.

    The future never raises.
    """
    characters = (len(answers[0]), len(answers[1]))
    if settled := _settled(question, answers, settings):
        status, reason = settled
        return gathered([], lambda _: PairVerdict(status, 0.0, (), characters, reason))
    default, read = PAIR_FORMS[settings.form]
    system = told(settings.system, default)
    drawn = Drawn(settings.temperature, settings.max_tokens)
    tries = settings.retries + 1
    orders = drawn_orders(settings, seed, question, answers)
    seeds = drawn_seeds(tries * settings.votes, seed, "votes", question, *answers)
    asked: list[Future[Heard[float]]] = []
    for i, first in enumerate(orders):
        texts = {"question": question, "answer_a": answers[first], "answer_b": answers[1 - first]}
        said = messages(system, settings.prompt, texts)
        asked.append(heard(asker, said, read, drawn, seeds[i * tries : (i + 1) * tries]))
    return gathered(asked, lambda found: _verdict(orders, found, characters))


def _settled(question: str, answers: Pair, settings: Comparing) -> tuple[VerdictStatus, str] | None:
    """What is said of a pair without asking."""
    if answers[0] == answers[1]:
        return VerdictStatus.SCORED, "both answers are the same"
    if (length := len(question) + len(answers[0]) + len(answers[1])) > settings.max_characters:
        return VerdictStatus.UNSCORABLE, f"{length:,} characters are more than max_characters"
    return None


def drawn_orders(settings: Comparing, seed: int, question: str, answers: Pair) -> list[int]:
    """Index of the answer that each vote shows first."""
    rng = drawn_from(seed, "orders", question, *answers)
    if settings.order == "independent":
        return [rng.randrange(2) for _ in range(settings.votes)]
    orders = [0, 1] * (settings.votes // 2) + [rng.randrange(2)] * (settings.votes % 2)
    rng.shuffle(orders)
    return orders


def _verdict(orders: Sequence[int], found: Sequence[Heard[float]], characters: tuple[int, int]) -> PairVerdict:
    votes = [
        JudgedVote(first, one.value if first == 0 else 0.0 - one.value)
        for first, one in zip(orders, found, strict=True)
        if one.value is not None
    ]
    unreadable = sum(one.unreadable for one in found)
    missing = missing_votes(found)
    if not missing:
        gap = sum(vote.gap for vote in votes) / len(votes)
        return PairVerdict(VerdictStatus.SCORED, gap, tuple(votes), characters, "", unreadable)
    status, reason = missing
    return PairVerdict(status, 0.0, tuple(votes), characters, reason, unreadable)
