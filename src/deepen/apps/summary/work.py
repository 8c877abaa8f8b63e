"""Requests answered by several engines at once: each part as soon as what it is made from is there, each answer kept."""

from __future__ import annotations

import hashlib
import json
import queue
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any

from deepen.apps.claims import Known, unsupported_numbers
from deepen.apps.summary.chunks import Chunk, Group
from deepen.apps.summary.said import Listener, Sentence, central, kept
from deepen.engine import Chunk as Piece
from deepen.engine import Engine, Prompt
from deepen.errors import NetworkError
from deepen.journal import Journal

_DELAYS = (1.0, 4.0)  # seconds before a request is sent again


@dataclass(frozen=True)
class Request:
    """A summary that is wanted.

    Attributes:
        prompt: what is asked.
        wish: the instruction in it, which a model may echo.
        words: of the summary.
        tokens: of the answer, at most.
        text: what is summarised; where the model says nothing usable, its central sentences are taken.
        headings: whether the answer may have some.
        strict: whether sentences are left out that have a number which the text has not.
    """

    prompt: Prompt
    wish: str
    words: int
    tokens: int
    text: str
    headings: bool = False
    strict: bool = True


@dataclass(frozen=True)
class Part:
    """The answer to a request.

    Attributes:
        sentences: what is kept of it.
        quoted: whether they are the text's own, since the model said nothing usable.
        dropped: sentences left out because of a number.
        prompt_tokens: that the model read.
        completion_tokens: that it wrote.
        resumed: whether an earlier run had it.
    """

    sentences: tuple[Sentence, ...]
    quoted: bool
    dropped: int
    prompt_tokens: int
    completion_tokens: int
    resumed: bool = False

    @property
    def text(self) -> str:
        """The sentences as they go into the next request."""
        return " ".join(each.text for each in self.sentences)


class Kept:
    """Answers of earlier runs, by what was asked.

    Args:
        journal: where they lie; None keeps none.
        sampling: temperature and seed.
    """

    def __init__(self, journal: Journal | None, sampling: Mapping[str, Any]) -> None:
        self._journal, self.sampling = journal, dict(sampling)

    def get(self, request: Request) -> Part | None:
        """The answer to a request, if there is one."""
        row = self._journal.get(self._name(request)) if self._journal is not None else None
        if row is None:
            return None
        sentences = tuple(Sentence(*each) for each in row["sentences"])
        prompt_tokens, completion_tokens = row["tokens"]
        return Part(sentences, row["quoted"], row["dropped"], prompt_tokens, completion_tokens, resumed=True)

    def keep(self, request: Request, part: Part) -> None:
        """Keep an answer."""
        if self._journal is not None:
            sentences = [[each.text, each.bullet, each.begins] for each in part.sentences]
            tokens = [part.prompt_tokens, part.completion_tokens]
            row = {"sentences": sentences, "quoted": part.quoted, "dropped": part.dropped, "tokens": tokens}
            self._journal.keep(self._name(request), row)

    def _name(self, request: Request) -> str:
        asked = [request.prompt, request.words, request.tokens, request.headings, request.strict, self.sampling]
        return hashlib.sha256(json.dumps(asked).encode()).hexdigest()


class _Stopped(Exception):
    """The work was given up."""


def answer_all(
    engines: Sequence[Engine],
    top: Sequence[Chunk | Group],
    request_for: Callable[[Chunk | Group, Sequence[Part]], Request],
    kept_parts: Kept,
    on_part: Callable[[Part], None],
) -> list[Part]:
    """The parts of chunks and groups, and of all that they are made from.

    All chunks are there to be asked from the beginning, and each group as soon as its members are answered, so that no engine
    waits while there is work; what brings parts together goes first, since more depends on it.

    Args:
        engines: one for each request at a time.
        top: what is wanted.
        request_for: the request for a chunk, or for a group of which the parts of its members are known.
        kept_parts: answers that need not be asked for.
        on_part: called for each part, in this thread.

    Returns: the parts of `top`.
    """
    nodes = list(_all_of(top))
    parents = {id(member): node for node in nodes if isinstance(node, Group) for member in node.members}
    lacking = {id(node): len(node.members) for node in nodes if isinstance(node, Group)}
    order = {id(node): place for place, node in enumerate(nodes)}
    parts: dict[int, Part] = {}
    waiting: queue.PriorityQueue[tuple[int, int, Request | None]] = queue.PriorityQueue()
    arrived: queue.SimpleQueue[tuple[int, Request, Part] | BaseException] = queue.SimpleQueue()
    stop = threading.Event()
    asked = 0

    def begin(node: Chunk | Group) -> None:
        nonlocal asked
        members = [parts[id(member)] for member in node.members] if isinstance(node, Group) else []
        request = request_for(node, members)
        if (known := kept_parts.get(request)) is not None:
            settle(node, known)
        else:
            asked += 1
            waiting.put((int(isinstance(node, Chunk)), order[id(node)], request))

    def settle(node: Chunk | Group, part: Part) -> None:
        parts[id(node)] = part
        on_part(part)
        if (parent := parents.get(id(node))) is not None:
            lacking[id(parent)] -= 1
            if not lacking[id(parent)]:
                begin(parent)

    try:
        for node in nodes:
            if isinstance(node, Chunk):
                begin(node)
        # an engine alone is asked in this thread, since not every one can be asked by another while its tokens are counted
        workers = engines[:asked] if len(engines) > 1 else ()
        for engine in workers:
            threading.Thread(target=_work, args=(engine, waiting, arrived, kept_parts.sampling, stop), daemon=True).start()
        while len(parts) < len(nodes):
            if not workers:
                _work_once(engines[0], waiting, arrived, kept_parts.sampling, stop)
            item = arrived.get()
            if isinstance(item, BaseException):
                raise item
            place, request, part = item
            kept_parts.keep(request, part)
            settle(nodes[place], part)
    finally:
        stop.set()
        for _ in engines:
            waiting.put((-1, -1, None))
    return [parts[id(node)] for node in top]


