"""Who tells right answers from wrong ones: the table of verifiers, by the name that a question gives."""

from collections.abc import Mapping
from typing import Any, Protocol

from r1mega.config.load import nearest
from r1mega.data.question import NO_VERIFIER
from r1mega.data.sources.families import FAMILIES
from r1mega.errors import ConfigError
from r1mega.rewards.choice import Choice
from r1mega.rewards.code import Code
from r1mega.rewards.constraints import ConstraintsVerifier, HarmlessVerifier
from r1mega.rewards.mathematics.verifier import Mathematics
from r1mega.rewards.reasoning_gym import ReasoningGym


class Verifier(Protocol):
    """Finds the answer in a text and judges it; deterministic.

    One whose judging takes more than most has an attribute `needs` (`rewards.worker.Limits`); one whose rate of false
    negatives was measured has it in `false_negatives`, as the upper end of its interval.
    """

    def find_answer(self, text: str) -> str | None:
        """The final answer of a response, where this verifier looks for one; None where there is none."""
        ...

    def verify(self, answer: str, truth: str, entry: Mapping[str, Any]) -> bool:
        """Whether `answer` is right.

        Raises whatever its library raises: the caller must not read that as a wrong answer.
        """
        ...

    def last_answer(self, text: str) -> str:
        """The last thing in `text` that looks like an answer; "" where nothing does. Linear in the text."""
        ...


class Unjudged:
    """Of questions that no rule can judge: no answer is looked for, and none is right or wrong."""

    def find_answer(self, text: str) -> str | None:
        return None

    def verify(self, answer: str, truth: str, entry: Mapping[str, Any]) -> bool:
        """Raises ValueError: whoever asks has not asked `accuracy.has_truth`."""
        raise ValueError(f'no rule judges answers to a question of verifier "{NO_VERIFIER}"')

    def last_answer(self, text: str) -> str:
        return ""


VERIFIERS: Mapping[str, Verifier] = {
    **{name: ReasoningGym(name) for name in sorted(FAMILIES)},
    "math": Mathematics(),
    "choice": Choice(),
    "code": Code(),
    "code_fix": Code(mends=True),
    "constraints": ConstraintsVerifier(),
    "harmless": HarmlessVerifier(),
    NO_VERIFIER: Unjudged(),
}
"""Name in a question -> its verifier."""


def verifier(name: str) -> Verifier:
    """The row of `VERIFIERS`. Raises ConfigError with the nearest name."""
    if name not in VERIFIERS:
        raise ConfigError(
            f"unknown verifier {name!r}{nearest(name, VERIFIERS)}: the known ones are math, choice, code, "
            "code_fix, constraints, harmless, none and the families of reasoning-gym"
        )
    return VERIFIERS[name]
