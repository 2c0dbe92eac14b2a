"""What becomes of a sampled answer, up to where a model has to judge it: cut, formless, filtered, wrong, or right."""

from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, Self

from r1mega.data.scope import Marks, parted, scoped, without_thought
from r1mega.data.settings import AnswerFormat
from r1mega.data.signed_rows import sha256_of
from r1mega.data.special_tokens import control_token_in
from r1mega.errors import ConfigError
from r1mega.evaluation.metrics import FORMATS
from r1mega.recipe.rejection import Rejection
from r1mega.rewards import filters
from r1mega.rewards.filters import SiftedAnswer, sift, words
from r1mega.rewards.gathering import gathered
from r1mega.rewards.pool import Pool, TaskOutcome
from r1mega.rewards.reward import Answer
from r1mega.samples import Completion, Prompt, VerdictStatus

Outcome = Literal[
    "kept", "truncated", "control_token", "no_summary", "unformatted", "too_short", "too_long", "repetition",
    "long_paragraph", "code_block", "mixed_languages", "wrong", "unscorable", "failed", "double", "enough",
    "rewrite_unreadable", "rewrite_failed", "rewrite_filtered", "rewrite_wrong", "rewrite_unscorable",
    "rewrite_double",
]  # fmt: skip
"""What becomes of an answer, in the order in which it is asked: every answer has the first that is true of it.

truncated: cut at the length limit. control_token: it spells a token that steers conversations, of any model's
(`data.special_tokens`), which no turn may have in it. no_summary: its thinking never ends, or nothing is behind it.
unformatted: not in the format that is asked for. Then the filters (`rewards.filters`), then rule and judge. wrong:
worth less than `verify.min_value`. unscorable: neither rule nor judge can judge it. failed: judging broke, through no
fault of the answer. double: written word for word as one of the question before it. enough: the question has its rows
already. The others are of right answers of which no rewritten one can be used (`stages.rewriting`).
"""
Thought = Literal["written", "left_out", "none"]
"""Whether an answer's thinking is in its row, was taken out of it, or was never there."""


@dataclass
class Decision:
    """One sampled answer, and what becomes of it."""

    index: int
    """Which of the n."""
    seed: int
    tokens: int
    """Of the whole answer, as the engine or the endpoint counts them."""
    text_sha256: str
    """Of the template's prefill and the completion, as it was sampled."""
    outcome: Outcome | None = None
    """None: not decided yet. It waits for the judge where there is no verdict, else it is right."""
    reason: str = ""
    filters: Mapping[str, float | None] = field(default_factory=dict[str, float | None])
    """Filter -> what it measured."""
    verdict: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """{"by", "value", ...}; empty where none was come to."""
    thinking: Thought = "none"
    text: str = ""
    """As it is to be written; "" where it is not."""

    def to_json(self) -> dict[str, Any]:
        """For `from_json`."""
        return asdict(self)

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> Self:
        """Of what `to_json` has written."""
        return cls(**row)

    def drop(self, outcome: Outcome, reason: str = "") -> Self:
        """Decided against; its text is let go of."""
        self.outcome, self.reason, self.text = outcome, reason, ""
        return self


class Sifting:
    """Decides on answers as they come, in a pool of processes with hard deadlines."""

    def __init__(
        self, config: Rejection, pool: Pool, required: AnswerFormat | None = None, marks: Marks | None = None
    ) -> None:
        """required, marks: what an answer has to look like, and what is around its thinking; None: as the recipe
        says of sampled ones."""
        self._marks = marks or config.answers.marks
        self._config, self._pool, self._rule = config, pool, config.rule
        self._required = required or config.answer_format
        self._formatted = FORMATS[self._required]

    def decide(self, prompt: Prompt, completion: Completion) -> Future[Decision]:
        """What becomes of an answer. At once; the future comes later, and raises ConfigError where the question names
        something that there is not."""
        text, marks = prompt.prefill + completion.text, self._marks
        decision = Decision(completion.index, completion.seed, completion.num_tokens, sha256_of(text))
        if completion.truncated:
            return _settled(decision.drop("truncated"))
        if token := control_token_in(text):
            return _settled(decision.drop("control_token", f"it spells {token}"))
        if scoped(text, "summary", marks) is None:
            return _settled(decision.drop("no_summary"))
        if not self._formatted(text):
            return _settled(decision.drop("unformatted", f"not in the format {self._required}"))
        thinking = self._config.thinking
        simple = prompt.domain in thinking.domains and words(prompt.question) <= thinking.simple_words
        decision.text = without_thought(text, marks, thinking.empty) if simple else text
        parts = parted(decision.text, marks)
        thought = parts[1] if parts else ""
        decision.thinking = "left_out" if simple else "written" if thought.strip() else "none"
        answer = Answer(text, completion.num_tokens, completion.truncated)
        repeated = filters.repeated(completion.token_ids, text)
        asked = self._pool.submit(
            sift,
            self._config.filters,
            self._rule,
            prompt,
            answer,
            thought,
            repeated,
            limits=self._rule.limits(prompt),
        )
        return gathered([asked], lambda found: self._decided(decision, prompt, found[0]))

    def _decided(self, decision: Decision, prompt: Prompt, outcome: TaskOutcome) -> Decision:
        by = f"rule:{prompt.verifier}"
        if outcome.status == "answer":  # its own doing: it used too much, or ended its worker
            decision.verdict = {"by": by, "value": 0.0}
            return decision.drop("wrong", outcome.reason)
        if outcome.status == "failed":
            return decision.drop("failed", outcome.reason)
        if isinstance(outcome.value, ConfigError):
            raise outcome.value
        sifted: SiftedAnswer = outcome.value
        decision.filters = sifted.measured
        if sifted.reason is not None or (score := sifted.score) is None:
            return decision.drop(sifted.reason or "failed")
        if score.status is VerdictStatus.FAILED:
            return decision.drop("failed", score.reason)
        if score.status is VerdictStatus.UNSCORABLE:
            return self._without_rule(decision, score.reason)
        decision.verdict = {"by": by, "value": score.value}
        return decision if score.value >= self._config.verify.min_value else decision.drop("wrong", score.reason)

    def _without_rule(self, decision: Decision, reason: str) -> Decision:
        """An answer that no rule can judge."""
        verify = self._config.verify
        if verify.judge is None and verify.unjudged == "refuse":
            return decision.drop("unscorable", reason)
        if verify.judge is None:
            decision.verdict = {"by": "none", "value": None}
        return decision


def _settled(decision: Decision) -> Future[Decision]:
    return gathered([], lambda _: decision)
