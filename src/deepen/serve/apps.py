"""The applications behind their endpoints: each request is checked, works in a thread, and is stopped when its client leaves.

The model is the one that serves conversations, through the same slots. A request names no place of this machine: which
documents support answers from was said when the server was started.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from http import HTTPStatus
from typing import Any

from deepen.engine.llamacpp import Server
from deepen.engine.shared import SharedEngine
from deepen.errors import DeepenError, MachineError, StorageError, printable
from deepen.serve.wire import Refused, Reply, json_object
from deepen.serve.work import APPS, Event, House, Job

_SECONDS_OF_SILENCE = 10.0  # then a stream says that it is still at work, so that nothing between hangs up
_NAMES = {str: "a text", int: "a whole number", float: "a number", bool: "true or false", list: "a list"}


class Apps:
    """The applications of a server.

    Args:
        house: what the server has for them; as many requests are at work at once as there are conversations, others wait.
    """

    def __init__(self, house: House) -> None:
        self.house = house
        self._pool = ThreadPoolExecutor(house.parallel, thread_name_prefix="application")
        self._engines: set[SharedEngine] = set()

    def describe(self) -> dict[str, Any]:
        """Which applications there are, and what a page needs to know of them."""
        library = self.house.library
        return {
            "apps": [path.rsplit("/", 1)[1] for path in APPS],
            "support": None if library is None else {"documents": library.documents, "passages": library.passages},
        }

    def close(self) -> None:
        """Stop what is at work and wait for its threads."""
        for engine in list(self._engines):
            engine.stop()
        self._pool.shutdown(cancel_futures=True)

    async def answer(self, path: str, body: bytes, server: Server, client: asyncio.StreamReader, reply: Reply) -> None:
        """Answer a request to an application; the client's leaving ends the work.

        Args:
            path: one of `APPS`.
            body: the request.
            server: the model.
            client: ends when the client leaves.
            reply: where the answer goes: one JSON object, or events with `"stream": true`.

        Raises:
            Refused: the request is wrong, or the work failed.
        """
        app = APPS[path]
        fields = await asyncio.to_thread(_fields, body, app.keys)
        streams = fields.pop("stream", False)
        loop = asyncio.get_running_loop()
        events: asyncio.Queue[Event | None] = asyncio.Queue()

        def tell(event: Event | None) -> None:
            with suppress(RuntimeError):  # the loop ended, and nobody listens
                loop.call_soon_threadsafe(events.put_nowait, event)

        engine = SharedEngine(server, parallel=self.house.parallel)
        self._engines.add(engine)
        working = self._pool.submit(Job(self.house, engine, tell).run, app.work, fields)
        leaving = asyncio.ensure_future(client.read(1))
        sending = asyncio.ensure_future(_send(events, reply, streams=streams))
        try:
            await asyncio.wait({leaving, sending}, return_when=asyncio.FIRST_COMPLETED)
            if not sending.done():
                raise ConnectionResetError
            sending.result()
        finally:
            engine.stop()
            working.cancel()
            self._engines.discard(engine)
            for task in (leaving, sending):
                task.cancel()
                with suppress(asyncio.CancelledError, ConnectionError, Refused):
                    await task


async def _send(events: asyncio.Queue[Event | None], reply: Reply, *, streams: bool) -> None:
    while True:
        try:
            async with asyncio.timeout(_SECONDS_OF_SILENCE if streams else None):
                event = await events.get()
        except TimeoutError:
            event = ("progress", {"stage": "working"})
        if event is None:  # stopped; if anyone still listens, the server is ending
            raise Refused(HTTPStatus.SERVICE_UNAVAILABLE, "the server is ending", "unavailable_error")
        name, content = event
        if name == "error":
            raise _refusal(content) from content
        if streams:
            reply.event(name, content)
            await reply.writer.drain()
        if name == "result":
            return reply.end() if streams else reply.json(HTTPStatus.OK, content)


def _refusal(error: BaseException) -> Refused:
    """An error of an application as the client may see it: places of this machine are left out."""
    if isinstance(error, Refused):
        return error
    if not isinstance(error, DeepenError):
        print(f"error: {type(error).__name__}: {printable(error)}", file=sys.stderr)
        return Refused(HTTPStatus.INTERNAL_SERVER_ERROR, "deepen failed; the server's log says more", "server_error")
    where = (error.where or "").removeprefix("--").lower().replace("-", "_")
    named = f"{where}: " if where.isidentifier() else ""
    message = f"{named}{error.what}" + (f" ({error.next})" if error.next else "")
    if isinstance(error, StorageError):
        return Refused(HTTPStatus.INSUFFICIENT_STORAGE, message, "server_error")
    if isinstance(error, MachineError):
        return Refused(HTTPStatus.BAD_GATEWAY, message, "server_error")
    return Refused(HTTPStatus.BAD_REQUEST, message)


def _fields(body: bytes, keys: Mapping[str, tuple[type, ...]]) -> dict[str, Any]:
    """What a request gives, without nulls, each value of the type that its key has."""
    given = json_object(body)
    given.pop("model", None)  # there is one
    keys = {**keys, "stream": (bool,)}
    for key, value in given.items():
        if key not in keys:
            raise Refused(HTTPStatus.BAD_REQUEST, f"there is no {key[:60]!r} here; the keys are {', '.join(keys)}")
        wanted = keys[key]
        if value is not None and type(value) not in wanted:
            named = " or ".join(_NAMES[each] for each in wanted if not (each is int and float in wanted))
            raise Refused(HTTPStatus.BAD_REQUEST, f"{key!r} must be {named}, not {json.dumps(value)[:60]}")
    try:
        json.dumps(given, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise Refused(HTTPStatus.BAD_REQUEST, "the request has half a character (a lone surrogate)") from None
    return {key: value for key, value in given.items() if value is not None}
