"""A conversation as tokens, and which of them are the assistant's: by a chat template, exactly or not at all.

Where the template marks what is generated (`{% generation %}`), those are the spans. Otherwise the conversation is
rendered once for each turn of the assistant, up to it and through it, and each rendering must be the beginning of the
next. What lies between two ends is tokenised by itself: a prompt has in training the tokens that it has in sampling.

DeepSeek-R1's published template drops what stands before `</think>`, which is what SFT is to teach. A template that
does not repeat every turn of the assistant word for word is therefore refused; configs/chat_templates has some that
do.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from r1mega.data.turns import Conversation, Message
from r1mega.errors import DataError

REASONING = frozenset({"<think>", "</think>"})
"""Written by answers, whatever a tokenizer or a template makes of them."""
GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")


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


class Chat:
    """A tokenizer and the template that writes its conversations."""

    def __init__(self, tokenizer: Any, ends: Sequence[int], template: Path | None = None) -> None:
        """
        Args:
            ends: the tokens at which the model's sampling ends: a turn must end in one of them.
            template: a Jinja file, instead of the tokenizer's own template.

        Raises:
            DataError: no template, one that is none or has the assistant's name learnt, or a tokenizer that cannot
                tokenise a text piece by piece.
        """
        self.tokenizer, self._ends = tokenizer, {*ends, tokenizer.eos_token_id}
        self.template = _template(tokenizer, template)
        """The text of the template."""
        self._source = str(template or "the tokenizer's chat template")
        self._marked = GENERATION.search(self.template) is not None
        self._special = sorted(
            {*tokenizer.all_special_tokens, *(str(t) for t in tokenizer.added_tokens_decoder.values() if t.special)}
        )
        ids = [i for piece in ("a", "b") for i in tokenizer(piece, add_special_tokens=False)["input_ids"]]
        if (found := tokenizer.decode(ids)) != "ab":
            raise DataError(f"the tokenizer writes 'a' and 'b', tokenised apart, as {found!r}: it adds to each piece")
        self._steering = self._check_template()
        """Finds the tokens that a template writes around turns, and those at which they end."""

    def _check_template(self) -> re.Pattern[str]:
        """Of the template alone, on a conversation of one letter a turn; a template that refuses it is not judged.

        Returns:
            What finds the tokens that steer a conversation: bos, eos, the other ends of sampling, and those that the
            template writes (in its text, where it refuses the trial); never the tags of reasoning.

        Raises:
            DataError: it is no template, or the assistant's turn would begin with what writes its name.
        """
        from jinja2 import TemplateSyntaxError

        added = {*self.tokenizer.all_special_tokens, *map(str, self.tokenizer.added_tokens_decoder.values())}
        ends = {self.tokenizer.bos_token, *self.tokenizer.convert_ids_to_tokens(sorted(self._ends))}

        def tokens_in(text: str) -> re.Pattern[str]:
            found = {t for t in added if t in text} | {t for t in ends if t}
            longest_first = sorted(found - REASONING, key=lambda t: (-len(t), t))
            return re.compile("|".join(map(re.escape, longest_first)))

        turns = ({"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"})
        tried = Conversation(turns, "a conversation of one letter a turn")
        try:
            text, spans = self._marked_spans(tried) if self._marked else self._found_spans(tried)
            prompts = [self._render(tried, turns[:1], prompt=prompt) for prompt in (True, False)]
        except DataError as error:
            reason = error.__cause__
            if isinstance(reason, TemplateSyntaxError):
                raise DataError(f"{self._source}, line {reason.lineno}: not a template: {reason}") from reason
            return tokens_in(self.template)
        if not spans:  # what marks no turn here may mark those there are
            return tokens_in(text)
        start = spans[0][0]
        ignored = prompts[0] == prompts[1] and not text[start:].lstrip().startswith("A")
        if ignored or (text.startswith(prompts[0]) and start < len(prompts[0])):
            raise DataError(
                f"{self._source} has the assistant's turn begin at {text[start : start + 40]!r}: what stands before "
                "the answer there would be learnt, and it is the prompt's in sampling; have the template write it "
                "with add_generation_prompt, and mark what follows it alone"
            )
        return tokens_in(text)

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
        for number, message in enumerate(conversation.messages):
            if found := self._steering.search(message["content"]):
                raise DataError(
                    f"{conversation.where}: message {number}: the text {found[0]!r} is a token of the tokenizer that "
                    "steers conversations, and would be one in the middle of this turn; take it out, as from the end "
                    "of sampled answers, or write it differently"
                )
        text, spans = self._marked_spans(conversation) if self._marked else self._found_spans(conversation)
        turns = [i for i, m in enumerate(conversation.messages) if m["role"] == "assistant"]
        answers = [conversation.messages[i]["content"] for i in turns]
        if len(spans) != len(answers):
            raise self._fault(conversation, f"marks {len(spans)} of the {len(answers)} turns of the assistant")
        pieces, place = list[Piece](), 0
        for turn, (start, stop), answer in zip(turns, spans, answers, strict=True):
            if answer.strip() not in text[start:stop]:
                lost = " the reasoning before </think> among it," if "</think>" in answer else ""
                raise self._fault(
                    conversation,
                    f"does not repeat a turn of the assistant word for word: what is left out,{lost} would never be "
                    "learnt; set chat_template to one that keeps it, such as those in configs/chat_templates",
                )
            stop = start + self._turn_length(text[start:stop])
            pieces += [Piece(text[place:start], False), Piece(text[start:stop], turn not in conversation.not_learnt)]
            place = stop
        return [p for p in [*pieces, Piece(text[place:], False)] if p.text]

    def _marked_spans(self, conversation: Conversation) -> tuple[str, list[tuple[int, int]]]:
        from transformers.utils.chat_template_utils import render_jinja_template

        special: Mapping[str, str] = self.tokenizer.special_tokens_map
        options: dict[str, Any] = {
            "conversations": [[dict(m) for m in conversation.messages]],
            "chat_template": self.template,
            "return_assistant_tokens_mask": True,
        }
        render: Any = render_jinja_template  # its own types say that each option is everything
        try:
            rendered = render(**options, **special)
        except Exception as error:  # whatever the template or the library raises
            raise self._fault(conversation, f"refuses it: {error}") from error
        texts, marked = rendered
        return texts[0], [(int(start), int(stop)) for start, stop in marked[0]]

    def _found_spans(self, conversation: Conversation) -> tuple[str, list[tuple[int, int]]]:
        messages = conversation.messages
        spans: list[tuple[int, int]] = []
        renderings: list[str] = []
        for i, message in enumerate(messages):
            if message["role"] == "assistant":
                before = self._render(conversation, messages[:i], prompt=True)
                through = self._render(conversation, messages[: i + 1], prompt=False)
                renderings += [before, through]
                spans.append((len(before), len(through)))
        whole = self._render(conversation, messages, prompt=False)
        for shorter, longer in zip(renderings, [*renderings[1:], whole], strict=True):
            if not longer.startswith(shorter):
                raise self._fault(
                    conversation,
                    "does not write the beginning of a conversation as it writes the whole, so that the assistant's "
                    "turns cannot be told apart; mark them with {% generation %} in a template of your own, or set "
                    "chat_template to one of configs/chat_templates",
                )
        return whole, spans

    def _render(self, conversation: Conversation, messages: Sequence[Message], *, prompt: bool) -> str:
        if not messages:  # a conversation that the assistant opens
            raise self._fault(conversation, "has nothing to begin with: the first turn is the assistant's")
        try:
            return self.tokenizer.apply_chat_template(
                [dict(m) for m in messages],
                chat_template=self.template,
                tokenize=False,
                add_generation_prompt=prompt,
            )
        except Exception as error:
            raise self._fault(conversation, f"refuses it: {error}") from error

    def _turn_length(self, turn: str) -> int:
        """Without the white space that a template writes after the token that ends a turn."""
        bare = turn.rstrip()
        return len(bare) if bare.endswith(tuple(self._special)) else len(turn)

    def _join(self, conversation: Conversation, pieces: Sequence[Piece], encoded: Any) -> Tokens:
        ids: list[int] = []
        spans: list[tuple[int, int]] = []
        for piece in pieces:
            of_piece: list[int] = next(encoded)
            if piece.learnt:
                spans.append((len(ids), len(ids) + len(of_piece)))
                if of_piece[-1] not in self._ends:
                    last = self.tokenizer.convert_ids_to_tokens(of_piece[-1])
                    ends = ", ".join(map(str, self.tokenizer.convert_ids_to_tokens(sorted(self._ends))))
                    raise self._fault(
                        conversation,
                        f"ends the assistant's turn with {last!r}, at which sampling does not end ({ends} would): "
                        "the model would not learn to stop; set chat_template to one that ends it with eos_token",
                    )
            ids += of_piece
        if not spans or spans[0][0] == 0:
            raise self._fault(conversation, "begins with the assistant's turn: nothing predicts its first token")
        return Tokens(tuple(ids), tuple(spans))

    def _fault(self, conversation: Conversation, what: str) -> DataError:
        return DataError(f"{conversation.where}: {self._source} {what}")


def _template(tokenizer: Any, file: Path | None) -> str:
    if file is None:
        if not isinstance(tokenizer.chat_template, str):
            raise DataError(
                "the tokenizer has no chat template, or several: set chat_template to a Jinja file, such as those in "
                "configs/chat_templates"
            )
        return tokenizer.chat_template
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"chat_template: cannot read {file}: {error}") from error
