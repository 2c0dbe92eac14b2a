"""Answers that rows say they were sampled as, looked for in the journals of the run directories.

An entry is found by the weights that answered, their version and the seed; then question, sampling settings and the
text itself must be what the row says, and what the row teaches must be that text. Of it conversations have the
SHA-256, preference data the part that was judged.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from r1mega.data.scope import THOUGHT, Marks, Scope, scoped
from r1mega.data.signed_rows import Row, sha256_of
from r1mega.pipeline.run_folders import StageFolder
from r1mega.rollout.engine import SamplingParams
from r1mega.rollout.entries import JournalEntry, entries
from r1mega.runtime.digests import digest_of

QUESTION = "{question}"
MISSING = "missing journal entry"
OTHER_TEXT = "other text in the journal"
OTHER_SETTINGS = "other sampling settings in the journal"
OTHER_ANSWER = "another answer than was sampled"
UNREADABLE = "unreadable journal entry"


@dataclass(slots=True)
class Claim:
    """One answer, as a row tells it."""

    start: str
    """Digest of the weights that answered."""
    version: int
    seed: int
    """Of the answer itself."""
    index: int
    question: str
    """Id."""
    sampling: SamplingParams
    asked_as: str
    """The prompt with {question}; what stands behind it may be the answer's beginning."""
    taught: str
    """SHA-256 of what the row teaches."""
    scope: Scope
    """What of the answer that is."""
    text_sha256: str = ""
    """Of the whole answer; "" of preference data."""
    thoughtless: str = ""
    """What the row teaches, where the thought was left out of it."""
    found: JournalEntry | None = None
    """Its entry, where all agrees."""
    fault: str = MISSING
    """Why none does; "" where one does."""

    @property
    def key(self) -> tuple[str, int]:
        """By which entries are looked through: whose, and the answer's seed."""
        return self.start, self.seed

    def fault_of(self, whole: str, marks: Marks) -> str:
        """Why an answer of the journal, with its prefill, is not the row's; "": it is."""
        if self.text_sha256 and sha256_of(whole) != self.text_sha256:
            return OTHER_TEXT
        if self.thoughtless:
            same = scoped(whole, "summary", marks) == scoped(self.thoughtless, "summary", marks)
            return "" if same else OTHER_ANSWER
        part = scoped(whole, self.scope, marks)
        if part is not None and sha256_of(part) == self.taught:
            return ""
        return OTHER_ANSWER if self.text_sha256 else OTHER_TEXT


def claims_of(row: Row) -> list[Claim]:
    """The answers that a row was made of directly: one, or of a pair both; [] where it says of none.

    Raises:
        KeyError, TypeError, ValueError: it says less, or something else, than stages write.
    """
    of: Mapping[str, Any] = row["provenance"]
    if answer := of.get("answer"):
        answered = row["messages"][-1]["content"]
        return [_claim(of, answer, answered, "response", left_out=of["thinking"] == "left_out")]
    return [_claim(of, answer, row[name], of["scope"]) for name, answer in of.get("answers", {}).items()]


def _claim(
    of: Mapping[str, Any], answer: Mapping[str, Any], text: str, scope: Scope, *, left_out: bool = False
) -> Claim:
    policy, sampling = of["policy"], {name: x for name, x in of["sampling"].items() if name not in ("n", "seed")}
    return Claim(
        start=policy["start"],
        version=int(policy["weight_version"]),
        seed=int(answer["seed"]),
        index=int(answer["index"]),
        question=of["question"]["id"],
        sampling=SamplingParams.from_json(sampling),
        asked_as=policy.get("asked_as", ""),
        taught=sha256_of(text),
        scope=scope,
        text_sha256=answer.get("text_sha256", ""),
        thoughtless=text if left_out else "",
    )


@dataclass
class Journals:
    """The journals of all run directories, each read once from end to end when claims are looked for."""

    stages: Sequence[StageFolder]
    damaged: list[str] = field(default_factory=list)
    """Lines that are no entries, "FILE, line N"."""
    _prefill: dict[str, str] = field(default_factory=dict)
    """By how a question was asked: the part of it that belongs to the answer, once that is known."""

    @property
    def files(self) -> list[Path]:
        """Those of weights that do not change, as in all stages in which a finished model answers."""
        return [file for stage in self.stages if (file := stage.path / "journal/version_0.jsonl").is_file()]

    def look_for(
        self, claims: Iterable[Claim], *, keep: bool = False, advance: Callable[[int], object] = lambda _: None
    ) -> None:
        """Fill in `found` and `fault`.

        Args:
            keep: keep the entries, which are as large as the answers of a question.
            advance: called with the bytes that were read.
        """
        open_claims: dict[tuple[str, int], list[Claim]] = defaultdict(list)
        versions = set[int]()
        for claim in claims:
            open_claims[claim.key].append(claim)
            versions.add(claim.version)
        starts = {digest_of(start): start for start in {start for start, _ in open_claims}}
        for stage in self.stages:
            for version in sorted(versions):
                for entry in entries(stage.path / "journal", version, self.damaged):
                    advance(len(entry.answers))
                    if (start := starts.get(entry.key.policy)) is not None:
                        self._hold(stage, entry, start, open_claims, keep)

    def _hold(
        self,
        stage: StageFolder,
        entry: JournalEntry,
        start: str,
        claims: Mapping[tuple[str, int], list[Claim]],
        keep: bool,
    ) -> None:
        """An entry against all claims that it may be meant by."""
        key, texts = entry.key, None
        for place in range(key.n):
            for claim in claims.get((start, key.seed + place), ()):
                if not claim.fault or claim.question != entry.prompt_id or claim.version != key.weight_version:
                    continue
                if key.n > 1 and claim.index != place:
                    continue
                texts = entry.texts() if texts is None else texts
                if texts is None:
                    claim.fault = UNREADABLE
                elif key.sampling != claim.sampling:
                    claim.fault = OTHER_SETTINGS
                else:
                    claim.fault = self._fault_of(claim, texts[place], _marks(stage))
                    claim.found = entry if keep and not claim.fault else None

    def _fault_of(self, claim: Claim, text: str, marks: Marks) -> str:
        """The prompt's end may be the answer's beginning, a prefill or what a template opens: some ending of it."""
        behind = claim.asked_as.rpartition(QUESTION)[2]
        endings = dict.fromkeys(behind[begin:] for begin in range(len(behind), -1, -1))
        fault = ""
        for prefill in (self._prefill.get(claim.asked_as, ""), *endings):
            fault = claim.fault_of(prefill + text, marks)
            if fault != OTHER_TEXT:
                self._prefill[claim.asked_as] = prefill
                return fault
        return fault


def _marks(stage: StageFolder) -> Marks:
    """What opens and closes the thinking where a stage cut answers to what was judged."""
    opening, closing = stage.stage.get("answers", {}).get("marks", THOUGHT)
    return opening, closing
