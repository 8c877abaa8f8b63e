"""The applications behind their endpoints: each request is checked, works in a thread, and is stopped when its client leaves.

The model is the one that serves conversations, through the same slots. A request names no place of this machine: which
documents support answers from was said when the server was started.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from http import HTTPStatus
from typing import Any

from deepen.apps.desk import check_question
from deepen.apps.support import Library, library_desk
from deepen.engine.llamacpp import Server
from deepen.engine.shared import SharedEngine, Stopped
from deepen.errors import DeepenError, MachineError, StorageError, printable
from deepen.serve.wire import Refused, Reply, json_object

_SECONDS_OF_SILENCE = 10.0  # then a stream says that it is still at work, so that nothing between hangs up
_LONGEST_HISTORY = 20


class Job:
    """What one request asks of an application: the engine it may use, and where its events go.

    Args:
        engine: the server's model, for this request alone.
        tell: takes events from any thread; None is the last one.
    """

    def __init__(self, engine: SharedEngine, tell: Callable[[tuple[str, Any] | None], object]) -> None:
        self.engine = engine
        self._tell = tell

    def text(self, text: str) -> None:
        """A piece of the text that the user reads."""
        self.engine.check()
        self._tell(("text", {"text": text}))

    def progress(self, **content: object) -> None:
        """How far the work is."""
        self.engine.check()
        self._tell(("progress", content))

    def run(self, work: Callable[[Job], object]) -> None:
        """Do the work; its result or its error is the last event but one."""
        try:
            self._tell(("result", work(self)))
        except Stopped:
            pass
        except BaseException as error:  # told to the client, and raised there
            self._tell(("error", error))
        finally:
            self._tell(None)


@dataclass(frozen=True)
class _App:
    """An application: the keys of its requests with their types, and what it does with them."""

    keys: Mapping[str, type]
    work: Callable[[Apps, Mapping[str, Any], Job], object]


class Apps:
    """The applications of a server.

    Args:
        library: the documents that support answers from, if there are any.
        new_tokens: longest answer.
        parallel: requests at work at once; others wait.
    """

    def __init__(self, library: Library | None, *, new_tokens: int, parallel: int) -> None:
        self.library = library
        self.new_tokens = new_tokens
        self.parallel = parallel
        self._pool = ThreadPoolExecutor(parallel, thread_name_prefix="application")
        self._engines: set[SharedEngine] = set()

    def describe(self) -> dict[str, Any]:
        """Which applications there are, and what a page needs to know of them."""
        shown = None if self.library is None else {"documents": self.library.documents, "passages": self.library.passages}
        return {"support": shown}

    def close(self) -> None:
        """Stop what is at work and wait for its threads."""
        for engine in list(self._engines):
            engine.stop()
        self._pool.shutdown(cancel_futures=True)

    async def answer(self, path: str, body: bytes, server: Server, client: asyncio.StreamReader, reply: Reply) -> None:
        """Answer a request to an application; the client's leaving ends the work.

        Args:
            path: one of `PATHS`.
            body: the request.
            server: the model.
            client: ends when the client leaves.
            reply: where the answer goes: one JSON object, or events with `"stream": true`.

        Raises:
            Refused: the request is wrong, or the work failed.
        """
        app = _APPS[path]
        fields = await asyncio.to_thread(_fields, body, app.keys)
        streams = fields.pop("stream", False)
        loop = asyncio.get_running_loop()
        events: asyncio.Queue[tuple[str, Any] | None] = asyncio.Queue()

        def tell(event: tuple[str, Any] | None) -> None:
            with suppress(RuntimeError):  # the loop ended, and nobody listens
                loop.call_soon_threadsafe(events.put_nowait, event)

        engine = SharedEngine(server, parallel=self.parallel)
        self._engines.add(engine)
        working = self._pool.submit(Job(engine, tell).run, partial(app.work, self, fields))
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


async def _send(events: asyncio.Queue[tuple[str, Any] | None], reply: Reply, *, streams: bool) -> None:
    while True:
        try:
            async with asyncio.timeout(_SECONDS_OF_SILENCE if streams else None):
                event = await events.get()
        except TimeoutError:
            event = ("progress", {"stage": "working"})
        if event is None:
            return
        name, content = event
        if name == "error":
            raise _refusal(content) from content
        if name == "result":
            content = asdict(content)
        if streams:
            reply.event(name, content)
            await reply.writer.drain()
            if name == "result":
                reply.end()
        elif name == "result":
            reply.json(HTTPStatus.OK, content)


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


def _fields(body: bytes, keys: Mapping[str, type]) -> dict[str, Any]:
    """What a request gives, without nulls, each value of the type that its key has."""
    given = json_object(body)
    given.pop("model", None)  # there is one
    keys = {**keys, "stream": bool}
    for key, value in given.items():
        if key not in keys:
            raise Refused(HTTPStatus.BAD_REQUEST, f"there is no {key[:60]!r} here; the keys are {', '.join(keys)}")
        wanted = keys[key]
        if value is not None and type(value) is not wanted and not (wanted is float and type(value) is int):
            raise Refused(HTTPStatus.BAD_REQUEST, f"{key!r} must be {_NAMES[wanted]}, not {json.dumps(value)[:60]}")
    try:
        json.dumps(given, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise Refused(HTTPStatus.BAD_REQUEST, "the request has half a character (a lone surrogate)") from None
    return {key: value for key, value in given.items() if value is not None}


_NAMES = {str: "a text", int: "a whole number", float: "a number", bool: "true or false", list: "a list"}


def _needs(fields: Mapping[str, Any], key: str) -> Any:
    if key not in fields:
        raise Refused(HTTPStatus.BAD_REQUEST, f"{key!r} is missing")
    return fields[key]


def _pairs(values: list[Any], first: str, second: str, where: str) -> list[tuple[str, str]]:
    """Two texts from each object of a list."""
    for each in values:
        if not isinstance(each, dict) or not all(isinstance(each.get(key), str) for key in (first, second)):
            raise Refused(HTTPStatus.BAD_REQUEST, f"{where!r} is a list of objects with the texts {first!r} and {second!r}")
    return [(each[first], each[second]) for each in values]


def _support(apps: Apps, fields: Mapping[str, Any], job: Job) -> object:
    if apps.library is None:
        raise Refused(
            HTTPStatus.NOT_FOUND,
            "this server has no documents (start it with deepen serve MODEL --docs FOLDER)",
            "not_found_error",
        )
    question = check_question(_needs(fields, "question"))
    turns = _pairs(fields.get("turns", []), "question", "answer", "turns")[-_LONGEST_HISTORY:]
    options = {key: value for key, value in fields.items() if key not in {"question", "turns"}}
    options["max_new_tokens"] = min(options.get("max_new_tokens", 256), apps.new_tokens)
    with library_desk(apps.library, lambda: job.engine, **options) as desk:
        desk.turns = turns
        job.progress(stage="searching")
        return desk.ask(question, on_text=job.text)


_SAMPLING: dict[str, type] = {"max_new_tokens": int, "temperature": float, "seed": int}
_APPS = {
    "/v1/apps/support": _App({"question": str, "turns": list, "passages": int, "handover": str, **_SAMPLING}, _support),
}
PATHS = frozenset(_APPS)
"""Where the applications are."""
