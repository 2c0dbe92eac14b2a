"""What a chat template writes around the turns of a conversation: its frame, which must leave the turns' words alone.

A frame is found once for each shape of conversation (whose turns, and which of the assistant's begin with a thought),
by rendering one whose turns are words of no other meaning. Of a frame follows all that training needs: each turn's
words stand in it once and in order; the generation prompt is the beginning of what is trained on; and between that
prompt and the token that ends a turn there is nothing but the turn.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from r1mega.data.turns import Conversation, Message
from r1mega.errors import DataError

THOUGHT = re.compile(r"\s*<think>")
Shape = tuple[tuple[str, bool], ...]
"""For each turn whose it is, and whether it begins with a thought."""
Complaint = Callable[[str], DataError]


@dataclass(frozen=True)
class LearntTurn:
    """Where a turn of the assistant is learnt."""

    turn: int
    opened: str
    """Beginning of it that the generation prompt writes already, such as "<think>\\n": it is not learnt."""
    ahead: int
    """Characters of white space between the generation prompt and the turn, which the model has to write."""
    end: int
    """Characters behind the turn that are learnt with it: the token that ends it, and white space before that."""


@dataclass(frozen=True)
class Frame:
    """The text around n turns."""

    around: tuple[str, ...]
    """[n + 1] stretches: before the first turn, between two, behind the last."""
    answers: tuple[LearntTurn, ...]

    def fit(self, text: str, conversation: Conversation, fault: Complaint) -> list[tuple[int, int]]:
        """Where each answer is learnt in the rendered `conversation`.

        Returns: [start, stop) in characters for each of `answers`.
        Raises: what `fault` makes of it, where the text is not this frame around the turns' own words.
        """
        places, at = list[tuple[int, int]](), 0
        for i, message in enumerate(conversation.messages):
            if not text.startswith(self.around[i], at):
                raise fault(_not_repeated(i, conversation.messages, text))
            at += len(self.around[i])
            content = _as_written(message["content"], text, at, self.around[i + 1])
            if content is None:
                raise fault(_not_repeated(i, conversation.messages, text))
            places.append((at, at + len(content)))
            at += len(content)
        if text[at:] != self.around[-1]:
            raise fault(_not_repeated(len(places) - 1, conversation.messages, text))
        found = list[tuple[int, int]]()
        for answer in self.answers:
            start, stop = places[answer.turn]
            if not text.startswith(answer.opened, start) or start + len(answer.opened) >= stop:
                raise fault(
                    f"begins every answer with {answer.opened!r} in its generation prompt, and message {answer.turn} "
                    "does not begin so"
                )
            found.append((start + len(answer.opened) - answer.ahead, stop + answer.end))
        return found


def shape_of(messages: Sequence[Message]) -> Shape:
    """What a conversation's frame is found by."""
    return tuple((m["role"], m["role"] == "assistant" and bool(THOUGHT.match(m["content"]))) for m in messages)


def find(
    shape: Shape,
    render: Callable[[Sequence[Message], bool], str],
    marks: Callable[[Sequence[Message]], tuple[str, list[tuple[int, int]]]] | None,
    ends: Sequence[str],
    fault: Complaint,
) -> Frame:
    """The frame of a shape.

    Args:
        render: writes messages, with the generation prompt where told so.
        marks: writes messages and says where the template marks what is generated; None: it marks nothing.
        ends: the tokens that end a turn.
        fault: makes an error of what is wrong with the template; what `render` raises goes through.

    Raises: what `fault` makes of a template that does not leave turns alone or has another part of them learnt.
    """
    turns = [_trial(i, *turn) for i, turn in enumerate(shape)]
    text = render(turns, False)
    places = _places(text, turns, fault)
    edges = [0, *(edge for place in places for edge in place), len(text)]
    around = tuple(text[a:b] for a, b in zip(edges[::2], edges[1::2], strict=True))
    marked = iter(_marked(text, turns, marks, fault)) if marks is not None else None
    answers = list[LearntTurn]()
    for i, turn in enumerate(turns):
        if turn["role"] != "assistant":
            continue
        (start, stop), before = places[i], render(turns[:i], True)
        if not text.startswith(before) or len(before) >= stop:
            raise fault(_says_otherwise(text, before))
        ahead = text[len(before) : start]
        if ahead.strip():
            raise fault(
                f"has the assistant's turn begin at {text[len(before) : len(before) + 40]!r}: what stands before the "
                "answer there would be learnt, and it is the prompt's in sampling; have the template write it with "
                "add_generation_prompt, and mark what follows it alone"
            )
        if marked is not None:
            begin, close = next(marked)
            if begin < min(start, len(before)) or begin > max(start, len(before)) or close < stop:
                raise fault(
                    f"marks {text[begin:close][:40]!r} as the assistant's turn {turn['content'][:40]!r}: it must be "
                    "that turn and the token that ends it, and nothing of the prompt"
                )
        else:
            close = _close(text, turns[: i + 1], render, fault)
        end = _end(text[stop:close], ends, fault)
        answers.append(LearntTurn(i, text[start : len(before)], len(ahead), end))
    return Frame(around, tuple(answers))


