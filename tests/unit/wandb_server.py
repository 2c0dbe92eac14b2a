"""In W&B's place, on a loopback address: writes down what the real client uploads, and keeps rows as W&B does.

A row that comes under a number that another has takes its place (`rows`); `lines` has all that came, in order.
"""

import gzip
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

KEY = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Uploaded:
    """What has come."""

    url: str = ""
    runs: list[dict[str, Any]] = field(default_factory=list)
    """Of each request that creates or changes a run."""
    lines: dict[int, dict[str, Any]] = field(default_factory=dict)
    """Rows by their line in W&B's file of the run."""
    order: list[int] = field(default_factory=list)
    """Numbers (`_step`) of the rows, as they came."""
    summary: dict[str, Any] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    artifacts: list[dict[str, Any]] = field(default_factory=list)
    alerts: list[dict[str, Any]] = field(default_factory=list)
    ends: list[int] = field(default_factory=list)
    """Exit codes."""
    down: bool = False
    """Whether every request is refused."""

    @property
    def environment(self) -> dict[str, str]:
        """For a client."""
        own = {"WANDB_BASE_URL": self.url, "WANDB_API_KEY": KEY, "WANDB_ERROR_REPORTING": "false"}
        return own | {"WANDB_X_FILE_STREAM_TRANSMIT_INTERVAL": "1", "WANDB_X_GRAPHQL_RETRY_MAX": "0"}

    @property
    def rows(self) -> list[dict[str, Any]]:
        """What W&B shows, by number."""
        kept = {line["_step"]: line for _, line in sorted(self.lines.items())}
        return [row for _, row in sorted(kept.items())]

    def answer(self, operation: str, asked: dict[str, Any]) -> dict[str, Any]:
        """To a GraphQL request."""
        last = max(self.lines, default=-1)
        project = {"id": "p", "name": asked.get("project"), "entity": {"id": "e", "name": "me"}}
        match operation:
            case "Viewer":
                return {
                    "viewer": {"id": "u", "entity": "me", "username": "me", "flags": "{}", "teams": {"edges": []}}
                }
            case "UpsertBucket":
                self.runs.append(asked)
                bucket = {"id": "B", "name": asked["name"], "displayName": None, "config": asked.get("config")}
                bucket |= {"historyLineCount": last + 1, "project": project, "sweepName": None, "description": None}
                return {"upsertBucket": {"inserted": len(self.runs) == 1, "bucket": bucket}}
            case "RunResumeStatus":
                bucket = {"id": "B", "name": asked["name"], "displayName": None, "config": "{}", "tags": []}
                bucket |= {"summaryMetrics": json.dumps(self.summary), "wandbConfig": '{"t": 1}', "eventsTail": "[]"}
                bucket |= {"logLineCount": 0, "eventsLineCount": 0, "historyLineCount": last + 1}
                bucket["historyTail"] = json.dumps([json.dumps(self.lines[last])] if self.lines else [])
                return {"model": {**project, "bucket": bucket if self.runs else None}}
            case "ServerFeaturesQuery":
                return {"serverInfo": {"features": []}}
            case "CreateRunFiles":
                made = [{"name": name, "uploadUrl": f"{self.url}/upload/{name}"} for name in asked["files"]]
                return {"createRunFiles": {"runID": "B", "uploadHeaders": [], "files": made}}
            case "CreateArtifact":
                self.artifacts.append(asked["input"])
                sequence = {"id": "S", "latestArtifact": None}
                one = {"id": f"A{len(self.artifacts)}", "state": "COMMITTED", "artifactSequence": sequence}
                return {"createArtifact": {"artifact": one}}
            case "NotifyScriptableRunAlert":
                self.alerts.append(asked)
        return {}

    def take_stream(self, came: dict[str, Any]) -> None:
        """Lines of a run's files."""
        stream = came.get("files", {})
        if history := stream.get("wandb-history.jsonl"):
            for place, line in enumerate(history["content"], history["offset"]):
                assert place not in self.lines, "a line that is there already is written over"
                self.lines[place] = json.loads(line)
                self.order.append(self.lines[place]["_step"])
        if summary := stream.get("wandb-summary.json"):
            self.summary = json.loads(summary["content"][-1])
        if came.get("complete"):
            self.ends.append(came["exitcode"])


@contextmanager
def recording() -> Iterator[Uploaded]:
    """The server, and what has come to it."""
    uploaded = Uploaded()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: object) -> None: ...

        def do_PUT(self) -> None:
            uploaded.files[self.path.removeprefix("/upload/")] = self._body()
            self._answer({})

        def do_GET(self) -> None:
            self._answer({})

        def do_POST(self) -> None:
            body = self._body()
            if self.path.endswith("/file_stream") and not uploaded.down:
                uploaded.take_stream(json.loads(body))
                self._answer({})
            elif self.path.endswith("/graphql") and not uploaded.down:
                asked = json.loads(body)
                operation = re.search(r"(?:query|mutation) (\w+)", asked["query"])
                found = uploaded.answer(operation[1] if operation else "", asked.get("variables") or {})
                self._answer({"data": found})
            else:
                self._answer({}, 403 if uploaded.down else 200)

        def _body(self) -> bytes:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            return gzip.decompress(body) if self.headers.get("Content-Encoding") == "gzip" else body

        def _answer(self, found: dict[str, Any], status: int = 200) -> None:
            body = json.dumps(found).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    class Server(ThreadingHTTPServer):
        def handle_error(self, request: Any, client_address: Any) -> None:
            """A client that goes away is none of ours."""

    with Server(("127.0.0.1", 0), Handler) as server:
        uploaded.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield uploaded
        finally:
            server.shutdown()
            thread.join()
