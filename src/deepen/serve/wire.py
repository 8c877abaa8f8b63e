"""HTTP as the door speaks it: the head of a request, the answer, and refusals in OpenAI's form."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import Mapping
from contextlib import suppress
from http import HTTPStatus
from typing import Any

HEAD_BYTES = 32 << 10
PIECE = 64 << 10
_DRAIN_SECONDS = 30.0
_LINGER_SECONDS = 2.0


class Refused(Exception):
    """A request that is answered with an error.

    Args:
        status: of the answer.
        message: what is wrong.
        kind: OpenAI's name for this kind of error.
    """

    def __init__(self, status: HTTPStatus, message: str, kind: str = "invalid_request_error") -> None:
        super().__init__(message)
        self.status, self.kind = status, kind


class Reply:
    """The answer of a connection: its head is sent once; after that an error can only be told inside a stream."""

    def __init__(self, writer: asyncio.StreamWriter) -> None:
        self.writer = writer
        self.origin: str | None = None
        self.status = 0
        self.chunked = False

    def head(self, status: int, headers: Mapping[str, str]) -> None:
        """Send the status and the headers."""
        self.status, self.chunked = status, headers.get("transfer-encoding") == "chunked"
        lines = [f"HTTP/1.1 {status} {HTTPStatus(status).phrase}", "Connection: close", "X-Content-Type-Options: nosniff"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        if self.origin:
            allowed = {"Origin": self.origin, "Headers": "authorization, content-type, x-api-key", "Methods": "GET, POST"}
            lines += [f"Access-Control-Allow-{name}: {value}" for name, value in allowed.items()] + ["Vary: Origin"]
        self.writer.write("\r\n".join([*lines, "", ""]).encode("latin-1", "replace"))

    def json(self, status: HTTPStatus, content: object) -> None:
        """Answer with JSON; None is an answer without a body."""
        body = b"" if content is None else json.dumps(content).encode()
        self.head(status, {"Content-Type": "application/json", "Content-Length": str(len(body))})
        self.writer.write(body)

    def body(self, kind: str, body: bytes, headers: Mapping[str, str] | None = None) -> None:
        """Answer with bytes of a content type, and further headers."""
        self.head(HTTPStatus.OK, {"Content-Type": kind, "Content-Length": str(len(body)), **(headers or {})})
        self.writer.write(body)

    def event(self, name: str, content: object) -> None:
        """Send an event of a stream; the first one opens it."""
        if not self.status:
            streams = {"Content-Type": "text/event-stream", "Cache-Control": "no-store", "transfer-encoding": "chunked"}
            self.head(HTTPStatus.OK, streams)
        self._chunk(f"event: {name}\ndata: {json.dumps(content)}\n\n".encode())

    def end(self) -> None:
        """End a stream."""
        self.writer.write(b"0\r\n\r\n")

    def error(self, status: HTTPStatus, message: str, kind: str) -> None:
        """Answer with an error; in a stream it is the last event."""
        content = {"error": {"message": message, "type": kind, "code": int(status)}}
        if not self.status:
            self.json(status, content)
        elif self.chunked:
            self._chunk(f"event: error\ndata: {json.dumps(content)}\n\n".encode())
            self.end()

    def _chunk(self, piece: bytes) -> None:
        self.writer.write(f"{len(piece):x}\r\n".encode() + piece + b"\r\n")


async def read_head(reader: asyncio.StreamReader) -> tuple[str, str, dict[str, str]]:
    """Method, target and headers (names in lower case) of a request."""
    try:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    except asyncio.LimitOverrunError:
        raise Refused(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, "the head of the request is too long") from None
    first, *lines = head.split("\r\n")
    words = first.split(" ")
    sound = len(words) == 3 and words[1].startswith("/") and words[1].isascii() and words[1].isprintable()
    if not sound or not words[2].startswith("HTTP/1."):
        raise Refused(HTTPStatus.BAD_REQUEST, "not an HTTP request")
    pairs = (line.partition(":") for line in lines if line)
    return words[0], words[1], {name.strip().lower(): value.strip() for name, _, value in pairs}


async def finish(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, linger: bool) -> None:
    """Close a connection. A client that was refused may still be sending; if it were cut off, it could miss the reason."""
    with suppress(ConnectionError, ssl.SSLError, TimeoutError):
        async with asyncio.timeout(_DRAIN_SECONDS):
            await writer.drain()
        if linger:
            if writer.can_write_eof():
                writer.write_eof()
            async with asyncio.timeout(_LINGER_SECONDS):
                while await reader.read(PIECE):
                    pass
    writer.close()


async def read_body(headers: Mapping[str, str], reader: asyncio.StreamReader, most: int) -> bytes:
    """The body of a request, of so many bytes at most."""
    length = headers.get("content-length", "")
    if not length.isdecimal():
        raise Refused(HTTPStatus.LENGTH_REQUIRED, "the request needs a Content-Length")
    if int(length) > most:
        raise Refused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"the request has {length} bytes; at most {most} are taken")
    return await reader.readexactly(int(length))


def json_object(body: bytes) -> dict[str, Any]:
    """The JSON object that a body is."""
    try:
        content = json.loads(body)
    except (ValueError, RecursionError):
        raise Refused(HTTPStatus.BAD_REQUEST, "the request is not valid JSON") from None
    if not isinstance(content, dict):
        raise Refused(HTTPStatus.BAD_REQUEST, "the request is not a JSON object")
    return content
