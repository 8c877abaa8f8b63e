"""A model that answers benchmarks, in whatever engine: the page that the harness is written against, llama.cpp and servers."""

from __future__ import annotations

import http.client
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

from deepen.checkpoint import resolve
from deepen.checkpoint.gguf import is_gguf, open_gguf
from deepen.engine.http import Refusal, response
from deepen.errors import CheckpointError, NetworkError, OptionError, UnsupportedModelError
from deepen.evaluate.sequences import Answer, Pair, Run, arrange, remaining
from deepen.prepare import ENGINES, prepare_gguf, refuse

NEW_TOKENS = 256
"""Of an answer, unless the task says otherwise; as in lm-eval."""

_LONGEST_GENERATED = 16


@dataclass(frozen=True)
class Prompt:
    """A prompt to be continued greedily.

    Attributes:
        text: the prompt.
        until: strings that end the answer, and are no part of it.
        new_tokens: at most so many.
        request: lm-eval's own.
    """

    text: str
    until: tuple[str, ...]
    new_tokens: int
    request: Any


class Model(Protocol):
    """What answers."""

    engine: str
    window: int | None
    """Tokens of prompt and answer together; None where that is not known."""
    identity: Mapping[str, Any] | None
    """What shapes its answers besides the request, for keeping them; None where that is not known, so that none are kept."""

    def arrange(self, texts: Sequence[tuple[str, str]]) -> tuple[list[Run], int]:
        """What is run to score continuations after contexts, and the tokens of the longest pair but one."""
        ...

    def answers(
        self, texts: Sequence[tuple[str, str]], runs: Sequence[Run], known: Collection[int]
    ) -> Iterator[tuple[int, dict[int, Answer]]]:
        """Piece by piece the tokens that were run, and answers by the number of the text; those known need none."""
        ...

    def count(self, text: str) -> int:
        """Tokens of a prompt; 0 where that is not known."""
        ...

    def generate(self, prompts: Sequence[Prompt]) -> list[str]:
        """What follows some prompts, which are run as one batch."""
        ...

    def close(self) -> None:
        """Give back its memory."""
        ...


def open_model(
    model: str | Path,
    *,
    batch_size: int,
    device: str | None,
    dtype: str | None,
    plan: Mapping[str, Any] | None,
    engine: str,
) -> Model:
    """Load a model to answer benchmarks: a GGUF in llama.cpp and a checkpoint in transformers, unless the engine is named.

    Raises:
        OptionError: the engine is none, or an option does not apply to it.
        CheckpointError: the model is missing or broken, or has no tokenizer.
    """
    if "://" in engine:
        refuse("a server behind a URL", plan=plan, device=device, dtype=dtype)
        return ServerModel(engine, str(model))
    if engine not in ENGINES:
        raise OptionError(
            f"{engine!r} is not an engine", where="--engine", next=f"use one of {', '.join(ENGINES)}, or a URL such as http://…"
        )
    path = resolve(model)
    if engine == "llamacpp" or (engine == "auto" and is_gguf(path)):
        refuse("llama.cpp, which runs where it was built for in the number format of the file,", device=device, dtype=dtype)
        gguf, _ = prepare_gguf(path, plan=plan, quantize=None if path.is_file() else "F16", context=1024)
        return LlamacppModel(gguf)
    from deepen.evaluate.language_model import TransformersModel
    from deepen.model import load

    network, tokenizer = load(path, plan, dtype=dtype, device=device)
    if tokenizer is None:
        raise CheckpointError("the checkpoint has no tokenizer", where=path, next="put its tokenizer files beside the weights")
    if tokenizer.eos_token_id is None:
        raise CheckpointError(
            "the tokenizer has no end-of-text token, which ends an answer and stands before a text without context",
            where=path,
            next="name it as eos_token in tokenizer_config.json",
        )
    return TransformersModel(network, tokenizer, batch_size, path, plan)


