"""The client takes exactly what it asked for, and nothing else, from a stand-in for vLLM."""

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models

from r1mega.config.schema import RolloutLayout
from r1mega.errors import RolloutError
from r1mega.rollout.engine import Request
from r1mega.rollout.fleet import Fleet
from r1mega.samples import FinishReason, Prompt

VOCAB_SIZE = 16
EOS = 10


class Stub:
    """Answers /v1/completions with made-up choices, after `change` had its way with them."""

    def __init__(self, folder: Path) -> None:
        self.change: Callable[[dict[str, Any]], Any] = lambda answer: answer
        self.version, self.status, self.bodies = "0", 200, list[dict[str, Any]]()
        stub = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.reply({"weight_version": stub.version})

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                stub.bodies.append(body)
                choices = [
                    {
                        "index": i,
                        "token_ids": [body["prompt"][0], 1 + i % 5, EOS],
                        "logprobs": {"token_logprobs": [-0.5, -1.0, -0.25]},
                        "finish_reason": "stop",
                    }
                    for i in range(body["n"])
                ]
                self.reply(stub.change({"choices": choices}))

            def reply(self, answer: Any) -> None:
                data = json.dumps(answer).encode()
                self.send_response(stub.status)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True).start()
        self.server: Any = SimpleNamespace(
            url=f"http://127.0.0.1:{self.http.server_port}",
            layout=RolloutLayout(max_num_seqs=4, request_timeout_s=5),
            log_file=folder / "vllm.log",
            model_dir=folder,
            vocab_size=VOCAB_SIZE,
            alive=lambda: True,
        )


@pytest.fixture
def stub(tmp_path: Path) -> Iterator[Stub]:
    tokenizer = Tokenizer(models.WordLevel({str(i): i for i in range(VOCAB_SIZE)}, unk_token="0"))
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens([AddedToken("5"), AddedToken("10")])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    stub = Stub(tmp_path)
    yield stub
    stub.http.shutdown()


def request(i: int, n: int = 3) -> Request:
    return Request(Prompt(f"p{i}", "task", "question", "truth", (i,)), n, seed=100 * i)


def generate(stub: Stub, *requests: Request, temperature: float = 0.7, version: int = 0, **kwargs: Any) -> Any:
    fleet = Fleet([stub.server])
    return fleet.generate(requests, temperature=temperature, max_new_tokens=5, version=version, **kwargs)


def test_order_seeds_and_text(stub: Stub) -> None:
    done: list[int] = []
    answers = generate(stub, *(request(i) for i in range(9)), on_done=done.append)
    assert done == list(range(1, 10))
    for i, group in enumerate(answers):
        assert [c.index for c in group] == [0, 1, 2]
        assert [c.seed for c in group] == [100 * i, 100 * i + 1, 100 * i + 2]
        assert all(c.prompt_id == f"p{i}" and c.weight_version == 0 for c in group)
    last = answers[4][2]
    assert (last.token_ids, last.logp) == ((4, 3, EOS), (-0.5, -1.0, -0.25))
    assert last.text == "43"  # without the stop token's
    assert last.finish_reason is FinishReason.STOP
    assert answers[5][0].text == "51"  # special tokens stay


def test_what_is_asked_for(stub: Stub) -> None:
    generate(stub, request(2), temperature=0.7)
    body = stub.bodies[0]
    assert (body["prompt"], body["n"], body["seed"], body["max_tokens"]) == ([2], 3, 200, 5)
    assert (body["temperature"], body["top_p"], body["top_k"], body["logprobs"]) == (0.7, 1.0, 0, 0)


def test_greedy_is_drawn_once(stub: Stub) -> None:
    (group,) = generate(stub, request(1), temperature=0.0)
    assert stub.bodies[0]["n"] == 1
    assert len(group) == 3 and len({c.token_ids for c in group}) == 1
    assert [c.seed for c in group] == [100, 101, 102]


def test_nothing_asked(stub: Stub) -> None:
    assert generate(stub) == []


def broken(key: str, value: Any) -> Callable[[dict[str, Any]], Any]:
    def change(answer: dict[str, Any]) -> dict[str, Any]:
        answer["choices"][1][key] = value
        return answer

    return change


LOGP = {"token_logprobs": [-0.5, -1.0, -0.25]}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: {"choices": a["choices"][:2]}, r"answers \[0, 1\] came"),
        (broken("index", 0), r"answers \[0, 0, 2\] came"),
        (broken("token_ids", [1, 2]), "2 tokens and 3 logprobs"),
        (broken("token_ids", None), "TypeError"),
        (broken("token_ids", [1, 2, VOCAB_SIZE]), "outside 0..15"),
        (broken("logprobs", {"token_logprobs": [-0.5, -1.0, 0.1]}), "logprobs that are none"),
        (broken("logprobs", {"token_logprobs": [-0.5, -1.0, float("nan")]}), "logprobs that are none"),
        (broken("logprobs", {"token_logprobs": [-0.5, -1.0, -9999.0]}), "logprobs that are none"),
        (broken("logprobs", {"token_logprobs": [-0.5, None, -1.0]}), "TypeError"),
        (broken("finish_reason", "abort"), "abort"),
        (broken("finish_reason", "length"), "cut at 3 tokens"),
        (lambda a: {"error": "no"}, "KeyError"),
    ],
)
def test_anything_else_is_refused(stub: Stub, change: Callable[..., Any], message: str) -> None:
    stub.change = change
    with pytest.raises(RolloutError, match=message) as caught:
        generate(stub, request(0))
    text = str(caught.value)
    assert "3 answers of at most 5 tokens to prompt 'p0'" in text
    assert stub.server.url in text and "vllm.log" in text


def test_other_weights_are_refused(stub: Stub) -> None:
    stub.version = "incomplete push of 4"
    with pytest.raises(RolloutError, match="version 4 of the weights, but it has 'incomplete push of 4'"):
        generate(stub, request(0), version=4)
    assert not stub.bodies


def test_server_errors_and_silence(stub: Stub) -> None:
    stub.status = 500
    with pytest.raises(RolloutError, match="it answered 500"):
        generate(stub, request(0))
    stub.http.shutdown()
    stub.http.server_close()
    stub.server.alive = lambda: False
    with pytest.raises(RolloutError, match=r"no answer .*its process has ended"):
        generate(stub, request(0))
