"""The door in front of llama.cpp's server: keys, origins, limits, health, metrics, and another try when the engine died.

Requests are checked and written anew for the engine, and its answers are passed on as they come. Each connection carries one
request. A client that leaves takes its request along: the engine's slot is free at once.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import ssl
import sys
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from http import HTTPStatus
from typing import Any
from urllib.parse import urlsplit

from deepen.engine.llamacpp import Server
from deepen.engine.tools import as_calls, as_schema, call_events, must_call
from deepen.errors import DeepenError, printable
from deepen.serve.apps import Apps
from deepen.serve.pages import Pages
from deepen.serve.upstream import Upstream, open_upstream
from deepen.serve.wire import Refused, Reply, finish, json_object, read_body, read_head
from deepen.serve.work import APPS

_HEAD_SECONDS = 30.0
_POLLS = 30
_LOOPBACK = {"localhost", "127.0.0.1", "::1"}
_COMPLETIONS = {"/v1/chat/completions", "/v1/completions", "/chat/completions", "/completions", "/completion", "/v1/responses"}
_POSTS = _COMPLETIONS | {"/v1/embeddings", "/embeddings", "/tokenize", "/detokenize", "/apply-template"} | set(APPS)
_GETS = {"/v1/models", "/models", "/props", "/v1/apps"}
_LENGTHS = ("max_tokens", "max_completion_tokens", "max_output_tokens", "n_predict")
Convert = Callable[[bytes], tuple[str, bytes]]
_KEPT = {"content-type", "content-length", "transfer-encoding", "content-encoding", "cache-control", "etag"}


@dataclass(frozen=True)
class Limits:
    """What a request may take.

    Attributes:
        new_tokens: longest answer; longer ones that are asked for are cut to it.
        body_bytes: largest request.
        seconds: longest time from a request to the end of its answer.
    """

    new_tokens: int
    body_bytes: int
    seconds: float


@dataclass
class Front:
    """The state of a running server.

    Args:
        start: starts the engine; called in a thread, and once more if it dies.
        limits: what a request may take.
        keys: any of them opens the door; with none it is open.
        loopback: it listens on the loopback interface only.
        apps: the applications.
        pages: their pages in the browser.
    """

    start: Callable[[], Server]
    limits: Limits
    keys: tuple[str, ...]
    loopback: bool
    apps: Apps
    pages: Pages
    engine: Server | None = None
    failure: DeepenError | None = None
    restarts: int = 0
    running: int = 0
    answered: Counter[tuple[str, int]] = field(default_factory=Counter)
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def load(self) -> None:
        """Start the engine; until then requests are answered with 503."""
        self.engine = await asyncio.to_thread(self.start)

    async def revive(self, dead: Server) -> None:
        """Start the engine again after it died, once."""
        async with self.lock:
            if self.engine is not dead:
                return  # another request has seen to it
            for _ in range(_POLLS):  # its connections end a moment before it does
                if dead.child.process.poll() is not None:
                    break
                await asyncio.sleep(0.1)
            else:
                return  # it lives, and broke off for another reason
            self.engine = None
            error = await asyncio.to_thread(dead.child.died)
            print(f"error: {error}", file=sys.stderr)
            dead.close()
            if self.restarts:
                self.failure = error
                return
            self.restarts += 1
            print("The engine is started again, this once.", file=sys.stderr)
            try:
                await self.load()
            except DeepenError as again:
                self.failure = again

    def _revive_soon(self, dead: Server) -> None:
        asyncio.get_running_loop().create_task(self.revive(dead)).add_done_callback(_report)

    async def connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer the one request of a connection, which is running once its head is there: browsers connect ahead of need."""
        reply = Reply(writer)
        path, running = "?", 0
        try:
            async with asyncio.timeout(_HEAD_SECONDS):
                method, target, headers = await read_head(reader)
            path, running = urlsplit(target).path, 1
            self.running += running
            reply.origin = self._check_origin(headers)
            async with asyncio.timeout(self.limits.seconds):
                await self._answer(method, target, headers, reader, reply)
        except TimeoutError:
            if running:
                message = f"the answer took longer than {self.limits.seconds:g} seconds"
                reply.error(HTTPStatus.GATEWAY_TIMEOUT, message, "timeout")
            else:
                reply.error(HTTPStatus.REQUEST_TIMEOUT, f"no request came within {_HEAD_SECONDS:g} seconds", "timeout")
        except Refused as refused:
            reply.error(refused.status, str(refused), refused.kind)
        except (ConnectionError, asyncio.IncompleteReadError, ssl.SSLError):
            reply.status = 499  # the client left
        except asyncio.CancelledError:  # the time to finish is over
            reply.error(HTTPStatus.SERVICE_UNAVAILABLE, "the server is ending", "unavailable_error")
        finally:
            self.running -= running
            known = path in _POSTS | _GETS | {"/health", "/metrics", "/"}
            self.answered[path if known else "other", reply.status] += 1
            await finish(reader, writer, linger=400 <= reply.status < 499)

    def _check_origin(self, headers: Mapping[str, str]) -> str | None:
        """The origin that may read the answer. Pages of other sites, and names that point here, are turned away."""
        origin = headers.get("origin")
        own = headers.get("host", "")
        if origin and urlsplit(origin).hostname not in _LOOPBACK and (not own or urlsplit(origin).netloc != own):
            raise Refused(HTTPStatus.FORBIDDEN, "pages of other sites may not use this server")
        if self.loopback and urlsplit(f"//{own}").hostname not in _LOOPBACK:
            raise Refused(HTTPStatus.FORBIDDEN, "this server is for this machine alone")
        return origin

    async def _answer(
        self, method: str, target: str, headers: Mapping[str, str], reader: asyncio.StreamReader, reply: Reply
    ) -> None:
        path = urlsplit(target).path
        if method == "OPTIONS":
            return reply.json(HTTPStatus.NO_CONTENT, None)
        if path in {"/health", "/v1/health"} and method == "GET":
            return self._health(reply)
        if method == "GET" and (page := self.pages.find(path)) is not None:
            return reply.body(*page)
        if path.startswith("/apps/"):
            raise Refused(HTTPStatus.NOT_FOUND, f"there is no {method} {path} here", "not_found_error")
        static = method == "GET" and path not in _GETS | {"/metrics"} and not path.startswith("/v1/")
        if not static:
            self._check_key(headers)
        if path == "/metrics":
            return reply.body("text/plain; version=0.0.4", (await self._metrics()).encode())
        if not static and path not in (_POSTS if method == "POST" else _GETS if method == "GET" else ()):
            known = path in _POSTS | _GETS
            status = HTTPStatus.METHOD_NOT_ALLOWED if known else HTTPStatus.NOT_FOUND
            raise Refused(status, f"there is no {method} {path} here", "not_found_error")
        body, convert = await self._body(path, headers, reader) if method == "POST" else (b"", None)
        engine = self._engine()
        if path == "/v1/apps":
            return reply.json(HTTPStatus.OK, self.apps.describe() | {"max_body_bytes": self.limits.body_bytes})
        if path in APPS:
            try:
                return await self.apps.answer(path, body, engine, reader, reply)
            except Refused as refused:
                if refused.status == HTTPStatus.BAD_GATEWAY:
                    self._revive_soon(engine)
                raise
        # the engine itself says which of its files anyone may see
        request = _request(method, target, headers, body, engine, key=None if static else engine.key)
        return await self._relay(engine, request, reader, reply, convert)

    def _engine(self) -> Server:
        if self.engine is not None:
            return self.engine
        if self.failure is not None:
            raise Refused(HTTPStatus.SERVICE_UNAVAILABLE, f"the engine died: {self.failure.what}", "server_error")
        raise Refused(HTTPStatus.SERVICE_UNAVAILABLE, "the model is being loaded", "unavailable_error")

    def _check_key(self, headers: Mapping[str, str]) -> None:
        given = headers.get("authorization", "").removeprefix("Bearer ").strip() or headers.get("x-api-key", "")
        if self.keys and not any(hmac.compare_digest(given.encode(), key.encode()) for key in self.keys):
            raise Refused(HTTPStatus.UNAUTHORIZED, "a key is needed: Authorization: Bearer …", "authentication_error")

    async def _body(self, path: str, headers: Mapping[str, str], reader: asyncio.StreamReader) -> tuple[bytes, Convert | None]:
        """What the engine is asked, and how its answer is changed, if it is."""
        body = await read_body(headers, reader, self.limits.body_bytes)
        if path not in _COMPLETIONS:
            return body, None
        content = json_object(body)
        content |= self._length(content)
        if not (path.endswith("/chat/completions") and must_call(content)):
            return json.dumps(content).encode(), None
        try:
            return json.dumps(as_schema(content)).encode(), partial(_calls, content)
        except ValueError as error:
            raise Refused(HTTPStatus.BAD_REQUEST, str(error)) from None

    def _length(self, content: Mapping[str, Any]) -> dict[str, int]:
        """How long an answer may be: as asked for, but never without an end and never above the limit."""
        asked = {name: content[name] for name in _LENGTHS if content.get(name) is not None} or {"max_tokens": -1}
        return {
            name: min(value, self.limits.new_tokens) if type(value) is int and value >= 0 else self.limits.new_tokens
            for name, value in asked.items()
        }

    def _health(self, reply: Reply) -> None:
        if self.engine is not None:
            return reply.json(HTTPStatus.OK, {"status": "ok"})
        state = "the engine died" if self.failure else "loading model"
        return reply.json(HTTPStatus.SERVICE_UNAVAILABLE, {"status": state})

    async def _metrics(self) -> str:
        lines = ["# HELP deepen_requests_total Requests answered.", "# TYPE deepen_requests_total counter"]
        lines += [
            f'deepen_requests_total{{path="{path}",status="{status}"}} {count}'
            for (path, status), count in sorted(self.answered.items())
        ]
        lines += ["# HELP deepen_requests_running Requests at work.", "# TYPE deepen_requests_running gauge"]
        lines += [f"deepen_requests_running {self.running - 1}"]
        lines += ["# HELP deepen_engine_restarts_total Restarts after a crash.", "# TYPE deepen_engine_restarts_total counter"]
        lines += [f"deepen_engine_restarts_total {self.restarts}", ""]
        text = "\n".join(lines)
        if self.engine is None:
            return text
        request = _request("GET", "/metrics", {}, b"", self.engine, key=self.engine.key)
        try:
            upstream = await open_upstream(self.engine)
            await upstream.ask(request)
            return text + (await upstream.body()).decode(errors="replace")
        except ConnectionError:
            return text

    async def _relay(
        self, engine: Server, request: bytes, client: asyncio.StreamReader, reply: Reply, convert: Convert | None
    ) -> None:
        """Pass a request on and its answer back; the client's leaving ends both."""
        try:
            upstream = await open_upstream(engine)
        except ConnectionError:
            self._revive_soon(engine)
            raise Refused(HTTPStatus.BAD_GATEWAY, "the engine died; it is started again", "server_error") from None
        leaving = asyncio.ensure_future(client.read(1))
        passing = asyncio.ensure_future(_pass_on(upstream, request, reply, convert))
        try:
            await asyncio.wait({leaving, passing}, return_when=asyncio.FIRST_COMPLETED)
            if not passing.done():
                raise ConnectionResetError
            if not passing.result():
                self._revive_soon(engine)
                reply.error(HTTPStatus.BAD_GATEWAY, "the engine died; it is started again", "server_error")
        finally:
            for task in (leaving, passing):
                task.cancel()
                with suppress(asyncio.CancelledError, ConnectionError, asyncio.IncompleteReadError):
                    await task
            upstream.close()


