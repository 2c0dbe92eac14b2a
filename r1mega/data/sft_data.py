"""Conversations tokenised once into folders of a run directory, and what became of those that are too long."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from r1mega.data import tokenised
from r1mega.data.chat import Chat, Tokens
from r1mega.data.conversations import Conversation, Source
from r1mega.data.settings import Conversations, SFTData
from r1mega.data.token_store import Stored
from r1mega.data.tokenised import AT_ONCE, Sides, tokenizer_key
from r1mega.errors import DataError


@dataclass(frozen=True)
class Wanted(Sides):
    """Which conversations are learnt from and which are validated on."""

    data: SFTData


def prepare(wanted: Wanted, chat: Chat, folder: Path, trained_on: Path, *, resumed: bool = False) -> None:
    """Tokenise conversations as `tokenised.prepare` does.

    Raises:
        DataError: as there, and as `Chat.encode` and `fit`.
    """
    tokenised.prepare(wanted, _Conversations(wanted.data, chat), folder, trained_on, resumed=resumed)


class _Conversations:
    """How they become tokens."""

    what = "conversation"

    def __init__(self, data: SFTData, chat: Chat) -> None:
        self._data, self._chat = data, chat

    def source(self, of: Conversations) -> Source:
        return Source(of.files, of.dataset, of.split, of.dataset_config)

    def key(self) -> list[Any]:
        data, chat = self._data, self._chat
        return [data.max_tokens, data.too_long, chat.template, chat.ends, *tokenizer_key(chat.tokenizer)]

    def documents(self, rows: Iterator[Conversation], counts: dict[str, int]) -> Iterable[Stored]:
        """Counts "conversations", "targets", "truncated" and "dropped"."""
        counts |= {"conversations": 0, "targets": 0, "truncated": 0, "dropped": 0}
        while some := list(islice(rows, AT_ONCE)):
            for row, tokens in zip(some, self._chat.encode(some), strict=True):
                counts["conversations"] += 1
                if (kept := fit(tokens, self._data, row.where, counts)) is not None:
                    counts["targets"] += sum(stop - start for start, stop in kept.spans)
                    yield Stored(kept.ids, kept.spans, row=(row.digest, row.where))

    def refuse_nothing_left(self, what: str, counts: Mapping[str, int], *, validates: bool) -> None:
        refuse_nothing_left(what, counts, self._data, validates=validates)


def fit(tokens: Tokens, data: SFTData, where: str, counts: dict[str, int]) -> Tokens | None:
    """A conversation that is no longer than `data.max_tokens`, by `data.too_long`; None where it is left out.

    Args:
        counts: "truncated" and "dropped" are counted here. One whose targets are all cut off is dropped.

    Raises:
        DataError: it is too long, and that is an error.
    """
    limit, way = data.max_tokens, data.too_long
    if len(tokens.ids) <= limit:
        return tokens
    if way == "error":
        raise DataError(
            f"{where}: {len(tokens.ids)} tokens are more than data.max_tokens = {limit}: raise it, or set "
            'data.too_long to "truncate" or "drop"'
        )
    spans = tuple((start, min(stop, limit)) for start, stop in tokens.spans if start < limit)
    if way == "drop" or not spans:
        counts["dropped"] += 1
        return None
    counts["truncated"] += 1
    return Tokens(tokens.ids[:limit], spans)


def refuse_nothing_left(what: str, counts: Mapping[str, int], data: SFTData, *, validates: bool) -> None:
    """Raises DataError where no conversation is left to learn from or to validate on.

    Args:
        what: "train" or "validation".
        counts: "conversations" that were read, and those of them "dropped".
        validates: whether some conversations are validated on.
    """
    if (read := counts["conversations"]) != counts["dropped"]:
        return
    if not read and (asked := counts.get("held_out", 0)):
        raise DataError(
            f"{what}: all {asked} conversations ask questions of the held-out side, which no stage trains on: name "
            "files that have others"
        )
    raise DataError(
        f"{what}: no conversation to learn from or to validate on; of the {read} that were read none has "
        f"a turn of the assistant within data.max_tokens = {data.max_tokens}"
        if read
        else f"{what}: no conversations in data.files or data.dataset"
        f"{', or none on its side of validation.share' if validates else ''}: name some that have them"
    )
