"""What a reward model reads: a question and what was said to it, in the reward model's own chat template.

Training a reward model and scoring with it read the same function, and so the same tokens: those of
`tokenizer.apply_chat_template([..., {"role": "assistant", "content": said}])`, as whoever loads the exported folder
sends them. The words are put into the template's frame and not through the template, which differs in three cases:

- a template that changes the words it is given (DeepSeek-R1's drops the reasoning) does not: what is scored is read;
- one that writes no end token behind an answer is followed by the tokenizer's;
- words that spell a special token are read as the letters they are: an answer is untrusted, and one that writes the
  end of its own turn, and a better turn behind it, would otherwise be read as a conversation.
"""

import functools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from r1mega.buffers import Int32s
from r1mega.data.chat import text_of
from r1mega.data.frame import Shape, shape_of
from r1mega.data.special_tokens import ends, folder_of, special_tokens
from r1mega.data.turns import Message
from r1mega.errors import DataError

Asked = str | Sequence[Message]
"""A question, or the turns of a conversation up to the answer: {"role", "content"} each."""


def reading(tokenizer: Any, question: Asked, said: str) -> Int32s:
    """The tokens of one question and answer, [n] int32, the end token among them.

    Raises DataError where the tokenizer has no chat template, or one that does not write such turns.
    """
    return readings(tokenizer, [(question, said)])[0]


def asked(tokenizer: Any, turns: Sequence[Message]) -> Int32s:
    """The tokens of a conversation up to where the model is to answer, [n] int32; words are read as in `reading`.

    Raises DataError where the tokenizer has no chat template, or one that does not write such turns.
    """
    return _reader(tokenizer, _template(tokenizer), opens=True).read_turns([list(turns)])[0]


def readings(tokenizer: Any, pairs: Sequence[tuple[Asked, str]]) -> list[Int32s]:
    """`reading` of each (question, what was said), tokenised on all cores. Raises as it does."""
    return _reader(tokenizer, _template(tokenizer)).read(pairs)


def refuse_unreadable(tokenizer: Any) -> None:
    """Raises DataError where a question and its answer cannot be put in the tokenizer's chat template, or where its
    tokens say nothing of their words, as those of one whose vocabulary is not there."""
    one, other = readings(tokenizer, [("a", "b"), ("a", "b c d e f")])
    if one == other:
        raise DataError(
            f"{folder_of(tokenizer) or 'the tokenizer'} reads the same tokens whatever is said: its vocabulary is "
            "not there; put the tokenizer.json of its model beside tokenizer_config.json"
        )


def refuse_unaskable(tokenizer: Any) -> None:
    """Raises DataError where a question cannot be put in the tokenizer's chat template."""
    asked(tokenizer, [{"role": "user", "content": "a"}])


def _template(tokenizer: Any) -> str:
    if not tokenizer.chat_template:
        raise DataError(
            f"{folder_of(tokenizer) or 'the tokenizer'} has no chat template, in which a reward model reads question "
            "and answer: put one there as chat_template.jinja, such as one of configs/chat_templates"
        )
    return text_of(tokenizer, None, "chat_template")


@functools.lru_cache(maxsize=8)
def _reader(tokenizer: Any, template: str, *, opens: bool = False) -> "_TurnReader":
    return _TurnReader(tokenizer, template, opens=opens)


@dataclass(frozen=True)
class _Frame:
    """What the template writes around n turns."""

    around: tuple[str, ...]
    """[n + 1] stretches."""
    strips: bool
    """Whether it writes turns without the white space around them."""
    special: tuple[int, ...]
    """The special tokens in it, in order."""


