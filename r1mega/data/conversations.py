"""Conversations for SFT: rows of JSONL and parquet files, or of a dataset by its name, each checked as it is read.

A row has `messages`, a list of {"role", "content"}, or `prompt` and `response`; other fields are passed over, and not
read where the format allows. pyarrow and datasets take seconds to import and are, where they are met, by the reader
that needs them.
"""

import contextlib
import functools
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from r1mega.errors import DataError

FIELDS = ("messages", "prompt", "response")
ROLES = ("system", "user", "assistant")
JSONL, PARQUET = ".jsonl", ".parquet"
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


class Source:
    """Files and a dataset to read conversations from; iterate over it as often as needed.

    Raises (from every method):
        DataError: a file that is missing, unreadable or of another kind, a dataset that cannot be had, or a malformed
            row, by file and line.
    """

    def __init__(self, files: Sequence[Path], dataset: str, split: str) -> None:
        """Nothing is opened yet.

        Args:
            files: *.jsonl and *.parquet.
            dataset: what `datasets.load_dataset` knows: a name on the hub or in its cache, a folder; or "".
            split: of the dataset.
        """
        self._files, self._name, self._split = tuple(files), dataset, split

    def __iter__(self) -> Iterator[Conversation]:
        """Every conversation of the files in their order, then of the dataset."""
        for file in self._files:
            _known(file)
            yield from _read_jsonl(file) if file.suffix == JSONL else _read_parquet(file)
        if self._name:
            where = f"{self._name} ({self._split})"
            rows = self._dataset.select_columns(_columns(self._dataset.column_names, where))
            for number, row in enumerate(_fetched(rows, where), 1):
                yield _of_columns(row, f"{where}, row {number}")

    def __len__(self) -> int:
        """How many there are; from what the files say of themselves, or by reading their lines once."""
        return self._length

    @functools.cached_property
    def _length(self) -> int:
        counts = [_count_jsonl(file) if _known(file) == JSONL else _count_parquet(file) for file in self._files]
        return sum(counts) + (len(self._dataset) if self._name else 0)

    def mark(self) -> list[Any]:
        """What changes when the conversations do: sizes and times of the files, the dataset's fingerprint; JSON."""
        stats: list[Any] = []
        for file in self._files:
            _known(file)
            try:
                stat = file.stat()
            except OSError as error:
                raise DataError(f"cannot read conversations from {file}: {error.strerror}") from error
            stats.append((str(file), stat.st_size, stat.st_mtime_ns))
        return [stats, self._name, self._split, self._dataset._fingerprint if self._name else ""]

    @functools.cached_property
    def _dataset(self) -> Any:
        import datasets
        from datasets.exceptions import DatasetNotFoundError

        try:
            return datasets.load_dataset(self._name, split=self._split)
        except Exception as error:  # the library raises almost anything: no network, no such name, no such split
            told = f"dataset {self._name!r}, split {self._split!r}: {type(error).__name__}: {error}".rstrip(".")
            cause = f": {error.__cause__}".rstrip(".") if error.__cause__ is not None else ""
            absent = isinstance(error, ConnectionError | DatasetNotFoundError)
            remedy = (
                ". Nodes without a network read what was loaded once into the cache that HF_HOME names, a folder of "
                "files, or data.files"
            )
            raise DataError(told + cause + (remedy if absent else "")) from error


def conversation(row: Any, where: str) -> Conversation:
    """One row, checked. Raises DataError that names `where` and the fault."""
    if not isinstance(row, Mapping):
        raise DataError(f"{where}: a row is an object, not {type(row).__name__}")
    messages = row.get("messages")
    if messages is None and {"prompt", "response"} <= row.keys():
        messages = [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row["response"]}]
    if not isinstance(messages, list | tuple) or not messages:
        found = ", ".join(map(repr, row)) or "none"
        if messages is not None:
            said = {dict: "an object of lists, not a list of objects", list: "empty"}
            found += f" and `messages` is {said.get(type(messages), type(messages).__name__)}"
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


def _known(file: Path) -> str:
    if file.suffix not in (JSONL, PARQUET):
        raise DataError(f"{file}: conversations are read from *{JSONL} and *{PARQUET} files")
    return file.suffix


def _read_jsonl(file: Path) -> Iterator[Conversation]:
    try:
        with file.open(encoding="utf-8-sig", newline="\n") as lines:
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
        columns = _columns(table.schema_arrow.names, str(file))
        batches = table.iter_batches(batch_size=256, columns=columns)
        rows = (row for batch in batches for row in batch.to_pylist())
        for number, row in enumerate(_fetched(rows, str(file)), 1):
            yield _of_columns(row, f"{file}, row {number}")


def _count_parquet(file: Path) -> int:
    with _parquet(file) as table:
        return table.metadata.num_rows


@contextlib.contextmanager
def _parquet(file: Path) -> Iterator[Any]:
    from pyarrow import parquet

    if not file.is_file():
        raise DataError(f"cannot read conversations from {file}: no such file")
    try:
        table = parquet.ParquetFile(file)
    except (OSError, ValueError) as error:  # pyarrow's errors of a file that is none are ValueErrors
        raise DataError(f"cannot read conversations from {file}: {error}") from error
    with table:
        yield table


def _columns(names: Sequence[str], where: str) -> list[str]:
    """Those to be read: another one, an image say, may take long or what is not installed."""
    found = [name for name in FIELDS if name in names]
    if "messages" not in found and len(found) < 2:
        raise DataError(
            f"{where}: needs a column `messages`, or `prompt` and `response`; its columns are "
            f"{', '.join(map(repr, names)) or 'none'}"
        )
    return found


def _fetched(rows: Iterable[Any], where: str) -> Iterator[Any]:
    """The rows of a library that may raise anything where a value cannot be decoded."""
    iterator = iter(rows)
    while True:
        try:
            row = next(iterator)
        except StopIteration:
            return
        except Exception as error:
            raise DataError(f"cannot read conversations from {where}: {type(error).__name__}: {error}") from error
        yield row


def _of_columns(row: Mapping[str, Any], where: str) -> Conversation:
    """Of a table's row, in which what is not there is null."""
    return conversation({k: v for k, v in row.items() if v is not None}, where)
