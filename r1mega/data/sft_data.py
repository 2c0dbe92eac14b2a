"""Conversations tokenised once into folders of a run directory, and what became of those that are too long.

A run that resumes finds them as they were left, unless a file, the template, the tokenizer or a setting has changed.
"""

import contextlib
import hashlib
import json
import logging
import shutil
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from r1mega.data import token_store
from r1mega.data.chat import Chat, Tokens
from r1mega.data.conversations import Conversation, Source
from r1mega.data.settings import Conversations, SFTData, ValidationData
from r1mega.data.sources.reasoning_gym import questions_in
from r1mega.data.split import HELD_OUT
from r1mega.data.token_store import Spans, TokenStore
from r1mega.errors import DataError
from r1mega.runtime import files
from r1mega.runtime.progress import Bar

log = logging.getLogger(__name__)

AT_ONCE = 512
"""Conversations tokenised together: the tokenizer spreads them over the machine's cores."""


@dataclass(frozen=True)
class Wanted:
    """Which conversations are learnt from and which are validated on."""

    data: SFTData
    validation: ValidationData | None
    seed: int
    """Of the share that is held out."""
    absent: Sequence[str] = ()
    """A line for each file and folder that is not there."""

    @property
    def own(self) -> bool:
        """Whether validation has conversations of its own."""
        return self.validation is not None and bool(self.validation.files or self.validation.dataset)

    @property
    def share(self) -> float:
        """Share of the training conversations that is validated on instead."""
        return self.validation.share if self.validation else 0.0


def prepare(wanted: Wanted, chat: Chat, folder: Path, trained_on: Path, *, resumed: bool = False) -> None:
    """Tokenise into `folder`/train and `folder`/validation, where they do not stand yet.

    Args:
        trained_on: where the questions of the training conversations are listed, for a pipeline's check that none of
            them was held out.
        resumed: a checkpoint of the run is there, which refuses other tokens than its own.

    Raises:
        DataError: as `Source`, `Chat.encode` and `fit`; files are gone that are needed; or nothing is
            left to train or validate on.
    """
    validation, own, share, seed = wanted.validation, wanted.own, wanted.share, wanted.seed
    source = _source(wanted.data)
    held_back = _source(validation) if validation is not None and own else source
    missing = "; ".join(wanted.absent) or _fault_of(source, held_back)
    if missing:
        stores = ["train", "validation"] if validation else ["train"]
        if not (resumed and trained_on.is_file() and all(token_store.load(folder / name) for name in stores)):
            raise DataError(f"{missing}; {folder} has not all of their tokens, or no checkpoint knows them")
        log.warning("%s: goes on with the tokens that are there; what they were made of is gone: %s", folder, missing)
        return
    for stale in folder.glob(".*.tmp"):  # of a run that was killed while it wrote
        shutil.rmtree(stale, ignore_errors=True)

    def rows(what: str, source: Source, keep: Callable[[Conversation], bool]) -> Generator[Conversation]:
        with Bar(f"tokenising {what}", len(source), unit="conversation") as bar:
            for c in source:
                if keep(c):
                    yield c
                bar.advance()

    asked: set[str] = set()
    counts = {"held_out": 0}

    def train() -> Generator[Conversation]:
        for c in rows("train", source, lambda c: not held_out(c, share, seed)):
            if asks_held_out(c):
                counts["held_out"] += 1
            else:
                asked.update(c.questions)
                yield c

    key = _key(wanted.data, source, chat, f"train/{share}/{seed}")
    if not trained_on.is_file() or token_store.load(folder / "train", key) is None:
        _write(wanted, chat, folder / "train", key, train(), counts)
        if counts["held_out"]:
            log.warning(
                "train: %d conversations ask questions of the held-out side, which no stage trains on: left out",
                counts["held_out"],
            )
        files.write_jsonl(trained_on, ({"question": q} for q in sorted(asked)))
    if validation is not None:
        key = _key(wanted.data, held_back, chat, f"validation/{own}/{share}/{seed}/{key}")
        if token_store.load(folder / "validation", key) is None:
            kept = rows("validation", held_back, lambda c: own or held_out(c, share, seed))
            kept = _without_trained_on(kept, trained_on) if own else kept
            _write(wanted, chat, folder / "validation", key, kept, {})


