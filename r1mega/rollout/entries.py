"""A journal as whoever did not write it reads it: entry by entry, as a stream, without its lock or an engine.

Of a line the head alone is parsed, and its answers' texts are cut out of its bytes: the numbers between them, token
ids and log-probabilities, are many times as long.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from r1mega.rollout.segment import Key

HEAD = b', "answers": ['
"""Ends what a line says of its request. Within a JSON string its quotation marks would have backslashes."""
TEXT = b'"text": '
STRING = re.compile(rb'"(?:[^"\\]|\\.)*+"')


class JournalEntry(NamedTuple):
    """One answered request."""

    key: Key
    prompt_id: str
    file: Path
    line: int
    """From 1."""
    answers: bytes
    """The answers' part of the line, as it stands there."""

    def texts(self) -> list[str] | None:
        """[n] texts of the answers; None where they cannot be read."""
        found, at = list[str](), -1
        while (at := self.answers.find(TEXT, at + 1)) >= 0:
            if (said := STRING.match(self.answers, at + len(TEXT))) is None:
                return None
            try:
                found.append(json.loads(said[0]))
            except ValueError:
                return None
        return found if len(found) == self.key.n else None


def entries(journal: Path, version: int, damaged: list[str]) -> Iterator[JournalEntry]:
    """All entries of a journal's folder for one weight version, in the order they were written in; none where it has
    none. A torn last line is no entry, as for `Journal`.

    Args:
        damaged: "FILE, line N" of a line before the last one that is no entry is put in it.
    """
    file = journal / f"version_{version}.jsonl"
    if not file.is_file():
        return
    torn = ""
    with file.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            damaged += [torn] if torn else []
            torn = ""
            head, _, answers = line.partition(HEAD)
            try:
                about = json.loads(head + b"}")
                entry = JournalEntry(Key.from_json(about), str(about.get("prompt_id", "")), file, number, answers)
            except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
                torn = f"{file}, line {number}"
                continue
            if answers.endswith(b"]}\n"):
                yield entry
            else:
                torn = f"{file}, line {number}"
