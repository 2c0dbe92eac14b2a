"""The client of one or more vLLM servers: tokens in, tokens and logprobs out, over /v1/completions.

A request is one prompt with n answers; the server draws answer i with seed + i. All servers hold the same
weights, so which one answers does not matter; each gets enough requests to stay busy and no more.
"""

import asyncio
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import httpx
from tokenizers import Tokenizer

from r1mega.errors import RolloutError
from r1mega.rollout.engine import Request
from r1mega.rollout.server import Server
from r1mega.samples import Completion, FinishReason

_BACKLOG = 2
"""Sequences sent to a server per sequence that it can run: the next ones must already wait there."""


@dataclass(frozen=True)
class _Job:
    """What all requests of one `generate` share."""

    temperature: float
    max_new_tokens: int
    version: int


class Fleet:
    """An `Engine` over vLLM servers."""

    def __init__(self, servers: Sequence[Server]) -> None:
        """Servers of one model, ready (`Server.wait_ready`) by the first `generate`."""
        self._servers = tuple(servers)
        self._vocab_size = min(server.vocab_size for server in self._servers)
        # Text is decoded here, from the ids that came: vLLM's incremental decoding starts in the prompt and, where
        # that ends within a character, returns a part of the prompt as the answer's.
        self._tokenizer = Tokenizer.from_file(str(self._servers[0].model_dir / "tokenizer.json"))

    def generate(
        self,
        requests: Sequence[Request],
        *,
        temperature: float,
        max_new_tokens: int,
        version: int,
        on_done: Callable[[int], None] | None = None,
    ) -> list[tuple[Completion, ...]]:
        """See `Engine.generate`."""
        job = _Job(temperature, max_new_tokens, version)
        return asyncio.run(self._generate(requests, job, on_done or (lambda _: None)))

    async def _generate(
        self, requests: Sequence[Request], job: _Job, on_done: Callable[[int], None]
    ) -> list[tuple[Completion, ...]]:
        answers: dict[int, tuple[Completion, ...]] = {}
        todo = iter(enumerate(requests))

        async def work(server: Server, http: httpx.AsyncClient) -> None:
            for index, request in todo:  # shared by all workers: each takes the next one
                answers[index] = await self._answer(server, http, request, job)
                on_done(len(answers))

        async def serve(server: Server) -> None:
            most = max((request.n for request in requests), default=1)
            width = min(math.ceil(_BACKLOG * server.layout.max_num_seqs / most), len(requests))
            limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
            timeout = httpx.Timeout(server.layout.request_timeout_s, connect=10.0)
            async with httpx.AsyncClient(
                base_url=server.url, timeout=timeout, limits=limits, trust_env=False
            ) as http:
                await self._check_version(server, http, job.version)
                await _together(work(server, http) for _ in range(width))

        await _together(serve(server) for server in self._servers)
        return [answers[i] for i in range(len(requests))]

    async def _check_version(self, server: Server, http: httpx.AsyncClient, version: int) -> None:
        """The weights asked for must be the ones the server has."""
        found = (await _call(server, http, "GET", "/weight_info", None, "its weight version")).get("weight_version")
        if found != str(version):
            raise RolloutError(
                f"asked {server.url} to sample from version {version} of the weights, but it has {found!r}: "
                f"push them first (weights.push). Its log: {server.log_file}"
            )

    async def _answer(
        self, server: Server, http: httpx.AsyncClient, request: Request, job: _Job
    ) -> tuple[Completion, ...]:
        """One request's answers, checked."""
        prompt = request.prompt
        body = {
            "model": "policy",
            "prompt": list(prompt.token_ids),
            "n": _num_draws(request, job),
            "seed": request.seed,
            "temperature": job.temperature,
            "max_tokens": job.max_new_tokens,
            "logprobs": 0,  # of the sampled token alone
            "return_token_ids": True,
            "return_tokens_as_token_ids": True,
            # What a model's generation_config.json may set otherwise, and would change the distribution:
            "top_p": 1.0,
            "top_k": 0,
            "min_p": 0.0,
            "repetition_penalty": 1.0,
        }
        asked = (
            f"{request.n} answers of at most {job.max_new_tokens} tokens to prompt {prompt.id!r} "
            f"({len(prompt.token_ids)} tokens), temperature {job.temperature}, seed {request.seed}"
        )
        answer = await _call(server, http, "POST", "/v1/completions", body, asked)
        try:
            return self._completions(answer, request, job)
        except (ValueError, KeyError, TypeError) as error:
            what = f"{type(error).__name__}: {error}"
            raise RolloutError(
                f"asked {server.url} for {asked}; its answer cannot be used: {what}. Its log: {server.log_file}"
            ) from error

    def _completions(self, answer: dict[str, Any], request: Request, job: _Job) -> tuple[Completion, ...]:
        """The answers of a response body; ValueError, KeyError or TypeError where it is not what was asked."""
        choices = sorted(answer["choices"], key=lambda choice: choice["index"])
        indices = [choice["index"] for choice in choices]
        if indices != list(range(_num_draws(request, job))):
            raise ValueError(f"answers {indices} came")
        drawn = [choices[i % len(choices)] for i in range(request.n)]
        return tuple(self._completion(i, choice, request, job) for i, choice in enumerate(drawn))

    def _completion(self, index: int, choice: dict[str, Any], request: Request, job: _Job) -> Completion:
        ids, logp = choice["token_ids"], choice["logprobs"]["token_logprobs"]
        finish = FinishReason(choice["finish_reason"])
        limit = job.max_new_tokens
        if len(ids) != len(logp):
            raise ValueError(f"answer {index} has {len(ids)} tokens and {len(logp)} logprobs")
        if not 1 <= len(ids) <= limit:
            raise ValueError(f"answer {index} has {len(ids)} tokens")
        if finish is FinishReason.LENGTH and len(ids) < limit:
            raise ValueError(
                f"answer {index} was cut at {len(ids)} tokens: prompt and answer must fit max_model_len, and "
                "generation_config.json must not set a smaller max_new_tokens"
            )
        if bad := [i for i in ids if not 0 <= i < self._vocab_size]:
            raise ValueError(f"answer {index} has token ids outside 0..{self._vocab_size - 1}: {bad[:5]}")
        if bad := [x for x in logp if not (math.isfinite(x) and -9999.0 < x <= 0.0)]:
            raise ValueError(f"answer {index} has logprobs that are none: {bad[:5]}")
        return Completion(
            prompt_id=request.prompt.id,
            index=index,
            token_ids=tuple(ids),
            logp=tuple(logp),
            # Special tokens are kept: the answer's tags may be such. The stop token is no part of the text.
            text=self._tokenizer.decode(ids[:-1] if finish is FinishReason.STOP else ids, skip_special_tokens=False),
            finish_reason=finish,
            weight_version=job.version,
            seed=request.seed + index,
        )