def _source(of: Conversations) -> Source:
    return Source(of.files, of.dataset, of.split, of.dataset_config)


def _fault_of(*sources: Source) -> str | None:
    """Why one of them cannot be had."""
    try:
        for source in sources:
            source.mark()
    except DataError as error:
        return str(error)
    return None


def _without_trained_on(validation: Iterator[Conversation], trained_on: Path) -> Generator[Conversation]:
    """Those of which at least one question is not trained on; how many were left out is said."""
    trained = {json.loads(line)["question"] for line in trained_on.read_text(encoding="utf-8").splitlines()}
    left_out: list[str] = []
    for c in validation:
        if trained.issuperset(c.questions or [first_question(c)]):
            left_out.append(c.where)
        else:
            yield c
    if left_out:
        log.warning(
            "validation: %d conversations are left out, whose questions are trained on, the first at %s",
            len(left_out), left_out[0],
        )  # fmt: skip


def opened(folder: Path, what: Literal["train", "validation"]) -> TokenStore:
    """A store that `prepare` has left. Raises DataError where there is none."""
    store = token_store.load(folder / what)
    if store is None:
        raise DataError(f"{folder / what}: no tokenised data; its node may not share the run directory's file system")
    return store


def held_out(conversation: Conversation, share: float, seed: int) -> bool:
    """Whether a conversation belongs to the share that is validated on: decided by its first question alone."""
    digest = hashlib.sha256(f"{seed}/{first_question(conversation)}".encode()).digest()
    return int.from_bytes(digest[:8], "big") < share * 2**64


def asks_held_out(conversation: Conversation) -> bool:
    """Whether a user asks a task's question of the held-out side, alone or among other words.

    Conversations about anything else have no held-out side: no evaluation asks what they ask.
    """
    return any(question in HELD_OUT for text in conversation.questions for question in questions_in(text))


def first_question(conversation: Conversation) -> str:
    """What a conversation is told apart by; its first message where no user asks."""
    return next(iter(conversation.questions), conversation.messages[0]["content"])


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


def _write(
    wanted: Wanted, chat: Chat, folder: Path, key: str, rows: Generator[Conversation], counts: dict[str, int]
) -> None:
    """counts: what `rows` counts is stored along."""
    counts |= {"conversations": 0, "targets": 0, "truncated": 0, "dropped": 0}
    with contextlib.closing(rows):  # and with them their bar, before the message of an error
        token_store.write(folder, key, _documents(wanted.data, chat, rows, counts), counts)
    refuse_nothing_left(folder.name, counts, wanted.data, validates=wanted.validation is not None)
    log.info("%s: %s", folder.name, ", ".join(f"{n:,} {what}" for what, n in counts.items()))


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


def _documents(
    data: SFTData, chat: Chat, rows: Iterator[Conversation], counts: dict[str, int]
) -> Iterable[tuple[tuple[int, ...], Spans]]:
    while some := list(islice(rows, AT_ONCE)):
        for row, tokens in zip(some, chat.encode(some), strict=True):
            counts["conversations"] += 1
            if (kept := fit(tokens, data, row.where, counts)) is not None:
                counts["targets"] += sum(stop - start for start, stop in kept.spans)
                yield kept.ids, kept.spans


def _key(data: SFTData, source: Source, chat: Chat, what: str) -> str:
    """Names everything that the tokens depend on."""
    tokenizer: Any = chat.tokenizer.backend_tokenizer.to_str() if chat.tokenizer.is_fast else ""
    parts = [what, source.mark(), data.max_tokens, data.too_long, chat.template, chat.ends]
    text = json.dumps([*parts, tokenizer, dict(chat.tokenizer.special_tokens_map)], default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
