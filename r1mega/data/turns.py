"""A row of conversations as turns: who says what, and which of the assistant's turns are learnt. Nothing is guessed.

A row has `messages`, a list of {"role", "content"}, or `prompt` and `response`; `system` beside them is the system
turn. A turn of the assistant may be marked as one not to be learnt, by a field of `MARKS`. What would change the
conversation in a way that is not known here is refused; null is the one value that says that a field is not there.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from r1mega.data.lines import half_a_character
from r1mega.data.signed_rows import FromRow
from r1mega.errors import DataError

FORMS = ("messages", "prompt", "response")
MARKS = ("weight", "loss_weight", "train", "training", "trainable", "loss", "learn")
"""Under which formats of conversations say whether a turn, or a row, is learnt: 1 or true, 0 or false."""
TOLD = ("tools", "functions", "documents", "history", "system_prompt", "chat_template_kwargs")
"""What a model may be told beside the turns, and would answer otherwise without."""
TOLD_WITH_PROMPT = ("instruction", "input", "context")
"""What a model may be told along with `prompt` and `response`; a row of `messages` may keep them as where its turns
come from."""
FIELDS = (*FORMS, "system", *MARKS, *TOLD, *TOLD_WITH_PROMPT)
"""All that is looked at in a row; others say where it comes from."""
ROLES = ("system", "user", "assistant")
Message = Mapping[str, str]


@dataclass(frozen=True)
class Conversation(FromRow):
    """Messages in order, of which the assistant's are to be learnt."""

    messages: tuple[Message, ...]
    """Each {"role": ..., "content": ...}."""
    where: str
    """File and line, or name and row, for messages about it."""
    not_learnt: frozenset[int] = frozenset()
    """Places in `messages` of turns of the assistant that are only read."""

    @property
    def questions(self) -> list[str]:
        """What the users asked, by which held-out questions are told apart."""
        return [m["content"] for m in self.messages if m["role"] == "user"]

    @property
    def beginning(self) -> str:
        """What it begins with."""
        return self.messages[0]["content"]


def conversation(row: Any, where: str) -> Conversation:
    """One row, checked. Raises DataError that names `where` and the fault."""
    if not isinstance(row, Mapping):
        raise DataError(f"{where}: a row is an object, not {type(row).__name__}")
    messages = _messages(row, where)
    if not isinstance(messages, list | tuple) or not messages:
        found = ", ".join(map(repr, row)) or "none"
        if messages is not None:
            said = {dict: "an object of lists, not a list of objects", list: "empty"}
            found += f" and `messages` is {said.get(type(messages), type(messages).__name__)}"
        raise DataError(f"{where}: needs `messages`, a list, or `prompt` and `response`; its fields are {found}")
    learnt = [_is_learnt(message, f"{where}: message {i}") for i, message in enumerate(messages)]
    turns = tuple({"role": m["role"], "content": m["content"]} for m in messages)
    _check_row(row, where)
    turns, learnt = _with_system(row, turns, learnt, where)
    if turns[-1]["role"] != "assistant":
        raise DataError(f"{where}: ends with the {turns[-1]['role']}'s turn, of which nothing is learnt")
    answers = [i for i, turn in enumerate(turns) if turn["role"] == "assistant"]
    if not any(learnt[i] for i in answers):
        raise DataError(f"{where}: no turn of it is to be learnt: leave the row out")
    return Conversation(turns, where, frozenset(i for i in answers if not learnt[i]))


def _messages(row: Mapping[str, Any], where: str) -> Any:
    messages = row.get("messages")
    if messages is None and {"prompt", "response"} <= row.keys():
        return [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row["response"]}]
    for name in ("prompt", "response"):
        beside = row.get(name)
        if messages is not None and beside is not None and not _is_a_turn(beside, messages):
            raise DataError(f"{where}: `messages` has no turn that is its field {name!r}: leave one of the two out")
    return messages


def _is_a_turn(text: Any, messages: Any) -> bool:
    """Whether a row repeats one of its messages' contents as a field of its own."""
    turns = messages if isinstance(messages, list | tuple) else ()
    return isinstance(text, str) and any(isinstance(m, Mapping) and m.get("content") == text for m in turns)


def _is_learnt(message: Any, where: str) -> bool:
    """A message, checked; whether it is one to be learnt where it is the assistant's."""
    if not isinstance(message, Mapping):
        raise DataError(f"{where} is an object, not {type(message).__name__}")
    role, content = message.get("role"), message.get("content")
    if role not in ROLES:
        raise DataError(f"{where}: role {role!r}; known: {', '.join(ROLES)}")
    if not isinstance(content, str) or not content.strip():
        raise DataError(f"{where}: content must be text and not empty")
    if fault := half_a_character(content):
        raise DataError(f"{where}: {fault}")
    marks = dict[str, bool]()
    # Tables write null in every row for what one of them has.
    for name, value in sorted((k, v) for k, v in message.items() if k not in ("role", "content") and v is not None):
        if name in MARKS:
            marks[name] = _mark(name, value, where)
        elif not (name == "tool_calls" and value == []):  # the list of the tools that were called: none was
            raise DataError(f"{where}: unknown field {name!r}: only role and content are learnt from")
    if len(set(marks.values())) > 1:
        raise DataError(f"{where}: {' and '.join(map(repr, marks))} contradict each other: leave one of them out")
    if role != "assistant" and True in marks.values():
        raise DataError(
            f"{where}: {next(iter(marks))!r} asks for the {role}'s turn to be learnt, and only the assistant's are: "
            "take it out"
        )
    return False not in marks.values()


def _mark(name: str, value: Any, where: str) -> bool:
    if not (isinstance(value, bool | int | float) and value in (0, 1)):
        raise DataError(
            f"{where}: field {name!r} is {value!r}: turns are learnt or not (1 or true, 0 or false), and not by parts"
        )
    return bool(value)


def _check_row(row: Mapping[str, Any], where: str) -> None:
    """Refuse a row of which a field beside the turns would change what is told or learnt."""
    for name in MARKS:
        if row.get(name) is not None and not _mark(name, row[name], where):
            raise DataError(f"{where}: field {name!r} says that nothing of it is to be learnt: leave the row out")
    of_prompt = TOLD_WITH_PROMPT if row.get("messages") is None else ()
    for name in (*TOLD, *of_prompt):
        value = row.get(name)
        if value is not None and not (name == "tools" and value == []):
            raise DataError(
                f"{where}: field {name!r} tells the model something, and would be left out of what it learns to "
                "answer: write it into a turn, as `system` or a message of role system, or give null"
            )


def _with_system(
    row: Mapping[str, Any], turns: tuple[Message, ...], learnt: list[bool], where: str
) -> tuple[tuple[Message, ...], list[bool]]:
    """The turns with the `system` field at their head; it may repeat a system turn that stands there."""
    system = row.get("system")
    if system is None:
        return turns, learnt
    if not isinstance(system, str) or not system.strip():
        raise DataError(f"{where}: field 'system' must be text and not empty, or null where there is none")
    if fault := half_a_character(system):
        raise DataError(f"{where}: field 'system': {fault}")
    if turns[0]["role"] != "system":
        return ({"role": "system", "content": system}, *turns), [False, *learnt]
    if turns[0]["content"] != system:
        raise DataError(f"{where}: field 'system' and message 0 are two different system turns: leave one out")
    return turns, learnt
