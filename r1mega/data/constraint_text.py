"""Text of the constraint language for a tiny base: prompts with answers that follow them, more or less.

A base that follows about half of its prompts, and writes a word that harms where it is asked for one more often than
not, leaves something to preference rewards. What it does wrong is drawn for each answer by itself, so that the right
answer to every prompt is among what the base writes.
"""

import random
from collections.abc import Container

from pydantic import Field

from r1mega.config.section import Section
from r1mega.data.constraint_language import NAMES, REFUSAL, Constraints, Name, draw
from r1mega.data.pretrain_text import TextDocument
from r1mega.data.template import ANSWER_CLOSE, ANSWER_OPEN, THINK_CLOSE, THINK_OPEN, TINY, Template, render_prompt

SPOTTED = "harm"
"""The thought of a response that is harmless throughout."""


class ConstraintText(Section):
    """A share of a base's text that is in the constraint language."""

    share: float = Field(gt=0, lt=1)
    """Of data.num_documents."""
    min_words: int = Field(default=2, ge=2, le=9)
    max_words: int = Field(default=5, ge=2, le=9)
    """The fewest and the most words that a prompt asks for."""
    max_constraints: int = Field(default=5, ge=0, le=len(NAMES) - 1)
    """The most constraints of a prompt beside the number of words."""
    followed: float = Field(ge=0, le=1)
    """Share of the answers that meet all constraints; the others miss one of them, or two, or three."""
    thought: float = Field(default=1.0, ge=0, le=1)
    """Share of the answers with what is asked in their thought; the thought of the others is empty."""
    harmful: float = Field(default=0.0, ge=0, le=1)
    """Share of the prompts that ask for a word that harms."""
    harmless: float = Field(default=0.5, ge=0, le=1)
    """Share of the responses to those that write none; half of these decline, half leave the word out. Of the others
    half write the word in their thought alone, half in their answer too."""

    def faults(self) -> list[str]:
        """What is wrong with the settings: "setting: what"."""
        return (
            [f"text.min_words: {self.min_words} is more than max_words = {self.max_words}"]
            if self.min_words > self.max_words
            else []
        )


def documents(
    settings: ConstraintText, n: int, seed: int, exclude: Container[str] = frozenset(), template: Template = TINY
) -> list[TextDocument]:
    """`n` prompts with an answer each, none of `exclude`, the held-out side; one may come again. Deterministic."""
    choose = random.Random(f"{seed}/constraint text")
    made: list[TextDocument] = []
    while len(made) < n:
        harmful = choose.random() < settings.harmful
        most = min(settings.max_constraints, len(NAMES) - 1 - harmful)
        asked = draw(choose, (settings.min_words, settings.max_words), NAMES, (0, most), harmful=harmful)
        if asked.text in exclude:
            continue
        prompt = render_prompt(template, asked.text)
        made.append(TextDocument(asked.text, prompt, written(asked, settings, choose), "think", "constraints"))
    return made


def written(asked: Constraints, settings: ConstraintText, choose: random.Random) -> str:
    """A response to a prompt, as the settings' shares have them."""
    missed = set[Name]()
    if choose.random() >= settings.followed:
        may: list[Name] = [name for name in asked.names if not (asked.harmful and name == "with")]
        missed.update(choose.sample(may, min(len(may), choose.randint(1, 3))))
    asks = asked.text.removeprefix("Write ").removesuffix(".")
    thinks, harmless, half = (
        choose.random() < settings.thought,
        choose.random() < settings.harmless,
        choose.random() < 0.5,
    )
    if not asked.harmful:
        return _response(asks if thinks else "", asked.answer(choose, missed))
    if harmless and half:
        return _response(SPOTTED, REFUSAL)
    if harmless or half:
        missed.add("with")
    return _response(SPOTTED if harmless else asks, asked.answer(choose, missed))


def _response(thought: str, answer: str) -> str:
    return f"{THINK_OPEN}{thought}{THINK_CLOSE}{ANSWER_OPEN}{answer}{ANSWER_CLOSE}"
