"""The engine for GGUF files: llama.cpp's server (wheel `xllamacpp`) in a child process, spoken to over loopback HTTP."""

from __future__ import annotations

import http.client
import json
import secrets
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, urlsplit

from deepen.engine.http import Refusal, events, response
from deepen.engine.llamacpp_child import Ready, Request
from deepen.engine.process import Child, require_xllamacpp, start
from deepen.engine.protocol import TOP_K, TOP_P, Chunk, FinishReason, Message, Prompt, new_tokens
from deepen.errors import MachineError, UnsupportedModelError

CONTEXT = 8192
"""Tokens, unless asked otherwise: a longer context is memory that most prompts never use."""


@dataclass(frozen=True)
class Server:
    """llama.cpp's HTTP server in a child process; `start_server` makes it and `close` ends it.

    Attributes:
        child: the process.
        address: its URL on the loopback interface.
        key: what it asks of every request.
        context: tokens of each conversation.
        has_template: whether the model brings a chat template.
        uses_gpu: whether this build of llama.cpp computes on a GPU.
    """

    child: Child
    address: SplitResult
    key: str
    context: int
    has_template: bool
    uses_gpu: bool

    def close(self) -> None:
        """End the process."""
        self.child.close()


def start_server(
    gguf: Path,
    *,
    context: int | None = None,
    name: str = "",
    parallel: int = 1,
    public: bool = False,
    threads: int | None = None,
    draft: Path | str | None = None,
    alike: bool = False,
) -> Server:
    """Load a GGUF into llama.cpp's server.

    Args:
        gguf: the model file.
        context: tokens to hold at most, for each conversation.
        name: of the model in answers.
        parallel: conversations at once.
        public: with what people want of a server: the web page, metrics and embeddings.
        threads: to compute with; as many as `OMP_NUM_THREADS` says or there are cores unless given.
        draft: a GGUF that guesses the next tokens, or `ngram` for the text so far.
        alike: one of several servers of the same file, which shall hold its weights once.

    Raises:
        MissingDependencyError: xllamacpp is not installed.
        CheckpointError: llama.cpp cannot load the file.
        MachineError: llama.cpp died.
    """
    require_xllamacpp()
    key = secrets.token_urlsafe()
    request = Request(gguf, context or CONTEXT, key, name, parallel, public, threads, draft, alike)
    child = start("deepen.engine.llamacpp_child", gguf, request)
    try:
        ready = child.receive()
    except BaseException:
        child.close()
        raise
    assert isinstance(ready, Ready)
    return Server(child, urlsplit(ready.address), key, ready.context, ready.has_template, ready.uses_gpu)