class _TurnReader:
    """A tokenizer and the frames of its template, each found once."""

    def __init__(self, tokenizer: Any, template: str, *, opens: bool) -> None:
        """opens: whether the model's turn is opened behind the others, or the last one ends the text."""
        self._tokenizer, self._template, self._opens = tokenizer, template, opens
        special = special_tokens(tokenizer) - {tokenizer.unk_token}
        self._special_ids = frozenset(tokenizer.convert_tokens_to_ids(sorted(special)))
        longest_first = sorted(special, key=lambda token: (-len(token), token))
        self._spelled = re.compile("|".join(map(re.escape, longest_first)))
        self._frames: dict[Shape, _Frame] = {}

    def read(self, pairs: Sequence[tuple[Asked, str]]) -> list[Int32s]:
        return self.read_turns([_turns(question, said) for question, said in pairs])

    def read_turns(self, conversations: Sequence[Sequence[Message]]) -> list[Int32s]:
        framed = [self._framed(turns) for turns in conversations]
        pieces = [list(self._cut(frame, words)) for frame, words in framed]
        ids = iter(self._ids([piece for of_one in pieces for piece in of_one]))
        found: list[Int32s] = []
        for (frame, words), of_one in zip(framed, pieces, strict=True):
            read = [i for _ in of_one for i in next(ids)]
            if tuple(i for i in read if i in self._special_ids) != frame.special:
                read = self._without_special(frame, words)
            found.append(Int32s(read))
        return found

    def _framed(self, turns: Sequence[Message]) -> tuple[_Frame, list[str]]:
        frame = self._frame(shape_of(turns))
        return frame, [turn["content"].strip() if frame.strips else turn["content"] for turn in turns]

    def _cut(self, frame: _Frame, words: Sequence[str]) -> Iterator[str]:
        """The text in pieces, so that no special token that the words spell is in one of them."""
        piece = frame.around[0]
        for content, behind in zip(words, frame.around[1:], strict=True):
            at = 0
            for spelled in self._spelled.finditer(content):
                yield piece + content[at : spelled.start() + 1]
                piece, at = "", spelled.start() + 1
            piece += content[at:] + behind
        yield piece

    def _without_special(self, frame: _Frame, words: Sequence[str]) -> list[int]:
        """The rare text that holds a special token all the same, by a normalizer's doing: without those tokens."""
        around, contents = self._ids(list(frame.around)), self._ids(list(words))
        read = list(around[0])
        for content, behind in zip(contents, around[1:], strict=True):
            read += [i for i in content if i not in self._special_ids] + behind
        return read

    def _frame(self, shape: Shape) -> _Frame:
        if shape not in self._frames:
            plain = tuple((role, False) for role, _ in shape)
            # One that changes thoughts writes them as other words; one that strips turns does so with each.
            tries = [(of, strips) for of in (shape, plain) for strips in (False, True)]
            found = next(((around, strips) for of, strips in tries if (around := self._around(of, strips))), None)
            if found is None:
                roles = ", ".join(role for role, _ in shape)
                raise self._fault(f"does not write every turn of a conversation ({roles}) once and in order")
            (ids,) = self._ids(["".join(found[0])])
            self._frames[shape] = _Frame(*found, tuple(i for i in ids if i in self._special_ids))
        return self._frames[shape]

    def _around(self, shape: Shape, strips: bool) -> tuple[str, ...] | None:
        """The text around turns of this shape; None where the template does not leave them as they are."""
        words = [_trial(i, *turn) for i, turn in enumerate(shape)]
        contents = [word if strips else f" {word} " for word in words]
        text = self._render([{"role": role, "content": of} for (role, _), of in zip(shape, contents, strict=True)])
        around = list[str]()
        for content in contents:
            if text.count(content) != 1:
                return None
            before, _, text = text.partition(content)
            around.append(before)
        if self._opens:
            return *around, text
        closing = [self._tokenizer.convert_ids_to_tokens(i) for i in ends(self._tokenizer)]
        return *around, text if any(token in text for token in closing) else text + self._tokenizer.eos_token

    def _render(self, turns: Sequence[Message]) -> str:
        try:
            return self._tokenizer.apply_chat_template(
                [dict(turn) for turn in turns],
                chat_template=self._template,
                tokenize=False,
                add_generation_prompt=self._opens,
            )
        except Exception as error:  # whatever the template or the library raises
            roles = ", ".join(turn["role"] for turn in turns)
            raise self._fault(f"refuses a conversation of the turns {roles}: {error}") from error

    def _ids(self, texts: list[str]) -> list[list[int]]:
        return self._tokenizer(texts, add_special_tokens=False)["input_ids"] if texts else []

    def _fault(self, what: str) -> DataError:
        folder = folder_of(self._tokenizer)
        return DataError(
            f"{f'{folder}: ' if folder else ''}the chat template in which a model that judges reads {what}; put one "
            "there that does as chat_template.jinja, such as one of configs/chat_templates"
        )


def _turns(question: Asked, said: str) -> list[Message]:
    turns = [{"role": "user", "content": question}] if isinstance(question, str) else [dict(m) for m in question]
    return [*turns, {"role": "assistant", "content": said}]


def _trial(i: int, role: str, thinks: bool) -> str:
    word = f"Turn{i}word"
    return f"<think>\n{word}of\n</think>\n\n{word}" if thinks else word
