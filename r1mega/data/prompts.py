"""Prompts of RL: questions in their template, tokenised, and an endless, resumable stream of them."""

import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from r1mega.buffers import Int32s
from r1mega.data.prompt_form import PromptForm
from r1mega.data.question import Question, question_id
from r1mega.data.special_tokens import special_tokens
from r1mega.errors import DataError, listed
from r1mega.samples import Prompt


def prompts(
    asked: Sequence[Question],
    form: PromptForm,
    where: Callable[[str], str] = "question {}".format,
) -> list[Prompt]:
    """Each question as the form puts it, tokenised once, with the special tokens that stand in it and no others.

    Args:
        where: a question stands, by its id, for messages.

    Raises DataError where the template does not write a question as it is, or questions spell a special token, which
    would be read as the end of the user's turn: lists all of them.
    """
    tokenizer = form.tokenizer
    special = special_tokens(tokenizer)
    faults = [
        f"{where(question.id)}: contains the special token {found[0]}: take it out"
        for question in asked
        if (found := sorted(token for token in special if token in question.text))
    ]
    if faults:
        raise DataError(faults[0] if len(faults) == 1 else listed(f"{len(faults)} questions are wrong", faults))
    if not asked:
        return []
    texts = form.render([question.text for question in asked])
    for question, text in zip(asked, texts, strict=True):
        if fault := form.fault_of(question.text, text):
            raise DataError(f"{where(question.id)}: {fault}")
    frame, *encoded = tokenizer([form.write(""), *texts], add_special_tokens=False)["input_ids"]
    special_ids = frozenset(tokenizer.convert_tokens_to_ids(sorted(special)))
    of_frame = [i for i in frame if i in special_ids]
    for question, ids in zip(asked, encoded, strict=True):
        if (found := [i for i in ids if i in special_ids]) != of_frame:  # by a spelling that a normalizer makes one
            more = tokenizer.convert_ids_to_tokens(next(i for i in found if found.count(i) > of_frame.count(i)))
            raise DataError(f"{where(question.id)}: is read as holding the special token {more}: take it out")
    return [prompt_of(q, Int32s(ids), form.prefill) for q, ids in zip(asked, encoded, strict=True)]


def prompt_of(question: Question, token_ids: Int32s, prefill: str) -> Prompt:
    """A question as the engine sees it; `token_ids` [P] int32 are empty where its tokenizer is not known."""
    return Prompt(
        question.id, question.verifier, question.text, question.truth, token_ids, prefill, question.entry,
        question.domain, target_language=question.target_language, source=question.source,
    )  # fmt: skip


class PromptStream:
    """Prompts in a shuffled order, again and again; no prompt comes twice in one `take`.

    Each epoch has its own order, a function of seed and epoch alone, except that prompts which the same `take`
    already drew from the epoch before go to its end: answers are keyed by prompt.
    """

    def __init__(self, prompts: Sequence[Prompt], seed: int) -> None:
        """Raises DataError on no prompts or on two with the same id."""
        self._prompts = {prompt.id: prompt for prompt in prompts}
        if not prompts or len(self._prompts) < len(prompts):
            raise DataError("no prompts to draw from" if not prompts else "two prompts have the same id")
        self._seed, self._epoch, self._position = seed, 0, 0
        self._late: list[str] = []
        self._left_out: set[str] = set()
        self._order = self._shuffled()

    @property
    def epoch(self) -> float:
        """Passes over the prompts so far, with the fraction of the current one."""
        return self._epoch + self._position / len(self._order)

    def take(self, n: int, step: int = 0) -> list[Prompt]:
        """The next `n` prompts, at whatever step of a run. Raises DataError when there are fewer than `n` in all."""
        if n > (left := len(self._order) - len(self._left_out)):
            out = f", {len(self._left_out)} having been left out" if self._left_out else ""
            raise DataError(f"{n} prompts a step asked for, but there are only {left} different ones{out}")
        drawn: list[str] = []
        while len(drawn) < n:
            if self._position == len(self._order):
                self._epoch, self._position, self._late = self._epoch + 1, 0, drawn.copy()
                self._order = self._shuffled()
            of = self._order[self._position]
            self._position += 1
            if of not in self._left_out:
                drawn.append(of)
        return [self._prompts[id] for id in drawn]

    def leave_out(self, ids: Iterable[str]) -> None:
        """Draw these prompts no more; the others' orders stay as they are. Not part of `state`."""
        self._left_out |= set(ids) & self._prompts.keys()

    def state(self) -> dict[str, Any]:
        """What `restore` needs to go on with the very next prompt; plain JSON."""
        return {
            "seed": self._seed,
            "epoch": self._epoch,
            "position": self._position,
            "late": list(self._late),
            "prompts": self._fingerprint(),
            "tokens": self._tokens(),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on where `state` was taken. Raises DataError when it belongs to other prompts."""
        if state.get("prompts") != self._fingerprint():
            raise DataError("the saved position belongs to other prompts: questions, seed or number have changed")
        if state.get("tokens", self._tokens()) != self._tokens():  # an older version did not say
            raise DataError("the saved position belongs to other prompts: template or tokenizer have changed")
        self._seed, self._epoch, self._position = state["seed"], state["epoch"], state["position"]
        self._late = list(state["late"])
        self._order = self._shuffled()

    def _shuffled(self) -> list[str]:
        order = sorted(self._prompts)
        random.Random(f"{self._seed}/{self._epoch}").shuffle(order)
        late = set(self._late)
        return [id for id in order if id not in late] + [id for id in order if id in late]

    def _tokens(self) -> str:
        return question_id(
            "tokens", "\n".join(str(tuple(self._prompts[id].token_ids)) for id in sorted(self._prompts))
        )

    def _fingerprint(self) -> str:
        return question_id("prompts", "\n".join(sorted(self._prompts)))
