"""Answer a file of requests: OpenAI's batch form in and out, several at once, continued where a killed run stopped."""

from __future__ import annotations

import hashlib
import json
import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from pathlib import Path
from typing import Any

from deepen.batch.engines import Asker, Fatal, LlamacppAsker, LocalAsker, RemoteAsker
from deepen.batch.lines import EMBEDDINGS, Defaults, Task, answer_line, error_line, read_tasks, request_body
from deepen.checkpoint import resolve
from deepen.energy import open_meter
from deepen.engine.http import Refusal
from deepen.engine.llamacpp import start_server
from deepen.engine.openai import OpenAIEngine
from deepen.engine.process import require_xllamacpp, thread_count
from deepen.engine.protocol import TOP_K, TOP_P
from deepen.engine.request import check_request
from deepen.engine.together import opened_together
from deepen.errors import DataError, OptionError
from deepen.journal import Journal
from deepen.output import check_target, partial_path, resumable_file
from deepen.prepare import choose, conversations, fingerprint, given, open_engine, prepare_gguf, refuse
from deepen.progress import progress, say

__all__ = ["Batch", "batch"]

_PARALLEL = 4


@dataclass(frozen=True)
class Batch:
    """What a batch came to.

    Attributes:
        lines: requests in the input.
        succeeded: those that were answered.
        failed: those whose line of the output has an error.
        prompt_tokens: of all answers.
        completion_tokens: of all answers.
        seconds: of this run, without the loading of the model.
        tokens_per_second: completion tokens of this run divided by `seconds`.
        energy_joules: of the hardware in this run; None where it is not measured.
        engine: what answered.
    """

    lines: int
    succeeded: int
    failed: int
    prompt_tokens: int
    completion_tokens: int
    seconds: float
    tokens_per_second: float
    energy_joules: float | None
    engine: str


@dataclass(frozen=True)
class _Engine:
    """An engine that is chosen, but not yet loaded: what its answers depend on, and how a conversation with it is opened."""

    name: str
    facts: Mapping[str, Any]
    model: str
    parallel: int
    fixed: Mapping[str, Any]
    sampling: Mapping[str, Any]
    open: Callable[[], Asker]


