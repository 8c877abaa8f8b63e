"""A small HTTP client for engines behind a URL: JSON in, JSON or a stream of events out."""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from typing import Any
from urllib.parse import SplitResult

_SECONDS = 600.0


class Refusal(Exception):
    """The server answered with an error; not for users, but for the engine that asked.

    Args:
        status: of the answer.
        message: what it says.
        retry_after: its header of this name.
    """

    def __init__(self, status: int, message: str, retry_after: str | None = None) -> None:
        super().__init__(f"HTTP {status}: {message}")
        self.status, self.message, self.retry_after = status, message, retry_after


@contextmanager
def response(
    address: SplitResult,
    method: str,
    path: str,
    body: Mapping[str, Any] | None = None,
    *,
    key: str | None = None,
    seconds: float | None = _SECONDS,
    on_connect: Callable[[socket.socket], None] | None = None,
) -> Iterator[http.client.HTTPResponse]:
    """Send a request and give the answer to read. Leaving the block early closes the connection, which cancels the work.

    Args:
        address: the server, with the path that `path` continues.
        method: of the request.
        path: what is asked for.
        body: sent as JSON.
        key: sent as `Authorization: Bearer`.
        seconds: give up after so long without a byte (a long prompt on a slow machine takes minutes); None waits.
        on_connect: called with the socket before anything is sent; shutting that down ends a wait in another thread.

    Raises:
        Refusal: the server's status is not 200.
        OSError, http.client.HTTPException: the connection failed.
    """
    kind = http.client.HTTPSConnection if address.scheme == "https" else http.client.HTTPConnection
    connection = kind(address.netloc, timeout=seconds)
    headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})
    try:
        if on_connect is not None:
            connection.connect()
            on_connect(connection.sock)
        connection.request(method, address.path.rstrip("/") + path, None if body is None else json.dumps(body), headers)
        # a server that closes after its answer has left the connection to that
        with closing(connection.getresponse()) as reply:
            if reply.status != http.HTTPStatus.OK:
                raise Refusal(reply.status, _message(reply.read(1 << 16)), reply.headers.get("Retry-After"))
            yield reply
    finally:
        connection.close()


def events(reply: http.client.HTTPResponse) -> Iterator[dict[str, Any]]:
    """The JSON objects of a stream of server-sent events, up to its end."""
    for line in reply:
        data = line.removeprefix(b"data:").strip()
        if line.startswith(b"data:") and data != b"[DONE]":
            yield json.loads(data)


def _message(body: bytes) -> str:
    """What an error answer says: OpenAI's form, or whatever text there is."""
    try:
        content = json.loads(body)
        error = content.get("error", content)
        return str(error.get("message", error) if isinstance(error, dict) else error)
    except (ValueError, AttributeError):
        return body.decode(errors="replace").strip()[:300] or "no reason given"
