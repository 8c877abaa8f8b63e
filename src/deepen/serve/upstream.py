"""The connection to the engine behind the door. Its answer goes straight from socket to socket.

Streams would wake a task for every token; on a machine whose cores all compute, that cost tokens.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from deepen.engine.llamacpp import Server

_PIECE = 64 << 10
_LAST_CHUNK = b"0\r\n\r\n"


class Upstream(asyncio.Protocol):
    """An open connection that has one request and one answer."""

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self.ended: asyncio.Future[None] = loop.create_future()
        self._transport: asyncio.Transport | None = None
        self._head: asyncio.Future[None] = loop.create_future()
        self._held = bytearray()  # what came before it is known where to
        self._client: asyncio.StreamWriter | None = None
        self._resuming: asyncio.Task[None] | None = None
        self._count, self._tail = 0, b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by the event loop."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def connection_lost(self, _error: Exception | None) -> None:
        """Called by the event loop."""
        for each in (self._head, self.ended):
            if not each.done():
                each.set_result(None)

    def data_received(self, data: bytes) -> None:
        """Called by the event loop."""
        if self._client is not None:
            self._pass(data)
            return
        self._held += data
        if not self._head.done() and b"\r\n\r\n" in self._held:
            self._head.set_result(None)

    async def ask(self, request: bytes) -> tuple[int, dict[str, str]]:
        """Send the request; returns the status and the headers (names in lower case) of the answer.

        Raises:
            ConnectionResetError: the engine broke off.
        """
        assert self._transport is not None
        self._transport.write(request)
        await self._head
        head, found, rest = bytes(self._held).partition(b"\r\n\r\n")
        if not found:
            raise ConnectionResetError
        self._held = bytearray(rest)
        first, *lines = head.decode("latin-1").split("\r\n")
        pairs = (line.partition(":") for line in lines if line)
        return int(first.split(" ")[1]), {name.strip().lower(): value.strip() for name, _, value in pairs}

    async def body(self) -> bytes:
        """All that the engine answers."""
        await self.ended
        return bytes(self._held)

    async def pass_to(self, client: asyncio.StreamWriter, headers: Mapping[str, str]) -> bool:
        """Pass the body on as it comes. False if the engine broke off before its end.

        Raises:
            ConnectionResetError: the client left.
        """
        self._client = client
        self._pass(bytes(self._held))
        await self.ended
        if client.is_closing():
            raise ConnectionResetError
        if "content-length" in headers:
            return self._count >= int(headers["content-length"])
        return self._tail.endswith(_LAST_CHUNK)

    def close(self) -> None:
        """End the connection; the engine's slot is free at once."""
        if self._resuming is not None:
            self._resuming.cancel()
        if self._transport is not None:
            self._transport.close()

    def _pass(self, data: bytes) -> None:
        assert self._client is not None
        self._client.write(data)
        self._count += len(data)
        self._tail = data if len(data) >= len(_LAST_CHUNK) else (self._tail + data)[-len(_LAST_CHUNK) :]
        if self._transport is not None and self._client.transport.get_write_buffer_size() > _PIECE:
            self._transport.pause_reading()
            self._resuming = asyncio.ensure_future(self._resume(self._client, self._transport))

    async def _resume(self, client: asyncio.StreamWriter, transport: asyncio.Transport) -> None:
        """Read on when the client has taken what there is."""
        try:
            await client.drain()
        except ConnectionError:
            transport.close()
        else:
            transport.resume_reading()


async def open_upstream(engine: Server) -> Upstream:
    """Connect to the engine.

    Raises:
        ConnectionError: it does not answer.
    """
    assert engine.address.hostname is not None
    assert engine.address.port is not None
    _, upstream = await asyncio.get_running_loop().create_connection(Upstream, engine.address.hostname, engine.address.port)
    return upstream
