"""What became of the answers of a rejection stage: counted, said, and what to do where none is kept."""

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from r1mega.data.scope import Marks
from r1mega.stages.sifting import Decision

log = logging.getLogger(__name__)


@dataclass
class OutcomeCounts:
    """What became of a run's answers."""

    outcomes: dict[str, Counter[str]] = field(default_factory=dict[str, Counter[str]])
    """Domain -> outcome -> answers."""
    thinking: Counter[str] = field(default_factory=Counter[str])
    """Of kept ones."""
    tokens: int = 0
    """Of all answers."""
    empty: int = 0
    """Questions of which nothing is kept."""
    unreadable: int = 0
    """Replies of the judge in which no vote could be read."""
    replayed: int = 0
    """Answers that the journal had."""
    questions: int = 0

    def count(self, domain: str, decisions: Sequence[Decision]) -> None:
        """Count a question of `domain` and its answers, all of them decided on."""
        kept = [one for one in decisions if one.outcome == "kept"]
        self.outcomes.setdefault(domain, Counter()).update(str(one.outcome) for one in decisions)
        self.thinking.update(one.thinking for one in kept)
        self.empty += not kept
        self.questions += 1

    @property
    def total(self) -> Counter[str]:
        """Outcome -> answers, of all domains."""
        return sum(self.outcomes.values(), Counter[str]())

    def to_json(self) -> dict[str, Any]:
        """For summary.json."""
        total = self.total
        return {
            "counts": {
                "questions": self.questions,
                "answers": total.total(),
                "tokens of answers": self.tokens,
                "rows": total["kept"],
                "questions without a row": self.empty,
            },
            "outcomes": dict(total),
            "domains": {domain: dict(of) for domain, of in sorted(self.outcomes.items())},
            "thinking": dict(self.thinking),
        }


REMEDIES: Mapping[str, str] = {
    "truncated": "raise sampling.max_new_tokens",
    "control_token": "the model writes tokens that steer conversations: train it further, or lower the temperature",
    "no_summary": "answers.marks have to be those that the model itself writes",
    "unformatted": "verify.format has to be the form that the model answers in",
    "too_short": "lower filters.min_tokens",
    "too_long": "raise filters.max_tokens",
    "repetition": "raise filters.max_repetition, or sampling.temperature",
    "long_paragraph": "raise filters.max_paragraph_words",
    "code_block": 'take filters.code_blocks = "keep"',
    "mixed_languages": "filters.language has to be the questions' own, or lower filters.min_language",
    "wrong": "ask easier questions, a better model, or for more answers (answers.per_question)",
    "unscorable": "give the questions a truth, or name a judge (verify.judge)",
    "failed": "mend what judges; the reasons stand in decisions.jsonl",
    "rewrite_unreadable": "what the model said is in rewrites.jsonl; raise rewrite.max_tokens, or take another model",
    "rewrite_filtered": "rewrite.template and rewrite.format have to fit, and the filters what it writes",
    "rewrite_wrong": "the final answer has to stand in the rewritten one as its verifier looks for it",
}
"""Outcome -> what is to be done where most answers have it and none is kept."""


def say(counted: OutcomeCounts, marks: Marks) -> None:
    """Say what became of the answers.

    Args:
        marks: of their thinking.
    """
    total = counted.total
    log.info("%s answers sampled: %s", f"{total.total():,}", _told(total))
    if total["failed"]:
        log.warning("%s answers could not be judged through no fault of theirs: left out", f"{total['failed']:,}")
    if counted.unreadable:
        log.warning("%d replies of the judge could not be read and were asked for again", counted.unreadable)
    if counted.thinking["none"] and not counted.thinking["written"]:
        log.warning(
            "no kept answer has any thinking between answers.marks, %r and %r: the filters of thinking had nothing "
            "to look at", *marks,
        )  # fmt: skip
    if counted.empty:
        log.warning("%s questions have no row", f"{counted.empty:,}")


def why_none(counted: OutcomeCounts, decisions: Path) -> str:
    """What became of the answers, and what to do about it."""
    total = counted.total
    remedies = "; ".join(REMEDIES[name] for name, _ in total.most_common(2) if name in REMEDIES)
    return (
        f"none of {total.total():,} answers is kept ({_told(total)}): {remedies or 'ask more questions'}. "
        f"{decisions} says it of each; what was sampled is kept, and the same command with other settings of "
        "verify, filters or rewrite goes on from it"
    )


def _told(outcomes: Mapping[str, int]) -> str:
    told = Counter(outcomes).most_common()
    return ", ".join(f"{num:,} {name.replace('_', ' ')}" for name, num in told if num)
