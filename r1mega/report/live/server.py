"""The live page, on a loopback address of this machine, for whoever has its key.

Every user of a machine reaches its loopback addresses, and so does every page that a browser has open. So all that
is served lies behind a random key; the Host header must name this machine, which a rebound name does not; nothing but
GET and HEAD is answered; and the page's policy lets it load and run what comes from here alone. A path is looked up
in a table of five, and nothing of a URL reaches the file system.
"""

import json
import re
import secrets
import threading
from collections.abc import Callable, Mapping
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from r1mega.errors import ConfigError
from r1mega.report.live.watcher import Watcher

ADDRESS = "127.0.0.1"
HOSTS = re.compile(r"(?:localhost|127\.0\.0\.1|\[::1\])(?::[0-9]{1,5})?", re.ASCII | re.IGNORECASE)
"""What a browser may call this machine; ports differ where the page comes through a tunnel."""
PATIENCE_S = 15.0
"""How long a client may take to ask."""
MAX_NAME = 300
"""Characters of a parameter that is read."""
FILES = {
    "": ("watch.html", "text/html; charset=utf-8"),
    "watch.css": ("watch.css", "text/css; charset=utf-8"),
    "plot.js": ("plot.js", "text/javascript; charset=utf-8"),
    "watch.js": ("watch.js", "text/javascript; charset=utf-8"),
}
STATE = "state.json"
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}


class LivePage:
    """Serves a run until it is closed. `url` has the key.

    Raises:
        ConfigError: the port cannot be had.
    """

    def __init__(self, watcher: Watcher, port: int = 0) -> None:
        """
        Args:
            port: 0: any that is free.
        """
        self.key = secrets.token_urlsafe(16)
        files = {name: (Path(__file__).with_name(file).read_bytes(), kind) for name, (file, kind) in FILES.items()}
        handler = type(
            "ServingHandler", (PageHandler,), {"key": self.key, "files": files, "view": staticmethod(watcher.view)}
        )
        try:
            self._server = PageServer((ADDRESS, port), handler)
        except (OSError, OverflowError) as error:
            raise ConfigError(
                f"--port {port}: {ADDRESS}:{port} cannot be had ({error}); leave --port out to take any that is free"
            ) from None
        self.port = int(self._server.server_address[1])
        self.url = f"http://{ADDRESS}:{self.port}/{self.key}/"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.1}, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class PageServer(ThreadingHTTPServer):
    """Says nothing of clients that go away, in the terminal in which the run is shown."""

    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None: ...


class PageHandler(BaseHTTPRequestHandler):
    """One request; the connection is closed behind it."""

    key: str
    files: Mapping[str, tuple[bytes, str]]
    view: Callable[..., dict[str, Any]]
    timeout = PATIENCE_S
    server_version, sys_version = "r1mega", ""

    def do_GET(self) -> None:
        self._answer()

    def do_HEAD(self) -> None:
        self._answer()

    def _answer(self) -> None:
        hosts = self.headers.get_all("Host") or []
        if len(hosts) != 1 or not HOSTS.fullmatch(hosts[0].strip()):
            return self.send_error(HTTPStatus.FORBIDDEN)
        target = urlsplit(self.path) if self.path.startswith("/") else None
        key, slash, name = target.path[1:].partition("/") if target else ("", "", "")
        if target is None or not slash or not secrets.compare_digest(key.encode(), self.key.encode()):
            return self.send_error(HTTPStatus.NOT_FOUND)
        if name in self.files:
            return self._send(HTTPStatus.OK, *self.files[name])
        if name != STATE:
            return self.send_error(HTTPStatus.NOT_FOUND)
        try:
            told = self.view(**_parameters(target.query))
        except Exception as error:  # whatever the run's files hold: the page says so, and asks again
            told = {"fault": f"{type(error).__name__}: {error}"}
        data = json.dumps(told, allow_nan=False, separators=(",", ":"), default=str).encode()
        return self._send(HTTPStatus.OK, data, "application/json; charset=utf-8")

    def _send(self, code: HTTPStatus, data: bytes, kind: str) -> None:
        self.send_response(code)
        for name, value in {**HEADERS, "Content-Type": kind, "Content-Length": str(len(data))}.items():
            self.send_header(name, value)
        if code is HTTPStatus.METHOD_NOT_ALLOWED:
            self.send_header("Allow", "GET, HEAD")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """A refusal, in which nothing of the request stands; of a method that is not known too."""
        status = HTTPStatus.METHOD_NOT_ALLOWED if code == HTTPStatus.NOT_IMPLEMENTED else HTTPStatus(code)
        self.close_connection = True
        self._send(status, f"{status.value} {status.phrase}\n".encode(), "text/plain; charset=utf-8")

    def log_message(self, format: str, *args: Any) -> None: ...


def _parameters(query: str) -> dict[str, Any]:
    """Of `Watcher.view`; others are passed over, and a number that is none is 0."""
    given = {
        name: values[-1] for name, values in parse_qs(query, max_num_fields=20).items() if len(values[-1]) <= MAX_NAME
    }
    at = given.get("at", "")
    words = {name: given[name] for name in ("stage", "version", "answers") if name in given}
    return {**words, "at": int(at) if at.isascii() and at.isdecimal() and len(at) < 19 else 0}