def _calls(asked: Mapping[str, Any], body: bytes) -> tuple[str, bytes]:
    """The engine's answer to `as_schema` as that to the request: its content type and bytes."""
    answer = as_calls(json.loads(body))
    if not asked.get("stream"):
        return "application/json", json.dumps(answer).encode()
    options = asked.get("stream_options")
    events = call_events(answer, counted=isinstance(options, dict) and bool(options.get("include_usage")))
    return "text/event-stream", "".join(f"data: {json.dumps(event)}\n\n" for event in events).encode() + b"data: [DONE]\n\n"


def _request(method: str, target: str, headers: Mapping[str, str], body: bytes, engine: Server, *, key: str | None) -> bytes:
    """A request for the engine, of nothing but what was checked."""
    lines = [f"{method} {target} HTTP/1.1", f"Host: {engine.address.netloc}", "Connection: close"]
    lines += [f"Authorization: Bearer {key}"] if key else []
    lines += [f"Content-Type: application/json\r\nContent-Length: {len(body)}"] if method == "POST" else []
    lines += ["Accept-Encoding: gzip"] if "gzip" in headers.get("accept-encoding", "") and method == "GET" else []
    return "\r\n".join([*lines, "", ""]).encode("latin-1", "replace") + body


async def _pass_on(upstream: Upstream, request: bytes, reply: Reply, convert: Convert | None) -> bool:
    """Send a request and stream its answer to the client, or convert it as a whole. False if the engine broke off."""
    try:
        status, headers = await upstream.ask(request)
    except ConnectionError:
        return False
    if convert is not None and status == HTTPStatus.OK:
        answer = await upstream.body()
        if len(answer) < int(headers["content-length"]):
            return False
        kind, body = convert(answer)
        reply.head(status, {"Content-Type": kind, "Content-Length": str(len(body))})
        reply.writer.write(body)
        return True
    reply.head(status, {name: value for name, value in headers.items() if name in _KEPT})
    return await upstream.pass_to(reply.writer, headers)


def _report(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        print(f"error: {printable(error)}", file=sys.stderr)
