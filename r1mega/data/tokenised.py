"""Rows tokenised once into folders of a run directory: what is trained on, and what is validated on.

A run that resumes finds them as they were left, unless a file, the template, the tokenizer or a setting has changed.
What the rows are and what their tokens are is a `Tokenising`'s to say.
"""

import contextlib
import hashlib
import json
import logging
import shutil
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar

from r1mega.data import token_store
from r1mega.data.constraint_language import prompts_in
from r1mega.data.row_source import CheckedRows
from r1mega.data.settings import Conversations, ValidationData
from r1mega.data.sources.reasoning_gym import questions_in
from r1mega.data.split import HELD_OUT
from r1mega.data.token_store import Stored, TokenStore
from r1mega.errors import DataError
from r1mega.runtime import files
from r1mega.runtime.progress import Bar

log = logging.getLogger(__name__)

AT_ONCE = 512
"""Rows tokenised together: the tokenizer may spread them over the machine's cores."""


class AskedRow(Protocol):
    """A row in which somebody asks something."""

    @property
    def where(self) -> str:
        """File and line, or name and row, for messages about it."""
        ...

    @property
    def questions(self) -> list[str]:
        """What the users asked, by which held-out questions are told apart."""
        ...

    @property
    def beginning(self) -> str:
        """What it begins with, by which one is told apart in which no user asks."""
        ...


Row = TypeVar("Row", bound=AskedRow)


class Tokenising(Protocol[Row]):
    """How rows of one kind become tokens."""

    what: str
    """A row is, for messages: "conversation"."""

    def source(self, of: Conversations) -> CheckedRows[Row]: ...

    def key(self) -> list[Any]:
        """Everything besides the rows that the tokens depend on; JSON."""
        ...

    def documents(self, rows: Iterator[Row], counts: dict[str, int]) -> Iterable[Stored]:
        """The documents of the rows that are kept; every row is counted in `counts`, by what became of it."""
        ...

    def refuse_nothing_left(self, what: str, counts: Mapping[str, int], *, validates: bool) -> None:
        """Raises DataError where nothing is left to learn from or to validate on.

        Args:
            what: "train" or "validation".
            counts: of `documents`.
            validates: whether some rows are validated on.
        """
        ...


@dataclass(frozen=True)
class Sides:
    """Which rows are learnt from and which are validated on."""

    data: Conversations
    validation: ValidationData | None
    seed: int
    """Of the share that is held out."""
    absent: Sequence[str] = ()
    """A line for each file and folder that is not there."""

    @property
    def own(self) -> bool:
        """Whether validation has rows of its own."""
        return self.validation is not None and bool(self.validation.files or self.validation.dataset)

    @property
    def share(self) -> float:
        """Share of the training rows that is validated on instead."""
        return self.validation.share if self.validation else 0.0


def prepare(
    sides: Sides, tokenising: Tokenising[Row], folder: Path, trained_on: Path, *, resumed: bool = False
) -> None:
    """Tokenise into `folder`/train and `folder`/validation, where they do not stand yet.

    Args:
        trained_on: where the questions of the training rows are listed, for a pipeline's check that none of them was
            held out.
        resumed: a checkpoint of the run is there, which refuses other tokens than its own.

    Raises:
        DataError: as the source and `Tokenising.documents`; files are gone that are needed; or nothing is left to
            train or validate on.
    """
    validation, own, share, seed = sides.validation, sides.own, sides.share, sides.seed
    source = tokenising.source(sides.data)
    held_back = tokenising.source(validation) if validation is not None and own else source
    missing = "; ".join(sides.absent) or _fault_of(source, held_back)
    if missing:
        stores = ["train", "validation"] if validation else ["train"]
        if not (resumed and trained_on.is_file() and all(token_store.load(folder / name) for name in stores)):
            raise DataError(f"{missing}; {folder} has not all of their tokens, or no checkpoint knows them")
        log.warning("%s: goes on with the tokens that are there; what they were made of is gone: %s", folder, missing)
        return
    for stale in folder.glob(".*.tmp"):  # of a run that was killed while it wrote
        shutil.rmtree(stale, ignore_errors=True)

    def rows(what: str, source: CheckedRows[Row], keep: Callable[[Row], bool]) -> Generator[Row]:
        with Bar(f"tokenising {what}", len(source), unit=tokenising.what) as bar:
            for row in source:
                if keep(row):
                    yield row
                bar.advance()

    asked: set[str] = set()
    counts = {"held_out": 0}

    def train() -> Generator[Row]:
        for row in rows("train", source, lambda row: not held_out(row, share, seed)):
            if asks_held_out(row):
                counts["held_out"] += 1
            else:
                asked.update(row.questions)
                yield row

    key = _key(tokenising, source, f"train/{share}/{seed}")
    if not trained_on.is_file() or token_store.load(folder / "train", key) is None:
        _write(sides, tokenising, folder / "train", key, train(), counts)
        if counts["held_out"]:
            log.warning(
                "train: %d %ss ask questions of the held-out side, which no stage trains on: left out",
                counts["held_out"], tokenising.what,
            )  # fmt: skip
        files.write_jsonl(trained_on, ({"question": q} for q in sorted(asked)))
    if validation is not None:
        key = _key(tokenising, held_back, f"validation/{own}/{share}/{seed}/{key}")
        if token_store.load(folder / "validation", key) is None:
            kept = rows("validation", held_back, lambda row: own or held_out(row, share, seed))
            counts = {"trained_on": 0} if own else {}
            kept = without_trained_on(kept, _listed(trained_on), tokenising.what, counts) if own else kept
            _write(sides, tokenising, folder / "validation", key, kept, counts)


