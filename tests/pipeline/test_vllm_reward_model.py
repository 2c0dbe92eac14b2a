"""A reward model behind a real vLLM server: the scores of transformers, over both routes, through the reward."""

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from tiny_model import make_tokenizer

from r1mega.buffers import Int32s
from r1mega.data.preference_text import reading
from r1mega.data.tokenizer import load_tokenizer
from r1mega.rewards.callers import connected
from r1mega.rewards.reward import Answer, Score
from r1mega.rewards.served_reward_model import ServedRewardModel
from r1mega.runtime import openmp, process
from r1mega.samples import Prompt

pytestmark = pytest.mark.vllm

TEMPLATE = (
    "{% for m in messages %}<|bos|>{{ m['role'] }}: {{ m['content'] }}<|eos|>{% endfor %}"
    "{% if add_generation_prompt %}<|bos|>assistant: {% endif %}"
)
QUESTIONS = ["What is 1 + 1?", "Say hello.", "Why is the sky blue?"]
ANSWERS = ["<think>1 + 1 = 2</think>\n\n2", "Hello", "<think>hm</think> Light is scattered, blue light most."]


def plain_tokenizer() -> Any:
    """Bytes; the marks of thinking are letters to it, as to DeepSeek's, and no special tokens."""
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    inner = json.loads(make_tokenizer().backend_tokenizer.to_str())
    inner["added_tokens"] = []
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(inner)), bos_token="<|bos|>", eos_token="<|eos|>",
        pad_token="<|pad|>",
    )  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Qwen2ForSequenceClassification of one label."""
    import torch
    from transformers import Qwen2Config, Qwen2ForSequenceClassification

    path, tokenizer = tmp_path_factory.mktemp("reward_model"), plain_tokenizer()
    tokenizer.chat_template = TEMPLATE
    torch.manual_seed(5)
    config = Qwen2Config(
        vocab_size=512, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=512, initializer_range=0.2,
        tie_word_embeddings=False, pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    config.num_labels = 1
    Qwen2ForSequenceClassification(config).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def url(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Of a server as docs/guides/judge.md starts it, on the CPU."""
    log = tmp_path_factory.mktemp("server") / "vllm.log"
    port = process.free_port("127.0.0.1", range(20_000, 30_000))
    settings = {
        "model": folder, "served-model-name": "rm", "runner": "pooling", "host": "127.0.0.1", "port": port,
        "dtype": "float32", "max-model-len": 512, "max-num-seqs": 8, "kv-cache-memory-bytes": 2**28,
        "distributed-executor-backend": "uni", "uvicorn-log-level": "warning",
    }  # fmt: skip
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--enforce-eager"]
    command += [text for name, value in settings.items() for text in (f"--{name}", str(value))]
    environment = process.child_environment(
        OMP_NUM_THREADS="1", VLLM_CPU_OMP_THREADS_BIND="nobind", TORCHDYNAMO_DISABLE="1", HF_HUB_OFFLINE="1",
        VLLM_NO_USAGE_STATS="1", VLLM_ENABLE_V1_MULTIPROCESSING="0", VLLM_HOST_IP="127.0.0.1",
        GLOO_SOCKET_IFNAME="lo", **openmp.preload(),
    )  # fmt: skip
    server = process.spawn(command, environment=environment, log_file=log)
    try:
        deadline, url = time.monotonic() + 600, f"http://127.0.0.1:{port}"
        while time.monotonic() < deadline and server.poll() is None:
            try:
                if httpx.get(f"{url}/health", timeout=5).status_code == 200:
                    break
            except httpx.HTTPError:
                time.sleep(0.2)
        assert server.poll() is None, log.read_text()[-4000:]
        yield url
    finally:
        process.stop_group(server, grace_s=10.0)


def scores(url: str, **settings: Any) -> list[Score]:
    reward = ServedRewardModel.model_validate({"endpoint": {"url": url, "model": "rm"}, **settings})
    with connected({"rm": reward}, None) as callers:
        futures = [
            reward.ask(callers["rm"], Prompt(question, "none", question, "", Int32s()), Answer(said, 5))
            for question, said in zip(QUESTIONS, ANSWERS, strict=True)
        ]
        return [future.result(300) for future in futures]


def expected(folder: Path, said: list[str]) -> list[float]:
    import torch
    from transformers import AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = load_tokenizer(folder)
    read = [reading(tokenizer, question, words) for question, words in zip(QUESTIONS, said, strict=True)]
    with torch.no_grad():
        return [float(model(torch.tensor([list(ids)])).logits[0, 0]) for ids in read]


@pytest.mark.parametrize("route", ["pooling", "classify"])
def test_the_scores_are_those_of_transformers(route: str, url: str, folder: Path):
    summaries = ["2", "Hello", "Light is scattered, blue light most."]
    found = scores(url, route=route)
    assert [score.value for score in found] == pytest.approx(expected(folder, summaries), abs=1e-5)
    whole = scores(url, route=route, scope="response")
    assert [score.value for score in whole] == pytest.approx(expected(folder, ANSWERS), abs=1e-5)
    assert len({round(score.value, 4) for score in [*found, *whole]}) == 5  # "Hello" is both


def test_with_activation_a_score_is_a_probability(url: str, folder: Path):
    import math

    plain, active = scores(url), scores(url, activation=True)
    sigmoid = [1 / (1 + math.exp(-score.value)) for score in plain]
    assert [score.value for score in active] == pytest.approx(sigmoid, abs=1e-5)


def test_a_text_that_is_too_long_is_refused_alone(url: str):
    reward = ServedRewardModel.model_validate({"endpoint": {"url": url, "model": "rm"}})
    with connected({"rm": reward}, None) as callers:
        long, short = (
            reward.ask(callers["rm"], Prompt("p", "none", "q", "", Int32s()), Answer(said, 5))
            for said in ("x" * 2_000, "y")
        )
        assert long.result(300).status == "failed" and "answered 400" in long.result().reason
        assert short.result(300).status == "scored"


def test_the_tokens_are_those_that_our_own_scoring_reads(url: str, folder: Path):
    turns = [{"role": "user", "content": QUESTIONS[0]}, {"role": "assistant", "content": "2"}]
    asked = {"model": "rm", "messages": turns, "add_generation_prompt": False}
    body = httpx.post(f"{url}/tokenize", json=asked, timeout=300).raise_for_status().json()
    assert body["tokens"] == list(reading(load_tokenizer(folder), QUESTIONS[0], "2")), json.dumps(body)
