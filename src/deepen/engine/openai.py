"""The engine behind a URL: any server of OpenAI's protocol, such as vLLM, Ollama, LM Studio or a `deepen serve` elsewhere."""

from __future__ import annotations

import http.client
import json
import os
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

from deepen.engine.http import Refusal, events, response
from deepen.engine.protocol import TOP_P, Chunk, FinishReason, Message, Prompt
from deepen.errors import DataError, NetworkError, OptionError, UnsupportedModelError

KEY_VARIABLES = ("DEEPEN_API_KEY", "OPENAI_API_KEY")
_TELLING = ("llamacpp", "vllm")  # what owns a model, in the list of models of servers that tell more than they must


class OpenAIEngine:
    """A model on a server; see `Engine` for what the methods do.

    The server applies its own chat template and knows its own context, so neither is known here. Its key is read from
    `DEEPEN_API_KEY` or `OPENAI_API_KEY`.

    Args:
        url: the server, with or without `/v1`.
        model: the model's name there.

    Raises:
        OptionError: the URL is none, nothing answers there, or the server does not have this model.
    """

    name = "openai"
    context: int | None = None
    has_template = True
    uses_gpu: bool | None = None

    def __init__(self, url: str, model: str) -> None:
        self.address = urlsplit(url if urlsplit(url).path.rstrip("/") else url.rstrip("/") + "/v1")
        if self.address.scheme not in {"http", "https"} or not self.address.hostname:
            raise OptionError(f"{url!r} is not a URL", where="--engine", next="write for example http://127.0.0.1:8080")
        self.key = next((os.environ[name] for name in KEY_VARIABLES if os.environ.get(name)), None)
        try:
            with response(self.address, "GET", "/models", key=self.key) as reply:
                listed = {str(each["id"]): each for each in json.load(reply)["data"]}
        except (OSError, http.client.HTTPException, ValueError, KeyError, TypeError) as error:
            raise OptionError(
                f"no server of OpenAI's protocol answers at {url} ({error or type(error).__name__})",
                where="--engine",
                next="start the server, or correct the URL",
            ) from error
        except Refusal as error:
            raise self._refused(error) from error
        if model not in listed:
            raise OptionError(
                f"the server has no model {model!r}; it has {', '.join(listed) or 'none'}", where=url, next="name one of these"
            )
        self._model = model
        self._kind, self._longest = listed[model].get("owned_by"), listed[model].get("max_model_len")

    def count_tokens(self, text: str) -> int | None:
        """How many tokens a text has, special tokens in it recognised, none added.

        The protocol does not tell it. Servers of llama.cpp and vLLM do; for any other one it is None.
        """
        if self._kind not in _TELLING:
            return None
        # llama.cpp reads one of the names, vLLM the other
        request = {"model": self._model, "content": text, "prompt": text, "parse_special": True, "add_special_tokens": False}
        found = self._beside("POST", "/tokenize", request).get("tokens")
        return len(found) if isinstance(found, list) else None

    def find_context(self) -> int | None:
        """Tokens of prompt and answer together, where a server tells it as llama.cpp and vLLM do."""
        found = self._longest
        if self._kind in _TELLING and found is None:
            settings = self._beside("GET", "/props").get("default_generation_settings")
            found = settings.get("n_ctx") if isinstance(settings, dict) else None
        return found if isinstance(found, int) and found > 0 else None

    def _beside(self, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        """What a server answers beside the protocol, at its root; nothing if it does not."""
        root = self.address._replace(path=self.address.path.rstrip("/").removesuffix("/v1"))
        try:
            with response(root, method, path, body, key=self.key) as reply:
                answer = json.load(reply)
        except (Refusal, OSError, http.client.HTTPException, ValueError):
            return {}
        return answer if isinstance(answer, dict) else {}

    def tokenize(self, text: str) -> list[int]:  # noqa: ARG002
        """Not known here.

        Raises:
            UnsupportedModelError: always.
        """
        raise UnsupportedModelError("a server of OpenAI's protocol does not tell its tokens", where=self.address.geturl())

    def render(self, messages: Sequence[Message]) -> str:  # noqa: ARG002
        """Not known here.

        Raises:
            UnsupportedModelError: always.
        """
        raise UnsupportedModelError(
            "the server applies its chat template itself and does not show the prompt",
            where=self.address.geturl(),
            next="ask without --show-prompt",
        )

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
        """Generate a continuation of a prompt, or an answer to messages; see `Engine.stream`."""
        body: dict[str, Any] = {
            "model": self._model,
            "max_tokens": max_new_tokens,
            "temperature": temperature,
            "top_p": TOP_P,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        body |= {"seed": seed} if seed is not None else {}
        body |= {"stop": list(stop)} if stop else {}
        if json_schema is not None:
            schema = {"name": "answer", "schema": dict(json_schema), "strict": True}
            body["response_format"] = {"type": "json_schema", "json_schema": schema}
        chat = not isinstance(prompt, str)
        body |= {"messages": list(prompt)} if chat else {"prompt": prompt}
        reason: FinishReason | None = None
        usage: dict[str, int] = {}
        with (
            self._errors(),
            response(self.address, "POST", "/chat/completions" if chat else "/completions", body, key=self.key) as reply,
        ):
            for event in events(reply):
                if "error" in event:
                    raise NetworkError(f"the server stopped: {event['error']}", where=self.address.geturl(), next="run again")
                usage = event.get("usage") or usage
                for choice in event.get("choices", ()):
                    text = (choice.get("delta", {}).get("content") if chat else choice.get("text")) or ""
                    if choice.get("finish_reason"):
                        reason = "length" if choice["finish_reason"] == "length" else "stop"
                    if text:
                        yield Chunk(text)
        if reason is None:
            raise NetworkError("the answer broke off", where=self.address.geturl(), next="run again")
        yield Chunk("", reason, usage.get("prompt_tokens", 0), usage.get("completion_tokens", 0))

    def without_draft(self) -> OpenAIEngine:
        """This engine, which has none."""
        return self

    def close(self) -> None:
        """Nothing to give back."""

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except Refusal as error:
            raise self._refused(error) from error
        except (OSError, http.client.HTTPException) as error:
            raise NetworkError(f"the connection broke ({error})", where=self.address.geturl(), next="run again") from error

    def _refused(self, error: Refusal) -> OptionError | DataError | NetworkError:
        where = self.address.geturl()
        if error.status in {401, 403}:
            return OptionError(f"the server wants a key ({error})", where=where, next=f"set {KEY_VARIABLES[0]} to it")
        if error.status == http.HTTPStatus.TOO_MANY_REQUESTS or error.status >= 500:
            return NetworkError(f"the server failed ({error})", where=where, next="look at the server's log")
        return DataError(f"the server refused this ({error})", where=where, next="change what the message names")
