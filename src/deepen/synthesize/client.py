"""Questions to an endpoint of OpenAI's protocol: several at once, and asked again where that can help."""

from __future__ import annotations

import email.utils
import http.client
import json
import random
import socket
import threading
import time
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any
from urllib.parse import SplitResult, urlsplit

from deepen.engine.http import Refusal, response
from deepen.errors import DataError, DeepenError, NetworkError, OptionError
from deepen.synthesize.answer import Answer

_FIRST_DELAY, _LONGEST_DELAY = 0.5, 60.0  # seconds before a request is sent again
_LONGEST_WAIT = 900.0  # seconds that a server may ask for
_LONGEST_ANSWER = 1 << 24  # bytes
_AGAIN = {HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_EARLY, HTTPStatus.TOO_MANY_REQUESTS}
CONTINUE = "run the same command again when it is back; it continues from there"


class SetAside(Exception):
    """A request that got no usable answer in all its tries; others may get one. Not for users."""


class Client:
    """An endpoint. `ask` may be called from several threads.

    Args:
        url: with or without `/v1`.
        key: sent as `Authorization: Bearer`.
        timeout: seconds without a byte after which a request is given up.
        retries: how often a request is sent again.

    Raises:
        OptionError: the URL is none.
    """

    def __init__(self, url: str, key: str | None, *, timeout: float, retries: int) -> None:
        try:
            parts = urlsplit(url)
            usable = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
        except ValueError:
            usable = False
        if not usable:
            raise OptionError(f"{url!r} is not a URL", where="--endpoint", next="write for example http://127.0.0.1:8080")
        path = parts.path.rstrip("/").removesuffix("/chat/completions")
        self._address = SplitResult(parts.scheme, parts.netloc, path or "/v1", "", "")
        self.where = self._address.geturl()
        self._key, self._timeout, self._retries = key, timeout, retries
        self._closed, self._not_before, self.retried = threading.Event(), 0.0, 0

    def first_model(self) -> str:
        """The first model that the endpoint lists.

        Raises:
            OptionError: it lists none, or wants a key.
            NetworkError: it does not answer.
        """
        listed = self._try("GET", "/models", None, _models)
        if not listed:
            raise OptionError("the endpoint lists no model", where=self.where, next="name one with --model")
        return str(listed[0])

    def ask(self, body: Mapping[str, Any]) -> Answer:
        """The answer to a request for a chat completion.

        Raises:
            SetAside: nothing usable came: errors of the server, time-outs, cut or malformed answers.
            NetworkError: the server is gone, or asks to wait for too long.
            OptionError, DataError: it refuses the request.
        """
        answer: Answer = self._try("POST", "/chat/completions", body, _answer)
        return answer

    def close(self) -> None:
        """Send nothing again."""
        self._closed.set()

    def _try(self, method: str, path: str, body: Mapping[str, Any] | None, read: Any) -> Any:
        for attempt in range(self._retries + 1):
            self._closed.wait(max(0.0, self._not_before - time.monotonic()))
            try:
                with response(self._address, method, path, body, key=self._key, seconds=self._timeout) as reply:
                    return read(_json(reply))
            except Refusal as refusal:
                if refusal.status not in _AGAIN and refusal.status < HTTPStatus.INTERNAL_SERVER_ERROR:
                    raise self._refused(refusal) from refusal
                problem: Exception = refusal
                self._hold(refusal.retry_after)
            except (OSError, http.client.HTTPException, ValueError) as error:
                problem = error
            if attempt == self._retries or self._closed.is_set():
                break
            self.retried += 1
            delay = min(_LONGEST_DELAY, _FIRST_DELAY * 2**attempt)
            self._closed.wait(delay * random.uniform(0.5, 1.0))
        reason = str(problem) or type(problem).__name__
        if body is None or isinstance(problem, ConnectionRefusedError | socket.gaierror):
            raise NetworkError(f"the endpoint does not answer ({reason})", where=self.where, next=CONTINUE) from problem
        raise SetAside(reason) from problem

    def _hold(self, retry_after: str | None) -> None:
        """Do as a `Retry-After` says, for all requests (RFC 9110, section 10.2.3: seconds, or a date)."""
        seconds = _seconds(retry_after)
        if seconds > _LONGEST_WAIT:
            raise NetworkError(f"the endpoint asks to wait {seconds:.0f} s", where=self.where, next=CONTINUE)
        self._not_before = max(self._not_before, time.monotonic() + seconds)

    def _refused(self, refusal: Refusal) -> DeepenError:
        if refusal.status in {HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN}:
            advice = "set OPENAI_API_KEY to it, or name a file with --api-key-file"
            return OptionError(f"the endpoint wants a key ({refusal})", where=self.where, next=advice)
        return DataError(f"the endpoint refused a request ({refusal})", where=self.where, next="change what the message names")


def _seconds(retry_after: str | None) -> float:
    if not retry_after:
        return 0.0
    try:
        return max(0.0, float(retry_after))
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(retry_after).timestamp() - time.time())
    except ValueError:
        return 0.0


def _json(reply: http.client.HTTPResponse) -> Any:
    content = reply.read(_LONGEST_ANSWER + 1)
    if len(content) > _LONGEST_ANSWER:
        raise ValueError("the answer is too long")
    if reply.length:  # bytes that were announced and did not come
        raise ValueError("the answer broke off")
    try:
        return json.loads(content)
    except RecursionError as error:
        raise ValueError("the answer is nested too deeply") from error


def _models(content: Any) -> list[str]:
    try:
        return [str(each["id"]) for each in content["data"]]
    except (TypeError, KeyError) as error:
        raise ValueError("the list of models is malformed") from error


def _answer(content: Any) -> Answer:
    """The answer in OpenAI's form.

    Raises:
        ValueError: there is none in it.
    """
    try:
        choice = content["choices"][0]
        text, reason, usage = choice["message"]["content"], choice.get("finish_reason"), content.get("usage")
    except (TypeError, KeyError, IndexError, AttributeError) as error:
        told = content.get("error") if isinstance(content, dict) else None
        raise ValueError(f"no answer in it{f' but an error: {str(told)[:200]}' if told else ''}") from error
    if text is not None and not isinstance(text, str):
        raise ValueError("the answer is no text")
    counts = usage if isinstance(usage, dict) else {}
    tokens = [counts.get(name) for name in ("prompt_tokens", "completion_tokens")]
    return Answer(
        (text or "").encode(errors="replace").decode(),
        str(reason or "stop"),
        *(each if isinstance(each, int) and not isinstance(each, bool) and each >= 0 else None for each in tokens),
    )
