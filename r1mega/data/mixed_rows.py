"""Rows of a set that is put together: signed ones as they are, conversations of plain files signed as imported.

    {"messages": [...],
     "provenance": {"question": {...}, "imported": {"file", "line", "sha256"}, "from": []},
     "sha256": "..."}

A row with provenance says itself which checkpoint, prompt and verdict made it, and is passed on unchanged, byte for
byte. Of a plain row nothing is known but where it stood: its provenance says that.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from r1mega.data.question import NO_VERIFIER, Domain, question_id
from r1mega.data.signed_rows import SHA256, Row, digest_of, is_intact, signed
from r1mega.data.split import what_is_asked
from r1mega.data.template import THINK_CLOSE, THINK_OPEN
from r1mega.data.turns import FIELDS, Conversation, conversation
from r1mega.errors import DataError

DOMAINS: tuple[str, ...] = get_args(Domain)
PROVENANCE = "provenance"
LOOKED_AT = (*FIELDS, PROVENANCE, SHA256)
"""Fields of a row that are looked at; a table's other columns are not read."""
MOST_TOKENS = 2**31
"""Of an answer; a row that says of more says nothing."""
Thinking = Literal["written", "left_out", "none"]
THINKING: tuple[str, ...] = get_args(Thinking)


@dataclass(frozen=True)
class MixedRow:
    """A row that may go into a set."""

    row: Row
    """Signed."""
    conversation: Conversation
    unchanged: bool
    """Whether it is the row that was read."""

    @property
    def provenance(self) -> Mapping[str, Any]:
        return self.row[PROVENANCE]

    @property
    def sha256(self) -> str:
        """Its identity."""
        return self.row[SHA256]

    @property
    def domain(self) -> str:
        return self.provenance["question"]["domain"]

    def keys(self) -> tuple[bytes, bytes]:
        """16 bytes each, the same in whatever spaces and Unicode form a row is written: of all that stands before the
        last answer, and of that and the answer."""
        said, before = hashlib.sha256(), b""
        for turn in self.conversation.messages:
            before = said.digest()
            text = what_is_asked(turn["content"]).encode("utf-8", "surrogatepass")
            said.update(f"{turn['role']} {len(text)} ".encode())
            said.update(text)
        return before[:16], said.digest()[:16]

    @property
    def characters(self) -> int:
        """Of the assistant's turns that are learnt."""
        turns = enumerate(self.conversation.messages)
        learnt = (turn for i, turn in turns if turn["role"] == "assistant" and i not in self.conversation.not_learnt)
        return sum(len(turn["content"]) for turn in learnt)

    @property
    def tokens(self) -> int | None:
        """Of the answer as it was sampled; None where nobody counted them."""
        tokens = _of(self.provenance, "answer").get("tokens")
        counted = isinstance(tokens, int) and not isinstance(tokens, bool) and 0 <= tokens < MOST_TOKENS
        return tokens if counted else None

    @property
    def thinking(self) -> Thinking | None:
        """Whether a chain of thought was written before the answer; None where that is not known."""
        found = self.provenance.get("thinking")
        return found if found in THINKING else None


def mixed_row(value: Any, file: str, line: int, where: str, domain: str) -> MixedRow:
    """A row as it may go into a set.

    Args:
        value: of a line of JSONL, or `LOOKED_AT` of a row of parquet.
        file: its file's name, without the folders above it, which another machine has not.
        line: in the file, or row, from 1.
        where: "FILE, line N", for messages.
        domain: of a plain row; "" where the table does not say it.

    Raises:
        DataError: no conversation, as SFT reads one; provenance that does not fit the row's own sha256, or says
            another domain than the table; a plain row without a domain. It names `where`.
    """
    found = conversation(value, where)
    if isinstance(value.get(PROVENANCE), Mapping):
        return MixedRow(_checked(value, where, domain), found, unchanged=True)
    if not domain:
        raise DataError(
            f"{where}: a row without provenance, which says no domain: give its table one, such as "
            f'domain = "general" (of {", ".join(DOMAINS)})'
        )
    return MixedRow(_imported(value, found, file, line, domain), found, unchanged=False)


def _checked(row: Mapping[str, Any], where: str, domain: str) -> Row:
    if not is_intact(row):
        found = (
            "without a sha256 of its own" if not row.get(SHA256) else f"changed since it was signed ({row[SHA256]})"
        )
        raise DataError(
            f"{where}: a row with provenance, {found}: it is not what its provenance says. Take the file as the "
            "stage or `r1mega review import` wrote it (tables of other formats write nulls into it); a row of your "
            "own goes without the field `provenance`"
        )
    told = _of(row[PROVENANCE], "question").get("domain")
    if told not in DOMAINS:
        raise DataError(
            f"{where}: provenance.question.domain is {told!r}, and a domain is one of {', '.join(DOMAINS)}"
        )
    if domain and told != domain:
        raise DataError(
            f'{where}: its provenance says domain "{told}", and its table "{domain}": leave the table\'s domain out, '
            "which is for rows without provenance"
        )
    return dict(row)


def _imported(value: Mapping[str, Any], found: Conversation, file: str, line: int, domain: str) -> Row:
    asked = next(iter(found.questions), found.beginning)
    thinking = _thinking(found.messages[-1]["content"])
    provenance = {
        "question": {
            "id": question_id(NO_VERIFIER, asked),
            "source": file,
            "domain": domain,
            "verifier": NO_VERIFIER,
        },
        **({"thinking": thinking} if thinking else {}),
        "imported": {"file": file, "line": line, "sha256": digest_of(json.loads(json.dumps(value, default=str)))},
        "from": [],
    }
    messages = [
        {**turn, "weight": 0} if i in found.not_learnt else dict(turn) for i, turn in enumerate(found.messages)
    ]
    return signed({"messages": messages, PROVENANCE: provenance})


def _thinking(answer: str) -> Thinking | None:
    """What the tags of an answer say; None: without them a thought is not told from an answer."""
    before, closing, _ = answer.partition(THINK_CLOSE)
    if not closing:
        return None
    return "written" if before.replace(THINK_OPEN, "").strip() else "left_out"


def _of(provenance: Mapping[str, Any], part: str) -> Mapping[str, Any]:
    found = provenance.get(part)
    return found if isinstance(found, Mapping) else {}