def batch(
    model: str | Path,
    requests: str | Path,
    out: str | Path,
    *,
    engine: str = "auto",
    parallel: int | None = None,
    system: str | None = None,
    max_new_tokens: int = 256,
    temperature: float = 0.7,
    seed: int = 0,
    greedy: bool = False,
    overwrite: bool = False,
    context: int | None = None,
    quantize: str | None = None,
    device: str | None = None,
    dtype: str | None = None,
    drop: int | None = None,
    layers: str | None = None,
    repeat: str | None = None,
    expand: int | None = None,
    plan: str | Path | None = None,
    identity_init: bool = False,
) -> Batch:
    """Answer each line of a file of requests in OpenAI's batch form. The same file and options give the same bytes.

    Each answer is on the disk when it is there; `out` appears when all are, in the order of the input. A run that was killed is
    continued by the same call. A line that cannot be answered becomes a line with an error, and the others go on.

    Args:
        model: a checkpoint folder, a Hub id or a GGUF file; a model's name there if `engine` is a URL. It answers every line,
            whatever model the line names.
        requests: the input, a JSON object a line: `custom_id`, `method` ("POST"), `url` (`/v1/chat/completions`,
            `/v1/completions` or `/v1/embeddings`) and `body`.
        out: the output, a line for each: `id`, `custom_id`, `response` and `error`.
        engine: `llamacpp`, `transformers`, the URL of a server of OpenAI's protocol, or `auto` to choose.
        parallel: lines at work at once; unless given, 4 behind a URL, and with llamacpp as many as there are cores and memory
            for. The answers of llamacpp do not depend on it.
        system: a system message for conversations that have none.
        max_new_tokens: longest answer, for lines that set no limit.
        temperature: for lines that set none.
        seed: for lines that set none; each gets its own, made from this and its `custom_id`.
        greedy: the same as temperature 0.
        overwrite: replace `out`, and forget a half-done run.
        context: tokens of a prompt and its answer (llamacpp; what fits, at most 8192, unless given).
        quantize: the format in which the engine llamacpp runs a checkpoint.
        device: where the engine transformers puts the model.
        dtype: the dtype that the engine transformers computes in.
        drop: layer plan, as in `scale`: the deepened model answers. So do the next five.
        layers: slices of layers.
        repeat: a range of layers to run again.
        expand: a number of new blocks.
        plan: a plan file.
        identity_init: repeated layers start as the identity.

    Raises:
        OptionError: an option is out of range or does not fit the others.
        DataError: the input holds no request.
        OutputError: `out` exists, or a half-done run for it was made with other settings.
        MachineError: the engine died twice, or the server is gone; what is answered is kept.
    """
    temperature = 0.0 if greedy else temperature
    check_request(max_new_tokens=max_new_tokens, temperature=temperature, seed=seed, trim=None, engine=engine)
    if parallel is not None and parallel < 1:
        raise OptionError(f"{parallel} is too small", where="--parallel", next="use 1 or more")
    content = Path(requests).read_bytes()
    tasks = read_tasks(content)
    if not tasks:
        raise DataError("there is no request in it", where=requests, next="write one JSON object a line")
    out = check_target(out, overwrite=overwrite)
    if out.exists() and out.samefile(requests):
        raise OptionError("the output would replace the input", where=out, next="choose another name")
    plans = given(drop=drop, layers=layers, repeat=repeat, expand=expand, plan=plan, identity_init=identity_init)
    with resumable_file(out, overwrite=overwrite) as folder, Journal(folder / "answers.jsonl") as journal:
        chosen = _choose(
            model, engine, plans, before=journal.head,
            lines=len(tasks), embeds=any(task.url == EMBEDDINGS for task in tasks), parallel=parallel, context=context,
            quantize=quantize, device=device, dtype=dtype,
        )  # fmt: skip
        sampling = {"temperature": temperature, **chosen.sampling}
        defaults = Defaults(chosen.model, max_new_tokens, seed, system, sampling, chosen.fixed)
        options = {"max_new_tokens": max_new_tokens, "temperature": temperature, "seed": seed, "system": system}
        head = {"input": hashlib.sha256(content).hexdigest(), **options, **chosen.facts}
        journal.begin(head, partial_path(out))
        waiting = [task for task in tasks if task.error is None and str(task.number) not in journal]
        if len(journal):
            say(f"Continuing: {len(journal)} lines are answered, {len(waiting)} are left")
        cost = _answer(chosen, waiting, defaults, lambda number, line: journal.keep(str(number), line)) if waiting else _Cost()
        counts = _write(folder / "complete", tasks, journal)
    speed = cost.tokens / cost.seconds if cost.seconds else 0.0
    return Batch(len(tasks), *counts, cost.seconds, speed, cost.joules, chosen.name)


@dataclass(frozen=True)
class _Cost:
    """What answering took: seconds, completion tokens, and joules if they are known."""

    seconds: float = 0.0
    tokens: int = 0
    joules: float | None = None


def _answer(engine: _Engine, tasks: Sequence[Task], defaults: Defaults, keep: Callable[[int, str], None]) -> _Cost:
    """Answer tasks, several at once, and keep each answer as it comes."""
    with opened_together(engine.open, min(engine.parallel, len(tasks))) as askers:
        arrived: queue.SimpleQueue[tuple[Task, int, Mapping[str, Any]] | BaseException] = queue.SimpleQueue()
        waiting = queue.SimpleQueue[Task]()
        for task in tasks:
            waiting.put(task)
        uses_gpu = askers[0].uses_gpu
        metering = nullcontext() if uses_gpu is None else open_meter(gpus=None if uses_gpu else ())
        with metering as meter, progress("Answering", len(tasks), "lines") as advance:
            start, tokens = time.perf_counter(), 0
            for asker in askers:
                threading.Thread(target=_work, args=(asker, waiting, arrived, defaults), daemon=True).start()
            for _ in tasks:
                item = arrived.get()
                if isinstance(item, BaseException):
                    raise item
                task, status, body = item
                keep(task.number, answer_line(task, status, body))
                tokens += _usage(body)[1]
                advance(1, f"{tokens / (time.perf_counter() - start):.1f} tokens/s")
            seconds = time.perf_counter() - start
        return _Cost(seconds, tokens, None if meter is None else meter.joules())


def _work(
    asker: Asker,
    waiting: queue.SimpleQueue[Task],
    arrived: queue.SimpleQueue[tuple[Task, int, Mapping[str, Any]] | BaseException],
    defaults: Defaults,
) -> None:
    """A conversation's thread: ask one task after the other."""
    try:
        with suppress(queue.Empty):
            while True:
                task = waiting.get_nowait()
                try:
                    arrived.put((task, HTTPStatus.OK, asker.ask(task.url, request_body(task, defaults))))
                except Refusal as refusal:
                    arrived.put((task, refusal.status, _refused(refusal)))
                except Fatal as fatal:
                    if fatal.refusal is not None:
                        arrived.put((task, fatal.refusal.status, _refused(fatal.refusal)))
                    raise fatal.error from fatal
    except BaseException as error:  # raised again where the answers are kept
        arrived.put(error)


