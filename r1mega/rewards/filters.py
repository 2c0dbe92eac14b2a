"""Filters of sampled answers (report 2.3.1 and 2.3.3): what of a chain of thought people would not like to read.

The report drops mixed languages, long paragraphs and code blocks, and filters repetition out of R1-Zero's traces; it
gives no numbers, so that each threshold here is a choice of ours with a name. A filter measures one thing, and says
of what it measured whether the answer may stay:

    tokens           length of the answer, in tokens
    repetition       share of 4-grams that stood in the answer before
    paragraph_words  words of the longest paragraph of its thinking
    code_blocks      fenced blocks in its thinking
    language         share of target-language words in its thinking

They are asked in this order, cheap ones first, and an answer falls to the first that it does not pass; all of them
measure every answer that is whole and has the form that is asked for. An answer whose thinking is left out, or that
has none, has nothing for the last three to find.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from r1mega.config.section import Section
from r1mega.diagnostics.repetition import repetition
from r1mega.errors import ConfigError
from r1mega.rewards.accuracy import Accuracy
from r1mega.rewards.language import share_of, unknown
from r1mega.rewards.reward import Answer, Score
from r1mega.rewards.rubric import score_of
from r1mega.samples import Prompt

Reason = Literal["too_short", "too_long", "repetition", "long_paragraph", "code_block", "mixed_languages"]
Measured = Mapping[str, float | None]
"""Filter -> what it measured; None: there was nothing to measure, which every filter lets pass."""

FENCE = re.compile(r"```|^[ \t]*~~~", re.MULTILINE)
ALONE = re.compile("[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]")
"""Kana and Chinese characters, of scripts that put no spaces between words: each counts as one."""


def _known(code: str) -> str:
    if fault := unknown(code):
        raise ValueError(fault)
    return code


class Filters(Section):
    """Which answers may stay. Each has a value that lets everything pass, and then measures nothing."""

    min_tokens: int = Field(default=0, ge=0)
    """Of an answer, its end token included; 0: any length is long enough."""
    max_tokens: int = Field(default=0, ge=0)
    """0: no length is too long but sampling.max_new_tokens, at which an answer is truncated."""
    max_repetition: float = Field(default=0.5, ge=0, le=1)
    """Share of 4-grams of the answer's last 1,024 tokens that stood in it before (an endpoint's: of its words); a
    loop has 0.9 and more, worked steps that resemble each other 0.2 to 0.4. 1: not asked."""
    max_paragraph_words: int = Field(default=300, ge=0)
    """Of the longest paragraph of the thinking, where lines and paragraphs end with a line's end. 0: not asked."""
    code_blocks: Literal["drop", "keep"] = "drop"
    """What becomes of an answer with a fenced block of code in its thinking; code behind the thinking may stand."""
    min_language: float = Field(default=0.9, ge=0, le=1)
    """Share of words of the target language among the words of the thinking. Names and terms of other languages
    leave some room below 1. 0: not asked."""
    language: Annotated[str, AfterValidator(_known)] = "en"
    """Target (ISO 639-1) of questions that name none (`target_language`)."""

    def faults(self) -> list[str]:
        """What no answer can pass."""
        if not self.max_tokens or self.min_tokens <= self.max_tokens:
            return []
        return [
            f"filters.max_tokens: {self.max_tokens} is less than filters.min_tokens = {self.min_tokens}: no answer "
            "has a length between them"
        ]

    def measure(self, thought: str, tokens: int, repeated: float, target: str) -> dict[str, float | None]:
        """What the filters that are asked measure.

        Args:
            thought: the thinking as it will be written. Untrusted; the time is linear in it.
            tokens: length of the sampled answer.
            repeated: its `repetition`.
            target: the question's target language; "": it names none.
        """
        found: dict[str, float | None] = {}
        if self.min_tokens or self.max_tokens:
            found["tokens"] = tokens
        if self.max_repetition < 1:
            found["repetition"] = repeated
        if self.max_paragraph_words:
            found["paragraph_words"] = longest_paragraph(thought)
        if self.code_blocks == "drop":
            found["code_blocks"] = fenced_blocks(thought)
        if self.min_language:
            found["language"] = share_of(thought, target or self.language)
        return found

    def reason(self, measured: Measured) -> Reason | None:
        """The first filter that an answer does not pass; None where it passes all."""
        tokens = measured.get("tokens")
        if tokens is not None and tokens < self.min_tokens:
            return "too_short"
        if tokens is not None and self.max_tokens and tokens > self.max_tokens:
            return "too_long"
        if (measured.get("repetition") or 0.0) > self.max_repetition:
            return "repetition"
        if (measured.get("paragraph_words") or 0) > (self.max_paragraph_words or math.inf):
            return "long_paragraph"
        if measured.get("code_blocks"):
            return "code_block"
        share = measured.get("language")
        return "mixed_languages" if share is not None and share < self.min_language else None


def longest_paragraph(text: str) -> int:
    """Words of the longest paragraph.

    >>> longest_paragraph("First we add.\\nThen we divide by 3."), longest_paragraph("先算 2 + 2")
    (5, 5)
    """
    return max((words(line) for line in text.splitlines()), default=0)


def words(text: str) -> int:
    """What stands between spaces; of scripts that have none, each character by itself."""
    spaced, alone = ALONE.subn(" ", text)
    return alone + len(spaced.split())


def fenced_blocks(text: str) -> int:
    """Blocks of code between fences; one that is still open counts.

    >>> fenced_blocks("So:\\n```python\\nx = 1\\n```\\nand ```x```")
    2
    """
    return (len(FENCE.findall(text)) + 1) // 2


def repeated(token_ids: Sequence[int], text: str) -> float:
    """`repetition` of an answer: of its tokens, or where an endpoint sends none, of its words."""
    if token_ids:
        return repetition(token_ids)
    numbers: dict[str, int] = {}
    return repetition([numbers.setdefault(word, len(numbers)) for word in text.split()])


@dataclass(frozen=True)
class SiftedAnswer:
    """What filters and rule say of an answer."""

    measured: Measured
    reason: Reason | None
    """The filter that it does not pass."""
    score: Score | None
    """What its question's verifier says; None where it was not asked, since a filter has dropped the answer."""


def sift(
    filters: Filters, rule: Accuracy, prompt: Prompt, answer: Answer, thought: str, repeated: float
) -> SiftedAnswer | ConfigError:
    """Measure an answer, and judge it by rule where it passes. For a worker of `rewards.pool`.

    Args:
        answer: as it was sampled. Untrusted.
        thought: its thinking as it will be written.
        repeated: see `Filters.measure`.
    """
    target = prompt.target_language
    measured = filters.measure(thought, answer.num_tokens, repeated, "" if unknown(target) else target)
    if (reason := filters.reason(measured)) is not None:
        return SiftedAnswer(measured, reason, None)
    score = score_of("accuracy", rule, prompt, answer, ())
    return SiftedAnswer(measured, None, score) if isinstance(score, Score) else score
