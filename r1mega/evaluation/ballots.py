"""Which answers of an evaluation are one vote: classes of equivalent answers, question by question.

Equivalent is what the question's own verifier holds equal, each taken once as the answer and once as the truth: a
half is `1/2`, `0.5` and `\\frac{1}{2}`. Programs, and whatever else is judged by more than its text, are equal where
their text is. Questions are compared side by side, as many as the pool of verifiers has
workers, and each comparison within the pool's limits. One that takes too much says "not equal"; after `COSTLY` of
these a question's other answers are compared as plain numbers and texts alone. Both are counted and said.
"""

import logging
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

from r1mega.errors import RewardError
from r1mega.evaluation.results import QuestionResult
from r1mega.evaluation.voting import classes, same_answer
from r1mega.rewards.choice import Choice
from r1mega.rewards.mathematics.verifier import Mathematics
from r1mega.rewards.reasoning_gym import ReasoningGym
from r1mega.rewards.verifiers import verifier
from r1mega.samples import Prompt

log = logging.getLogger(__name__)

COSTLY = 8
"""Comparisons of one question that may take too much."""


@dataclass
class Equality:
    """Whether two answers to a question mean the same. A `voting.Equivalent`."""

    prompt: Prompt
    costly: int = 0
    """Comparisons that took more than the pool allows."""
    broken: int = 0
    """Comparisons at which the verifier raised."""

    def __call__(self, a: str, b: str) -> bool:
        """Raises RewardError where the pool itself cannot judge."""
        judge = verifier(self.prompt.verifier)
        if isinstance(judge, Mathematics):
            return same_answer(a, b) if self.costly >= COSTLY else self._same(judge, a, b)
        if a.strip() == b.strip():
            return True
        if isinstance(judge, ReasoningGym) and same_answer(a, b):
            return True
        if not isinstance(judge, ReasoningGym | Choice):
            return False
        try:
            return all(judge.verify(x, y, self.prompt.entry) for x, y in ((a, b), (b, a)))
        except Exception:  # foreign code, asked what it was not written for
            self.broken += 1
            return False

    def _same(self, judge: Mathematics, a: str, b: str) -> bool:
        outcome = judge.same(a, b)
        if outcome.status == "failed":
            raise RewardError(
                f"cons@k: answers to question {self.prompt.id} cannot be compared: {outcome.reason}; the answers are "
                "in the journal, and --resume compares them anew"
            )
        self.costly += outcome.status == "answer"
        return outcome.status == "done" and bool(outcome.value)


def with_votes(results: Sequence[QuestionResult], prompts: Sequence[Prompt]) -> list[QuestionResult]:
    """Results in which each scored answer has its `vote`.

    Raises:
        RewardError: the pool cannot compare.
    """
    equalities: Mapping[str, Equality] = {prompt.id: Equality(prompt) for prompt in prompts}
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as threads:
        voted = list(threads.map(lambda result: _voted(result, equalities[result.id]), results))
    costly = sum(equality.costly for equality in equalities.values())
    broken = sum(equality.broken for equality in equalities.values())
    if costly or broken:
        log.warning(
            "cons@k: %d comparisons of answers took too much and %d broke the verifier: these count as different",
            costly, broken,
        )  # fmt: skip
    return voted


def _voted(result: QuestionResult, equality: Equality) -> QuestionResult:
    cast = Counter(sample.answer for sample in result.scored if sample.answer is not None)
    counts_as = classes(cast, equality)
    samples = (
        replace(s, vote=counts_as[s.answer]) if s.scored and s.answer is not None else s for s in result.samples
    )
    return replace(result, samples=tuple(samples))
