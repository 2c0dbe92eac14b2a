"""In place of vLLM, a process that starts within seconds: `python chaos_server.py PORT`.

It answers vLLM's routes as they are used. Weights come over the real transport; each token follows from them, the
prompt, the answer's seed and its place, so that whoever was asked, of other weights or with another seed is told by
what it said.
"""

import importlib
import json
import sys
import threading
import time
import zlib
from collections.abc import Sequence
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TOKENS, LONGEST = 200, 40
"""Token ids of answers, below the ends; tokens of the longest one."""
TOKEN_S = 0.004
AS_STARTED = 0.0
MIXED = -1.0
"""Of weights that are not all of one push."""


def said(weights: float, prompt: Sequence[int], seed: int, end: int) -> list[int]:
    """The answer's token ids."""

    def drawn(place: int) -> int:
        return zlib.crc32(f"{weights} {list(prompt)} {seed} {place}".encode())

    return [drawn(place) % TOKENS for place in range(1 + drawn(-1) % (LONGEST - 1))] + [end]


class Model:
    """Weights of which every element is the same number, and the group over which they come."""

    def __init__(self) -> None:
        self.weights, self.version = AS_STARTED, "none"
        self.wire: Any = None
        self.bucket_bytes = 0

    def join(self, info: dict[str, Any]) -> None:
        IMPORTS.join()
        from torch.distributed import TCPStore

        from r1mega.weights.wire import Wire

        self.leave()
        timeout = timedelta(seconds=info["timeout_s"])
        store = TCPStore(info["master_address"], info["master_port"], is_master=False, timeout=timeout)
        self.bucket_bytes = info["bucket_bytes"]
        self.wire = Wire(store, info["rank_offset"], info["world_size"], info["timeout_s"], "127.0.0.1")

    def receive(self, info: dict[str, Any]) -> None:
        import torch

        from r1mega.weights.stream import Param, Tally, buckets

        rows = zip(info["names"], info["dtype_names"], info["shapes"], strict=True)
        params = [Param(name, getattr(torch, dtype), tuple(shape)) for name, dtype, shape in rows]
        tally, values = Tally(), set[float]()
        try:
            for bucket in buckets(params, self.bucket_bytes):
                buffer = torch.empty(bucket.num_bytes, dtype=torch.uint8)
                self.wire.wait(self.wire.begin(buffer))
                tally.add(bucket, buffer)
                values |= {x for _, tensor in bucket.views(buffer) for x in tensor.unique().tolist()}
                self.weights = values.copy().pop() if len(values) == 1 else MIXED
            self.wire.compare(tally)
        except BaseException:
            self.leave()
            raise

    def leave(self) -> None:
        if self.wire is not None:
            self.wire.close()
            self.wire = None


MODEL = Model()
IMPORTS = threading.Thread(target=lambda: importlib.import_module("r1mega.weights.wire"), daemon=True)
"""What takes a while, and cannot be done by two threads at once."""


class Routes(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.reply({"weight_version": MODEL.version, "world_size": 1})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers.get("Content-Length") or 0)) or "{}")
        try:
            self.do(body)
        except Exception as error:
            self.send_response(500)
            self.end_headers()
            self.wfile.write(str(error).encode())

    def do(self, body: dict[str, Any]) -> None:
        if self.path == "/v1/completions":
            self.complete(body)
            return
        if self.path == "/init_weight_transfer_engine":
            MODEL.join(body["init_info"])
        elif self.path == "/update_weights":
            MODEL.receive(body["update_info"])
        elif self.path == "/update_weight_version":
            MODEL.version = body["new_version"]
        self.reply({"success": True})

    def complete(self, body: dict[str, Any]) -> None:
        """The first token of each answer at once, the rest when it ends."""
        self.send_response(200)
        self.end_headers()
        end = body["stop_token_ids"][0]
        answers = [said(MODEL.weights, body["prompt"], body["seed"] + i, end) for i in range(body["n"])]
        for i, ids in enumerate(answers):
            self.part(i, ids[:1], None)
        begin = time.monotonic()
        for i in sorted(range(body["n"]), key=lambda i: len(answers[i])):
            time.sleep(max(0.0, begin + TOKEN_S * len(answers[i]) - time.monotonic()))
            self.part(i, answers[i][1:], "stop")
        self.wfile.write(b"data: [DONE]\n\n")

    def part(self, index: int, ids: list[int], finish: str | None) -> None:
        logprobs = {"token_logprobs": [-1.0] * len(ids)}
        choice = {"index": index, "token_ids": ids, "logprobs": logprobs, "finish_reason": finish}
        self.wfile.write(b"data: " + json.dumps({"choices": [choice]}).encode() + b"\n\n")

    def reply(self, row: dict[str, Any]) -> None:
        data = json.dumps(row).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None: ...


class Http(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 512

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that gave up on us."""


if __name__ == "__main__":
    IMPORTS.start()
    Http(("127.0.0.1", int(sys.argv[1])), Routes).serve_forever()
