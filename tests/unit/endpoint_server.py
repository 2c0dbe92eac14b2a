"""A server that speaks OpenAI's API, over real sockets: made-up answers, and faults on demand."""

import json
import socket
import struct
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

Respond = Callable[[Any], None]
"""Handles a request in place of the server; takes the handler, whose `body` is what was sent."""


class Http(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 256

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that gave up on us."""


class EndpointServer:
    """Answers until told otherwise: `faults` are used up one a request, in the order in which these come."""

    def __init__(self, say: Callable[[dict[str, Any]], str] = lambda body: "<answer>2</answer>") -> None:
        self.say = say
        self.faults: list[Respond] = []
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.times: list[float] = []
        self.under_way = self.most_under_way = 0
        self.delay_s = 0.0
        self._lock = threading.Lock()
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                self.body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                server.take(self)

            def log_message(self, format: str, *args: Any) -> None: ...

        self.http = Http(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True).start()
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1"

    def take(self, handler: Any) -> None:
        with self._lock:
            self.bodies.append(handler.body | {"path": handler.path})
            self.headers.append({name.lower(): value for name, value in handler.headers.items()})
            self.times.append(time.monotonic())
            fault = self.faults.pop(0) if self.faults else None
            self.under_way += 1
            self.most_under_way = max(self.most_under_way, self.under_way)
        time.sleep(self.delay_s)
        try:
            if fault is not None:
                fault(handler)
            else:
                reply(handler, self.answer(handler.body, handler.path))
        finally:
            with self._lock:
                self.under_way -= 1

    def answer(self, body: dict[str, Any], path: str) -> dict[str, Any]:
        text = self.say(body)
        said = (
            {"message": {"role": "assistant", "content": text}}
            if path.endswith("chat/completions")
            else {"text": text}
        )
        choices = [{"index": i, "finish_reason": "stop", **said} for i in range(body["n"])]
        tokens = len(text.split())
        return {"choices": choices, "usage": {"prompt_tokens": 7, "completion_tokens": tokens * body["n"]}}

    def close(self) -> None:
        self.http.shutdown()
        self.http.server_close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def reply(handler: Any, answer: Any, status: int = 200, **headers: Any) -> None:
    send(handler, json.dumps(answer).encode(), status, **headers)


def send(handler: Any, data: bytes, status: int = 200, length: int | None = None, **headers: Any) -> None:
    handler.send_response(status)
    for name, value in headers.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.send_header("Content-Length", str(len(data) if length is None else length))
    handler.end_headers()
    handler.wfile.write(data)


def fails(status: int, said: Any = None, **headers: str) -> Respond:
    return lambda handler: reply(handler, said or {"error": {"message": f"no: {status}"}}, status, **headers)


def sends(data: bytes) -> Respond:
    return lambda handler: send(handler, data)


def hangs(seconds: float) -> Respond:
    return lambda handler: time.sleep(seconds)


def half(handler: Any) -> None:
    """Half of the body that was announced, and then the connection is closed."""
    send(handler, b'{"choices": [{"ind', length=400)
    handler.close_connection = True
    handler.wfile.flush()
    handler.connection.shutdown(socket.SHUT_RDWR)


def reset(handler: Any) -> None:
    """The connection is reset."""
    handler.close_connection = True
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    handler.connection.close()
