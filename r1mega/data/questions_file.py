"""Training questions of one's own, from a JSONL file: read, told apart by what they ask, held-out ones left out.

Imports no torch and no tokenizer, so that `r1mega check` reads a file as `r1mega run` does.
"""

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from r1mega.data.lines import half_a_character, value_of
from r1mega.data.question import Question, question_id
from r1mega.data.split import HELD_OUT, what_is_asked
from r1mega.data.tasks import TASKS
from r1mega.errors import DataError

log = logging.getLogger(__name__)

MAX_LISTED = 100
"""Lines of a message that lists faults; how many more there are is said."""


@dataclass(frozen=True)
class TrainingQuestions:
    """What of a file may be trained on, in the file's order."""

    questions: list[Question]
    lines: Mapping[str, int]
    """Id of a question -> its line in the file, from 1."""
    counts: Mapping[str, int]
    """{"read", "duplicates", "held_out"}: questions in the file, and those that were left out."""


def training_questions(path: Path, *, duplicates: Literal["error", "drop"], least: int = 1) -> TrainingQuestions:
    """The file's questions but those of the held-out side, which no stage trains on; what is left out is said.

    Args:
        duplicates: what happens to a question that an earlier line asks (`split.what_is_asked`): "error" lists all
            of them, "drop" keeps the first of each.
        least: how many must be left; a rollout's prompts.

    Raises:
        DataError: as `read_jsonl`; questions that are asked twice; fewer than `least` left.
    """
    read = read_jsonl(path)
    doubles = list(_doubles(read))
    if doubles and duplicates == "error":
        some = f"{path}: {len(doubles)} question(s) asked more than once"
        raise DataError(listed(f'{some}; take them out, or set duplicates = "drop"', _told(doubles)))
    again = {line for line, *_ in doubles}
    once = [(line, question) for line, question in read if line not in again]
    kept = [(line, question) for line, question in once if question.text not in HELD_OUT]
    if doubles:
        others = sum(truth != first for _, truth, _, first in doubles)
        contrary = f", {others} of them with another truth" if others else ""
        log.warning(listed(f"{path}: {len(doubles)} duplicates dropped{contrary}; the first stands", _told(doubles)))
    if held_out := len(once) - len(kept):
        log.warning("%s: %d questions are of the held-out side, which no stage trains on: left out", path, held_out)
    counts = {"read": len(read), "duplicates": len(doubles), "held_out": held_out}
    refuse_too_few(path, len(kept), counts, least)
    return TrainingQuestions([q for _, q in kept], {q.id: line for line, q in kept}, counts)


def refuse_too_few(path: Path | str, left: int, counts: Mapping[str, int], least: int) -> None:
    """Raises DataError where fewer than `least` questions are left; says what became of the others."""
    if left < least:
        gone = [f"{num} {what.replace('_', ' ')}" for what, num in counts.items() if what != "read" and num]
        but = f" of {counts['read']} ({', '.join(gone)})" if gone else ""
        raise DataError(
            f"{path}: {left} questions{but} to train on, fewer than a rollout's rollout.num_prompts = {least}: add "
            "questions, or lower it"
        )


def read_jsonl(path: Path) -> list[tuple[int, Question]]:
    """Line and question of every row: `task`, `question` and `truth` (text), optional `id` and `entry` (object).

    Blank lines are passed over. Raises DataError on a missing or unreadable file and an empty one, and where rows
    are malformed, of an unknown task, or have an id that occurs twice: lists all of them by line and field.
    """
    try:
        lines = path.read_bytes().removeprefix(b"\xef\xbb\xbf").split(b"\n")
    except OSError as error:
        raise DataError(f"cannot read questions from {path}: {error.strerror}") from error
    found: list[tuple[int, Question]] = []
    faults: list[str] = []
    first_line: dict[str, int] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            question = _question(line)
        except ValueError as error:
            faults.append(f"line {number}: {error}")
            continue
        by_text = question.id == question_id(question.verifier, question.text)
        if question.id in first_line and not by_text:
            faults.append(f"line {number}: id {question.id!r} already stands in line {first_line[question.id]}")
        first_line.setdefault(question.id, number)
        found.append((number, question))
    if len(faults) == 1:
        raise DataError(f"{path}, {faults[0]}")
    if faults:
        raise DataError(listed(f"{path}: {len(faults)} rows are wrong", faults))
    if not found:
        raise DataError(f"{path} holds no questions")
    return found


def listed(head: str, faults: Sequence[str]) -> str:
    """A message with a line for each fault, `MAX_LISTED` of them at most."""
    more = [f"and {len(faults) - MAX_LISTED} more"] if len(faults) > MAX_LISTED else []
    return "\n  ".join([head, *faults[:MAX_LISTED], *more])


Double = tuple[int, str, int, str]
"""Line and truth of a question that was asked before, line and truth of the one before."""


def _doubles(read: Sequence[tuple[int, Question]]) -> Iterator[Double]:
    first: dict[str, tuple[int, str]] = {}
    for line, question in read:
        asked = what_is_asked(question.text)
        if asked in first:
            yield line, question.truth, *first[asked]
        else:
            first[asked] = line, question.truth


def _told(doubles: Sequence[Double]) -> list[str]:
    return [
        f"line {line} asks what line {before} asks"
        + (f", with truth {truth!r} for {first!r}" if truth != first else "")
        for line, truth, before, first in doubles
    ]


def _question(line: bytes) -> Question:
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
    if row["task"] not in TASKS:
        raise ValueError(f"field 'task': unknown {row['task']!r}; known: {', '.join(TASKS)}")
    id = row.get("id") or question_id(row["task"], row["question"])
    return Question(id, row["task"], row["question"], row["truth"], row.get("entry", {}))
