"""Rows of preference data: two answers of which one was preferred, or one answer that is safe or not.

A pair has `chosen` and `rejected`: two texts, beside `prompt` (or `question`, or `messages`, the turns up to the
answer); or two lists of messages that begin alike and differ in their last turn, the assistant's. It may have `gap`,
how much better the chosen one was found, or `chosen_score` and `rejected_score`. A labelled answer has what is asked
in the same forms, `response`, and a label; or `messages` that end with the answer. `system` is the system turn.
Nothing is guessed; null is the one value that says that a field is not there.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from r1mega.data.lines import half_a_character
from r1mega.data.row_source import CheckedRows, RowForm
from r1mega.data.scope import Marks, Scope
from r1mega.data.settings import Objective, PreferenceData
from r1mega.data.signed_rows import FromRow, keeping_row
from r1mega.data.turns import ROLES, Message
from r1mega.errors import DataError

ASKED = ("prompt", "question", "messages")
"""Under which names a row says what was asked."""
SCORES = (("chosen_score", "rejected_score"), ("score_chosen", "score_rejected"))
GAP = ("gap", *(name for pair in SCORES for name in pair))
LARGEST = 1e6
"""No scale of scores has larger numbers; a margin of them is finite in fp32."""
SHOWN = 60
"""Characters of a faulty value that a message shows."""


@dataclass(frozen=True)
class Reading:
    """Which of a row's words are read, and how."""

    data: PreferenceData
    objective: Objective
    scope: Scope
    marks: Marks
    gaps: bool
    """Whether every pair must have a gap."""


@dataclass(frozen=True)
class Example(FromRow):
    """What was asked, and the answers to it that are compared or labelled."""

    asked: tuple[Message, ...]
    """Turns up to the answer, {"role", "content"} each; the last one is no assistant's."""
    answers: tuple[str, ...]
    """The chosen and the rejected one; or the one that is labelled."""
    value: float | None
    """Of a pair the gap, where the row has one; of an answer 1 where it is safe, otherwise 0."""
    where: str
    """File and line, or name and row, for messages about it."""

    @property
    def questions(self) -> list[str]:
        """What the users asked, by which held-out questions are told apart."""
        return [m["content"] for m in self.asked if m["role"] == "user"]

    @property
    def beginning(self) -> str:
        """What it begins with."""
        return self.asked[0]["content"]


def source(
    objective: Objective, label: str, files: Sequence[Path], dataset: str, split: str, dataset_config: str = ""
) -> CheckedRows[Example]:
    """Files and a dataset to read preferences from.

    Args:
        label: column of a labelled answer's label.
        files, dataset, split, dataset_config: as `CheckedRows`.
    """
    form = _pairs() if objective == "pairwise" else _labelled(label)
    return CheckedRows(form, files, dataset, split, dataset_config)


# ---- pairs -------------------------------------------------------------------------------------------------------


def _pairs() -> RowForm[Example]:
    needed = "columns `chosen` and `rejected`"
    return RowForm(
        "preference pairs",
        (*ASKED, "system", "chosen", "rejected", *GAP),
        keeping_row(pair),
        lambda columns: "" if {"chosen", "rejected"} <= set(columns) else needed,
    )


def pair(row: Any, where: str) -> Example:
    """One pair, checked. Raises DataError that names `where` and the fault."""
    _is_object(row, where)
    for name in ("chosen", "rejected"):
        if row.get(name) is None:
            found = ", ".join(map(repr, row)) or "none"
            raise DataError(f"{where}: needs `chosen` and `rejected`; its fields are {found}")
    chosen, rejected = row["chosen"], row["rejected"]
    if isinstance(chosen, str) and isinstance(rejected, str):
        answers = _text(chosen, f"{where}: chosen"), _text(rejected, f"{where}: rejected")
        return Example(_with_system(row, _asked(row, where), where), answers, _gap(row, where), where)
    if not (_is_list(chosen) and _is_list(rejected)):
        kinds = f"{type(chosen).__name__} and {type(rejected).__name__}"
        raise DataError(f"{where}: `chosen` and `rejected` are both texts or both lists of messages, not {kinds}")
    first, second = (_turns(row[name], f"{where}: {name}") for name in ("chosen", "rejected"))
    for name, turns in (("chosen", first), ("rejected", second)):
        if turns[-1]["role"] != "assistant":
            raise DataError(f"{where}: {name} ends with the {turns[-1]['role']}'s turn, and not with an answer")
    if first[:-1] != second[:-1]:
        parts = next((i for i, (a, b) in enumerate(zip(first, second, strict=False)) if a != b), len(second) - 1)
        raise DataError(
            f"{where}: `chosen` and `rejected` part at message {parts}, before their last turns: they must have a "
            "common beginning, so that two answers to the same are compared"
        )
    asked = _continued(row, first[:-1], where)
    return Example(asked, (first[-1]["content"], second[-1]["content"]), _gap(row, where), where)