def _refused(refusal: Refusal) -> dict[str, Any]:
    kind = "server_error" if refusal.status >= HTTPStatus.INTERNAL_SERVER_ERROR else "invalid_request_error"
    return {"error": {"message": refusal.message, "type": kind, "code": refusal.status}}


def _write(file: Path, tasks: Sequence[Task], journal: Journal) -> tuple[int, int, int, int]:
    """Write the output in the order of the input; lines that succeeded and failed, tokens of prompts and answers."""
    succeeded = prompt_tokens = completion_tokens = 0
    with file.open("w", encoding="utf-8") as output:
        for task in tasks:
            line = error_line(task, *task.error) if task.error else journal.get(str(task.number))
            output.write(f"{line}\n")
            written = json.loads(line)
            if written["error"] is None:
                succeeded += 1
                asked, answered = _usage(written["response"]["body"])
                prompt_tokens, completion_tokens = prompt_tokens + asked, completion_tokens + answered
    return succeeded, len(tasks) - succeeded, prompt_tokens, completion_tokens


def _usage(body: Mapping[str, Any]) -> tuple[int, int]:
    """Tokens of a prompt and of its answer."""
    usage = body.get("usage") or {}
    return usage.get("prompt_tokens") or 0, usage.get("completion_tokens") or 0


def _choose(
    model: str | Path,
    engine: str,
    plan: Mapping[str, Any],
    *,
    before: Mapping[str, Any],
    lines: int,
    embeds: bool,
    parallel: int | None,
    context: int | None,
    quantize: str | None,
    device: str | None,
    dtype: str | None,
) -> _Engine:
    """The engine, with everything made that it needs. What was chosen in a run that is continued is not chosen anew."""
    if "://" in engine:
        refuse("a server behind a URL", plan=plan, device=device, dtype=dtype, context=context, quantize=quantize)
        server = OpenAIEngine(engine, str(model))
        say(f"Engine: openai ({engine})")
        asked = {"engine": server.address.geturl(), "model": str(model)}
        opening = partial(RemoteAsker, server.address, server.key)
        return _Engine("openai", asked, str(model), parallel or _PARALLEL, {}, {"top_p": TOP_P}, opening)
    path = resolve(model)
    name = path.stem if path.is_file() else path.resolve().name
    facts: dict[str, Any] = {"model": str(path), "model_files": fingerprint(path, "")}
    chosen, reason = engine, "asked for"
    if engine == "auto":
        chosen, reason = choose(path, plan=plan, device=device, dtype=dtype, quantize=quantize)
    if chosen != "llamacpp":
        refuse("the engine transformers, which answers one line after the other", parallel=(parallel or 1) > 1)
        facts |= {"engine": chosen, "plan": str(plan), "device": device or "", "dtype": dtype or ""}
        loading = partial(
            open_engine, model, engine=chosen, plan=plan, device=device, dtype=dtype, context=context, quantize=quantize
        )
        return _Engine(chosen, facts, name, 1, {}, {}, lambda: LocalAsker(loading()))
    refuse("llama.cpp, which runs where it was built for in the number format of the file,", device=device, dtype=dtype)
    require_xllamacpp()
    say(f"Engine: llamacpp ({reason})")
    held = context or before.get("context")
    gguf, tokens = prepare_gguf(path, plan=plan, quantize=quantize, context=held, parallel=parallel or 1)
    count = parallel or conversations(gguf, tokens, min(lines, thread_count()))
    # the last digits depend on the number of threads, so that `parallel` has no part in it
    threads = before.get("threads") or max(1, thread_count() // lines)
    say(f"At work at once: {count} lines, on {threads} thread{'s' * (threads > 1)} each")
    facts |= {"engine": chosen, "gguf": gguf.name, "context": tokens, "threads": threads}
    start = partial(start_server, gguf, context=tokens, name=name, public=embeds, threads=threads, alike=True)
    fixed = {"cache_prompt": False}  # an answer shall not depend on what was asked before
    sampling = {"top_k": TOP_K, "top_p": TOP_P, "min_p": 0.0}  # as `generate` does
    return _Engine(chosen, facts, name, count, fixed, sampling, partial(LlamacppAsker, start))
