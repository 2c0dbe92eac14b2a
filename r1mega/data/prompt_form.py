"""How a stage puts its questions: [prompt] of its config as one chat template, which the trained model goes out with.

The system turn, as a default, and the prefill are written into that template. A prompt is what transformers makes of
it for one user turn, tokenised once, with the special tokens that the template writes and no others: so whoever asks
the exported model through `apply_chat_template(..., add_generation_prompt=True)` sends the tokens it was trained on.

Where a template writes the beginning of an answer itself, as DeepSeek-R1's does with `<think>`, that text is judged
together with the answer, like a prefill. It is a `<think>`, open or closed at once, at the prompt's very end; or one
at the place where the assistant's words begin in a finished conversation, with what is written behind it.
"""

import logging
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from r1mega.data.chat import text_of
from r1mega.data.few_shot import Shot
from r1mega.data.settings import PromptSettings
from r1mega.data.special_tokens import begin, ends, special_tokens
from r1mega.data.template import TEMPLATES, THINK_CLOSE, THINK_OPEN
from r1mega.data.turns import Message
from r1mega.errors import DataError

log = logging.getLogger(__name__)

QUESTION, SYSTEM, ANSWER = "Question0word", "System0word", "Answer0word"
"""Words of no other meaning, by which is seen where a template writes what."""
CONTROL_TOKEN = re.compile(r"<\|[a-z_]+\|>")
THOUGHT_AT_END = re.compile(rf"{THINK_OPEN}\s*(?:{THINK_CLOSE}\s*)?\Z")
ROLES = ("bos_token", "eos_token", "pad_token", "unk_token")

Render = Callable[[str, Sequence[Sequence[Message]], bool], list[str]]
"""Template, conversations and whether the assistant is to go on -> a text each."""


class PromptForm:
    """One way of asking a model: (settings, tokenizer) -> prompts and the chat template that makes them."""

    def __init__(self, settings: PromptSettings, tokenizer: Any, shots: Sequence[Shot] = ()) -> None:
        """
        Args:
            shots: examples that stand before every question; the chat template is without them.

        Raises:
            DataError: a template that is none, is another tokenizer's, or does not write the question or the system
                turn, each once and as it is; a prefill or system turn that holds tokens which it may not.
        """
        self.tokenizer = tokenizer
        self.name = settings.file.name if settings.file else str(settings.template)
        """For messages."""
        self._source = _source(settings)
        own = _template_text(settings, tokenizer)
        self.chat_template = _with(own, settings)
        """Jinja, with the system turn as its default and the prefill."""
        special: Mapping[str, Any] = tokenizer.special_tokens_map
        render = _renderer(special, self._source)
        text, opened = _look(own, self.chat_template, settings, render, self._source)
        self.prefill = opened + settings.prefill
        """The beginning of the answer: what the template writes of it, and what the settings add."""
        self._render, self._shown = render, [turn for shot in shots for turn in shot.turns]
        before, _, self._after = text.partition(QUESTION)
        self._before = self._before_with(shots) if shots else before
        self._refuse_tokens(settings)
        self._warn(own, settings)

    def write(self, question: str) -> str:
        """The prompt of a question, as it is where the template leaves the question's words alone."""
        return f"{self._before}{question}{self._after}"

    def render(self, questions: Sequence[str]) -> list[str]:
        """The prompts of questions, as the template writes them. Raises DataError where it refuses one."""
        turns = [[*self._shown, {"role": "user", "content": question}] for question in questions]
        return self._render(self.chat_template, turns, True)

    def fault_of(self, question: str, rendered: str) -> str | None:
        """What is wrong with the prompt of a question; None: it is the question's words, and what is around them."""
        if any(rendered == self.write(words) for words in _trimmed(question)):
            return None
        return (
            f"{self._source} does not write it word for word, or something else around it than around other "
            "questions; use a template that does not look into what is asked"
        )

    def _before_with(self, shots: Sequence[Shot]) -> str:
        """What stands before a question where examples do. Raises DataError where one of them is not written as it
        is, or what stands behind the question is another than without them."""
        special = special_tokens(self.tokenizer)
        for shot in shots:
            if found := sorted(token for token in special if token in shot.question + shot.response):
                raise DataError(f"{shot.where}: contains the special token {found[0]}: take it out")
        (shown,) = self.render([QUESTION])
        before, found, after = shown.partition(QUESTION)
        at = 0
        for shot in shots:
            for said in (shot.question, shot.response):
                place = before.find(said.strip(), at)
                if place < 0:
                    raise DataError(
                        f"{shot.where}: {self._source} does not write the example word for word where it stands "
                        f"before a question: {said.strip()[:60]!r} is missing; many templates leave the thinking of "
                        "earlier turns out: take a Jinja file that keeps it"
                    )
                at = place + len(said.strip())
        if not found or after != self._after:
            raise DataError(
                f"{self._source} writes a question that stands behind examples in another way than one by itself; "
                "take a Jinja file that does not look at what stands before"
            )
        return before

    def _refuse_tokens(self, settings: PromptSettings) -> None:
        special = special_tokens(self.tokenizer)
        missing = set(CONTROL_TOKEN.findall(self.write(""))) - special
        if missing and settings.named:
            raise DataError(f"template {self.name} needs the special tokens {sorted(missing)} in the tokenizer")
        if missing and settings.file is not None:
            log.warning(
                "%s writes %s, which the tokenizer has not: plain text to the model", self._source, sorted(missing)
            )
        if found := sorted(token for token in special if token in settings.system):
            raise DataError(f"prompt.system: contains the special token {found[0]}: take it out")
        stops = self.tokenizer.convert_ids_to_tokens(list(ends(self.tokenizer)))
        if found := [token for token in stops if token in settings.prefill]:
            raise DataError(f"prompt.prefill: contains {found[0]}, at which sampling ends: take it out")

    def _warn(self, own: str, settings: PromptSettings) -> None:
        """Say what is no fault and may be a mistake."""
        if settings.named:
            return
        put = self.tokenizer("")["input_ids"]
        written = self.tokenizer(self.write(QUESTION), add_special_tokens=False)["input_ids"]
        if put and put[0] == self.tokenizer.bos_token_id and written[0] != put[0]:
            log.warning(
                "%s does not begin with %s, with which the tokenizer begins a text: prompts begin without it",
                self._source, self.tokenizer.bos_token,
            )  # fmt: skip
        if "strftime_now" in own:
            log.warning(
                "%s writes the day: prompts are other tokens tomorrow, and a run resumes on the same day alone; a "
                "Jinja file with a day of its own does not change",
                self._source,
            )