def _gap(row: Mapping[str, Any], where: str) -> float | None:
    found: dict[str, float] = {}
    if row.get("gap") is not None:
        found["gap"] = _number(row["gap"], f"{where}: gap")
    for names in SCORES:
        given = [name for name in names if row.get(name) is not None]
        if len(given) == 1:
            raise DataError(f"{where}: has {given[0]!r} and not the other answer's score: give both or neither")
        if given:
            better, worse = (_number(row[name], f"{where}: {name}") for name in names)
            found[f"{names[0]} - {names[1]}"] = better - worse
    for name, gap in found.items():
        if gap < 0:
            raise DataError(
                f"{where}: {name} is {gap:g}: the rejected answer was found better than the chosen one; exchange "
                "them, or leave the row out"
            )
    values = list(found.values())
    if any(not math.isclose(value, values[0], rel_tol=1e-6, abs_tol=1e-6) for value in values):
        told = ", ".join(f"{name} = {gap:g}" for name, gap in found.items())
        raise DataError(f"{where}: {told}: they contradict each other, leave one of them out")
    return values[0] if values else None


# ---- labelled answers --------------------------------------------------------------------------------------------


def _labelled(label: str) -> RowForm[Example]:
    def needs(columns: Collection[str]) -> str:
        if label not in columns:
            return f"a column `{label}` (data.label names the one that says which answers are safe)"
        return "" if "response" in columns or "messages" in columns else "a column `response`, or `messages`"

    read = keeping_row(lambda row, where: labelled(row, where, label))
    return RowForm("labelled answers", (*ASKED, "system", "response", label), read, needs)


def labelled(row: Any, where: str, label: str = "safe") -> Example:
    """One labelled answer, checked. Raises DataError that names `where` and the fault."""
    _is_object(row, where)
    value = row.get(label)
    if not (isinstance(value, bool | int | float) and value in (0, 1)):
        found = "has no" if label not in row else f"has {_shown(value)} as"
        raise DataError(f"{where}: {found} {label!r}: true or 1 where the answer is safe, false or 0 where it is not")
    if row.get("response") is not None:
        answer = _text(row["response"], f"{where}: response")
        asked = _asked(row, where)
    else:
        if row.get("messages") is None:
            found = ", ".join(map(repr, row)) or "none"
            raise DataError(f"{where}: needs `response`, or `messages` that end with it; its fields are {found}")
        turns = _turns(row["messages"], f"{where}: messages")
        if turns[-1]["role"] != "assistant":
            raise DataError(f"{where}: messages end with the {turns[-1]['role']}'s turn, and not with an answer")
        beside = {name: of for name, of in row.items() if name != "messages"}
        return Example(_continued(beside, turns[:-1], where), (turns[-1]["content"],), float(value), where)
    return Example(_with_system(row, asked, where), (answer,), float(value), where)


# ---- what was asked ----------------------------------------------------------------------------------------------


