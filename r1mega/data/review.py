"""What people decide on rows, one by one (report 2.3.1: results refined by human annotators).

    lines = queue_lines(rows(file, "rows"), num=100, seed=0)         # export: a line a row, no decision yet
    ...                                                              # people set `decision`, and edit `answer`
    reviewed = apply_review((row for row, _ in ...), read_queue(queue))

    {"sha256": "...", "question": "...", "answer": "...", "decision": "", "reviewer": "", "note": ""}

A row is known by its own digest (`data.signed_rows`), so that a decision holds for the content that was looked at and
for nothing else. An edited row is a new one: `from` names the row before, and `review` keeps what stood there.
Nothing is guessed: whatever does not fit is refused, all of it at once, each with the line it stands in.
"""

import hashlib
import heapq
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from r1mega.config.load import nearest
from r1mega.data.lines import values
from r1mega.data.signed_rows import SHA256, Row, is_intact, signed
from r1mega.data.turns import conversation
from r1mega.errors import DataError, listed

Decision = Literal["accept", "edit", "reject"]
DECISIONS: tuple[Decision, ...] = get_args(Decision)
Undecided = Literal["refuse", "keep", "drop"]
"""What becomes of lines without a decision. keep: the row stays as it is; drop: it is left out as well."""
OUTCOMES = {"accept": "accepted", "edit": "edited", "reject": "rejected", "": "undecided"}
FIELDS = (SHA256, "question", "answer", "decision", "reviewer", "note")


@dataclass(frozen=True)
class ReviewLine:
    """A line of a queue."""

    sha256: str
    """Of the row it is about."""
    question: str
    answer: str
    decision: str = ""
    """One of `DECISIONS`; "" where there is none yet."""
    reviewer: str = ""
    note: str = ""
    where: str = "a line of the queue"
    """File and line, for messages."""

    def to_json(self) -> dict[str, str]:
        """As it stands in the file."""
        return {name: getattr(self, name) for name in FIELDS}


@dataclass
class Reviewed:
    """Rows after review."""

    rows: list[Row] = field(default_factory=list)
    """In their order, without those left out."""
    rejected: list[Row] = field(default_factory=list)
    """Those left out: the row as it was, signed anew with a `review` that says who and why."""
    counts: Mapping[str, int] = field(default_factory=dict)
    """accepted, edited, rejected, undecided_kept, undecided_dropped, not_in_queue, line_ends (answers whose line ends
    an editor had changed); all but the last sum to the rows read."""
    reviewers: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    """Reviewer -> what of their decisions how often; "" is whoever gave no name."""


# ---- out -----------------------------------------------------------------------------------------------------------


def queue_lines(
    rows: Iterable[tuple[Any, str]], *, num: int | None = None, seed: int = 0, reviewer: str = ""
) -> Iterator[ReviewLine]:
    """Rows as lines to be decided on, in their order; of rows that are the same one.

    Args:
        rows: each with where it stands.
        num: draw so many, by seed and content, so that the order of the file says nothing; None: all.

    Raises:
        DataError: a row is not signed, was changed since, or is no conversation.
    """
    seen, lines = set[str](), (_line(row, where, reviewer) for row, where in rows)
    once = ((place, line) for place, line in enumerate(lines) if not (line.sha256 in seen or seen.add(line.sha256)))
    if num is None:
        return (line for _, line in once)
    drawn = heapq.nsmallest(num, once, key=lambda one: hashlib.sha256(f"{seed}/{one[1].sha256}".encode()).digest())
    return (line for _, line in sorted(drawn, key=lambda one: one[0]))


def _line(row: Any, where: str, reviewer: str) -> ReviewLine:
    if fault := _fault_of(row):
        raise DataError(f"{where}: {fault}")
    turns = conversation(row, where).messages
    return ReviewLine(row[SHA256], shown(turns), turns[-1]["content"], reviewer=reviewer, where=where)


