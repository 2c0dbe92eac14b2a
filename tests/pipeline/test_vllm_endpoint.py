"""An endpoint against the fleet, at one real vLLM server: the same greedy answers, of texts and of tokens."""

from pathlib import Path
from typing import Any

import pytest
from tiny_model import weight_version

from r1mega.buffers import Int32s
from r1mega.data.tokenizer import load_tokenizer
from r1mega.endpoint.client import Client
from r1mega.endpoint.settings import Endpoint
from r1mega.rollout.engine import Request, SamplingParams
from r1mega.rollout.fleet import Fleet
from r1mega.rollout.remote import OneByOne, RemoteEngine
from r1mega.runtime.interrupt import Interrupt
from r1mega.samples import FinishReason, Prompt

pytestmark = pytest.mark.vllm

TEXTS = [f"What is {i} + {i * i}? <think>" for i in range(12)]
GREEDY = SamplingParams(temperature=0.0, max_new_tokens=12)


def test_greedy_answers_are_the_fleets(server: Any, model_dir: Path):
    """Letter by letter, but for bytes that are no characters, which two decoders write in their own ways."""
    encode = load_tokenizer(model_dir)
    prompts = [
        Prompt(str(i), "math", text, "0", Int32s(encode(text, add_special_tokens=False)["input_ids"]), sent=text)
        for i, text in enumerate(TEXTS)
    ]
    requests = [Request(prompt, 2, seed=100 * i) for i, prompt in enumerate(prompts)]
    ours = Fleet([server]).generate(requests, GREEDY, version=int(weight_version(server)))
    settings = Endpoint(url=f"{server.url}/v1", model="policy", extra={"skip_special_tokens": False}, concurrency=4)
    client = Client(settings)
    theirs = OneByOne(RemoteEngine(client, "completions", Interrupt())).generate(requests, GREEDY, version=0)
    pairs = [pair for a, b in zip(ours, theirs, strict=True) for pair in zip(a, b, strict=True)]
    assert len(pairs) == 24 and [letters(a.text) for a, _ in pairs] == [letters(b.text) for _, b in pairs]
    assert len({letters(a.text) for a, _ in pairs}) > 4  # they tell prompts apart
    for a, b in pairs:
        assert (a.prompt_id, a.index, a.finish_reason, a.seed) == (b.prompt_id, b.index, b.finish_reason, b.seed)
        assert b.num_tokens == a.num_tokens and (b.finish_reason is FinishReason.LENGTH) == b.truncated
    assert client.counts.sent == client.counts.answered == 24 and not client.counts.retried
    assert client.counts.input_tokens == 2 * sum(len(prompt.token_ids) for prompt in prompts)


def letters(text: str) -> str:
    return text.replace("\ufffd", "")
