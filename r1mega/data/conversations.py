"""Conversations for SFT: rows of JSONL and parquet files, or of a dataset by its name, each checked as it is read.

A row has `messages`, a list of {"role", "content"}, or `prompt` and `response`; other fields are passed over. pyarrow
and datasets take seconds to import and are, where they are met, by the reader that needs them.
"""

import contextlib
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from r1mega.errors import DataError

ROLES = ("system", "user", "assistant")
Message = Mapping[str, str]


@dataclass(frozen=True)
class Conversation:
    """Messages in order, of which the assistant's are to be learnt."""

    messages: tuple[Message, ...]
    """Each {"role": ..., "content": ...}."""
    where: str
    """File and line, or name and row, for messages about it."""

    @property
    def questions(self) -> list[str]:
        """What the users asked, by which held-out questions are told apart."""
        return [m["content"] for m in self.messages if m["role"] == "user"]


def read(files: Sequence[Path], dataset: str, split: str) -> Iterator[Conversation]:
    """Every conversation of the files in their order, or of a dataset.

    Args:
        files: *.jsonl and *.parquet.
        dataset: what `datasets.load_dataset` knows: a name on the hub or in its cache, a folder; or "".
        split: of the dataset.

    Raises:
        DataError: a file that is missing, unreadable or of another kind, a dataset that cannot be had, or a
            malformed row, by file and line.
    """
    for file in files:
        yield from _READERS[file.suffix](file) if file.suffix in _READERS else _other(file)
    if dataset:
        yield from _read_dataset(dataset, split)


def count(files: Sequence[Path], dataset: str, split: str) -> int:
    """How many conversations `read` will give, malformed ones among them. Raises as `read` does of what it opens."""
    return sum(_COUNTERS[file.suffix](file) if file.suffix in _COUNTERS else _other(file) for file in files) + (
        len(_dataset(dataset, split)) if dataset else 0
    )


def conversation(row: Any, where: str) -> Conversation:
    """One row, checked. Raises DataError that names `where` and the fault."""
    if not isinstance(row, Mapping):
        raise DataError(f"{where}: a row is an object, not {type(row).__name__}")
    messages = row.get("messages")
    if messages is None and {"prompt", "response"} <= row.keys():
        messages = [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row["response"]}]
    if not isinstance(messages, list | tuple) or not messages:
        found = ", ".join(map(repr, row)) or "none"
        raise DataError(f"{where}: needs `messages`, a list, or `prompt` and `response`; its fields are {found}")
    for i, message in enumerate(messages):
        if not isinstance(message, Mapping):
            raise DataError(f"{where}: message {i} is an object, not {type(message).__name__}")
        if message.get("role") not in ROLES:
            raise DataError(f"{where}: message {i}: role {message.get('role')!r}; known: {', '.join(ROLES)}")
        if not isinstance(message.get("content"), str) or not message["content"].strip():
            raise DataError(f"{where}: message {i}: content must be text and not empty")
        if broken := re.search(r"[\ud800-\udfff]", message["content"]):
            raise DataError(
                f"{where}: message {i}: half a character, {broken[0]!r}, at {broken.start()}: text cut inside a "
                "surrogate pair, which no tokenizer takes; drop it"
            )
        # Formats leave out what is not there as null or as an empty list.
        if more := sorted(k for k, v in message.items() if k not in ("role", "content") and v):
            raise DataError(f"{where}: message {i}: unknown field {more[0]!r}: only role and content are learnt from")
    if messages[-1]["role"] != "assistant":
        raise DataError(f"{where}: ends with the {messages[-1]['role']}'s turn, of which nothing is learnt")
    return Conversation(tuple({"role": m["role"], "content": m["content"]} for m in messages), where)


def _read_jsonl(file: Path) -> Iterator[Conversation]:
    try:
        with file.open(encoding="utf-8", newline="\n") as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    where = f"{file}, line {number}"
                    yield conversation(_parsed(line, where), where)
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read conversations from {file}: {error}") from error


def _count_jsonl(file: Path) -> int:
    try:
        with file.open("rb") as lines:
            return sum(1 for line in lines if line.strip())
    except OSError as error:
        raise DataError(f"cannot read conversations from {file}: {error}") from error


def _parsed(line: str, where: str) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: not JSON: {error}") from error


def _read_parquet(file: Path) -> Iterator[Conversation]:
    with _parquet(file) as table:
        names = table.schema_arrow.names
        known = [n for n in names if n in ("messages", "prompt", "response")] or names
        number = 0
        for batch in table.iter_batches(batch_size=1024, columns=known):
            for row in batch.to_pylist():
                number += 1
                yield conversation({k: v for k, v in row.items() if v is not None}, f"{file}, row {number}")


def _count_parquet(file: Path) -> int:
    with _parquet(file) as table:
        return table.metadata.num_rows


@contextlib.contextmanager
def _parquet(file: Path) -> Iterator[Any]:
    from pyarrow import parquet

    if not file.is_file():
        raise DataError(f"cannot read conversations from {file}: no such file")
    try:
        with parquet.ParquetFile(file) as table:
            yield table
    except (OSError, ValueError) as error:  # pyarrow's own errors are ValueErrors
        raise DataError(f"cannot read conversations from {file}: {error}") from error


def _read_dataset(name: str, split: str) -> Iterator[Conversation]:
    for number, row in enumerate(_dataset(name, split), 1):
        yield conversation({k: v for k, v in row.items() if v is not None}, f"{name} ({split}), row {number}")


def _dataset(name: str, split: str) -> Any:
    import datasets

    try:
        return datasets.load_dataset(name, split=split)
    except Exception as error:  # the library raises almost anything: no network, no such name, no such split
        raise DataError(
            f"dataset {name!r}, split {split!r}: {type(error).__name__}: {error}. Nodes without a network read what "
            "was loaded once into the cache that HF_HOME names, a folder of files, or data.files"
        ) from error


def _other(file: Path) -> NoReturn:
    raise DataError(f"{file}: conversations are read from {' and '.join(f'*{s}' for s in _READERS)} files")


_READERS: dict[str, Callable[[Path], Iterator[Conversation]]] = {".jsonl": _read_jsonl, ".parquet": _read_parquet}
_COUNTERS: dict[str, Callable[[Path], int]] = {".jsonl": _count_jsonl, ".parquet": _count_parquet}
