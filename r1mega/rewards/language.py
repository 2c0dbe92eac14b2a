"""The language-consistency reward (report 2.3.2): the share of target-language words in the chain of thought.

    share_of("First we add. 然后除以三。", "en")        # 0.375: 3 words of 8

Code, formulae, numbers and quoted names are no words (`languages.neutral`); what a word is, `languages.words` says.
Scripts tell languages apart; where several share one, clauses are judged, each as a whole (`languages.identify`).

An answer without a chain of thought, or whose thought has no word, is worth 0, with a reason: a policy that stays
silent, or thinks in code alone, is consistent in no language, and is not to be paid as if it were.
"""

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import AfterValidator

from r1mega.config.load import nearest
from r1mega.data.template import THINK_CLOSE, THINK_OPEN
from r1mega.rewards.languages.table import SCRIPTS
from r1mega.rewards.reward import Answer, RuleReward, Score, scored, unscorable
from r1mega.samples import Prompt

MAX_CHARACTERS, PIECES = 240_000, 16
"""Characters of a thought (the report's longest, of 32,768 tokens, has half of them), and pieces that a longer one is
cut to."""


def _known(code: str) -> str:
    if fault := unknown(code):
        raise ValueError(fault)
    return code


class Language(RuleReward):
    """The share of target-language words among the words of the chain of thought, from 0 to 1."""

    imports = tuple(f"r1mega.rewards.languages.{name}" for name in ("model", "identify", "neutral", "words"))

    kind: Literal["language"] = "language"
    language: Annotated[str, AfterValidator(_known)] = "en"
    """Target (ISO 639-1) of questions that name none (`target_language`)."""

    def judge(self, prompt: Prompt, answer: Answer, group: Sequence[Answer]) -> Score:
        target = prompt.target_language or self.language
        if fault := unknown(target):
            return unscorable(f"target_language: {fault}")
        return judge_text(answer.text, target)


def unknown(code: str) -> str:
    """Why a language cannot be a target; empty where it can."""
    if code in SCRIPTS:
        return ""
    known = ", ".join(sorted(SCRIPTS))
    return f"the language reward does not know {code!r}{nearest(code, SCRIPTS)}: choose of {known} (ISO 639-1)"


def judge_text(text: str, target: str, *, bare: bool = False) -> Score:
    """The score of an answer's text.

    Args:
        bare: whether the text is the chain of thought itself, without tags.
    """
    thought = text if bare else chain_of_thought(text)
    if thought is None:
        return scored(0.0, "no chain of thought")
    share = share_of(thought, target)
    if share is None:
        return scored(0.0, "no words in the chain of thought")
    read = f"{MAX_CHARACTERS:,} of its {len(thought):,} characters were read"
    return scored(share, read if len(thought) > MAX_CHARACTERS else "")


def chain_of_thought(text: str) -> str | None:
    """What stands in the thinking tags, or before the closing one where the template wrote the opening, or None.

    All that was thought counts: from the first tag that opens, or the text's beginning where a closing one comes
    before it, to the last that closes, or the end where a thought is still open. Tags in it are no words.
    """
    opened, closed = text.find(THINK_OPEN), text.find(THINK_CLOSE)
    if opened < 0 and closed < 0:
        return None
    start = 0 if opened < 0 or 0 <= closed < opened else opened + len(THINK_OPEN)
    end = text.rfind(THINK_CLOSE)
    return text[start:end] if end > text.rfind(THINK_OPEN) else text[start:]


def share_of(thought: str, target: str) -> float | None:
    """Words of the language `target` (a key of `languages.table.SCRIPTS`) among all words; None where there are none.

    Deterministic, and linear in the length up to `MAX_CHARACTERS`. Its speed: docs/measurements/language_reward.json.
    """
    from r1mega.rewards.languages.identify import words_of
    from r1mega.rewards.languages.neutral import without_neutral
    from r1mega.rewards.languages.words import clauses

    found = clauses(without_neutral(_bounded(thought), target))
    num_all = sum(sum(clause.words.values()) for clause in found)
    return words_of(target, found) / num_all if num_all else None


def _bounded(thought: str) -> str:
    """The thought, or `PIECES` of a very long one, evenly spread, so that nothing hides behind a limit."""
    if len(thought) <= MAX_CHARACTERS:
        return thought
    starts = (i * (len(thought) - MAX_CHARACTERS // PIECES) // (PIECES - 1) for i in range(PIECES))
    return "\n".join(thought[start : start + MAX_CHARACTERS // PIECES] for start in starts)
