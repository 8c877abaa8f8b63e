"""What llama.cpp makes of a GGUF, asked in a process of its own: it ends the process when an assertion fails."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deepen.engine.process import answer, request_from_parent


@dataclass(frozen=True)
class Question:
    """What the parent wants to know: ids of texts, a conversation as the template renders it, whether tokens end an answer."""

    file: Path
    texts: tuple[str, ...]
    conversation: list[dict[str, str]]
    stops: tuple[int, ...]


@dataclass(frozen=True)
class Answer:
    """What llama.cpp says.

    Attributes:
        tokens: the ids of each text, with what encoding adds (BOS, EOS).
        prompt: the conversation, ready for the next answer; None if the template fails.
        prompt_tokens: its ids, with nothing added.
        endless: the stop tokens that do not end an answer.
    """

    tokens: list[list[int]]
    prompt: str | None
    prompt_tokens: list[int]
    endless: list[int]


def main() -> None:
    """Load the file, answer the one question and end."""
    question, answers = request_from_parent()
    import xllamacpp

    parameters = xllamacpp.CommonParams()
    parameters.model.path = str(question.file)
    parameters.hostnames = ["127.0.0.1"]
    parameters.n_ctx, parameters.n_parallel, parameters.port = 512, 1, 0
    # hardly touch a weight: this is about the text around the model
    parameters.warmup = parameters.fit_params = False
    parameters.no_extra_bufts = True
    parameters.verbosity = 2  # errors and warnings
    server = xllamacpp.Server(parameters)
    address = server.listening_address

    def ask(path: str, **body: Any) -> Any:
        request = urllib.request.Request(address + path, json.dumps(body).encode(), {"Content-Type": "application/json"})  # noqa: S310
        with urllib.request.urlopen(request) as response:  # noqa: S310  loopback
            return json.load(response)

    def tokens(text: str, *, special: bool) -> list[int]:
        ids: list[int] = ask("/tokenize", content=text, add_special=special, parse_special=True)["tokens"]
        return ids

    def ends(token: int) -> bool:
        # whatever the model would say: this token is what it says now
        reply = ask("/completion", prompt=[token], n_predict=2, logit_bias=[[token, 1000.0]], temperature=0)
        return bool(reply["stop_type"] == "eos")

    prompt = None
    with suppress(urllib.error.HTTPError):
        prompt = ask("/apply-template", messages=question.conversation)["prompt"]
    ids = [tokens(text, special=True) for text in question.texts]
    endless = [token for token in question.stops if not ends(token)]
    answer(answers, Answer(ids, prompt, tokens(prompt or "", special=False), endless))