def _asked(row: Mapping[str, Any], where: str) -> tuple[Message, ...]:
    """The turns before the answer, of the one field that says them."""
    given = [name for name in ASKED if row.get(name) is not None]
    if len(given) != 1:
        found = ", ".join(map(repr, given or row)) or "none"
        raise DataError(
            f"{where}: needs one of {', '.join(map(repr, ASKED))}, which says what was asked; "
            f"{'it has' if given else 'its fields are'} {found}"
        )
    (name,) = given
    value = row[name]
    if isinstance(value, str):
        if not _text(value, f"{where}: {name}").strip():
            raise DataError(f"{where}: {name} must not be empty")
        return ({"role": "user", "content": value},)
    if not _is_list(value):
        raise DataError(f"{where}: {name} is a text or a list of messages, not {type(value).__name__}")
    turns = _turns(value, f"{where}: {name}")
    _refuse_answered(turns, f"{where}: {name}")
    return turns


def _continued(row: Mapping[str, Any], beginning: tuple[Message, ...], where: str) -> tuple[Message, ...]:
    """The turns before an answer that stands at the end of a list of messages.

    A field beside the list may say what was asked as well: the turns before it where the list has the answer alone,
    or what the list says too (the first or the last user's turn, or all of it).
    """
    asked = {name: row[name] for name in ASKED if name in ("prompt", "question") and row.get(name) is not None}
    if not beginning:
        return _with_system(row, _asked(row, where), where)
    users = [turn["content"] for turn in beginning if turn["role"] == "user"]
    for name, value in asked.items():
        same = value in (users[0], users[-1]) if isinstance(value, str) and users else False
        if not same and not (_is_list(value) and _turns(value, f"{where}: {name}") == beginning):
            raise DataError(f"{where}: {name!r} is not what the messages begin with: leave one of the two out")
    _refuse_answered(beginning, where)
    return _with_system(row, beginning, where)


def _refuse_answered(turns: tuple[Message, ...], where: str) -> None:
    if turns[-1]["role"] == "assistant":
        raise DataError(f"{where}: ends with the assistant's turn, so that nobody asks for an answer")


def _with_system(row: Mapping[str, Any], turns: tuple[Message, ...], where: str) -> tuple[Message, ...]:
    """With the `system` field at their head; it may repeat a system turn that stands there."""
    system = row.get("system")
    if system is None:
        return turns
    if not isinstance(system, str) or not _text(system, f"{where}: system").strip():
        raise DataError(f"{where}: field 'system' must be text and not empty, or null where there is none")
    if turns[0]["role"] != "system":
        return ({"role": "system", "content": system}, *turns)
    if turns[0]["content"] != system:
        raise DataError(f"{where}: field 'system' and message 0 are two different system turns: leave one out")
    return turns


def _turns(value: Any, where: str) -> tuple[Message, ...]:
    """Messages, checked; the last one may be empty, which is counted where it is an answer."""
    if not _is_list(value) or not value:
        raise DataError(f"{where} must be a list of messages and not empty")
    turns: list[Message] = []
    for i, message in enumerate(value):
        at = f"{where}: message {i}"
        if not isinstance(message, Mapping):
            raise DataError(f"{at} is an object, not {type(message).__name__}")
        role, content = message.get("role"), message.get("content")
        if role not in ROLES:
            raise DataError(f"{at}: role {_shown(role)}; known: {', '.join(ROLES)}")
        # Tables write null in every row for what one of them has.
        for name in (k for k, v in message.items() if k not in ("role", "content") and v is not None):
            raise DataError(f"{at}: unknown field {name!r}: only role and content are read")
        content = _text(content, f"{at}: content")
        if not content.strip() and not (role == "assistant" and i == len(value) - 1):
            raise DataError(f"{at}: content must not be empty")
        turns.append({"role": role, "content": content})
    return tuple(turns)


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise DataError(f"{where} must be text, not {type(value).__name__}")
    if fault := half_a_character(value):
        raise DataError(f"{where}: {fault}")
    return value


def _number(value: Any, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not -LARGEST <= value <= LARGEST:
        raise DataError(f"{where} must be a number of at most {LARGEST:,.0f}, not {_shown(value)}")
    return float(value)


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}... ({len(text):,} characters)"


def _is_list(value: Any) -> bool:
    return isinstance(value, list | tuple)


def _is_object(row: Any, where: str) -> None:
    if not isinstance(row, Mapping):
        raise DataError(f"{where}: a row is an object, not {type(row).__name__}")
