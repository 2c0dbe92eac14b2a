"""A stand-in for a vLLM server and for `rollout.server.Server`: made-up answers, and faults on demand."""

import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models

from r1mega.buffers import Int32s
from r1mega.config.cluster import RolloutLayout
from r1mega.rollout.engine import Request
from r1mega.samples import Prompt

VOCAB_SIZE = 16
EOS = 10


def save_tokenizer(folder: Path) -> None:
    tokenizer = Tokenizer(models.WordLevel({str(i): i for i in range(VOCAB_SIZE)}, unk_token="0"))
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens([AddedToken("5"), AddedToken("10")])
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": str(EOS)}))


def request(i: int, n: int = 3) -> Request:
    return Request(Prompt(f"p{i}", "task", "question", "truth", Int32s([i % VOCAB_SIZE])), n, seed=100 * i)


class Http(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 512  # connections that wait; more are reset

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that gave up on us."""


class FakeServer:
    """Answers like vLLM until told otherwise; each start listens on another port.

    `change` has its way with each answer before it is sent, `fault` handles a request in place of the server:
    both get back to normal at a restart, unless `incurable`. Its time limits are generous, since a machine may stop
    for seconds: a test of a limit sets that one alone.
    """

    def __init__(self, folder: Path, **layout: Any) -> None:
        self.layout = RolloutLayout(**{"max_num_seqs": 4, "request_timeout_s": 300, "max_restarts": 0} | layout)
        self.model_dir, self.log_file, self.vocab_size, self.world_size = folder, folder / "vllm.log", VOCAB_SIZE, 1
        self.bodies, self.reasons = list[dict[str, Any]](), list[str]()
        self.incurable, self.incarnation = False, 0
        self.failed_at: str | None = None
        self.change: Callable[[dict[str, Any]], Any] = lambda answer: answer
        self.fault: Callable[[Any], bool] = lambda handler: False
        self.asked = threading.Event()
        self.after: FakeServer | None = None
        """Another server that must have been asked before this one answers: give both of them requests."""
        self._start()

    def _start(self) -> None:
        server = self
        self.version, self.status, self.thawed = "0", 200, threading.Event()
        self.incarnation += 1

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                if not server.fault(self):
                    self.reply({"weight_version": server.version})

            def do_POST(self) -> None:
                self.body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                server.bodies.append(self.body)
                server.asked.set()
                if server.after is not None:
                    server.after.asked.wait(300)
                if not server.fault(self):
                    self.send(stream(server.change(answer(self.body))))

            def reply(self, answer: Any) -> None:
                self.send(json.dumps(answer).encode())

            def send(self, data: bytes, length: int | None = None) -> None:
                self.send_response(server.status)
                self.send_header("Content-Length", str(length or len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self.http = Http(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.http.server_port}"

    def alive(self) -> bool:
        return True

    def cause(self) -> str | None:
        return self.failed_at

    def freeze(self, handler: Any) -> bool:
        """A fault: accept and not answer before the next restart."""
        self.thawed.wait(300)
        return True

    def shut(self) -> None:
        self._shut(self.http, self.thawed)

    @staticmethod
    def _shut(http: Http, thawed: threading.Event) -> None:
        thawed.set()
        http.shutdown()
        http.server_close()

    def restart(self, reason: str) -> float:
        self.reasons.append(reason)
        if not self.incurable:
            self.change, self.fault = (lambda answer: answer), (lambda handler: False)
        before = self.http, self.thawed
        self._start()  # while the old port is taken, or it might be chosen again
        self._shut(*before)
        return 0.0


def stream(answer: Any) -> bytes:
    """Server-sent events of an answer, its first token by itself as vLLM sends it; what is none goes as it is."""
    choices = answer.get("choices") if isinstance(answer, dict) else None
    if choices is None:
        return f"data: {json.dumps(answer)}\n\n".encode()
    events = [part for parts in zip(*map(_parts, choices), strict=True) for part in parts]
    return "".join(f"data: {text}\n\n" for text in [*map(json.dumps, events), "[DONE]"]).encode()


def _parts(choice: dict[str, Any]) -> list[dict[str, Any]]:
    ids, logp = choice["token_ids"], choice["logprobs"]["token_logprobs"]
    if ids is None:
        return [{"choices": []}, {"choices": [choice]}]
    first = {"index": choice["index"], "token_ids": ids[:1], "logprobs": {"token_logprobs": logp[:1]}}
    last = {**choice, "token_ids": ids[1:], "logprobs": {"token_logprobs": logp[1:]}}
    return [{"choices": [{**first, "finish_reason": None}]}, {"choices": [last]}]


def answer(body: dict[str, Any]) -> dict[str, Any]:
    """What the server makes of a request: tokens that tell prompt and answer apart, the latter by its seed."""
    return {
        "choices": [
            {
                "index": i,
                "token_ids": [body["prompt"][0], 1 + (body["seed"] + i) % 100 % 5, body["stop_token_ids"][0]],
                "logprobs": {"token_logprobs": [-0.5, -1.0, -0.25]},
                "finish_reason": "stop",
            }
            for i in range(body["n"])
        ]
    }