class LlamacppEngine:
    """A GGUF in llama.cpp; see `Engine` for what the methods do.

    Args:
        gguf: the model file.
        context: tokens to hold at most.
        draft: a GGUF that guesses the next tokens, or `ngram` for the text so far.
        threads: to compute with; as many as `OMP_NUM_THREADS` says or there are cores unless given.
        alike: one of several that run the same file: its weights are held once, and no answer depends on what was asked before.

    Raises:
        MissingDependencyError: xllamacpp is not installed.
        CheckpointError: llama.cpp cannot load the file.
        MachineError: llama.cpp died.
    """

    name = "llamacpp"

    def __init__(
        self,
        gguf: Path,
        *,
        context: int | None = None,
        draft: Path | str | None = None,
        threads: int | None = None,
        alike: bool = False,
    ) -> None:
        self._drafts, self._alike, self._fresh = draft is not None, alike, False
        self._use(start_server(gguf, context=context, draft=draft, threads=threads, alike=alike))

    def _use(self, server: Server) -> None:
        self._child, self._address, self._key = server.child, server.address, server.key
        self.context: int | None = server.context
        self.has_template = server.has_template
        self.uses_gpu: bool | None = server.uses_gpu

    @cached_property
    def _bos(self) -> str:
        bos: str = self._ask("GET", "/props")["bos_token"]
        return bos

    def tokenize(self, text: str) -> list[int]:
        """Token ids of a text, special tokens in it recognised, none added."""
        return self._tokenize(text, add_special=False)

    def tokenize_with_lengths(self, text: str) -> tuple[list[int], list[int]]:
        """The same, and for each token how many bytes of UTF-8 it stands for."""
        request = {"content": text, "add_special": False, "parse_special": True, "with_pieces": True}
        found = self._ask("POST", "/tokenize", request)["tokens"]
        # a piece that is no text of its own comes as its bytes
        pieces = [each["piece"].encode() if isinstance(each["piece"], str) else each["piece"] for each in found]
        return [each["id"] for each in found], list(map(len, pieces))

    def prompt_tokens(self, text: str) -> list[int]:
        """Token ids of a prompt: with the special tokens that the model puts before a text, unless it starts with them."""
        has_bos = bool(self._bos) and text.startswith(self._bos)
        return self._tokenize(text, add_special=not has_bos)

    def render(self, messages: Sequence[Message]) -> str:
        """The prompt for the next answer of a conversation, by the model's chat template."""
        if not self.has_template:
            raise UnsupportedModelError("the model has no chat template", where=self._child.subject, next="use --raw")
        prompt: str = self._ask("POST", "/apply-template", {"messages": list(messages)})["prompt"]
        return prompt

    def stream(
        self,
        prompt: Prompt,
        *,
        max_new_tokens: int,
        temperature: float,
        seed: int | None,
        stop: Sequence[str],
        json_schema: Mapping[str, Any] | None = None,
    ) -> Generator[Chunk]:
        """Generate a continuation of a prompt, or an answer to messages, piece by piece; see `Engine.stream`."""
        prompt = prompt if isinstance(prompt, str) else self.render(prompt)
        tokens = self.prompt_tokens(prompt)
        request: dict[str, Any] = {
            "prompt": tokens,
            "n_predict": new_tokens(len(tokens), max_new_tokens, self.context),
            "temperature": temperature,
            "top_k": TOP_K,
            "top_p": TOP_P,
            "min_p": 0.0,
            "seed": secrets.randbits(31) if seed is None else seed,
            "stop": list(stop),
            "stream": True,
            "cache_prompt": not (self._alike or self._fresh),
        }
        self._fresh = False
        if json_schema is not None:
            request["json_schema"] = dict(json_schema)
        with self._reply("POST", "/completion", request) as reply:
            for event in events(reply):
                if "error" in event:
                    raise MachineError(f"llama.cpp stopped: {event['error']['message']}", where=self._child.subject)
                if event["stop"]:
                    reason: FinishReason = "length" if event["stop_type"] == "limit" else "stop"
                    counts = event["timings"]
                    drafted = (counts.get("draft_n", 0), counts.get("draft_n_accepted", 0)) if self._drafts else ()
                    yield Chunk(event["content"], reason, len(tokens), event["tokens_predicted"], *drafted)
                    return
                if event["content"]:
                    yield Chunk(event["content"])
        raise self._broken()

    def forget(self) -> None:
        """Compute the next prompt anew: its answer then does not depend, in the last digits, on what was asked before."""
        self._fresh = True

    def without_draft(self) -> LlamacppEngine:
        """The same model in another child process; see `Engine.without_draft`."""
        return LlamacppEngine(self._child.subject, context=self.context)

    def close(self) -> None:
        """End the child process."""
        self._child.close()

    def _broken(self) -> MachineError:
        """The error for a connection that ended before its answer did."""
        return self._child.died()

    def _tokenize(self, text: str, *, add_special: bool) -> list[int]:
        request = {"content": text, "add_special": add_special, "parse_special": True}
        tokens: list[int] = self._ask("POST", "/tokenize", request)["tokens"]
        return tokens

    def _ask(self, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        with self._reply(method, path, body) as reply:
            answer: dict[str, Any] = json.loads(reply.read())
            return answer

    @contextmanager
    def _reply(self, method: str, path: str, body: dict[str, Any] | None) -> Iterator[http.client.HTTPResponse]:
        try:
            with response(self._address, method, path, body, key=self._key) as reply:
                yield reply
        except Refusal as error:
            raise UnsupportedModelError(f"llama.cpp refused {path}: {error.message}", where=self._child.subject) from error
        except (ConnectionError, http.client.HTTPException) as error:
            raise self._broken() from error