def ask(
    engine: Engine,
    request: Request,
    sampling: Mapping[str, Any],
    *,
    stop: threading.Event | None = None,
    on_sentence: Callable[[Sentence], None] | None = None,
) -> Part:
    """The answer to a request; one that breaks off before anything of it was told is asked for again.

    Args:
        engine: answers.
        request: what is asked.
        sampling: temperature and seed.
        stop: set to give up.
        on_sentence: called with each sentence as it is certain.
    """
    told: list[Sentence] = []

    def tell(sentence: Sentence) -> None:
        told.append(sentence)
        if on_sentence is not None:
            on_sentence(sentence)

    for delay in _DELAYS:
        try:
            return _ask(engine, request, sampling, stop, tell)
        except NetworkError:
            if on_sentence is not None and told:
                raise
            told.clear()
            if (stop or threading.Event()).wait(delay):
                raise _Stopped from None
    return _ask(engine, request, sampling, stop, tell)


def _ask(
    engine: Engine,
    request: Request,
    sampling: Mapping[str, Any],
    stop: threading.Event | None,
    tell: Callable[[Sentence], None],
) -> Part:
    listener = Listener(request.words, request.wish, headings=request.headings)
    known = Known([request.text]) if request.strict else None
    last, pieces, dropped = Piece(""), 0, 0
    found: list[Sentence] = []
    held: list[Sentence] = []  # until there is enough to be a summary

    def texts(chunks: Iterator[Piece]) -> Iterator[str]:
        nonlocal last, pieces
        for last in chunks:
            if stop is not None and stop.is_set():
                raise _Stopped
            pieces += bool(last.text)
            yield last.text

    chunks = engine.stream(request.prompt, max_new_tokens=request.tokens, stop=(), **sampling)
    with closing(chunks):
        for sentence in kept(texts(chunks), listener, lambda: last.finish_reason == "length"):
            if known is not None and unsupported_numbers(sentence.text, known):
                dropped += 1
                continue
            held.append(sentence)
            if listener.enough:
                for each in held:
                    found.append(each)
                    tell(each)
                held.clear()
    quoted = not any(not each.text.startswith("#") for each in found)
    if quoted:
        for each in central(request.text, request.words):
            quote = replace(each, text=f"“{each.text}”")
            found.append(quote)
            tell(quote)
    return Part(tuple(found), quoted, dropped, last.prompt_tokens, last.completion_tokens or pieces)


def _work(
    engine: Engine,
    waiting: queue.PriorityQueue[tuple[int, int, Request | None]],
    arrived: queue.SimpleQueue[tuple[int, Request, Part] | BaseException],
    sampling: Mapping[str, Any],
    stop: threading.Event,
) -> None:
    """An engine's thread: answer one request after the other."""
    try:
        while _work_once(engine, waiting, arrived, sampling, stop):
            pass
    except _Stopped:
        return
    except BaseException as error:  # raised again where the answers are kept
        arrived.put(error)


def _work_once(
    engine: Engine,
    waiting: queue.PriorityQueue[tuple[int, int, Request | None]],
    arrived: queue.SimpleQueue[tuple[int, Request, Part] | BaseException],
    sampling: Mapping[str, Any],
    stop: threading.Event,
) -> bool:
    """Answer the next request; whether there was one."""
    _, place, request = waiting.get()
    if request is None or stop.is_set():
        return False
    arrived.put((place, request, ask(engine, request, sampling, stop=stop)))
    return True


def _all_of(nodes: Sequence[Chunk | Group]) -> Iterator[Chunk | Group]:
    """Nodes and all below them, in the order of the text, each after what it is made from."""
    for node in nodes:
        if isinstance(node, Group):
            yield from _all_of(node.members)
        yield node
