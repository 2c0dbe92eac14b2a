"""Our own servers asked as a judge is: a future for each question, over an engine that takes many at once.

    with FleetAsker(served, load_tokenizer(folder), max_model_len=8192, cache=cache, judge=digest) as asker:
        said = asker.ask([{"role": "user", "content": "1 + 1 ="}], seed=7, temperature=0.7, max_tokens=64)

Who waits for whom: `ask` puts a question into a queue, from any thread. One thread takes all that wait and are drawn
alike, and has the engine answer them; the futures come as its answers do, in that thread. What is asked meanwhile
waits for the next wave.

The conversation is put in the model's own chat template here, since the engine takes tokens. Letters that spell a
special token stay letters, so that no answer that is judged can end the turn in which it is shown.
"""

import logging
import queue
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

from r1mega.buffers import Int32s
from r1mega.data.preference_text import asked
from r1mega.endpoint.cache import ReplyCache, key_of
from r1mega.endpoint.replies import CUT
from r1mega.errors import DataError, EndpointError
from r1mega.rollout.engine import Engine, Request, SamplingParams
from r1mega.samples import Completion, Prompt

log = logging.getLogger(__name__)

CLOSE_S = 30.0
ENDING = "is not asked any more: the run is ending"


@dataclass(frozen=True)
class _Question:
    key: str
    request: Request
    params: SamplingParams
    said: "Future[str]" = field(default_factory=Future)


