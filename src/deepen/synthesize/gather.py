"""Everything that the drafts need is asked of an endpoint, several requests at once; every answer is kept as it comes."""

from __future__ import annotations

import hashlib
import queue
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any

from deepen.errors import DeepenError, NetworkError
from deepen.journal import Journal
from deepen.progress import progress, say
from deepen.synthesize.answer import Answer, key_of
from deepen.synthesize.client import CONTINUE, Client, SetAside
from deepen.synthesize.kinds import KINDS, Draft, Drawing, Refused
from deepen.synthesize.seeds import Seed


@dataclass(frozen=True)
class Task:
    """One draft to make: from a seed, by a kind of transformation."""

    seed: Seed
    kind: str
    drawing: Drawing


@dataclass(frozen=True)
class Sampling:
    """How answers are sampled."""

    model: str
    max_new_tokens: int
    temperature: float


@dataclass(frozen=True)
class Missing:
    """A request whose answer is not there yet."""

    key: str
    body: dict[str, Any]


@dataclass(frozen=True)
class Made:
    """A draft, and the name of the request that its answer came from."""

    draft: Draft
    key: str


_Asked = queue.SimpleQueue[Missing | None]
_Arrived = queue.SimpleQueue[tuple[str, Answer | BaseException]]


def replay(task: Task, sampling: Sampling, answers: Journal) -> Made | Refused | Missing:
    """What a task comes to with the answers that are there."""
    steps = KINDS[task.kind](task.seed, task.drawing)
    key = ""
    try:
        prompt = next(steps)
        while True:
            body = _body(prompt, task, sampling)
            key = key_of(body, task.drawing.sample)
            if key not in answers:
                return Missing(key, body)
            prompt = steps.send(Answer(**answers.get(key)))
    except StopIteration as end:
        return Made(end.value, key)
    except Refused as refused:
        return refused


def used_keys(tasks: Sequence[Task], sampling: Sampling, answers: Journal) -> Iterator[str]:
    """The names of the requests that went into drafts, each once."""
    seen: set[str] = set()
    for task in tasks:
        steps = KINDS[task.kind](task.seed, task.drawing)
        try:
            prompt = next(steps)
            while (key := key_of(_body(prompt, task, sampling), task.drawing.sample)) in answers:
                if key not in seen:
                    seen.add(key)
                    yield key
                prompt = steps.send(Answer(**answers.get(key)))
        except (StopIteration, Refused):
            pass


def gather(tasks: Sequence[Task], sampling: Sampling, client: Client, answers: Journal, *, parallel: int) -> list[str]:
    """Ask for every answer that tasks need and that is not there; returns why requests were set aside, one text for each.

    Raises:
        NetworkError: the endpoint is gone, or nothing usable comes from it.
        OptionError, DataError: it refuses a request.
    """
    source, ready = iter(tasks), deque[Task]()
    flying: dict[str, list[Task]] = {}
    aside: dict[str, str] = {}
    stop: BaseException | None = None
    in_row = tokens = 0
    start = time.monotonic()
    with _workers(client, min(parallel, len(tasks))) as (asked, arrived), progress("Making", len(tasks), "drafts") as advance:
        while True:
            while stop is None and len(flying) < parallel and (task := ready.popleft() if ready else next(source, None)):
                missing = replay(task, sampling, answers)
                if not isinstance(missing, Missing) or missing.key in aside:
                    advance(1)
                elif missing.key in flying:
                    flying[missing.key].append(task)
                else:
                    flying[missing.key] = [task]
                    asked.put(missing)
            if not flying:
                break
            key, came = arrived.get()
            waiting = flying.pop(key)
            if isinstance(came, Answer):
                answers.keep(key, asdict(came))
                tokens, in_row = tokens + (came.completion_tokens or 0), 0
                ready.extend(waiting)
                advance(0, f"{tokens / (time.monotonic() - start):.1f} tokens/s")
                continue
            if isinstance(came, SetAside):
                aside[key], in_row = str(came), in_row + 1
                advance(len(waiting))
                if in_row >= max(3, parallel):
                    reason = f"no usable answer comes from the endpoint ({came})"
                    came = NetworkError(reason, where=client.where, next=CONTINUE)
            if stop is None and not isinstance(came, SetAside):
                stop = came
                client.close()
                if flying:
                    say(f"Stopping: {len(flying)} answers that are on their way are waited for")
    if stop is not None:
        raise _with_count(stop, len(answers))
    return list(aside.values())


@contextmanager
def _workers(client: Client, count: int) -> Iterator[tuple[_Asked, _Arrived]]:
    """Threads that ask what is put into the first queue, and put what comes into the second."""
    asked: _Asked = queue.SimpleQueue()
    arrived: _Arrived = queue.SimpleQueue()

    def work() -> None:
        while missing := asked.get():
            try:
                arrived.put((missing.key, client.ask(missing.body)))
            except BaseException as error:  # raised again where the answers are kept
                arrived.put((missing.key, error))

    for _ in range(count):
        threading.Thread(target=work, daemon=True).start()
    try:
        yield asked, arrived
    finally:
        client.close()
        for _ in range(count):
            asked.put(None)


def _with_count(error: BaseException, kept: int) -> BaseException:
    if isinstance(error, DeepenError):
        return type(error)(f"{error.what}; {kept:,} answers are kept", where=error.where, next=error.next)
    return error


def _body(prompt: str, task: Task, sampling: Sampling) -> dict[str, Any]:
    drawn = hashlib.sha256(f"{task.drawing.seed}\0{task.drawing.sample}\0{prompt}".encode(errors="surrogatepass")).digest()
    return {
        "model": sampling.model,
        "messages": [{"role": "user", "content": prompt}],
        "max_tokens": sampling.max_new_tokens,
        "temperature": sampling.temperature,
        "seed": int.from_bytes(drawn[:4], "big") >> 1,
    }


def tasks_of(seeds: Sequence[Seed], kinds: Sequence[str], samples: int, drawing: Drawing) -> list[Task]:
    """Every draft that is to be made, in the order of the output."""
    return [Task(seed, kind, replace(drawing, sample=n)) for seed in seeds for kind in kinds for n in range(samples)]
