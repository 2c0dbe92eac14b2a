"""/v1/completions as we use it: what is asked for, and what of its answer is taken.

Answers are asked for as a stream, of which each comes when it ends, whatever becomes of the others.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from r1mega.buffers import Float32s, Int32s
from r1mega.errors import RolloutError
from r1mega.rollout.engine import Request, SamplingParams
from r1mega.samples import Completion, FinishReason

PART_TOKENS = 256
"""Of an answer, come together: few enough messages to cost nothing, and enough to notice a server that is silent."""


@dataclass(frozen=True)
class Job:
    """What all requests of one `generate` share."""

    params: SamplingParams
    version: int
    ends: tuple[int, ...]
    """Tokens at which an answer ends (`data.special_tokens.ends`)."""


def describe(request: Request, job: Job) -> str:
    """A request, for error messages."""
    params = job.params
    return (
        f"{request.n} answers of at most {params.max_new_tokens} tokens to prompt {request.prompt.id!r} "
        f"({len(request.prompt.token_ids)} tokens), temperature {params.temperature}, seed {request.seed}"
        + (f", top_p {params.top_p}" if params.top_p < 1 else "")
        + (f", stop strings {list(params.stop)}" if params.stop else "")
    )


def body(request: Request, job: Job) -> dict[str, Any]:
    """What is sent for a request; n = 1 where it is greedy (`num_draws`)."""
    return {
        "model": "policy",
        "prompt": request.prompt.token_ids.tolist(),
        "n": request.n,
        "seed": request.seed,
        "stream": True,
        "stream_interval": PART_TOKENS,
        "temperature": job.params.temperature,
        "top_p": job.params.top_p,
        "max_tokens": job.params.max_new_tokens,
        "logprobs": 0,  # of the sampled token alone
        "return_token_ids": True,
        "return_tokens_as_token_ids": True,
        # The ends that training and its guards know, and no others: the server would take its tokenizer's and those
        # of generation_config.json, or of config.json where that file is not there.
        "ignore_eos": True,
        "stop_token_ids": list(job.ends),
        "stop": list(job.params.stop),
        # Stop strings are looked for in the text that is judged; the server's own would have no special tokens.
        "skip_special_tokens": False,
        # What a model's generation_config.json may set otherwise, and would change the distribution:
        "top_k": 0,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
    }


def num_draws(request: Request, job: Job) -> int:
    """How many answers to ask for: greedy ones are all equal, and vLLM refuses n > 1 of them."""
    return request.n if job.params.temperature > 0 else 1


class Parts:
    """Puts together what comes of a request's answers, part by part."""

    def __init__(self, n: int) -> None:
        """n: answers that were asked for."""
        self._open: dict[int, dict[str, Any]] = {
            i: {"token_ids": [], "logprobs": {"token_logprobs": []}} for i in range(n)
        }

    def add(self, event: Mapping[str, Any]) -> Iterator[tuple[int, dict[str, Any]]]:
        """Index and whole of each answer that ends with this part.

        Raises:
            ValueError, KeyError, TypeError: it is no part of what was asked.
        """
        for part in event["choices"]:
            index = part["index"]
            if index not in self._open:
                raise ValueError(f"answer {index} came, which is not awaited")
            whole = self._open[index]
            whole["token_ids"] += part["token_ids"]
            whole["logprobs"]["token_logprobs"] += part["logprobs"]["token_logprobs"]
            if part["finish_reason"] is not None:
                yield index, self._open.pop(index) | {k: part.get(k) for k in ("finish_reason", "stop_reason")}

    def end(self) -> None:
        """Raises ValueError where answers have not come."""
        if self._open:
            raise ValueError(f"answers {sorted(self._open)} did not come")


class Reader:
    """Makes completions of what a server sent, or refuses it."""

    def __init__(self, tokenizer: Tokenizer, vocab_size: int) -> None:
        # Text is decoded here, from the ids that came: vLLM's incremental decoding starts in the prompt and, where
        # that ends within a character, returns a part of the prompt as the answer's.
        self._tokenizer, self._vocab_size = tokenizer, vocab_size

    def completion(self, index: int, choice: Mapping[str, Any], request: Request, job: Job) -> Completion:
        """One answer.

        Args:
            index: among the request's.

        Raises:
            ValueError, KeyError, TypeError, OverflowError: it is not what was asked.
            RolloutError: the server does what it is told, but is set up for something else.
        """
        ids, logp = choice["token_ids"], choice["logprobs"]["token_logprobs"]
        finish, string = _finish(choice, job)
        limit = job.params.max_new_tokens
        if len(ids) != len(logp):
            raise ValueError(f"answer {index} has {len(ids)} tokens and {len(logp)} logprobs")
        if not 1 <= len(ids) <= limit:
            raise ValueError(f"answer {index} has {len(ids)} tokens")
        if finish is FinishReason.LENGTH and len(ids) < limit:
            raise RolloutError(
                f"answer {index} was cut at {len(ids)} tokens: prompt and answer must fit max_model_len, and "
                "generation_config.json must not set a smaller max_new_tokens"
            )
        token_ids = Int32s(ids)
        if outside := [i for i in (min(ids), max(ids)) if not 0 <= i < self._vocab_size]:
            raise ValueError(f"answer {index} has token ids outside 0..{self._vocab_size - 1}, such as {outside[0]}")
        if finish is FinishReason.STOP and ids[-1] not in job.ends:
            raise ValueError(f"answer {index} ended with token {ids[-1]}, which is none of the ends {job.ends}")
        logps = Float32s(logp)
        values = np.asarray(logps)
        if (bad := ~((values > -9999.0) & (values <= 0.0))).any():  # of NaN neither is true
            raise ValueError(f"answer {index} has logprobs that are none: {values[bad][:5].tolist()}")
        return Completion(
            prompt_id=request.prompt.id,
            index=index,
            token_ids=token_ids,
            logp=logps,
            text=self._text(ids[:-1] if finish is FinishReason.STOP else ids, string),  # without the end token
            finish_reason=finish,
            weight_version=job.version,
            seed=request.seed + index,
        )

    def _text(self, ids: list[int], string: str) -> str:
        """What the tokens say, up to the end of the stop string where there is one.

        Special tokens are kept: the answer's tags may be such. Where the string does not stand in the text (a
        tokenizer that strips the first space of what it decodes, and a string that begins with it), all of it counts.
        """
        text = self._tokenizer.decode(ids, skip_special_tokens=False)
        before, found, _ = text.partition(string) if string else (text, "", "")
        return before + found


def _finish(choice: Mapping[str, Any], job: Job) -> tuple[FinishReason, str]:
    """How an answer ended, and the stop string where it was one.

    The server calls that a stop as well; its reason is then the string, otherwise the end token or nothing. A string
    that the last token allowed completes is a stop, not a cut.

    Raises:
        ValueError: it ended in another way, or with a string that was not asked for.
    """
    finish, reason = FinishReason(choice["finish_reason"]), choice.get("stop_reason")
    if not isinstance(reason, str):
        return finish, ""
    if finish is not FinishReason.STOP or reason not in job.params.stop:
        raise ValueError(f"an answer ended ({finish}) with {reason!r}, which is none of {list(job.params.stop)}")
    return FinishReason.STOP_STRING, reason