def look_at(settings: PromptSettings) -> None:
    """As much of `PromptForm` as is known without the tokenizer.

    Raises:
        DataError: the Jinja file is none, or drops the question or the system turn.
    """
    if settings.file is None:
        return
    own = text_of(None, settings.file, "prompt.template")
    try:
        source = _source(settings)
        _look(own, _with(own, settings), settings, _renderer(dict.fromkeys(ROLES, ""), source), source)
    except Refusal:  # perhaps for want of the tokenizer
        return


class Refusal(DataError):
    """The template raises an error of its own, such as that it takes no system turn."""


def _source(settings: PromptSettings) -> str:
    if settings.file is not None:
        return f"prompt.template: {settings.file}"
    if settings.template == "chat":
        return "prompt.template: the tokenizer's chat template"
    return f"prompt.template: {settings.template}"


def _template_text(settings: PromptSettings, tokenizer: Any) -> str:
    """The template's text, without what the settings add to it."""
    if not settings.named:
        return text_of(tokenizer, settings.file, "prompt.template")
    put = "".join(tokenizer.convert_ids_to_tokens(begin(tokenizer)))
    return TEMPLATES[str(settings.template)].chat_template_behind(_literal(put) if put else "")


def _with(own: str, settings: PromptSettings) -> str:
    """A template with the settings' system turn as its default, and their prefill.

    What is put around leaves its white space as it is: Jinja drops the line's end behind a block (so one is written),
    the spaces before one (so "+"), and a text's last line's end.
    """
    text = own
    if settings.system:
        turn = f"[{{'role': 'system', 'content': {_quoted(settings.system)}}}]"
        text = (
            "{% if not messages or messages[0]['role'] != 'system' %}"
            f"{{% set messages = {turn} + messages %}}{{% endif %}}\n{text}"
        )
    if settings.prefill:
        text = re.sub(r"(?:\r\n|\r|\n)\Z", "", text)
        text += f"{{%+ if add_generation_prompt %}}{_literal(settings.prefill)}{{% endif %}}"
    return text


