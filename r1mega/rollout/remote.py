"""An `Engine` over an OpenAI-compatible endpoint: texts or messages in, texts out, without tokens and logprobs.

Each answer is a request of its own, with its own seed. So its length is what the server counts for it, one that fails
takes no other with it, and servers that know no `n` will do. The server's weights are whatever it serves: it is asked
as version 0, and who answers is known by address and model alone.
"""

import asyncio
import json
import logging
from collections.abc import Sequence
from dataclasses import replace
from types import TracebackType
from typing import Any, Literal, Self

from r1mega.buffers import Float32s, Int32s
from r1mega.data.template import THINK_CLOSE, THINK_OPEN
from r1mega.endpoint.client import Client
from r1mega.endpoint.replies import Reply, Said
from r1mega.errors import EndpointError, EndpointLostError, RolloutError
from r1mega.rollout.engine import Engine, OnAnswer, Request, SamplingParams
from r1mega.runtime.interrupt import Interrupt
from r1mega.samples import Completion, FinishReason

log = logging.getLogger(__name__)

Form = Literal["chat", "completions"]


class RemoteEngine:
    """Asks a client. Its prompts have `sent`."""

    def __init__(self, client: Client, form: Form, interrupt: Interrupt) -> None:
        """
        Args:
            form: chat, where `Prompt.sent` is messages as JSON; completions, where it is a text.
            interrupt: breaks off waiting for answers.
        """
        self._client, self._form, self._interrupt = client, form, interrupt
        self.cut_early = self.filtered = 0
        """Answers that the server cut before max_new_tokens, and those that its content filter ended."""

    def generate(
        self,
        requests: Sequence[Request],
        params: SamplingParams,
        *,
        version: int,
        on_answer: OnAnswer | None = None,
    ) -> list[tuple[Completion, ...]]:
        """See `Engine.generate`; no version but 0. StopNow at a signal.

        Where the endpoint fails for good, nothing more is sent; what is under way is waited for, and handed to
        `on_answer` like all that came before.

        Raises:
            EndpointError, EndpointLostError: as `Client.ask`.
        """
        if version:
            raise RolloutError(f"an endpoint has version 0 of its weights alone, not {version}")
        with self._interrupt.at_once():
            return asyncio.run(self._generate(requests, params, on_answer or (lambda *_: None)))

    async def _generate(
        self, requests: Sequence[Request], params: SamplingParams, on_answer: OnAnswer
    ) -> list[tuple[Completion, ...]]:
        def num_draws(request: Request) -> int:
            return request.n if params.temperature > 0 else 1

        asked = [(index, i) for index, request in enumerate(requests) for i in range(num_draws(request))]
        waiting, faults = iter(asked), list[EndpointError]()
        come: list[dict[int, Completion]] = [{} for _ in requests]
        answers: dict[int, tuple[Completion, ...]] = {}

        async def work() -> None:
            for index, i in waiting:
                if faults:
                    return
                request = requests[index]
                try:
                    come[index][i] = self._completion(request, i, await self._ask(request, i, params), params)
                except EndpointError as error:
                    self._client.stop(error)
                    faults.append(error)
                    return
                if len(come[index]) == num_draws(request):
                    answers[index] = tuple(  # greedy ones are all equal
                        replace(come[index][i % len(come[index])], index=i, seed=request.seed + i)
                        for i in range(request.n)
                    )
                    come[index] = {}
                    on_answer(index, answers[index])

        async with self._client.session():
            width = min(self._client.settings.concurrency, len(asked))
            tasks = [asyncio.create_task(work()) for _ in range(width)]
            try:
                await asyncio.gather(*tasks)
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
        if faults:
            raise next((fault for fault in faults if not isinstance(fault, EndpointLostError)), faults[0])
        return [answers[index] for index in range(len(requests))]

    async def _ask(self, request: Request, i: int, params: SamplingParams) -> Reply:
        fields: dict[str, Any] = {
            "temperature": params.temperature,
            "top_p": params.top_p,
            self._client.settings.length_field: params.max_new_tokens,
        }
        if params.stop:
            fields["stop"] = list(params.stop)
        if self._client.settings.seeds:
            fields["seed"] = request.seed + i
        if self._form == "chat":
            return await self._client.chat(json.loads(request.prompt.sent), **fields)
        return await self._client.complete(request.prompt.sent, **fields)

    def _completion(self, request: Request, i: int, reply: Reply, params: SamplingParams) -> Completion:
        """Raises EndpointError where what the server leaves out is needed to judge its answer."""
        choice, tokens = reply.choices[0], reply.output_tokens
        url = self._client.settings.url
        if tokens is None:
            raise EndpointError(f"{url}: counts no tokens (no usage in its answers), and an answer's length is shown")
        finish, string = _finish(choice, params, url)
        self.filtered += choice.finish == "content_filter"
        self.cut_early += finish is FinishReason.LENGTH and tokens < params.max_new_tokens
        return Completion(
            prompt_id=request.prompt.id,
            index=i,
            token_ids=Int32s(),
            logp=Float32s(),
            text=_whole(choice) + string,
            finish_reason=finish,
            weight_version=0,
            seed=request.seed + i,
            counted=tokens,
        )

    def tell(self) -> None:
        """Log what was asked, tried again, and is odd about the answers."""
        log.info("%s: %s", self._client.settings.url, self._client.counts.told())
        if self.cut_early:
            log.warning("%d answers were cut by the server before sampling.max_new_tokens", self.cut_early)
        if self.filtered:
            log.warning("%d answers were ended by the server's content filter, and count as they are", self.filtered)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.tell()


