"""A model opened for several requests at once, so that no answer depends on the others."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from deepen.checkpoint import resolve
from deepen.engine import Engine
from deepen.engine.llamacpp import LlamacppEngine
from deepen.engine.openai import OpenAIEngine
from deepen.engine.process import require_xllamacpp, thread_count
from deepen.engine.together import opened_together
from deepen.errors import OptionError
from deepen.prepare import choose, conversations, fingerprint, given, open_engine, prepare_draft, prepare_gguf, refuse
from deepen.progress import say

_REMOTE = 4  # requests at once behind a URL
_MOST = 8
_CHARACTERS_PER_TOKEN = 3


@dataclass(frozen=True)
class Slots:
    """Opened engines.

    Attributes:
        engines: one for each request at a time.
        facts: what their answers depend on.
    """

    engines: list[Engine]
    facts: Mapping[str, Any]


@contextmanager
def open_slots(
    model: str | Path,
    *,
    engine: str,
    parallel: int | None,
    characters: int,
    plan: Mapping[str, Any],
    device: str | None,
    dtype: str | None,
    context: int | None,
    quantize: str | None,
    draft: str | Path | None,
) -> Iterator[Slots]:
    """Load a model for several requests at once; says on stderr what was chosen. As `open_engine`, and more.

    `parallel` is how many requests; unless given, 4 behind a URL, and with llama.cpp as many as there are cores and memory for,
    at most 8, or one where so many `characters` fit into one request.

    With llama.cpp each request has a process and threads of its own: in common batches the last digits depend on who else is
    asking, and with them now and then a word; and on a CPU they are no faster.

    Raises:
        OptionError: an option is out of range or does not apply to the engine.
    """
    if parallel is not None and not 1 <= parallel <= 256:
        raise OptionError(f"{parallel} requests at once cannot be made", where="--parallel", next="use a number from 1 to 256")
    if "://" in engine:
        opened = open_engine(model, engine=engine, plan=plan, device=device, dtype=dtype, quantize=quantize, draft=draft)
        assert isinstance(opened, OpenAIEngine)
        yield Slots([opened] * (parallel or _REMOTE), {"engine": opened.address.geturl(), "model": str(model)})
        return
    path = resolve(model)
    chosen, reason = engine, "asked for"
    if engine == "auto":
        chosen, reason = choose(path, plan=plan, device=device, dtype=dtype, quantize=quantize)
    options = given(device=device, dtype=dtype, quantize=quantize, draft=None if draft is None else str(draft))
    facts = {"model": str(path), "files": fingerprint(path, ""), "engine": chosen, "plan": str(plan), **options}
    if chosen != "llamacpp":
        refuse("the engine transformers, which answers one request after the other", parallel=(parallel or 1) > 1)
        loading = partial(open_engine, plan=plan, device=device, dtype=dtype, context=context, quantize=quantize, draft=draft)
        with closing(loading(model, engine=chosen)) as local:
            yield Slots([local], facts)
        return
    refuse("llama.cpp, which runs where it was built for in the number format of the file,", device=device, dtype=dtype)
    require_xllamacpp()
    say(f"Engine: llamacpp ({reason})")
    guess = prepare_draft(path, plan=plan, draft=draft)
    gguf, tokens = prepare_gguf(path, plan=plan, quantize=quantize, context=context, parallel=parallel or 1, draft=guess)
    small = characters < _CHARACTERS_PER_TOKEN * tokens // 2
    count = parallel or (1 if small else conversations(gguf, tokens, min(_MOST, thread_count())))
    threads = max(1, thread_count() // count)
    if count > 1:
        say(f"At work at once: {count} requests, on {threads} thread{'s' * (threads > 1)} each")
    loading_one = partial(LlamacppEngine, gguf, context=tokens, draft=guess, threads=threads, alike=True)
    with opened_together(loading_one, count) as engines:
        yield Slots([*engines], facts | {"gguf": gguf.name, "context": tokens, "threads": threads})
