"""The verifiers of reasoning-gym's families: the library's own rules, behind our reading of what an answer is.

Families whose answers are whole numbers are judged here and now, once an answer looks like one. All others are judged
in a worker: some rules take long, and some evaluate the answer as Python or through sympy. Of those, an answer that
calls anything but a function of mathematics is wrong unread.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from r1mega.data.sources.families import EVALUATED
from r1mega.data.sources.reasoning_gym import ANY, TASKS
from r1mega.rewards.format import find_answer
from r1mega.rewards.pool import judged

MAX_ANSWER_CHARS = 256
"""A longer answer is wrong unread: a hostile text of many digits must not cost the verifier time."""

# ASCII digits only: the library reads numbers with `Decimal`, to which "٣", "0_3" and "3e0" are all 3.
# A sign directly after a digit is an operator ("5-3" ends in 3, "=-3" in -3).
NUMBER = re.compile(r"(?:(?<![0-9])[+-])?[0-9][0-9,]*(?:\.[0-9]+)?", re.ASCII)

MINUS = re.compile("[\u2010-\u2013\u2212\ufe63\uff0d](?=[0-9])")
"""What people and models write for a minus: hyphens, the en dash, the sign itself, its small and its wide form.
Before a digit they are read as one, or -5 would be taken for 5."""


MAX_TEXT_CHARS = 20_000
"""The same of an answer that is no number: a puzzle's board, a plan in JSON."""

CALL = re.compile(r"([\w.]*)\s*\(")
NAMELESS_CALL = re.compile(r"[\])}\"']\s*\(")
_FUNCTIONS = """
sqrt cbrt root exp log ln Abs abs sin cos tan cot sec csc asin acos atan acot sinh cosh tanh coth asinh acosh atanh
Rational
"""
FUNCTIONS = frozenset(_FUNCTIONS.split())
"""What an answer that is evaluated may call."""


@dataclass(frozen=True)
class ReasoningGym:
    """A `Verifier` of one family."""

    task: str
    """As reasoning-gym spells it."""

    @property
    def numeric(self) -> bool:
        """Whether its answers are numbers, written as such."""
        return self.task in TASKS

    def find_answer(self, text: str) -> str | None:
        """What stands in the answer tags."""
        return find_answer(text)

    def last_answer(self, text: str) -> str:
        """The last number in `text`, or the last line of it where answers are no numbers; "" where there is none.
        Linear in the text."""
        if not self.numeric:
            return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "")
        found = ""
        for match in NUMBER.finditer(_with_minus(text)):
            found = match.group()
        return found

    def verify(self, answer: str, truth: str, entry: Mapping[str, Any]) -> bool:
        """Whether `answer`, stripped, is right by reasoning-gym's own rule.

        The rule gives partial credit (a sentence that holds the answer scores about 0.1), so only a full 1.0
        counts. Raises whatever the library raises, and RuntimeError where no worker can judge it.
        """
        answer = answer.strip()
        if not self.numeric:
            if not is_readable(self.task, answer):
                return False
            outcome = judged(_full_score, self.task, answer, {**entry, "answer": None if truth == ANY else truth})
            if outcome.status == "failed":
                raise RuntimeError(outcome.reason)
            return outcome.status == "done" and outcome.value
        if len(answer) > MAX_ANSWER_CHARS or not NUMBER.fullmatch(answer := _with_minus(answer)):
            return False
        return _rule(self.task)(answer=answer, entry={**entry, "answer": _with_minus(truth)}) >= 1.0


def is_readable(task: str, answer: str) -> bool:
    """Whether an answer may be given to its family's rule.

    >>> is_readable("countdown", "(3 + 4) * sqrt(9)"), is_readable("countdown", "exec('import os')")
    (True, False)
    """
    if len(answer) > MAX_TEXT_CHARS:
        return False
    if task not in EVALUATED:
        return True
    if "__" in answer or "lambda" in answer or NAMELESS_CALL.search(answer):
        return False
    calls = (match[1] for match in CALL.finditer(answer))
    return all(
        not name or name in FUNCTIONS or name.isdecimal() or (len(name) == 1 and name.islower()) for name in calls
    )


def _full_score(task: str, answer: str, entry: Mapping[str, Any]) -> bool:
    """In a worker."""
    return _rule(task)(answer=answer, entry=entry) >= 1.0


def is_known(entry: Mapping[str, Any]) -> bool:
    """Whether the library has the data set that an entry says it is of."""
    from reasoning_gym.factory import DATASETS

    return entry["metadata"]["source_dataset"] in DATASETS


def score_of(answer: str, entry: Mapping[str, Any]) -> float:
    """What the verifier of the entry's own data set gives, partial credit included. Raises what it raises."""
    from reasoning_gym import get_score_answer_fn

    verify: Any = get_score_answer_fn(entry["metadata"]["source_dataset"])  # takes (answer, entry); typed as ()
    return float(verify(answer, entry))


def _with_minus(text: str) -> str:
    return MINUS.sub("-", text)


@cache
def _rule(task: str) -> Callable[..., float]:
    from reasoning_gym.factory import create_dataset

    return create_dataset(task, seed=0, size=1).score_answer
