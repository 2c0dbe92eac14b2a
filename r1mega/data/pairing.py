"""Answers made candidates for preference pairs: what of each is judged, and which two of a question's go together."""

import itertools
import math
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from pydantic import Field

from r1mega.config.section import Section
from r1mega.data.length_balance import Balance
from r1mega.data.scope import THOUGHT, Marks, Scope, scoped

Choose = Literal["disjoint", "random", "closest"]


class AnswerSettings(Section):
    """How many answers a question gets, and what of them is judged."""

    per_question: int = Field(default=4, gt=0)
    """n, the answers to each question."""
    scope: Scope | None = None
    """What of an answer is judged and written down: what the reward model will read. summary: what stands behind the
    thinking (the report's helpfulness). response: all of it (its harmlessness). Left out: summary for pairs, response
    where answers are marked safe or unsafe."""
    marks: Marks = THOUGHT
    """What opens and what closes the thinking."""
    truncated: Literal["drop", "keep"] = "drop"
    """What becomes of an answer that was cut at sampling.max_new_tokens: it is left out and counted, or judged as it
    is."""


class PairSettings(Section):
    """Which answers are held against each other, and which of these pairs are kept."""

    choose: Choose = "disjoint"
    """Which two of a question's answers: disjoint: at random, each answer in one pair at most. random: at random of
    all pairs. closest: the pairs whose lengths differ least, by their ratio."""
    per_question: int = Field(default=1, gt=0)
    """Pairs of a question, at most."""
    balance: Balance = "lengths"
    """How the set is made one in which lengths say nothing of which answer was chosen
    (`r1mega.data.length_balance`)."""
    length_step: float = Field(default=1.25, gt=1)
    """Ratio of the ends of a bin of lengths; a finer one matches lengths better and keeps fewer pairs."""

    def faults(self, answers: int) -> list[str]:
        """What asks for more pairs than there can be of so many answers."""
        if answers < 2:
            return [f"answers.per_question: of {answers} answer there is no pair; take 2 or more"]
        most = answers // 2 if self.choose == "disjoint" else math.comb(answers, 2)
        if self.per_question <= most:
            return []
        return [
            f"pairs.per_question: {self.per_question} pairs asked for, and {answers} answers make {most} at most "
            f'with pairs.choose = "{self.choose}"; lower it, or raise answers.per_question'
        ]


@dataclass(frozen=True)
class SampledAnswer:
    """One answer to a question, as it is judged."""

    index: int
    """Which of the n."""
    seed: int
    text: str
    """What the scope names of it."""
    tokens: int
    """Of the whole answer, as the engine or the endpoint counts them."""


def pairs_of(
    answers: Sequence[SampledAnswer], settings: PairSettings, seed: int, question: str
) -> tuple[list[tuple[SampledAnswer, SampledAnswer]], int]:
    """The candidates of one question, the answer of the lower index first; and how many answers say the same as
    an earlier one, spaces aside, which are in no pair.

    Args:
        seed: of the run; draws depend on it and on `question`, its id, alone.
    """
    first: dict[str, SampledAnswer] = {}
    for answer in sorted(answers, key=lambda answer: answer.index):
        first.setdefault(" ".join(answer.text.split()), answer)
    different = list(first.values())
    draw = random.Random(f"{seed}/pairs/{question}")
    if settings.choose == "disjoint":
        draw.shuffle(different)
        candidates = list(zip(different[::2], different[1::2], strict=False))
    else:
        candidates = list(itertools.combinations(different, 2))
        draw.shuffle(candidates)
    if settings.choose == "closest":
        candidates.sort(key=lambda pair: abs(math.log(len(pair[0].text) / len(pair[1].text))))
    chosen = candidates[: settings.per_question]
    ordered = [(a, b) if a.index < b.index else (b, a) for a, b in chosen]
    return ordered, len(answers) - len(different)


def usable(
    settings: AnswerSettings, scope: Scope, answers: Sequence[tuple[SampledAnswer, bool]]
) -> tuple[list[SampledAnswer], Counter[str]]:
    """The answers that can be judged, cut to the scope; and why others cannot: "truncated", "no_summary".

    Args:
        answers: whole ones, each with whether it was cut at the length limit.
    """
    kept, dropped = list[SampledAnswer](), Counter[str]()
    for answer, truncated in answers:
        if truncated and settings.truncated == "drop":
            dropped["truncated"] += 1
        elif (text := scoped(answer.text, scope, settings.marks)) is None:
            dropped["no_summary"] += 1
        else:
            kept.append(SampledAnswer(answer.index, answer.seed, text, answer.tokens))
    return kept, dropped