def _num_draws(request: Request, job: _Job) -> int:
    """How many answers to ask for: greedy ones are all equal, and vLLM refuses n > 1 of them."""
    return request.n if job.temperature > 0 else 1


async def _call(
    server: Server, http: httpx.AsyncClient, verb: str, route: str, body: Any, asked: str
) -> dict[str, Any]:
    """A JSON answer, or a RolloutError that says what was asked of whom."""
    try:
        response = await http.request(verb, route, json=body)
    except httpx.HTTPError as error:
        state = "it still runs" if server.alive() else "its process has ended"
        late = f" within {server.layout.request_timeout_s:g} s (rollout.request_timeout_s)"
        what = f"no answer{late if isinstance(error, httpx.TimeoutException) else ''} ({type(error).__name__})"
        raise RolloutError(f"asked {server.url} for {asked}: {what}; {state}. Its log: {server.log_file}") from error
    if response.status_code != httpx.codes.OK:
        raise RolloutError(
            f"asked {server.url} for {asked}: it answered {response.status_code} {response.text[:500]}. "
            f"Its log: {server.log_file}"
        )
    return response.json()


async def _together(coroutines: Any) -> None:
    """Run all to their end; the first error cancels the others and is raised as it is."""
    tasks = [asyncio.create_task(coroutine) for coroutine in coroutines]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