def shown(turns: Sequence[Mapping[str, str]]) -> str:
    """What comes before the answer: the user's one turn as it is, several with the role of each above it.

    >>> shown([{"role": "user", "content": "1 + 1?"}, {"role": "assistant", "content": "2"}])
    '1 + 1?'
    """
    before = turns[:-1]
    if [turn["role"] for turn in before] == ["user"]:
        return before[0]["content"]
    return "\n\n".join(f"[{turn['role']}]\n{turn['content']}" for turn in before)


def _fault_of(row: Any) -> str:
    """Why no decision can be about a row; "" where one can."""
    if not isinstance(row, Mapping) or not isinstance(row.get("messages"), list):
        return "is no row with `messages`"
    if SHA256 not in row:
        return "has no sha256 of its own: a rejection or a mixture stage writes rows that have one"
    if not is_intact(row):
        return f"is not what it was when it was written: its content is not that of its sha256 {row[SHA256]!r}"
    return ""


# ---- back ----------------------------------------------------------------------------------------------------------


def read_queue(*files: Path) -> list[ReviewLine]:
    """All lines of queues, as an editor or a spreadsheet left them: in JSON, however its lines are broken.

    Raises:
        DataError: one cannot be read; lines are not of a queue's form, each named with its place.
    """
    found, faults = list[ReviewLine](), list[str]()
    for file in files:
        for value, where in values(file, "decisions"):
            try:
                found.append(_read(value, where))
            except DataError as error:
                faults.append(str(error))
    if faults:
        raise DataError(listed(f"{len(faults)} lines of decisions cannot be used:", faults))
    return found


def _read(value: Any, where: str) -> ReviewLine:
    if not isinstance(value, Mapping):
        raise DataError(f"{where}: a line is an object, not {type(value).__name__}")
    for name in value:
        if name not in FIELDS:
            raise DataError(
                f"{where}: unknown field {name!r}{nearest(str(name), FIELDS)}: what is to be kept, say in note"
            )
    for name in (SHA256, "question", "answer", "decision"):
        if name not in value:
            raise DataError(f"{where}: field {name!r} is missing")
    said = {name: "" if value.get(name) is None else value[name] for name in FIELDS}  # null: an empty cell
    for name, text in said.items():
        if not isinstance(text, str):
            raise DataError(f"{where}: field {name!r} is text, not {text!r}")
    decision = said["decision"].strip()
    if decision and decision not in DECISIONS:
        raise DataError(
            f"{where}: decision {decision!r}{nearest(decision, DECISIONS)}: known are {', '.join(DECISIONS)}, and "
            '"" where there is none yet'
        )
    return ReviewLine(**{**said, "decision": decision, "reviewer": said["reviewer"].strip()}, where=where)


