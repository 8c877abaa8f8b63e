"""The engines as a batch uses them: each conversation asks on its own, and waits for whole answers."""

from __future__ import annotations

import http.client
import json
import threading
from collections.abc import Callable, Mapping
from contextlib import closing
from http import HTTPStatus
from typing import Any, Protocol
from urllib.parse import SplitResult

from deepen.batch.lines import CHAT, EMBEDDINGS
from deepen.engine import Chunk, Engine
from deepen.engine.http import Refusal, response
from deepen.engine.llamacpp import Server
from deepen.engine.tools import as_calls, as_schema, must_call
from deepen.errors import DataError, DeepenError, NetworkError, OptionError, UnsupportedModelError
from deepen.progress import say

_DELAYS = (1.0, 2.0, 4.0)  # seconds before a request is sent again
_HOUR = 3600.0
_KNOWN = {"model", "messages", "prompt", "max_tokens", "max_completion_tokens", "temperature", "seed", "stop"}


class Fatal(Exception):
    """The run cannot go on; not for users. `refusal` answers the line that was at work, if it has an answer."""

    def __init__(self, error: DeepenError, refusal: Refusal | None = None) -> None:
        super().__init__(str(error))
        self.error, self.refusal = error, refusal


class Asker(Protocol):
    """One conversation with an engine. `ask` and `close` may be called from two threads."""

    uses_gpu: bool | None

    def ask(self, url: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """The answer to a request.

        Raises:
            Refusal: the engine refuses it, or failed over it; the next one may be answered.
            Fatal: the engine is gone.
        """
        ...

    def close(self) -> None:
        """Give back what it holds; a request at work fails."""
        ...


class LlamacppAsker:
    """A llama.cpp of its own, with one conversation.

    Several conversations in one llama.cpp are computed in common batches, in which the last digits depend on who else is
    asking, and with them now and then a word; and on a CPU they are no faster than processes with a share of the cores each.

    Args:
        start: starts it, and once more if it dies.
    """

    def __init__(self, start: Callable[[], Server]) -> None:
        self._start, self._closed, self._restarted = start, threading.Event(), False
        self._server = start()
        self.uses_gpu: bool | None = self._server.uses_gpu

    def ask(self, url: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """The answer to a request; see `Asker`."""
        forced = url == CHAT and must_call(body)
        try:
            asked = as_schema(body) if forced else body
        except ValueError as error:
            raise Refusal(HTTPStatus.BAD_REQUEST, str(error)) from error
        deaths = 0
        while True:
            try:
                answer = _post(self._server.address, url, asked, self._server.key, None)
            except (OSError, http.client.HTTPException) as error:
                if self._closed.is_set():
                    raise
                died, deaths = self._server.child.died(), deaths + 1
                self._server.close()
                if self._restarted:
                    message = "the engine died over this line, twice"
                    raise Fatal(died, Refusal(HTTPStatus.INTERNAL_SERVER_ERROR, message) if deaths > 1 else None) from error
                say(f"error: {died}\nThe engine is started again, this once.")
                self._restarted = True
                self._server = self._start()
                if self._closed.is_set():
                    self._server.close()
            else:
                return self._within_context(as_calls(answer) if forced else answer)

    def _within_context(self, answer: dict[str, Any]) -> dict[str, Any]:
        # llama.cpp rounds a context up to 256 tokens
        tokens = (answer.get("usage") or {}).get("prompt_tokens", 0)
        if tokens >= self._server.context and "choices" in answer:
            message = f"the prompt has {tokens} tokens, but the context holds {self._server.context}, answer included"
            raise Refusal(HTTPStatus.BAD_REQUEST, message)
        return answer

    def close(self) -> None:
        """End its process; see `Asker`."""
        self._closed.set()
        self._server.close()


class RemoteAsker:
    """A server of OpenAI's protocol. What fails on the way, and answers that say "later", are tried again.

    Args:
        address: the server, with its `/v1`.
        key: what it asks for.
    """

    uses_gpu: bool | None = None

    def __init__(self, address: SplitResult, key: str | None) -> None:
        self._address, self._key, self._closed = address, key, threading.Event()

    def ask(self, url: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """The answer to a request; see `Asker`."""
        where = self._address.geturl()
        for delay in (*_DELAYS, None):
            try:
                return _post(self._address, url.removeprefix("/v1"), body, self._key, _HOUR)
            except Refusal as refusal:
                if refusal.status in {HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN}:
                    lacking = OptionError(f"the server wants a key ({refusal})", where=where, next="set DEEPEN_API_KEY to it")
                    raise Fatal(lacking) from refusal
                later = refusal.status == HTTPStatus.TOO_MANY_REQUESTS or refusal.status >= HTTPStatus.INTERNAL_SERVER_ERROR
                if not later or delay is None:
                    raise
            except (OSError, http.client.HTTPException, ValueError) as error:
                if delay is None:
                    reason = str(error) or type(error).__name__
                    failed = NetworkError(f"the connection failed ({reason})", where=where, next="run again to continue")
                    raise Fatal(failed) from error
            self._closed.wait(delay)
        raise AssertionError("the last try returns or raises")

    def close(self) -> None:
        """Send nothing again; see `Asker`."""
        self._closed.set()


class LocalAsker:
    """An engine in this process, for plain conversations and texts.

    Args:
        engine: a loaded model.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine, self.uses_gpu = engine, engine.uses_gpu

    def ask(self, url: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """The answer to a request; see `Asker`."""
        engine, name = self._engine, self._engine.name
        unknown = sorted(field for field, value in body.items() if field not in _KNOWN and value is not None)
        if url == EMBEDDINGS or unknown:
            what = "embeddings" if url == EMBEDDINGS else ", ".join(unknown)
            raise Refusal(HTTPStatus.BAD_REQUEST, f"the engine {name} does not do {what}; use --engine llamacpp")
        stop = body.get("stop") or ()
        chat = url == CHAT
        prompt = body.get("messages" if chat else "prompt")
        if not isinstance(prompt, list if chat else str):
            raise Refusal(HTTPStatus.BAD_REQUEST, "messages are a list" if chat else "a prompt is a text")
        try:
            chunks = engine.stream(
                prompt,
                max_new_tokens=body.get("max_completion_tokens") or body["max_tokens"],
                temperature=body["temperature"],
                seed=body["seed"],
                stop=[stop] if isinstance(stop, str) else stop,
            )
            text, last = "", Chunk("")
            with closing(chunks):
                for last in chunks:
                    text += last.text
        except (DataError, UnsupportedModelError, TypeError, ValueError) as error:
            raise Refusal(HTTPStatus.BAD_REQUEST, error.what if isinstance(error, DeepenError) else str(error)) from error
        said: dict[str, Any] = {"message": {"role": "assistant", "content": text}} if chat else {"text": text}
        return {
            "id": "",
            "object": "chat.completion" if chat else "text_completion",
            "created": 0,
            "model": body["model"],
            "choices": [{"index": 0, **said, "finish_reason": last.finish_reason}],
            "usage": {
                "prompt_tokens": last.prompt_tokens,
                "completion_tokens": last.completion_tokens,
                "total_tokens": last.prompt_tokens + last.completion_tokens,
            },
        }

    def close(self) -> None:
        """Give back its memory; see `Asker`."""
        self._engine.close()


def _post(address: SplitResult, path: str, body: Mapping[str, Any], key: str | None, seconds: float | None) -> dict[str, Any]:
    with response(address, "POST", path, body, key=key, seconds=seconds) as reply:
        answer = json.load(reply)
    if not isinstance(answer, dict):
        raise ValueError("the answer is not a JSON object")
    return answer
