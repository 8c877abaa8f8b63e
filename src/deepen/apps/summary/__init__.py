"""Summaries of documents of any length: one call where they fit, else a tree of summaries along their headings."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import PurePath
from typing import Any

from deepen.apps.claims import Known, unsupported_names, unsupported_numbers
from deepen.apps.documents import Document, neutral
from deepen.apps.summary.chunks import Chunk, Group, Read, branch, depth, gather, read_blocks
from deepen.apps.summary.prompts import PART_WORDS, Prompts, tokens_for
from deepen.apps.summary.result import Chunks, Citation, Settings, Summary
from deepen.apps.summary.work import Kept, Part, Request, answer_all, ask
from deepen.apps.summary.written import Citer, Writer
from deepen.engine import Engine
from deepen.errors import DataError
from deepen.journal import Journal

__all__ = ["Chunks", "Citation", "Settings", "Summary", "summarize_documents"]

_LEAST_SHARE = 30  # words below a heading of a report
_LONGEST_LABEL = 100  # characters


def summarize_documents(
    engines: Sequence[Engine],
    documents: Sequence[Document],
    settings: Settings | None = None,
    *,
    journal: Journal | None = None,
    on_text: Callable[[str], None] | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> Summary:
    """Summarise documents that have been read.

    Callbacks are called in the thread that called this; what they raise ends the work, and the requests that are open are
    given up.

    Args:
        engines: one for each request at a time. An engine that several threads may ask at once, such as one behind a URL, may
            stand there several times.
        documents: in the order in which they are to be read; one summary is made of them all.
        settings: how.
        journal: keeps each answer, so that a later call with the same continues.
        on_text: called with each piece of the summary's text as it is certain.
        on_progress: called with the calls that are done and those there are in all.

    Raises:
        DataError: there is no text in the documents.
        OptionError: the context is too small for the summary.
        MachineError: the engine died, or the server is gone.
    """
    start = time.perf_counter()
    settings = settings or Settings()
    prompts = Prompts(engines[0], settings)
    read = read_blocks(documents, prompts.count, prompts.part)
    if not read.blocks:
        raise DataError("there is no text to summarize", where=documents[0].name if documents else None, next="name a document")
    sampling: dict[str, Any] = {"temperature": settings.temperature, "seed": settings.seed}
    kept = Kept(journal, sampling)
    top, label = _plan(read, prompts)
    total = 1 + sum(map(_calls, top)) if len(top) > 1 else 1
    done: list[Part] = []

    def note(part: Part) -> None:
        done.append(part)
        if on_progress is not None:
            on_progress(len(done), total)

    report = settings.style == "report" and len(top) > 1
    share = max(_LEAST_SHARE, 3 * settings.words // 4 // len(top)) if report else PART_WORDS
    parts: list[Part] = []
    if len(top) > 1:
        wanted = set(map(id, top))

        def request_for(node: Chunk | Group, members: Sequence[Part]) -> Request:
            return _request(prompts, node, members, share if id(node) in wanted else PART_WORDS)

        parts = answer_all(engines, top, request_for, kept, note)
    last = _last(prompts, settings, top, parts, label, report=report)
    citer = Citer(read) if settings.cite else None
    writer = Writer(settings.style, citer, on_text)
    part = kept.get(last)
    if part is None:
        part = ask(engines[0], last, sampling, on_sentence=writer.write)
        kept.keep(last, part)
    else:
        for sentence in part.sentences:
            writer.write(sentence)
    note(part)
    if report:
        for node, section in zip(top, parts, strict=True):
            writer.heading(node.label.split(" > ")[-1])
            for sentence in section.sentences:
                writer.write(sentence)
    texts = [text for each in read.documents for text in (each.title, each.name, each.date)]
    texts += [text for pieces in read.passages for each in pieces for text in (each.text, *each.headings)]
    known = Known(list(dict.fromkeys(texts)))
    return Summary(
        summary=writer.text,
        style=settings.style,
        words=settings.words,
        focus=settings.focus,
        language=settings.language,
        documents=tuple(each.name for each in read.documents),
        chunks=Chunks(
            count=sum(map(_chunks, top)),
            tokens=sum(each.tokens for each in read.blocks),
            counted=prompts.counted,
            repeated=read.repeated,
            quoted=sum(each.quoted for each in done[:-1]),
            dropped=sum(each.dropped for each in done),
            resumed=sum(each.resumed for each in done),
        ),
        calls=total,
        depth=1 + max(map(depth, top)) if len(top) > 1 else 1,
        quoted=part.quoted,
        citations=citer.citations if citer else (),
        uncited=citer.uncited if citer else 0,
        unsupported_numbers=tuple(unsupported_numbers(writer.claims, known)),
        unsupported_names=tuple(unsupported_names(writer.claims, known)),
        prompt_tokens=sum(each.prompt_tokens for each in done),
        completion_tokens=sum(each.completion_tokens for each in done),
        seconds=time.perf_counter() - start,
        engine=engines[0].name,
    )


def _plan(read: Read, prompts: Prompts) -> tuple[list[Chunk | Group], str]:
    """What the last call reads, and what it is called: one chunk of everything, or several chunks and groups."""
    title = _title(read) if len(read.documents) == 1 else ""
    whole = sum(each.tokens for each in read.blocks) <= prompts.whole
    tree = branch(read.blocks, prompts.whole if whole else prompts.part, title)
    return gather(tree, prompts.members), title or f"{len(read.documents)} documents"


def _title(read: Read) -> str:
    """The title of a single document; the name of its file where the title is only the first of several headings."""
    (document,) = read.documents
    first = {each.path[:1] for each in read.blocks}
    plain = document.title if len(first) == 1 or (document.title,) not in first else PurePath(document.name).stem
    return neutral(" ".join(plain.split()))[:_LONGEST_LABEL]


def _request(prompts: Prompts, node: Chunk | Group, members: Sequence[Part], words: int) -> Request:
    """The request for a part."""
    tokens = min(tokens_for(words), prompts.part_tokens)
    if isinstance(node, Chunk):
        return Request(prompts.chunk(node.label, node.text, words, None), prompts.wish(words, None), words, tokens, node.text)
    told = _told(node.members, members)
    text = "\n\n".join(part.text for part in members)
    return Request(prompts.group(node.label, told, words, None), prompts.wish(words, None), words, tokens, text)


def _last(
    prompts: Prompts, settings: Settings, top: Sequence[Chunk | Group], parts: Sequence[Part], label: str, *, report: bool
) -> Request:
    """The request for the summary; of a report in sections, for the overview before them."""
    words = max(_LEAST_SHARE, settings.words // 4) if report else settings.words
    style = "abstract" if report else settings.style
    asked: dict[str, Any] = {"words": words, "tokens": tokens_for(words), "headings": style == "report", "strict": False}
    wish = prompts.wish(words, style)
    if len(top) == 1:
        (chunk,) = top
        assert isinstance(chunk, Chunk)
        return Request(prompts.chunk(chunk.label, chunk.text, words, style), wish, text=chunk.text, **asked)
    text = "\n\n".join(part.text for part in parts)
    return Request(prompts.group(label, _told(top, parts), words, style), wish, text=text, **asked)


def _told(nodes: Sequence[Chunk | Group], parts: Sequence[Part]) -> list[tuple[str, str]]:
    """Of each part its last heading and what was said."""
    return [(node.label.split(" > ")[-1][:_LONGEST_LABEL], part.text) for node, part in zip(nodes, parts, strict=True)]


def _calls(node: Chunk | Group) -> int:
    return 1 if isinstance(node, Chunk) else 1 + sum(map(_calls, node.members))


def _chunks(node: Chunk | Group) -> int:
    return 1 if isinstance(node, Chunk) else sum(map(_chunks, node.members))