class Review:
    """Decisions, asked for each row in turn; faults are gathered, so that all of them are told at once."""

    def __init__(self, queue: Sequence[ReviewLine], undecided: Undecided = "refuse") -> None:
        self._undecided: Undecided = undecided
        self._lines = dict[str, ReviewLine]()
        self._met, self._reviewed_before = set[str](), set[str]()
        self._faults = list[str]()
        self.rejected = list[Row]()
        self.counts = Counter[str]()
        self.reviewers = dict[str, Counter[str]]()
        for line in queue:
            if (first := self._lines.setdefault(line.sha256, line)) is not line:
                self._faults.append(f"{line.where}: is about the same row as {first.where}: leave one of them out")
        if undecided == "refuse" and (open_ := [line for line in queue if not line.decision]):
            self._faults.append(
                f"{open_[0].where}: no decision{f', nor in {len(open_) - 1} more' if open_[1:] else ''}: decide "
                f"({', '.join(DECISIONS)}), or say what becomes of them: undecided keep or drop"
            )

    def of(self, row: Any, where: str) -> Row | None:
        """What becomes of a row: itself, one made of it, or None where it is left out.

        Args:
            where: it stands, for messages.
        """
        if fault := _fault_of(row):
            self._faults.append(f"{where}: {fault}")
            return None
        before = row.get("provenance") or {}
        if "review" in before:
            self._reviewed_before.update(before.get("from", ()))
        if (line := self._lines.get(row[SHA256])) is None:
            self.counts["not_in_queue"] += 1
            return row
        self._met.add(line.sha256)
        turns = conversation(row, where).messages
        if fault := self._fault_between(line, turns):
            self._faults.append(f"{line.where}: {fault}")
            return None
        self.reviewers.setdefault(line.reviewer, Counter())[OUTCOMES[line.decision]] += 1
        return self._decided(row, line, turns[-1]["content"])

    def _fault_between(self, line: ReviewLine, turns: Sequence[Mapping[str, str]]) -> str:
        """What of a line does not fit the row it is about; "" where all does."""
        answer = turns[-1]["content"]
        changed = self._text_of(line.answer, answer) != answer
        if self._text_of(line.question, shown(turns)) != shown(turns):
            return "the question was changed, and only an answer can be: put it back"
        if line.decision == "edit":
            if not changed:
                return 'decision "edit", and the answer is the one that was there: edit it, or write "accept"'
            if not line.answer.strip():
                return 'decision "edit" with an empty answer, of which nothing can be learnt: write "reject"'
        elif changed:
            spaces = " (in white space alone)" if line.answer.split() == answer.split() else ""
            return f'decision "{line.decision}", and the answer was changed{spaces}: write "edit", or put it back'
        return ""

    @staticmethod
    def _text_of(text: str, before: str) -> str:
        """Text with the line ends that it was exported with: some spreadsheets write others."""
        return text if "\r" in before else text.replace("\r\n", "\n")

    def _decided(self, row: Row, line: ReviewLine, before: str) -> Row | None:
        answer = self._text_of(line.answer, before)
        self.counts["line_ends"] += answer != line.answer
        if not line.decision and self._undecided == "keep":
            self.counts["undecided_kept"] += 1
            return row
        outcome = OUTCOMES[line.decision]
        review: Row = {"reviewer": line.reviewer, "decision": outcome, "note": line.note}
        messages = row["messages"]
        if outcome == "edited":
            review["original"] = messages
            messages = [*messages[:-1], {**messages[-1], "content": answer}]
        of = {**row.get("provenance", {}), "review": review, "from": [row[SHA256]]}
        made = signed({**row, "messages": messages, "provenance": of})
        if outcome in ("accepted", "edited"):
            try:
                conversation(made, line.where)  # what was typed may be no text that a tokenizer takes
            except DataError as error:
                self._faults.append(str(error))
            self.counts[outcome] += 1
            return made
        self.counts["rejected" if line.decision else "undecided_dropped"] += 1
        self.rejected.append(made)
        return None

    def finish(self) -> None:
        """After the last row.

        Raises:
            DataError: lines and rows do not fit each other; every fault with its place.
        """
        for sha, line in self._lines.items():
            if sha not in self._met:
                known = (
                    "; it has been reviewed already, and the row that came of it is another"
                    if (sha in self._reviewed_before)
                    else ""
                )
                self._faults.append(f"{line.where}: no row has sha256 {sha!r}{known}")
        if self._faults:
            raise DataError(
                listed(f"{len(self._faults)} faults of a review, of which nothing was applied:", self._faults)
            )


def apply_review(
    rows: Iterable[Row], queue: Sequence[ReviewLine], *, undecided: Undecided = "refuse", where: str = "rows"
) -> Reviewed:
    """Rows with all decisions of a queue applied; rows that it does not name are passed through.

    Args:
        undecided: what becomes of lines without a decision.
        where: the rows come from, for messages, which count them from 1.

    Raises:
        DataError: lines and rows do not fit each other; every fault with its place.
    """
    review = Review(queue, undecided)
    found = [review.of(row, f"{where}, row {number}") for number, row in enumerate(rows, 1)]
    review.finish()
    return Reviewed([row for row in found if row is not None], review.rejected, review.counts, review.reviewers)
