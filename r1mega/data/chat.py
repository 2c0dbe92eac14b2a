"""A conversation as tokens, and which of them are the assistant's: by a chat template, exactly or not at all.

What is learnt of a turn is what the model has to write in sampling: from the end of the generation prompt to the
token at which sampling ends. The template's frame (`frame`) says where that is, whether it marks what is generated
(`{% generation %}`) or not. What lies between two ends is tokenised by itself: a prompt has in training the tokens
that it has in sampling.

DeepSeek-R1's published template drops what stands before `</think>`, which is what SFT is to teach. A template that
does not repeat every turn word for word is therefore refused; configs/chat_templates has some that do.
"""

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from r1mega.data.frame import Frame, Shape, find, shape_of
from r1mega.data.special_tokens import ends as ends_of
from r1mega.data.special_tokens import special_tokens
from r1mega.data.turns import Conversation, Message
from r1mega.errors import DataError

log = logging.getLogger(__name__)

MAIN = "default"
"""How transformers calls the template in chat_template.jinja where others lie in additional_chat_templates."""
REASONING = frozenset({"<think>", "</think>"})
"""Written by answers, whatever a tokenizer or a template makes of them."""
GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")
TRIALS: tuple[Shape, ...] = tuple((("user", False), ("assistant", thinks)) for thinks in (False, True))
"""What a template must write, one of them at least, before a conversation is seen."""


@dataclass(frozen=True)
class Piece:
    """A stretch of a rendered conversation."""

    text: str
    learnt: bool


@dataclass(frozen=True)
class Tokens:
    """A conversation as the trainer sees it."""

    ids: tuple[int, ...]
    spans: tuple[tuple[int, int], ...]
    """Ranges of the assistant's turns, each with the token that ends it."""


class Unwritten(DataError):
    """The template raises an error of its own, such as that roles must alternate."""