class FleetAsker:
    """An `Asker` (`rewards.asker`) of the model that an engine serves at version 0 of its weights."""

    def __init__(
        self,
        engine: Engine,
        tokenizer: Any,
        *,
        max_model_len: int,
        cache: ReplyCache | None = None,
        judge: str = "",
        name: str = "judge",
    ) -> None:
        """Nothing is asked yet.

        Args:
            tokenizer: the model's, with its chat template. One that has no place for a system turn has what stands in
                it at the beginning of the user's.
            max_model_len: of question and answer, tokens, as the engine was started.
            cache: of what was said before; None: one in memory.
            judge: who answers, for the cache: what is known by content of the model's folder.
            name: what it is called, for people.

        Raises:
            DataError: the tokenizer has no chat template, or one that does not write a user's turn.
        """
        self._engine, self._tokenizer, self._max_model_len, self._judge = engine, tokenizer, max_model_len, judge
        self._name = name
        self.cache = cache if cache is not None else ReplyCache()
        self.asked = self.cached = self.cut = self.tokens = 0
        """Questions so far; those answered out of the cache or by another's answer; answers cut at max_tokens; tokens
        of what was asked and answered."""
        self._figured: dict[str, int] = {}
        self._waiting: queue.SimpleQueue[_Question | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._under_way: dict[str, _Question] = {}
        self._thread: threading.Thread | None = None
        self._closed = False
        asked(tokenizer, [{"role": "user", "content": "a"}])
        self._takes_system = self._writes([{"role": "system", "content": "a"}, {"role": "user", "content": "b"}])

    def _writes(self, turns: Sequence[Mapping[str, str]]) -> bool:
        try:
            asked(self._tokenizer, [dict(turn) for turn in turns])
        except DataError:
            return False
        return True

    def ask(
        self, messages: Sequence[Mapping[str, str]], *, seed: int, temperature: float, max_tokens: int
    ) -> Future[str]:
        """What the model says; one answer that is cut ends with `replies.CUT`.

        The future raises EndpointError: the question is too long, the engine fails for good, or the run is ending.
        """
        turns = [dict(turn) for turn in messages]
        if not self._takes_system and turns[0]["role"] == "system":
            told, first, *rest = turns
            turns = [{**first, "content": f"{told['content']}\n\n{first['content']}"}, *rest]
        ids = asked(self._tokenizer, turns)
        params = SamplingParams(temperature=temperature, max_new_tokens=max_tokens)
        with self._lock:
            self.asked += 1
            if self._closed:
                return _refused(f"the {self._name} {ENDING}")
            if (length := len(ids) + max_tokens) > self._max_model_len:
                return _refused(
                    f"the {self._name}'s question and max_tokens = {max_tokens} come to {length:,} tokens, and its "
                    f"engine takes {self._max_model_len:,}"
                )
            question = _Question(self._key(ids, seed, params), _request(ids, seed), params)
            if (kept := self.cache.get(question.key)) is not None:
                self.cached += 1
                question.said.set_result(kept)
                return question.said
            if (other := self._under_way.get(question.key)) is not None:
                self.cached += 1
                return other.said
            self._under_way[question.key] = question
            self._waiting.put(question)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
                self._thread.start()
            return question.said

    def _key(self, ids: Int32s, seed: int, params: SamplingParams) -> str:
        return key_of("fleet", self._judge, list(ids), seed, params.to_json())

    # ---- the thread -----------------------------------------------------------------------------------------------

    def _run(self) -> None:
        """Waves, until the end is put into the queue."""
        put_back: list[_Question] = []
        while True:
            wave, put_back, last = self._wave(put_back)
            if wave:
                self._answer(wave)
            if last and not put_back:
                return

    def _wave(self, left: list[_Question]) -> tuple[list[_Question], list[_Question], bool]:
        """All that wait and are drawn as the first, what is left of the others, and whether the end has come."""
        waiting, last = list(left), False
        while not last:
            try:
                question = self._waiting.get(block=not waiting)
            except queue.Empty:
                break
            if question is None:
                last = True
            else:
                waiting.append(question)
        wave = [question for question in waiting if question.params == waiting[0].params]
        rest = [question for question in waiting if question.params != waiting[0].params]
        if last:
            self._waiting.put(None)  # for the next look
        return wave, rest, last

    def _answer(self, wave: Sequence[_Question]) -> None:
        def take(index: int, completions: tuple[Completion, ...]) -> None:
            self._finish(wave[index], completions[0])

        try:
            if self._closed:
                raise EndpointError(f"the {self._name} {ENDING}")
            requests = [question.request for question in wave]
            self._engine.generate(requests, wave[0].params, version=0, on_answer=take)
        except BaseException as error:  # nobody may wait for ever
            lost = error if isinstance(error, EndpointError) else EndpointError(f"the {self._name}'s engine: {error}")
            for question in wave:
                self._end(question, lost)

    def _finish(self, question: _Question, completion: Completion) -> None:
        text = completion.text + (CUT if completion.truncated else "")
        self.cut += completion.truncated
        self.tokens += len(question.request.prompt.token_ids) + completion.num_tokens
        try:
            self.cache.put(question.key, text)
        except OSError as error:
            self._end(question, EndpointError(f"what the {self._name} says cannot be kept: {error}"))
            return
        with self._lock:
            self._under_way.pop(question.key, None)
        if not question.said.done():
            question.said.set_result(text)

    def _end(self, question: _Question, error: EndpointError) -> None:
        with self._lock:
            self._under_way.pop(question.key, None)
        if not question.said.done():
            question.said.set_exception(error)

    def take_figures(self) -> dict[str, int]:
        """What has become of questions since the last call."""
        now = {"asked": self.asked, "cached": self.cached, "cut": self.cut, "tokens": self.tokens}
        before, self._figured = self._figured, now
        return {name: num - before.get(name, 0) for name, num in now.items()}

    def close(self) -> None:
        """Give up what waits. What the engine is at ends with the engine, whoever ends that."""
        with self._lock:
            self._closed = True
            given_up = list(self._under_way.values())
            self._waiting.put(None)
        for question in given_up:
            self._end(question, EndpointError(f"the {self._name} {ENDING}"))
        if self._thread is not None and not given_up:
            self._thread.join(CLOSE_S)
        self.cache.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
        if self.asked:
            log.info(
                "our own %s: %d questions, %d of them answered before, %d answers cut at max_tokens",
                self._name, self.asked, self.cached, self.cut,
            )  # fmt: skip


def _request(ids: Int32s, seed: int) -> Request:
    return Request(Prompt(id=f"judge/{seed}", verifier="none", question="", truth="", token_ids=ids), n=1, seed=seed)


def _refused(why: str) -> Future[str]:
    refused: Future[str] = Future()
    refused.set_exception(EndpointError(why))
    return refused
