"""Questions of one's own, a JSON object a line: `task`, `question` and `truth` (text), optional `id` and `entry`."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from r1mega.config.section import AnchoredPath
from r1mega.data.lines import half_a_character, value_of
from r1mega.data.question import question_id
from r1mega.data.sources.source import Located, QuestionSource
from r1mega.errors import DataError, listed


class JSONL(QuestionSource):
    """A file of questions."""

    kind: Literal["jsonl"] = "jsonl"
    path: AnchoredPath
    """Rows with the fields task (whose verifier judges the answers), question and truth, all of them text; id, text
    that no other row has, and entry, an object that the verifier is given, where they are wanted."""

    def faults(self) -> list[str]:
        return [f"questions: {self.path} is a folder; name a JSONL file"] if self.path.is_dir() else []

    def read(self, seed: int) -> list[Located]:
        """The rows; blank lines are passed over.

        Raises DataError on a missing or unreadable file and an empty one, and where rows are malformed, or have an id
        that occurs twice: lists all of them by line and field.
        """
        try:
            lines = self.path.read_bytes().removeprefix(b"\xef\xbb\xbf").split(b"\n")
        except OSError as error:
            raise DataError(f"cannot read questions from {self.path}: {error.strerror}") from error
        found: list[Located] = []
        faults: list[str] = []
        first_line: dict[str, int] = {}
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                row = _row(line)
            except ValueError as error:
                faults.append(f"line {number}: {error}")
                continue
            entry, id = row.get("entry", {}), row.get("id", "")
            question = self.question(row["task"], row["question"], row["truth"], entry, id=id)
            by_text = question.id == question_id(question.verifier, question.text)
            if question.id in first_line and not by_text:
                faults.append(f"line {number}: id {question.id!r} already stands in line {first_line[question.id]}")
            first_line.setdefault(question.id, number)
            found.append((f"line {number}", question))
        _refuse(self.path, faults)
        if not found:
            raise DataError(f"{self.path} holds no questions")
        return found


def _refuse(path: Path, faults: list[str]) -> None:
    if len(faults) == 1:
        raise DataError(f"{path}, {faults[0]}")
    if faults:
        raise DataError(listed(f"{path}: {len(faults)} rows are wrong", faults))


def _row(line: bytes) -> Mapping[str, Any]:
    """One row, checked. Raises ValueError with the fault."""
    try:
        row = value_of(line)
    except UnicodeDecodeError as error:
        raise ValueError(f"byte {error.start + 1} is not UTF-8") from None
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"not JSON: {error}") from None
    if not isinstance(row, dict):
        raise ValueError(f"a row is a JSON object, not {type(row).__name__}")
    if unknown := sorted(set(row) - {"id", "task", "question", "truth", "entry"}):
        raise ValueError(f"unknown field {unknown[0]!r}; a row has task, question, truth, and may have id and entry")
    for name in ("task", "question", "truth"):
        if not isinstance(row.get(name), str) or not row[name].strip():
            raise ValueError(f"field {name!r} must be text and not empty")
        if fault := half_a_character(row[name]):
            raise ValueError(f"field {name!r}: {fault}")
    if not isinstance(row.get("id", "-"), str) or not row.get("id", "-"):
        raise ValueError("field 'id' must be text and not empty")
    if fault := half_a_character(row.get("id", "")):
        raise ValueError(f"field 'id': {fault}")
    if not isinstance(row.get("entry", {}), dict):
        raise ValueError("field 'entry' must be an object")
    return row