class Chat:
    """A tokenizer and the template that writes its conversations."""

    def __init__(self, tokenizer: Any, ends: Sequence[int], template: Path | None = None) -> None:
        """
        Args:
            ends: as the model's config states them, where the tokenizer's folder does not (`special_tokens.ends`).
            template: a Jinja file, instead of the tokenizer's own template.

        Raises:
            DataError: no template, one that is none or does not write a question and its answer as they are learnt,
                or a tokenizer that cannot tokenise a text piece by piece.
        """
        self.tokenizer = tokenizer
        self.ends = ends_of(tokenizer, ends)
        """Tokens at which sampling ends; a turn must end in one of them and hold none."""
        self._end_ids = frozenset(self.ends)
        self._end_tokens = [str(t) for t in tokenizer.convert_ids_to_tokens(list(self.ends)) if t]
        self.template = text_of(tokenizer, template, "chat_template")
        """The text of the template."""
        self._source = str(template or "the tokenizer's chat template")
        self._marked = GENERATION.search(self.template) is not None
        self._added = {*special_tokens(tokenizer), *map(str, tokenizer.added_tokens_decoder.values())} - REASONING
        self._in_source = {t for t in special_tokens(tokenizer) if t in self.template}
        self._frames: dict[Shape, tuple[Frame, re.Pattern[str]] | DataError] = {}
        ids = [i for piece in ("a", "b") for i in tokenizer(piece, add_special_tokens=False)["input_ids"]]
        if (found := tokenizer.decode(ids)) != "ab":
            raise DataError(f"the tokenizer writes 'a' and 'b', tokenised apart, as {found!r}: it adds to each piece")
        self._try_template()

    def _try_template(self) -> None:
        """Refuse a template that writes neither an answer nor a thought and an answer as they are learnt."""
        tried = [self._framed(shape) for shape in TRIALS]
        faults = [f for f in tried if isinstance(f, DataError) and not isinstance(f, Unwritten)]
        if faults and len(faults) + sum(isinstance(f, Unwritten) for f in tried) == len(tried):
            raise faults[0]

    def encode(self, conversations: Sequence[Conversation]) -> list[Tokens]:
        """Tokens of each conversation.

        Raises:
            DataError: names the conversation that the template does not write as it should, and how.
        """
        pieces = [self.pieces(c) for c in conversations]
        encoded = iter(self._ids([p.text for of_one in pieces for p in of_one]))
        return [self._join(c, of_one, encoded) for c, of_one in zip(conversations, pieces, strict=True)]

    def _ids(self, texts: list[str]) -> list[list[int]]:
        """Tokens of each text, as the tokenizer gives them, without those that begin or end one."""
        if not texts:
            return []
        if not self.tokenizer.is_fast:
            return self.tokenizer(texts, add_special_tokens=False)["input_ids"]
        # All cores, and 0.83 of the time that the tokenizer's call takes of them: nothing but ids. That call, of
        # which __init__ has made one, is what takes a file's truncation and padding off.
        return [e.ids for e in self.tokenizer.backend_tokenizer.encode_batch_fast(texts, add_special_tokens=False)]

    def pieces(self, conversation: Conversation) -> list[Piece]:
        """The rendered conversation, cut where the assistant's turns begin and end. Raises DataError as `encode`."""
        shape = shape_of(conversation.messages)
        frame, steering = self._frame(shape, conversation)
        for number, message in enumerate(conversation.messages):
            if found := steering.search(message["content"]):
                raise DataError(
                    f"{conversation.where}: message {number}: the text {found[0]!r} is a token of the tokenizer that "
                    "steers conversations, and would be one in the middle of this turn; take it out, as from the end "
                    "of sampled answers, or write it differently"
                )
        try:
            text = self._render(conversation.messages, False)
            spans = frame.fit(text, conversation, self._fault)
        except DataError as error:
            # A template may write the day, which has changed since.
            self._frames.pop(shape)
            again, _ = self._frame(shape, conversation)
            if again == frame:
                raise DataError(f"{conversation.where}: {error}") from error
            return self.pieces(conversation)
        pieces, place = list[Piece](), 0
        for answer, (start, stop) in zip(frame.answers, spans, strict=True):
            learnt = answer.turn not in conversation.not_learnt
            pieces += [Piece(text[place:start], False), Piece(text[start:stop], learnt)]
            place = stop
        return [p for p in [*pieces, Piece(text[place:], False)] if p.text]

    def _frame(self, shape: Shape, conversation: Conversation) -> tuple[Frame, re.Pattern[str]]:
        found = self._framed(shape)
        if isinstance(found, DataError):
            raise DataError(f"{conversation.where}: {found}") from found
        return found

    def _framed(self, shape: Shape) -> tuple[Frame, re.Pattern[str]] | DataError:
        """The frame of a shape, found once, and what finds the tokens that steer its conversations; or its fault.

        Those tokens are bos, the ends of sampling, and what the template writes around turns or may write; never the
        tags of reasoning.
        """
        if shape not in self._frames:
            marks = self._marks if self._marked else None
            try:
                frame = find(shape, self._render, marks, self._end_tokens, self._fault)
            except DataError as error:
                self._frames[shape] = error
            else:
                written = "".join(frame.around)
                found = {t for t in self._added if t in written} | self._in_source - REASONING
                found |= {t for t in (self.tokenizer.bos_token, *self._end_tokens) if t}
                longest_first = sorted(found, key=lambda t: (-len(t), t))
                self._frames[shape] = frame, re.compile("|".join(map(re.escape, longest_first)))
        return self._frames[shape]

    def _marks(self, messages: Sequence[Message]) -> tuple[str, list[tuple[int, int]]]:
        from transformers.utils.chat_template_utils import render_jinja_template

        special: Mapping[str, str] = self.tokenizer.special_tokens_map
        options: dict[str, Any] = {
            "conversations": [[dict(m) for m in messages]],
            "chat_template": self.template,
            "return_assistant_tokens_mask": True,
        }
        render: Any = render_jinja_template  # its own types say that each option is everything
        try:
            texts, marked = render(**options, **special)
        except Exception as error:  # whatever the template or the library raises
            raise self._refused(error) from error
        return texts[0], [(int(start), int(stop)) for start, stop in marked[0]]

    def _render(self, messages: Sequence[Message], prompt: bool) -> str:
        if not messages:  # a conversation that the assistant opens
            raise self._fault("has nothing to begin with: the first turn is the assistant's")
        try:
            return self.tokenizer.apply_chat_template(
                [dict(m) for m in messages],
                chat_template=self.template,
                tokenize=False,
                add_generation_prompt=prompt,
            )
        except Exception as error:
            raise self._refused(error) from error

    def _refused(self, error: Exception) -> DataError:
        from jinja2 import TemplateSyntaxError

        if isinstance(error, TemplateSyntaxError):
            return DataError(f"{self._source}, line {error.lineno}: not a template: {error}")
        return Unwritten(f"{self._source} refuses it: {error}")

    def _join(self, conversation: Conversation, pieces: Sequence[Piece], encoded: Any) -> Tokens:
        ids: list[int] = []
        spans: list[tuple[int, int]] = []
        for piece in pieces:
            of_piece: list[int] = next(encoded)
            if piece.learnt:
                spans.append((len(ids), len(ids) + len(of_piece)))
                if of_piece[-1] not in self._end_ids or not self._end_ids.isdisjoint(of_piece[:-1]):
                    read = self.tokenizer.convert_ids_to_tokens(of_piece)
                    raise DataError(
                        f"{conversation.where}: the tokenizer reads {piece.text[-40:]!r} as {read[-8:]}, which does "
                        f"not end once in {' or '.join(self._end_tokens)}: the model would not learn to stop there"
                    )
            ids += of_piece
        return Tokens(tuple(ids), tuple(spans))

    def _fault(self, what: str) -> DataError:
        return DataError(f"{self._source} {what}")


def text_of(tokenizer: Any, file: Path | None, setting: str) -> str:
    """The text of a chat template: a file's, or the tokenizer's own, of several the main one.

    Args:
        setting: names the file, for messages.

    Raises:
        DataError: there is none, or it cannot be read.
    """
    if file is None:
        own = tokenizer.chat_template
        if isinstance(own, Mapping) and isinstance(own.get(MAIN), str):
            others = ", ".join(sorted(str(name) for name in own if name != MAIN))
            log.info("the tokenizer has several chat templates: %r is the one that is used, not %s", MAIN, others)
            own = own[MAIN]
        if not isinstance(own, str):
            found = f"several chat templates, and none that is {MAIN!r}" if own else "no chat template"
            raise DataError(
                f"the tokenizer has {found}: set {setting} to a Jinja file, such as those in configs/chat_templates"
            )
        return own
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{setting}: cannot read {file}: {error}") from error