def _whole(choice: Said) -> str:
    """The answer with its thought, which a server may have taken out, back in its tags."""
    if choice.thought is None:
        return choice.text
    closed = f"{THINK_CLOSE}{choice.text}" if choice.text or choice.finish != "length" else ""
    return f"{THINK_OPEN}{choice.thought}{closed}"


def _finish(choice: Said, params: SamplingParams, url: str) -> tuple[FinishReason, str]:
    """How an answer ended, and the stop string where it was one: servers leave it out of the text."""
    if choice.finish == "length":
        return FinishReason.LENGTH, ""
    if not params.stop:
        return FinishReason.STOP, ""
    if not choice.says_stop_reason:
        raise EndpointError(
            f"{url}: does not say which of the stop strings {list(params.stop)} ended an answer, nor whether one "
            "did: its text may or may not end with one; take sampling.stop out"
        )
    if isinstance(choice.stop_reason, str) and choice.stop_reason in params.stop:
        return FinishReason.STOP_STRING, choice.stop_reason
    return FinishReason.STOP, ""


class OneByOne:
    """An `Engine` that asks another one for every answer by itself, so that a journal below has each as it comes."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def generate(
        self,
        requests: Sequence[Request],
        params: SamplingParams,
        *,
        version: int,
        on_answer: OnAnswer | None = None,
    ) -> list[tuple[Completion, ...]]:
        """See `Engine.generate`."""
        places = [(index, i) for index, request in enumerate(requests) for i in range(request.n)]
        single = [replace(requests[index], n=1, seed=requests[index].seed + i) for index, i in places]
        come: list[dict[int, Completion]] = [{} for _ in requests]
        answers: dict[int, tuple[Completion, ...]] = {}

        def take(position: int, completions: tuple[Completion, ...]) -> None:
            index, i = places[position]
            come[index][i] = replace(completions[0], index=i)
            if len(come[index]) == requests[index].n:
                answers[index] = tuple(completion for _, completion in sorted(come[index].items()))
                come[index] = {}
                if on_answer is not None:
                    on_answer(index, answers[index])

        self._engine.generate(single, params, version=version, on_answer=take)
        return [answers[index] for index in range(len(requests))]
