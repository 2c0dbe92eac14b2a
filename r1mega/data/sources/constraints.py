"""Prompts of the constraint language (`data.constraint_language`), made anew: general prompts for tiny models."""

import random
from collections.abc import Container, Sequence
from typing import Literal

from pydantic import Field

from r1mega.data.constraint_language import REFUSAL, Name, as_entry, draw
from r1mega.data.question import Domain, Question
from r1mega.data.sources.source import Located, QuestionSource
from r1mega.data.split import HELD_OUT, TRAINED_ON
from r1mega.errors import DataError

FEWEST, MOST = 2, 9
"""Words that a prompt may ask for: they stand in the plural, their number in one digit."""
CONSTRAINTS, HARMLESS = "constraints", "harmless"
"""Verifiers of its prompts (`rewards.constraints`)."""


class ConstraintPrompts(QuestionSource):
    """Different prompts, shuffled; to train on, none of the held-out side."""

    kind: Literal["constraints"] = "constraints"
    domain: Domain = "general"
    num: int = Field(gt=0)  # pyright: ignore[reportIncompatibleVariableOverride] (a file's is optional)
    """Different prompts to make."""
    min_words: int = Field(default=2, ge=FEWEST, le=MOST)
    max_words: int = Field(default=5, ge=FEWEST, le=MOST)
    """The fewest and the most words that a prompt asks for."""
    constraints: tuple[Name, ...] = ("with", "order", "case", "stop", "without")
    """Which constraints a prompt may have beside the number of words."""
    min_constraints: int = Field(default=1, ge=0)
    max_constraints: int | None = Field(default=None, ge=0)
    """The fewest and the most of them; unset: all."""
    harmful: bool = False
    """Each prompt asks for a word that harms, in the place of `with`, and an answer is right that writes none
    anywhere (verifier "harmless"). Otherwise one is right that meets all constraints (verifier "constraints")."""

    @property
    def sound(self) -> bool:
        """Its truths are held to its verifiers by tests."""
        return True

    @property
    def title(self) -> str:
        return "the constraint language" + (", prompts that ask for harm" if self.harmful else "")

    @property
    def label(self) -> str:
        return "harmless" if self.harmful else "constraints"

    def faults(self) -> list[str]:
        faults: list[str] = []
        if self.min_words > self.max_words:
            faults.append(f"min_words: {self.min_words} is more than max_words = {self.max_words}")
        if "count" in self.constraints:
            faults.append("constraints: count is in every prompt; leave it out of the list")
        if not self.min_constraints <= self._most <= len(self._may):
            faults.append(
                f"min_constraints: {self.min_constraints} to max_constraints = {self._most} of {len(self._may)} "
                "constraints there cannot be"
            )
        return faults

    @property
    def _may(self) -> set[Name]:
        """What a prompt may have beside the number of words and the word that harms."""
        return set(self.constraints) - ({"count", "with"} if self.harmful else {"count"})

    @property
    def _most(self) -> int:
        return len(self._may) if self.max_constraints is None else self.max_constraints

    def verifiers(self) -> Sequence[str]:
        return [HARMLESS if self.harmful else CONSTRAINTS]

    def read(self, seed: int) -> list[Located]:
        return [(f"prompt {q.id}", q) for q in self._made(seed, HELD_OUT)]

    def read_held_out(self, seed: int) -> list[Located]:
        return [(f"prompt {q.id}", q) for q in self._made(seed, TRAINED_ON)]

    def _made(self, seed: int, exclude: Container[str]) -> list[Question]:
        """Raises DataError where there are too few different prompts."""
        choose = random.Random(f"{seed}/constraints/{self.harmful}")
        counts, among = (self.min_words, self.max_words), (self.min_constraints, self._most)
        made: dict[str, Question] = {}
        fruitless = 0
        while len(made) < self.num:
            asked = draw(choose, counts, self._may, among, harmful=self.harmful)
            fruitless += 1
            if asked.text not in made and asked.text not in exclude:
                truth = REFUSAL if self.harmful else asked.answer(choose)
                made[asked.text] = self.asked(self.verifiers()[0], asked.text, truth, as_entry(asked))
                fruitless = 0
            if fruitless > 10 * len(made) + 1000:  # one prompt left would have been missed with odds of e^-10
                raise DataError(
                    f"{self.title} with these settings gives only {len(made)} of the {self.num} different prompts "
                    "asked for: widen min_words to max_words or the constraints, or ask for fewer"
                )
        return list(made.values())
