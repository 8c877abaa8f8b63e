"""The engine for GGUF files: llama.cpp's server (wheel `xllamacpp`) in a child process, spoken to over loopback HTTP."""

from __future__ import annotations

import http.client
import json
import secrets
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from deepen.engine.llamacpp_child import Ready, Request
from deepen.engine.process import require_xllamacpp, start
from deepen.engine.protocol import TOP_K, TOP_P, Chunk, FinishReason, Message, new_tokens
from deepen.errors import MachineError, UnsupportedModelError

_CONTEXT = 8192  # tokens, unless asked otherwise: a longer context is memory that most prompts never use


class LlamacppEngine:
    """A GGUF in llama.cpp; see `Engine` for what the methods do.

    Args:
        gguf: the model file.
        context: tokens to hold at most.

    Raises:
        MissingDependencyError: xllamacpp is not installed.
        CheckpointError: llama.cpp cannot load the file.
        MachineError: llama.cpp died.
    """

    name = "llamacpp"

    def __init__(self, gguf: Path, *, context: int | None = None) -> None:
        require_xllamacpp()
        self._key = secrets.token_urlsafe()
        self._child = start("deepen.engine.llamacpp_child", gguf, Request(gguf, context or _CONTEXT, self._key))
        try:
            ready = self._child.receive()
            assert isinstance(ready, Ready)
            self._address = urlsplit(ready.address).netloc
            self._bos: str = self._ask("GET", "/props")["bos_token"]
        except BaseException:
            self._child.close()
            raise
        self.context: int | None = ready.context
        self.has_template = ready.has_template

    def tokenize(self, text: str) -> list[int]:
        """Token ids of a text, special tokens in it recognised, none added."""
        return self._tokenize(text, add_special=False)

    def render(self, messages: Sequence[Message]) -> str:
        """The prompt for the next answer of a conversation, by the model's chat template."""
        if not self.has_template:
            raise UnsupportedModelError("the model has no chat template", where=self._child.subject, next="use --raw")
        prompt: str = self._ask("POST", "/apply-template", {"messages": list(messages)})["prompt"]
        return prompt

    def stream(
        self, prompt: str, *, max_new_tokens: int, temperature: float, seed: int | None, stop: Sequence[str]
    ) -> Generator[Chunk]:
        """Generate a continuation of `prompt`, piece by piece; see `Engine.stream`."""
        has_bos = bool(self._bos) and prompt.startswith(self._bos)
        tokens = self._tokenize(prompt, add_special=not has_bos)
        request = {
            "prompt": tokens,
            "n_predict": new_tokens(len(tokens), max_new_tokens, self.context),
            "temperature": temperature,
            "top_k": TOP_K,
            "top_p": TOP_P,
            "min_p": 0.0,
            "seed": secrets.randbits(31) if seed is None else seed,
            "stop": list(stop),
            "stream": True,
        }
        with self._response("POST", "/completion", request) as response:
            for event in _events(response):
                if "error" in event:
                    raise MachineError(f"llama.cpp stopped: {event['error']['message']}", where=self._child.subject)
                if event["stop"]:
                    reason: FinishReason = "length" if event["stop_type"] == "limit" else "stop"
                    yield Chunk(event["content"], reason, len(tokens), event["tokens_predicted"])
                    return
                if event["content"]:
                    yield Chunk(event["content"])
        raise self._child.died()

    def close(self) -> None:
        """End the child process."""
        self._child.close()

    def _tokenize(self, text: str, *, add_special: bool) -> list[int]:
        request = {"content": text, "add_special": add_special, "parse_special": True}
        tokens: list[int] = self._ask("POST", "/tokenize", request)["tokens"]
        return tokens

    def _ask(self, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        with self._response(method, path, body) as response:
            reply: dict[str, Any] = json.loads(response.read())
            return reply

    @contextmanager
    def _response(self, method: str, path: str, body: dict[str, Any] | None) -> Iterator[http.client.HTTPResponse]:
        # closing the connection early also cancels the request in the server
        connection = http.client.HTTPConnection(self._address)
        try:
            headers = {"Authorization": f"Bearer {self._key}", "Content-Type": "application/json"}
            connection.request(method, path, None if body is None else json.dumps(body), headers)
            response = connection.getresponse()
            if response.status != http.HTTPStatus.OK:
                message = json.loads(response.read())["error"]["message"]
                raise UnsupportedModelError(f"llama.cpp refused {path}: {message}", where=self._child.subject)
            yield response
        except (ConnectionError, http.client.HTTPException) as error:
            raise self._child.died() from error
        finally:
            connection.close()


def _events(response: http.client.HTTPResponse) -> Iterator[dict[str, Any]]:
    # server-sent events: one JSON object per line that starts with "data: "
    for line in response:
        if line.startswith(b"data: "):
            yield json.loads(line.removeprefix(b"data: "))
