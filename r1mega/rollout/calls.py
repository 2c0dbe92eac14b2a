"""What is asked of a vLLM server over HTTP, and whose fault it is where nothing useful comes back."""

import json
import logging
from collections.abc import AsyncIterator, Mapping
from typing import Any

import httpx

from r1mega.errors import RolloutError
from r1mega.rollout.server import Server

log = logging.getLogger(__name__)

COMPLETIONS = "/v1/completions"
KEEPALIVE_S = 2.0
"""Far less than the server's (`rollout.command`): a request on a connection that is being closed would look like its
death."""
_DROPPED = (httpx.ReadError, httpx.WriteError, httpx.CloseError, httpx.RemoteProtocolError)
"""A connection that ended before its answer did."""
_EVENT, _DONE = "data: ", "[DONE]"


class Failed(Exception):
    """A server did not do what any server should: it is restarted."""


class Dropped(Failed):
    """A server that still runs has dropped the connection. The same request has the same answer, and a restart would
    take a minute: it is asked once more."""


def client(server: Server, timeout_s: float) -> httpx.AsyncClient:
    """timeout_s: longest silence."""
    return httpx.AsyncClient(
        base_url=server.url,
        timeout=httpx.Timeout(timeout_s, connect=min(timeout_s, 30.0)),
        limits=httpx.Limits(max_connections=None, max_keepalive_connections=None, keepalive_expiry=KEEPALIVE_S),
        trust_env=False,
        verify=False,  # plain http; reading the certificates takes longer than most calls
    )


async def get(server: Server, http: httpx.AsyncClient, route: str, asked: str) -> dict[str, Any]:
    """A JSON object, empty where the server sent nothing. Asked once more over a new connection where it was dropped:
    on a busy machine a request can be held up for longer than the server keeps an idle one.

    Raises:
        Failed: no answer, a server error, or something else than JSON.
        RolloutError: the server refuses the request itself (4xx).
    """
    try:
        return await _get(server, http, route, asked)
    except Dropped as dropped:
        log.warning("%s; asked again over a new connection", dropped)
        async with client(server, http.timeout.read or server.layout.request_timeout_s) as new:
            return await _get(server, new, route, asked)


async def _get(server: Server, http: httpx.AsyncClient, route: str, asked: str) -> dict[str, Any]:
    try:
        response = await http.get(route)
    except httpx.HTTPError as error:
        raise _silent(server, http, asked, error, "health_timeout_s") from error
    _check(server, response, response.text, asked)
    return _object(server, response.text or "{}", asked)


async def events(
    server: Server, http: httpx.AsyncClient, body: Mapping[str, Any], asked: str
) -> AsyncIterator[dict[str, Any]]:
    """The parts in which a server answers /v1/completions, to the last one.

    Raises: as `get`; Dropped in the middle as well.
    """
    try:
        async with http.stream("POST", COMPLETIONS, json=body) as response:
            if response.status_code != httpx.codes.OK:
                await response.aread()
                _check(server, response, response.text, asked)
            async for line in response.aiter_lines():
                if line == _EVENT + _DONE:
                    return
                if line:
                    yield _event(server, line, asked)
    except httpx.HTTPError as error:
        raise _silent(server, http, asked, error, "request_timeout_s") from error
    raise Failed(f"asked {server.url} for {asked}: its answer has no end. Its log: {server.log_file}")


def _event(server: Server, line: str, asked: str) -> dict[str, Any]:
    part = _object(server, line.removeprefix(_EVENT), asked)
    if (error := part.get("error")) is None:
        return part
    said = f"asked {server.url} for {asked}: it broke off with {str(error)[:500]}. Its log: {server.log_file}"
    code = error.get("code") if isinstance(error, dict) else None
    raise RolloutError(said) if isinstance(code, int) and 400 <= code < 500 else Failed(said)


def _check(server: Server, response: httpx.Response, text: str, asked: str) -> None:
    said = f"asked {server.url} for {asked}: it answered {response.status_code} {text[:500]}"
    if response.is_client_error:
        raise RolloutError(f"{said}. Its log: {server.log_file}")
    if response.status_code != httpx.codes.OK:
        raise Failed(f"{said}. Its log: {server.log_file}")


def _object(server: Server, text: str, asked: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise Failed(f"asked {server.url} for {asked}: it answered 200 {text[:500]}. Its log: {server.log_file}")
    return found


def _silent(server: Server, http: httpx.AsyncClient, asked: str, error: httpx.HTTPError, setting: str) -> Failed:
    """What to raise where no answer came.

    Args:
        setting: which limits the silence.
    """
    alive = server.alive()
    state = "it still runs" if alive else "its process has ended"
    late = isinstance(error, httpx.TimeoutException)
    limit = f" within {http.timeout.read:g} s (rollout.{setting})" if late else ""
    said = f"asked {server.url} for {asked}: no answer{limit} ({type(error).__name__}); {state}"
    kind = Dropped if alive and isinstance(error, _DROPPED) else Failed
    return kind(f"{said}. Its log: {server.log_file}")