def _fault_of(*sources: CheckedRows[Any]) -> str | None:
    """Why one of them cannot be had."""
    try:
        for source in sources:
            source.mark()
    except DataError as error:
        return str(error)
    return None


def without_trained_on(
    validation: Iterable[Row], trained: Collection[str], what: str, counts: dict[str, int]
) -> Generator[Row]:
    """Those of which at least one question is not trained on; the others are counted, and how many is said.

    Args:
        trained: the questions that are trained on.
        what: a row is, for messages.
        counts: of those left out, "trained_on".

    Raises:
        DataError: no row is left.
    """
    known, first, kept = frozenset(trained), "", False
    for row in validation:
        if known.issuperset(row.questions or [first_question(row)]):
            counts["trained_on"] += 1
            first = first or row.where
        else:
            kept = True
            yield row
    if first and not kept:
        raise DataError(
            f"all {counts['trained_on']} {what}s to validate on ask questions that are trained on, the first at "
            f"{first}: name rows that ask others, or set validation.share, which holds out some of the training rows"
        )
    if first:
        log.warning(
            "validation: %d %ss are left out, whose questions are trained on, the first at %s",
            counts["trained_on"], what, first,
        )  # fmt: skip


def _listed(trained_on: Path) -> list[str]:
    return [json.loads(line)["question"] for line in trained_on.read_text(encoding="utf-8").splitlines()]


def opened(folder: Path, what: Literal["train", "validation"]) -> TokenStore:
    """A store that `prepare` has left. Raises DataError where there is none."""
    store = token_store.load(folder / what)
    if store is None:
        raise DataError(f"{folder / what}: no tokenised data; its node may not share the run directory's file system")
    return store


def held_out(row: AskedRow, share: float, seed: int) -> bool:
    """Whether a row belongs to the share that is validated on: decided by its first question alone."""
    digest = hashlib.sha256(f"{seed}/{first_question(row)}".encode()).digest()
    return int.from_bytes(digest[:8], "big") < share * 2**64


def asks_held_out(row: AskedRow) -> bool:
    """Whether a user asks a task's question of the held-out side, alone or among other words.

    Conversations about anything else have no held-out side: no evaluation asks what they ask.
    """
    asked = (question for text in row.questions for question in (*questions_in(text), *prompts_in(text)))
    return any(question in HELD_OUT for question in asked)


def first_question(row: AskedRow) -> str:
    """What a row is told apart by; its beginning where no user asks."""
    return next(iter(row.questions), row.beginning)


def _write(
    sides: Sides,
    tokenising: Tokenising[Row],
    folder: Path,
    key: str,
    rows: Generator[Row],
    counts: dict[str, int],
) -> None:
    """counts: what `rows` counts is stored along."""
    with contextlib.closing(rows):  # and with them their bar, before the message of an error
        token_store.write(folder, key, tokenising.documents(rows, counts), counts)
    tokenising.refuse_nothing_left(folder.name, counts, validates=sides.validation is not None)
    log.info("%s: %s", folder.name, ", ".join(f"{n:,} {what}" for what, n in counts.items()))


def _key(tokenising: Tokenising[Any], source: CheckedRows[Any], what: str) -> str:
    """Names everything that the tokens depend on."""
    text = json.dumps([what, source.mark(), *tokenising.key()], default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def tokenizer_key(tokenizer: Any) -> list[Any]:
    """What of a tokenizer decides which tokens a text has; JSON."""
    return [tokenizer.backend_tokenizer.to_str() if tokenizer.is_fast else "", dict(tokenizer.special_tokens_map)]