def _literal(text: str) -> str:
    return "{{ " + _quoted(text) + " }}"


def _quoted(text: str) -> str:
    """A string of Jinja's, which reads Python's escapes."""
    return '"' + text.encode("unicode_escape").decode("ascii").replace('"', r"\"") + '"'


def _renderer(special: Mapping[str, Any], source: str) -> Render:
    def render(template: str, conversations: Sequence[Sequence[Message]], prompt: bool) -> list[str]:
        from jinja2 import TemplateSyntaxError
        from transformers.utils.chat_template_utils import render_jinja_template

        given: Any = [[dict(message) for message in turns] for turns in conversations]
        make: Any = render_jinja_template  # its own types say that each option is everything
        try:
            texts, _ = make(conversations=given, chat_template=template, add_generation_prompt=prompt, **special)
        except TemplateSyntaxError as error:
            raise DataError(f"{source}, line {error.lineno}: not a template: {error}") from error
        except Exception as error:  # whatever the template or the library raises
            raise Refusal(f"{source} refuses what it is given: {type(error).__name__}: {error}") from error
        return texts

    return render


def _look(own: str, whole: str, settings: PromptSettings, render: Render, source: str) -> tuple[str, str]:
    """The prompt of QUESTION, and what of it `own`, the template without what is added, writes of the answer.

    Raises DataError on what it does not write as it should.
    """
    user: Message = {"role": "user", "content": QUESTION}
    (plain,) = render(own, [[user]], True)
    _refuse_unless_once(plain, QUESTION, f"{source} does not write the question", source)
    turns = [user]
    if settings.system:
        turns = [{"role": "system", "content": settings.system}, user]
        try:
            (marked,) = render(own, [[{"role": "system", "content": SYSTEM}, user]], True)
            (plain,) = render(own, [turns], True)
        except Refusal as error:
            raise Refusal(
                f"prompt.system: {error}; leave it out, or take a template that has a place for it"
            ) from error
        without = f"prompt.system: {source.partition(': ')[2]} does not write the system turn; leave it out"
        _refuse_unless_once(marked, SYSTEM, without, source)
        if plain not in [marked.replace(SYSTEM, words) for words in _trimmed(settings.system)]:
            raise DataError(f"prompt.system: {source.partition(': ')[2]} does not write it word for word")
    opened = _opened(own, turns, plain, render)
    if THINK_OPEN in opened and THINK_OPEN in settings.prefill:
        raise DataError(
            f"prompt.prefill: {source.partition(': ')[2]} begins every answer with {opened!r} itself: leave "
            f"{THINK_OPEN} out here"
        )
    (text,) = render(whole, [[user]], True)
    if text != plain + settings.prefill:
        raise DataError(
            f"{source} writes something else where the system turn or the prefill is its own default: "
            f"{text[-200:]!r}, and not {(plain + settings.prefill)[-200:]!r}; write them into a Jinja file"
        )
    return text, opened


def _refuse_unless_once(text: str, words: str, without: str, source: str) -> None:
    if not (times := text.count(words)):
        raise DataError(without)
    if times > 1:
        what = "question" if words == QUESTION else "system turn"
        raise DataError(f"{source} writes the {what} {times} times: it must stand there once")


def _opened(own: str, turns: Sequence[Message], prompt: str, render: Render) -> str:
    """What the generation prompt writes of the answer itself; see the head of this file."""
    try:
        (finished,) = render(own, [[*turns, {"role": "assistant", "content": ANSWER}]], False)
    except Refusal:
        finished = ""
    header, found, _ = finished.partition(ANSWER)
    behind = prompt.removeprefix(header) if found else prompt
    if behind != prompt and behind.lstrip().startswith(THINK_OPEN):
        return behind
    at_end = THOUGHT_AT_END.search(prompt)
    return at_end[0] if at_end else ""


def _trimmed(words: str) -> tuple[str, ...]:
    """As they are, and as templates trim them."""
    return words, words.strip(), words.lstrip(), words.rstrip()
