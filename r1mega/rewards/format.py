"""Every rule about the shape of an answer: the format reward, where the answer stands, in which style it is.

The text is the template's prefill and the completion together, as the engine decoded it, and may be anything.
Tags are matched to the letter, and each rule is a few scans of the text.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Literal

from r1mega.data.template import ANSWER_CLOSE, ANSWER_OPEN, TAGS, THINK_CLOSE, THINK_OPEN
from r1mega.rewards.reward import Answer, RuleReward, Score, scored
from r1mega.samples import Prompt

Style = Literal["think", "tags", "steps", "plain", "other"]
"""think: a thought in the tags of the format. tags: the tags around none. steps: worked steps in prose. plain: the
bare sentence of the pretraining text. other: none of these (broken tags, no sentence)."""


class Format(RuleReward):
    """1 for an answer in the required format, 0 for any other."""

    kind: Literal["format"] = "format"
    style: Literal["r1_zero", "r1"] = "r1_zero"
    """r1_zero: a thought and an answer, both in their tags. r1: a thought in its tags, and a summary behind it."""

    def judge(self, prompt: Prompt, answer: Answer, group: Sequence[Answer]) -> Score:
        return scored(float(FORMATS[self.style](answer.text)))


def is_formatted(text: str) -> bool:
    """`<think>...</think><answer>...</answer>`, each tag once, only white space before, between and after.

    The thought may be empty, as in the report: the rule asks for the place to think, and GRPO finds the use of
    it. The answer may not be: nothing would be left to judge.
    """
    return _split(text) is not None


def is_reasoned(text: str) -> bool:
    """`<think>...</think>` and a summary behind it: R1's own form, each tag once, nothing but white space before."""
    if text.count(THINK_OPEN) != 1 or text.count(THINK_CLOSE) != 1 or not text.lstrip().startswith(THINK_OPEN):
        return False
    return bool(text.partition(THINK_CLOSE)[2].strip())


FORMATS: Mapping[str, Callable[[str], bool]] = {"r1_zero": is_formatted, "r1": is_reasoned}
"""Name of a format -> whether a text is in it."""


def find_answer(text: str) -> str | None:
    """What stands in the answer tags, stripped; None unless there is exactly one such pair outside the thought.

    Weaker than `is_formatted`: text around the tags, or no thought at all, costs the format reward alone. Two
    answers are none (a model must not be paid for listing guesses), nor is one in a thought that is still open.
    """
    if text.count(ANSWER_OPEN) != 1 or text.count(ANSWER_CLOSE) != 1:
        return None
    before, _, rest = text.partition(ANSWER_OPEN)
    answer, closed, after = rest.partition(ANSWER_CLOSE)
    if not closed or THINK_CLOSE in after or before.rfind(THINK_OPEN) > before.rfind(THINK_CLOSE):
        return None
    return answer.strip()


def style_of(text: str) -> Style:
    """Which way of answering this is. A thought may be in words; steps without tags are told by an equals sign."""
    if any(tag in text for tag in TAGS):
        parts = _split(text)
        if parts is None:
            return "other"
        return "think" if parts[0].strip() else "tags"
    if "=" in text:
        return "steps"
    return "plain" if text.strip().startswith("The answer is ") else "other"


def _split(text: str) -> tuple[str, str] | None:
    """Thought and answer of a text in the required format."""
    if any(text.count(tag) != 1 for tag in TAGS):
        return None
    pieces, rest = [], text
    for tag in TAGS:
        piece, found, rest = rest.partition(tag)
        if not found:  # the tags are all there, in another order
            return None
        pieces.append(piece)
    before, thought, between, answer = pieces
    if before.strip() or between.strip() or rest.strip() or not answer.strip():
        return None
    return thought, answer
