"""Sampled answers made conversations: which of a question's good ones are kept, and the rows that are written.

rows.jsonl       {"messages": [user, assistant], "provenance": {...}, "sha256"}, as SFT reads them
decisions.jsonl  a line for every sampled answer, without its text: question, outcome, what filters and verdicts said

`sha256` is a row's own (`data.signed_rows`).
"""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from r1mega.data.signed_rows import Row, signed
from r1mega.samples import Prompt
from r1mega.stages.sifting import Decision


@dataclass(frozen=True)
class Kept:
    """An answer that is right, readable and drawn, and its row."""

    prompt: Prompt
    decision: Decision
    row: Row


Finish = Callable[[Sequence[Kept]], Sequence[Row | None]]
"""Takes kept answers, of any number of questions, and says of each in their order which row is written; None where
none is, which its decision then says. What is done to rows before they are written is done here."""


def as_they_are(kept: Sequence[Kept]) -> Sequence[Row | None]:
    """Every row as its answer was sampled."""
    return [one.row for one in kept]


def select(decisions: Sequence[Decision], max_kept: int | None, seed: int, question: str) -> list[Decision]:
    """Decide on a question's answers that are right: equal ones are written once, spaces aside, and of the others
    `max_kept` are drawn. What is kept, in its order.

    Args:
        seed: of the run; draws depend on it and on `question`, its id, alone.
    """
    different: dict[str, Decision] = {}
    for decision in sorted(decisions, key=lambda one: one.index):
        if (
            decision.outcome is None
            and different.setdefault(" ".join(decision.text.split()), decision) is not decision
        ):
            decision.drop("double")
    left = list(different.values())
    if max_kept is not None and len(left) > max_kept:
        drawn = {one.index for one in random.Random(f"{seed}/rejection/{question}").sample(left, max_kept)}
        for decision in left:
            if decision.index not in drawn:
                decision.drop("enough")
        left = [decision for decision in left if decision.index in drawn]
    for decision in left:
        decision.outcome = "kept"
    return left


@dataclass(frozen=True)
class RowOrigin:
    """What all rows of a run have in common."""

    policy: Mapping[str, Any]
    """Who answered: {"model"} or {"endpoint", "model"}, for people; "start", its digest; "weight_version";
    "asked_as"."""
    sampling: Mapping[str, Any]

    def row(self, prompt: Prompt, decision: Decision) -> Row:
        """A row of rows.jsonl."""
        return signed(
            {
                "messages": [
                    {"role": "user", "content": prompt.question},
                    {"role": "assistant", "content": decision.text},
                ],
                "provenance": {
                    "question": {
                        "id": prompt.id,
                        "source": prompt.source,
                        "domain": prompt.domain,
                        "verifier": prompt.verifier,
                    },
                    "policy": dict(self.policy),
                    "sampling": dict(self.sampling),
                    "answer": {
                        "index": decision.index,
                        "seed": decision.seed,
                        "tokens": decision.tokens,
                        "text_sha256": decision.text_sha256,
                    },
                    "verdict": dict(decision.verdict),
                    "filters": dict(decision.filters),
                    "thinking": decision.thinking,
                    "from": [],
                },
            }
        )


def decision_line(prompt: Prompt, decision: Decision, row: str = "") -> Row:
    """A line of decisions.jsonl.

    Args:
        row: sha256 of the row that was written of a kept answer.
    """
    line: Row = {
        "question": prompt.id,
        "source": prompt.source,
        "domain": prompt.domain,
        "index": decision.index,
        "outcome": decision.outcome,
        "tokens": decision.tokens,
        "text_sha256": decision.text_sha256,
    }
    if decision.filters:
        line["filters"] = dict(decision.filters)
    if decision.verdict:
        line["verdict"] = dict(decision.verdict)
    if decision.reason:
        line["reason"] = decision.reason
    if row:
        line |= {"thinking": decision.thinking, "row": row}
    return line
