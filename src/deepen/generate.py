"""Ask a model once: a prompt in, an answer out."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deepen.energy import open_meter
from deepen.engine import Chunk, Engine, FinishReason, Message, Prompt
from deepen.engine.draft import AUTO, faster
from deepen.engine.request import check_request, trim_oldest
from deepen.errors import OptionError
from deepen.prepare import given, open_engine


@dataclass(frozen=True)
class Generation:
    """An answer and what it took."""

    text: str
    finish_reason: FinishReason
    """`stop`: the model ended it or a stop string came; `length`: the limit or the context is reached."""
    prompt_tokens: int
    completion_tokens: int
    seconds: float
    """From the prompt to the last token, the loading of the model not counted."""
    first_token_seconds: float
    """From the prompt to the first text."""
    tokens_per_second: float
    """`completion_tokens` divided by `seconds`."""
    engine: str
    energy_joules: float | None
    """Of the hardware from the prompt to the last token; None where it is not measured, as on another machine."""
    draft_tokens: int | None = None
    """Tokens that a draft guessed; None without one."""
    draft_accepted: int | None = None
    """Of these, the ones that the model agreed with."""


def generate(
    model: str | Path,
    prompt: str,
    *,
    engine: str = "auto",
    system: str | None = None,
    max_new_tokens: int = 256,
    temperature: float = 0.7,
    seed: int | None = None,
    greedy: bool = False,
    stop: Sequence[str] = (),
    json_schema: Mapping[str, Any] | None = None,
    raw: bool = False,
    trim: str | None = None,
    on_prompt: Callable[[str], None] | None = None,
    on_text: Callable[[str], None] | None = None,
    context: int | None = None,
    quantize: str | None = None,
    device: str | None = None,
    dtype: str | None = None,
    draft: str | Path | None = None,
    drop: int | None = None,
    layers: str | None = None,
    repeat: str | None = None,
    expand: int | None = None,
    plan: str | Path | None = None,
    identity_init: bool = False,
) -> Generation:
    """Generate an answer to a prompt, or a continuation of it where the model has no chat template.

    Args:
        model: a checkpoint folder, a Hub id or a GGUF file.
        prompt: sent as a user's message through the model's chat template, if it has one.
        engine: `llamacpp`, `transformers`, the URL of a server of OpenAI's protocol, or `auto` to choose.
        system: a system message before the prompt; needs a chat template.
        max_new_tokens: generate at most so many, and never past the model's context.
        temperature: 0 takes the likeliest token each time; higher is more varied.
        seed: makes sampling repeatable.
        greedy: the same as temperature 0.
        stop: strings that end the answer; they are not part of it.
        json_schema: the answer is JSON of this schema (not with the engine transformers).
        raw: continue the prompt as it stands, without the chat template.
        trim: `oldest` leaves the beginning of a plain prompt out that is too long for the context, and says so on stderr. A
            message is never cut.
        on_prompt: called once with the prompt as the chat template renders it.
        on_text: called with each piece of text as it comes.
        context: hold at most so many tokens of prompt and answer (engine llamacpp; what fits, at most 8192, unless given).
        quantize: the format in which the engine llamacpp runs a checkpoint, such as `Q4_K_M`.
        device: where the engine transformers puts the model, such as `cpu` or `cuda:0`.
        dtype: the dtype that the engine transformers computes in, such as `float32`.
        draft: guesses the next tokens, which the model checks at once: a smaller model of the same vocabulary, `ngram` for the
            text so far, or `auto` for the model's base or else `ngram`, if it is faster on the first tokens.
        drop: layer plan, as in `scale`: the deepened model runs without being written (llamacpp: once, into the cache). So do
            the next five.
        layers: slices of layers.
        repeat: a range of layers to run again.
        expand: a number of new blocks.
        plan: a plan file.
        identity_init: repeated layers start as the identity.

    Raises:
        OptionError: an option is out of range or does not fit the others.
        DataError: the prompt is empty, or longer than the model's context.
    """
    temperature = 0.0 if greedy else temperature
    check_request(max_new_tokens=max_new_tokens, temperature=temperature, seed=seed, trim=trim, engine=engine)
    _check(stop=stop, system=system, raw=raw)
    options = given(drop=drop, layers=layers, repeat=repeat, expand=expand, plan=plan, identity_init=identity_init)
    opened = open_engine(
        model, engine=engine, plan=options, device=device, dtype=dtype, context=context, quantize=quantize, draft=draft
    )
    with closing(opened), ExitStack() as others:
        asked = prompt if raw else _prompt(opened, prompt, system)
        if trim:
            fitted = trim_oldest(opened, asked, max_new_tokens)
            asked = fitted.prompt
            if str(fitted):
                print(fitted, file=sys.stderr)
        if on_prompt is not None:
            on_prompt(asked if isinstance(asked, str) else opened.render(asked))
        sampling: dict[str, Any] = {"temperature": temperature, "seed": seed, "stop": stop, "json_schema": json_schema}
        if draft == AUTO:
            plain = others.enter_context(closing(opened.without_draft()))
            opened = faster(opened, plain, asked, max_new_tokens, **sampling)
        pieces: list[str] = []
        first: float | None = None
        last = Chunk("")
        chunks = opened.stream(asked, max_new_tokens=max_new_tokens, **sampling)
        metering = nullcontext() if opened.uses_gpu is None else open_meter(gpus=None if opened.uses_gpu else ())
        with metering as meter, closing(chunks):
            start = time.perf_counter()
            for last in chunks:
                if last.text:
                    first = time.perf_counter() - start if first is None else first
                    pieces.append(last.text)
                    if on_text is not None:
                        on_text(last.text)
            seconds = time.perf_counter() - start
    assert last.finish_reason is not None, "an engine's last chunk has a finish reason"
    return Generation(
        text="".join(pieces),
        finish_reason=last.finish_reason,
        prompt_tokens=last.prompt_tokens,
        completion_tokens=last.completion_tokens,
        seconds=seconds,
        first_token_seconds=seconds if first is None else first,
        tokens_per_second=last.completion_tokens / seconds,
        engine=opened.name,
        energy_joules=None if meter is None else meter.joules(),
        draft_tokens=last.draft_tokens,
        draft_accepted=last.draft_accepted,
    )


def _prompt(engine: Engine, prompt: str, system: str | None) -> Prompt:
    if engine.has_template:
        message: Message = {"role": "user", "content": prompt}
        return [{"role": "system", "content": system}, message] if system is not None else [message]
    if system is not None:
        raise OptionError(
            "the model has no chat template, so it takes no system message",
            where="--system",
            next="put the instruction into the prompt",
        )
    return prompt


def _check(*, stop: Sequence[str], system: str | None, raw: bool) -> None:
    if isinstance(stop, str) or "" in stop:
        raise OptionError("stop strings are a list of texts, none of them empty", where="--stop", next='such as ["\\n"]')
    if raw and system is not None:
        raise OptionError("--raw leaves the chat template out, so there is no place for it", where="--system", next="drop one")
