"""The verifier of reasoning-gym's tasks: the library's own rule, behind our reading of what an answer looks like."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from r1mega.rewards.format import find_answer

MAX_ANSWER_CHARS = 256
"""A longer answer is wrong unread: a hostile text of many digits must not cost the verifier time."""

# ASCII digits only: the library reads numbers with `Decimal`, to which "٣", "0_3" and "3e0" are all 3.
# A sign directly after a digit is an operator ("5-3" ends in 3, "=-3" in -3).
NUMBER = re.compile(r"(?:(?<![0-9])[+-])?[0-9][0-9,]*(?:\.[0-9]+)?", re.ASCII)

MINUS = re.compile("[\u2010-\u2013\u2212\ufe63\uff0d](?=[0-9])")
"""What people and models write for a minus: hyphens, the en dash, the sign itself, its small and its wide form.
Before a digit they are read as one, or -5 would be taken for 5."""


@dataclass(frozen=True)
class ReasoningGym:
    """A `Verifier` of one task whose answers are numbers."""

    task: str
    """As reasoning-gym spells it."""

    def find_answer(self, text: str) -> str | None:
        """What stands in the answer tags."""
        return find_answer(text)

    def last_answer(self, text: str) -> str:
        """The last number in `text`; "" where there is none. Linear in the text."""
        found = ""
        for match in NUMBER.finditer(_with_minus(text)):
            found = match.group()
        return found

    def verify(self, answer: str, truth: str, entry: Mapping[str, Any]) -> bool:
        """Whether `answer`, stripped, is right by reasoning-gym's own rule.

        The rule gives partial credit (a sentence that holds the answer scores about 0.1), so only a full 1.0
        counts. Raises whatever the library raises.
        """
        answer = answer.strip()
        if len(answer) > MAX_ANSWER_CHARS or not NUMBER.fullmatch(answer := _with_minus(answer)):
            return False
        return _rule(self.task)(answer=answer, entry={**entry, "answer": _with_minus(truth)}) >= 1.0


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
