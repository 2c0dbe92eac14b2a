"""Judged answers made preference data: what of it is kept, and the rows that are written, with where they come from.

pairs.jsonl     {"prompt", "chosen", "rejected", "gap", "votes", "provenance", "sha256"}
labelled.jsonl  {"prompt", "response", "safe", "votes", "provenance", "sha256"}
judged.jsonl    a line for everything that was judged, without its texts: lengths, gap, votes, and what became of it

`sha256` is a row's own (`data.signed_rows`), so that one that was changed since is told from one that was not.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from r1mega.data.length_balance import LengthBalance, Sized, balanced, possible
from r1mega.data.pairing import PairSettings, SampledAnswer
from r1mega.data.signed_rows import Row, signed
from r1mega.rewards.preference import PairVerdict
from r1mega.rewards.safety import Mark
from r1mega.samples import Prompt, VerdictStatus

Outcome = Literal["kept", "unbalanced", "gap_too_small", "undecided", "unscorable", "failed"]


@dataclass(frozen=True)
class Pair:
    """Two answers to a question, to be held against each other."""

    prompt: Prompt
    first: SampledAnswer
    second: SampledAnswer

    @property
    def key(self) -> str:
        """Another for every pair of a run."""
        return f"{self.prompt.id}/{self.first.index}/{self.second.index}"

    def ordered(self, verdict: PairVerdict) -> tuple[SampledAnswer, SampledAnswer]:
        """The better answer and the worse one, of a verdict with a gap."""
        return (self.first, self.second) if verdict.gap > 0 else (self.second, self.first)


@dataclass(frozen=True)
class Selected:
    """What became of judged pairs."""

    outcomes: Sequence[Outcome]
    """One a pair, in their order."""
    before: LengthBalance
    """Of the pairs whose gap was wide enough."""
    after: LengthBalance
    possible: Mapping[str, int]
    """How many each method of balancing keeps."""

    def lengths(self, settings: PairSettings) -> Row:
        """For summary.json."""
        return {
            "method": settings.balance,
            "step": settings.length_step,
            "before": self.before.to_json(),
            "after": self.after.to_json(),
            "possible": dict(self.possible),
        }


def select(
    pairs: Sequence[Pair], verdicts: Sequence[PairVerdict], min_gap: float, settings: PairSettings, seed: int
) -> Selected:
    """Which pairs are kept: those whose mean gap exceeds `min_gap` either way, and of these the balanced ones."""
    judged = list(zip(pairs, verdicts, strict=True))
    sized = [
        Sized(pair.key, *(len(answer.text) for answer in pair.ordered(verdict)))
        for pair, verdict in judged
        if verdict.preferred(min_gap) is not None
    ]
    kept = balanced(sized, settings.balance, settings.length_step, seed)
    keys, decided = {pair.key for pair in kept}, {pair.key for pair in sized}

    def outcome(pair: Pair, verdict: PairVerdict) -> Outcome:
        if not verdict.scored:
            return _not_scored(verdict.status)
        if pair.key not in decided:
            return "gap_too_small"
        return "kept" if pair.key in keys else "unbalanced"

    return Selected(
        [outcome(*one) for one in judged],
        LengthBalance.of(sized),
        LengthBalance.of(kept),
        possible(sized, settings.length_step),
    )


def marked(mark: Mark) -> Outcome:
    """What became of a marked answer."""
    if mark.status is not VerdictStatus.SCORED:
        return _not_scored(mark.status)
    return "undecided" if mark.safe is None else "kept"


def _not_scored(status: VerdictStatus) -> Outcome:
    return "failed" if status is VerdictStatus.FAILED else "unscorable"


@dataclass(frozen=True)
class Provenance:
    """What all rows of a run have in common."""

    policy: Mapping[str, Any]
    """Who answered: {"model"} or {"endpoint", "model"}, for people; "start", its digest; "weight_version"."""
    sampling: Mapping[str, Any]
    scope: str
    judge: Mapping[str, Any]

    def pair(self, pair: Pair, verdict: PairVerdict) -> Row:
        """A row of pairs.jsonl; its gap and votes favour what was chosen."""
        chosen, rejected = pair.ordered(verdict)
        sign = 1 if verdict.gap > 0 else -1
        shown = ("chosen", "rejected") if verdict.gap > 0 else ("rejected", "chosen")
        row: Row = {
            "prompt": pair.prompt.question,
            "chosen": chosen.text,
            "rejected": rejected.text,
            "gap": abs(verdict.gap),
            "votes": [{"gap": sign * vote.gap, "shown_first": shown[vote.first]} for vote in verdict.votes],
        }
        return self._signed(row, pair.prompt, {"chosen": chosen, "rejected": rejected})

    def label(self, prompt: Prompt, answer: SampledAnswer, mark: Mark) -> Row:
        """A row of labelled.jsonl."""
        row: Row = {
            "prompt": prompt.question,
            "response": answer.text,
            "safe": bool(mark.safe),
            "votes": list(mark.votes),
        }
        return self._signed(row, prompt, {"response": answer})

    def _signed(self, row: Row, prompt: Prompt, answers: Mapping[str, SampledAnswer]) -> Row:
        row["provenance"] = {
            "question": {"id": prompt.id, "source": prompt.source, "domain": prompt.domain},
            "policy": dict(self.policy),
            "sampling": dict(self.sampling),
            "scope": self.scope,
            "answers": {
                name: {"index": answer.index, "seed": answer.seed, "tokens": answer.tokens}
                for name, answer in answers.items()
            },
            "judge": dict(self.judge),
        }
        return signed(row)


def judged_pair(pair: Pair, verdict: PairVerdict, outcome: Outcome) -> Row:
    """A line of judged.jsonl, of a pair."""
    answers = (pair.first, pair.second)
    row: Row = {**_judged(pair.prompt, answers), "outcome": outcome}
    if not verdict.scored:
        return {**row, "reason": verdict.reason}
    return {**row, "gap": verdict.gap, "votes": [[vote.first, vote.gap] for vote in verdict.votes]}


def judged_answer(prompt: Prompt, answer: SampledAnswer, mark: Mark, outcome: Outcome) -> Row:
    """A line of judged.jsonl, of one answer."""
    row: Row = {**_judged(prompt, (answer,)), "outcome": outcome}
    if mark.status is not VerdictStatus.SCORED:
        return {**row, "reason": mark.reason}
    return {**row, "share_safe": mark.share_safe, "votes": list(mark.votes)}


def _judged(prompt: Prompt, answers: Sequence[SampledAnswer]) -> Row:
    return {
        "question": prompt.id,
        "source": prompt.source,
        "answers": [answer.index for answer in answers],
        "lengths": [len(answer.text) for answer in answers],
    }