def _trial(i: int, role: str, thinks: bool) -> Message:
    word = f"Turn{i}word"
    return {"role": role, "content": f"<think>\n{word}of\n</think>\n\n{word}" if thinks else word}


def _places(text: str, turns: Sequence[Message], fault: Complaint) -> list[tuple[int, int]]:
    """Where each turn stands, which must be once and behind the one before it."""
    found, at = list[tuple[int, int]](), 0
    for i, turn in enumerate(turns):
        content = turn["content"]
        times = text.count(content)
        if times != 1 and not (times == 0 and turn["role"] == "assistant"):
            said = "leaves out" if not times else f"writes {times} times"
            raise fault(f"{said} what message {i} says, the {turn['role']}'s: every turn must be written, and once")
        if times == 0:
            raise fault(_LOST.format(" the reasoning before </think> among it," if "</think>" in content else ""))
        start = text.find(content, at)
        if start < 0:
            raise fault(f"writes message {i}, the {turn['role']}'s, before one that comes before it")
        found.append((start, start + len(content)))
        at = start + len(content)
    return found


def _marked(text: str, turns: Sequence[Message], marks: Any, fault: Complaint) -> list[tuple[int, int]]:
    marked_text, found = marks(turns)
    answers = [t for t in turns if t["role"] == "assistant"]
    if marked_text != text:
        raise fault("writes another text where it is asked what is generated")
    if len(found) != len(answers):
        raise fault(f"marks {len(found)} of the {len(answers)} turns of the assistant")
    return found


def _says_otherwise(text: str, before: str) -> str:
    pairs = enumerate(zip(text, before, strict=False))
    same = next((i for i, (ours, theirs) in pairs if ours != theirs), min(len(text), len(before)))
    return (
        "does not write the beginning of a conversation as it writes the whole: its generation prompt goes on with "
        f"{before[same : same + 40]!r} where the text to train on has {text[same : same + 40]!r}, so that a model "
        "would be sampled from what it was not trained on"
    )


def _close(text: str, through: Sequence[Message], render: Any, fault: Complaint) -> int:
    """Where the last of some turns is closed, in a template that does not mark it."""
    written = render(through, False)
    if not text.startswith(written):
        raise fault(
            "does not write the beginning of a conversation as it writes the whole, so that the assistant's turns "
            "cannot be told apart; mark them with {% generation %} in a template of your own, or set chat_template "
            "to one of configs/chat_templates"
        )
    return len(written)


def _end(behind: str, ends: Sequence[str], fault: Complaint) -> int:
    """Of what closes a turn, the characters up to the first token at which sampling ends."""
    found = [(behind.find(end), end) for end in ends if end in behind]
    first = min(found, key=lambda f: (f[0], -len(f[1])), default=None)
    between = behind if first is None else behind[: first[0]]
    if first is None:
        raise fault(
            f"ends the assistant's turn with {behind.strip()!r}, at which sampling does not end ({', '.join(ends)} "
            "would): the model would not learn to stop; set chat_template to one that ends it with eos_token"
        )
    if between.strip():
        raise fault(
            f"writes {between.strip()!r} between the assistant's turn and the token that ends it: it is no part of "
            "the turn, and would be learnt; take it out of the template"
        )
    return first[0] + len(first[1])


def _as_written(content: str, text: str, at: int, behind: str) -> str | None:
    """The turn's words as they stand at a place before `behind`: as they are, or without white space around them."""
    for written in (content, content.strip(), content.lstrip(), content.rstrip()):
        if text.startswith(written, at) and text.startswith(behind, at + len(written)):
            return written
    return None


def _not_repeated(i: int, messages: Sequence[Message], text: str) -> str:
    message = messages[i]
    if message["content"].strip() in text:
        return (
            f"writes something else around message {i}, the {message['role']}'s, than around other words: what it "
            "adds or takes away there would be learnt, or missed; set chat_template to one that does not look into "
            "turns, such as those in configs/chat_templates"
        )
    if message["role"] == "assistant":
        lost = " the reasoning before </think> among it," if "</think>" in message["content"] else ""
        return _LOST.format(lost)
    return f"does not repeat message {i}, the {message['role']}'s, word for word: its words would be missing"


_LOST = (
    "does not repeat a turn of the assistant word for word: what is left out,{} would never be learnt; set "
    "chat_template to one that keeps it, such as those in configs/chat_templates"
)