class LlamacppModel:
    """A GGUF in llama.cpp; see `Model` for what the methods do.

    Args:
        gguf: the model file.
    """

    engine = "llamacpp"

    def __init__(self, gguf: Path) -> None:
        from deepen.engine.llamacpp import LlamacppEngine
        from deepen.evaluate.cache import content_hash

        header = open_gguf(gguf)
        found = header.get(f"{header.get('general.architecture')}.context_length")
        self.window: int | None = found if isinstance(found, int) else None
        self._prefix = header.get("tokenizer.ggml.bos_token_id", header.get("tokenizer.ggml.eos_token_id"))
        self._gguf, self._engine = gguf, LlamacppEngine(gguf, context=_LONGEST_GENERATED)
        self._tokens = lru_cache(maxsize=64)(self._engine.prompt_tokens)
        self.identity: Mapping[str, Any] | None = {"engine": self.engine, "model": content_hash(gguf)}

    def arrange(self, texts: Sequence[tuple[str, str]]) -> tuple[list[Run], int]:
        """Each different sequence once, with what it shares with the one before."""
        pairs = [self._encode(*text) for text in texts]
        longest = max((len(pair.context) + len(pair.continuation) - 1 for pair in pairs), default=0)
        return arrange(pairs, 1, self.window or longest, padded=False, shared=True), longest

    def answers(
        self,
        texts: Sequence[tuple[str, str]],  # noqa: ARG002
        runs: Sequence[Run],
        known: Collection[int],
    ) -> Iterator[tuple[int, dict[int, Answer]]]:
        """In a child process; what runs share stays in llama.cpp's memory."""
        from deepen.engine.libllama import scored_runs

        needed = remaining(runs, known)
        if not needed:
            return
        self._engine.close()  # two processes would hold the weights at once
        parts = [(list(run.tokens), run.kept, run.first, list(run.asked.values())) for run in needed]
        for run, found in zip(needed, scored_runs(self._gguf, parts), strict=True):
            yield run.cost, {number: Answer(*each) for number, each in zip(run.asked, found, strict=True)}

    def count(self, text: str) -> int:
        """Tokens of a prompt."""
        return len(self._tokens(text))

    def generate(self, prompts: Sequence[Prompt]) -> list[str]:
        """One after another."""
        from deepen.engine.llamacpp import LlamacppEngine

        needed = max(self.count(prompt.text) + prompt.new_tokens for prompt in prompts)
        with closing(LlamacppEngine(self._gguf, context=needed)) as engine:
            return [_answer(engine, prompt) for prompt in prompts]

    def close(self) -> None:
        """End the child process."""
        self._engine.close()

    def _encode(self, context: str, continuation: str) -> Pair:
        if not context:
            tokens = tuple(self._engine.tokenize(continuation))
            return Pair(tokens[:1], tokens[1:]) if tokens[0] == self._prefix else Pair((int(self._prefix),), tokens)
        bare = context.rstrip()
        continuation = context[len(bare) :] + continuation  # spaces at the end belong to the next word's token
        before = tuple(self._tokens(bare))
        return Pair(before, tuple(self._engine.prompt_tokens(bare + continuation))[len(before) :])


class ServerModel:
    """A model behind a URL of OpenAI's protocol; see `Model` for what the methods do.

    Continuations are scored by `/v1/completions` with `echo` and `logprobs`, which gives the log-probabilities of the prompt's
    tokens and where they begin. vLLM does so; llama.cpp's server and most public ones do not.

    Args:
        url: the server.
        model: the model's name there.
    """

    engine = "openai"
    window: int | None = None
    identity: Mapping[str, Any] | None = None  # what stands behind a name may change

    def __init__(self, url: str, model: str) -> None:
        from deepen.engine.openai import OpenAIEngine

        self._engine, self._name, self._probed = OpenAIEngine(url, model), model, False

    def arrange(self, texts: Sequence[tuple[str, str]]) -> tuple[list[Run], int]:
        """One request for each text; a token is counted as four characters."""
        if texts and not self._probed:
            self._score("The sky is", " blue")
            self._probed = True
        runs = [Run((), 0, (len(one) + len(two)) // 4 + 1, asked={place: ()}) for place, (one, two) in enumerate(texts)]
        return runs, 0

    def answers(
        self, texts: Sequence[tuple[str, str]], runs: Sequence[Run], known: Collection[int]
    ) -> Iterator[tuple[int, dict[int, Answer]]]:
        """One request after another."""
        for run in remaining(runs, known):
            yield run.cost, {number: self._score(*texts[number]) for number in run.asked}

    def count(self, text: str) -> int:  # noqa: ARG002
        """Not known here."""
        return 0

    def generate(self, prompts: Sequence[Prompt]) -> list[str]:
        """One after another."""
        return [_answer(self._engine, prompt) for prompt in prompts]

    def close(self) -> None:
        """Nothing to give back."""

    def _score(self, context: str, continuation: str) -> Answer:
        whole = context + continuation
        body = {"model": self._name, "prompt": whole, "max_tokens": 1, "temperature": 0, "logprobs": 1, "echo": True}
        where = self._engine.address.geturl()
        try:
            with response(self._engine.address, "POST", "/completions", body, key=self._engine.key) as reply:
                choice = json.load(reply)["choices"][0]
        except (Refusal, ValueError, KeyError, IndexError, TypeError) as error:
            raise self._lacking(str(error)) from error
        except (OSError, http.client.HTTPException) as error:
            raise NetworkError(f"the connection broke ({error})", where=where, next="run again") from error
        told = choice.get("logprobs") or {}
        offsets, logs, tops = (told.get(key) or [] for key in ("text_offset", "token_logprobs", "top_logprobs"))
        start = len(context.rstrip())
        places = [place for place, offset in enumerate(offsets) if start <= offset < len(whole)]
        if not places or not len(offsets) == len(logs) == len(tops) or any(logs[place] is None for place in places):
            raise self._lacking("its answer has no log-probabilities of the prompt's tokens")
        greedy = all(logs[place] >= max(tops[place].values()) for place in places)
        return Answer(float(sum(logs[place] for place in places)), greedy)

    def _lacking(self, reason: str) -> UnsupportedModelError:
        return UnsupportedModelError(
            "the server does not give the log-probabilities of a prompt (/v1/completions with echo and logprobs), "
            f"by which answers to choose from are scored: {reason}",
            where=self._engine.address.geturl(),
            next="use tasks of generation such as gsm8k, a server that gives them, such as vLLM, or the model's files",
        )


def _answer(engine: Any, prompt: Prompt) -> str:
    pieces = engine.stream(prompt.text, max_new_tokens=prompt.new_tokens, temperature=0.0, seed=0, stop=prompt.until)
    return "".join(piece.text for piece in pieces)
