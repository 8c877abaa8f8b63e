"""Summaries of documents of any length, with what supports each sentence and a list of what does not stand in them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from deepen.apps.documents import Document
from deepen.apps.documents.gather import gather_documents
from deepen.apps.slots import Slots, open_slots
from deepen.apps.summary import Settings, Summary, summarize_documents
from deepen.engine.request import check_request
from deepen.errors import OptionError
from deepen.journal import Journal
from deepen.output import cache_folder, check_target, new_file, storage_errors
from deepen.prepare import given
from deepen.progress import progress, say

__all__ = ["Settings", "Summary", "as_markdown", "summarize", "summarize_each"]


def summarize(
    model: str | Path,
    files: Sequence[str | Path] | str | Path,
    *,
    length: str | int = "medium",
    style: str = "bullets",
    focus: str = "",
    language: str = "",
    cite: bool = False,
    out: str | Path | None = None,
    overwrite: bool = False,
    parallel: int | None = None,
    chunk_tokens: int | None = None,
    engine: str = "auto",
    temperature: float = 0.0,
    seed: int | None = None,
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
) -> Summary:
    """Summarise documents of any length: one call where they fit, else a tree of summaries along their headings.

    Every part is read exactly once, several at the same time. Each answer is kept in the cache, so that a run that was killed
    loses no more than what was being answered. What the model says twice or in a loop is left out; where it says nothing
    usable, the most central sentences of the text stand for it. Numbers and names of the summary that do not occur in the
    documents are listed.

    Args:
        model: a checkpoint folder, a Hub id or a GGUF file; a model's name there if `engine` is a URL.
        files: files, folders, pages of a server on this machine; `-` is stdin. One summary is made of them all.
        length: `short`, `medium`, `long`, or a number of words.
        style: `bullets`, `abstract` (one paragraph) or `report` (paragraphs under headings).
        focus: what the reader wants to know most.
        language: of the summary; the documents' unless given.
        cite: give each sentence the number of a passage that supports it.
        out: a Markdown file that gets the summary, its sources and what is not in the documents.
        overwrite: replace `out` if it exists.
        parallel: requests at once; unless given, 4 behind a URL, and with llamacpp as many as there are cores and memory for.
        chunk_tokens: the model reads at most so many tokens of the documents at once; unless given, all where they fit, or
            else 3,000.
        engine: `llamacpp`, `transformers`, the URL of a server of OpenAI's protocol, or `auto` to choose.
        temperature: 0 takes the likeliest token each time; higher is more varied.
        seed: makes sampling repeatable.
        on_text: called with each piece of the summary's text as it is certain.
        context: hold at most so many tokens of prompt and answer; behind a URL, what the server holds if it does not tell.
        quantize: the format in which the engine llamacpp runs a checkpoint, such as `Q4_K_M`.
        device: where the engine transformers puts the model, such as `cpu` or `cuda:0`.
        dtype: the dtype that the engine transformers computes in, such as `float32`.
        draft: guesses the next tokens: a smaller model of the same vocabulary, or `ngram` for the text so far.
        drop: layer plan, as in `scale`: the deepened model runs without being written (llamacpp: once, into the cache). So do
            the next five.
        layers: slices of layers.
        repeat: a range of layers to run again.
        expand: a number of new blocks.
        plan: a plan file.
        identity_init: repeated layers start as the identity.

    Raises:
        OptionError: an option is out of range or does not fit the others.
        DataError: there are no documents that can be read.
        CheckpointError: the model is missing or broken.
        OutputError: `out` exists.
        MachineError: the engine died, or the server is gone; what was answered is kept.
    """
    (found,) = summarize_each(
        model, files, together=True, length=length, style=style, focus=focus, language=language, cite=cite, out=out,
        overwrite=overwrite, parallel=parallel, chunk_tokens=chunk_tokens, engine=engine, temperature=temperature, seed=seed,
        on_text=on_text, context=context, quantize=quantize, device=device, dtype=dtype, draft=draft, drop=drop,
        layers=layers, repeat=repeat, expand=expand, plan=plan, identity_init=identity_init,
    )  # fmt: skip
    return found


def summarize_each(
    model: str | Path,
    files: Sequence[str | Path] | str | Path,
    *,
    together: bool = False,
    length: str | int = "medium",
    style: str = "bullets",
    focus: str = "",
    language: str = "",
    cite: bool = False,
    out: str | Path | None = None,
    overwrite: bool = False,
    parallel: int | None = None,
    chunk_tokens: int | None = None,
    engine: str = "auto",
    temperature: float = 0.0,
    seed: int | None = None,
    on_begin: Callable[[str], None] | None = None,
    on_text: Callable[[str], None] | None = None,
    on_end: Callable[[Summary], None] | None = None,
    context: int | None = None,
    quantize: str | None = None,
    device: str | None = None,
    dtype: str | None = None,
    draft: str | Path | None = None,
    **plan: Any,
) -> list[Summary]:
    """A summary of each document, one after the other, or one of all `together`; arguments and errors are those of `summarize`.

    `on_begin` is called with each document's name, `on_end` with each summary.
    """
    check_request(max_new_tokens=1, temperature=temperature, seed=seed, trim=None, engine=engine)
    remote = "://" in engine
    settings = Settings(
        style, length, " ".join(focus.split()), language.strip(), cite, temperature, seed, chunk_tokens,
        context if remote else None,
    )  # fmt: skip
    target = None if out is None else check_target(out, overwrite=overwrite)
    places = [files] if isinstance(files, str | Path) else list(files)
    if not places:
        raise OptionError("there is nothing to summarize", where="FILE", next="name files, or - for stdin")
    documents = gather_documents(places, "FILE")
    works = [documents] if together else [[document] for document in documents]
    characters = max(sum(len(document.text) for document in work) for work in works)
    if chunk_tokens is not None and characters > chunk_tokens:
        characters = 1 << 60  # there will be several chunks
    found = []
    with open_slots(
        model, engine=engine, parallel=parallel, characters=characters, plan=given(**plan), device=device, dtype=dtype,
        context=None if remote else context, quantize=quantize, draft=draft,
    ) as slots:  # fmt: skip
        for work in works:
            if on_begin is not None:
                on_begin(work[0].name)
            with _kept(slots, work, settings) as journal, _shown() as show:
                summary = summarize_documents(slots.engines, work, settings, journal=journal, on_text=on_text, on_progress=show)
            found.append(summary)
            if on_end is not None:
                on_end(summary)
    if target is not None:
        with new_file(target, overwrite=overwrite) as file:
            file.write_text("\n".join(map(as_markdown, found)), encoding="utf-8")
        say(f"Written: {out}")
    return found


def as_markdown(summary: Summary) -> str:
    """A summary as a Markdown page, with its sources and what is not in the documents."""
    pieces = [f"# {', '.join(summary.documents)}", summary.summary]
    if summary.citations:
        pieces += ["## Sources", "\n".join(source_lines(summary))]
    if lines := check_lines(summary):
        pieces += ["## Check", "\n".join(f"- {line}" for line in lines)]
    return "\n\n".join(pieces) + "\n"


def source_lines(summary: Summary) -> list[str]:
    """The cited passages, a line for each: number, place, headings."""
    return [
        f"[{each.id}] {each.place}  {' > '.join(dict.fromkeys((each.title, *each.headings)))}" for each in summary.citations
    ]


def check_lines(summary: Summary) -> list[str]:
    """What the reader must know of a summary, a line for each; none if there is nothing."""
    lines = []
    if summary.unsupported_numbers:
        lines.append(f"Numbers that are not in the documents: {', '.join(summary.unsupported_numbers)}")
    if summary.unsupported_names:
        lines.append(f"Names that are not in the documents: {', '.join(summary.unsupported_names)}")
    if summary.uncited:
        lines.append(f"Sentences without a source: {summary.uncited}")
    if summary.quoted:
        lines.append("The model said nothing usable: these are the most central sentences of the text")
    if summary.chunks.quoted:
        lines.append(f"Parts of which the model said nothing usable, so that they are quoted: {summary.chunks.quoted}")
    return lines


@contextmanager
def _kept(slots: Slots, documents: Sequence[Document], settings: Settings) -> Iterator[Journal]:
    """Where answers are kept; where sampling would give others, they are forgotten when the summary is there."""
    digest = hashlib.sha256(json.dumps([slots.facts, settings.temperature, settings.seed], sort_keys=True).encode())
    for document in documents:
        digest.update(f"\0{document.name}\0{document.text}".encode(errors="surrogatepass"))
    file = cache_folder() / "summarize" / f"{digest.hexdigest()[:16]}.jsonl"
    with storage_errors(file):
        file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with Journal(file) as journal:
        if len(journal):
            say("Continuing: some answers are known from an earlier run")
        yield journal
    if settings.temperature > 0 and settings.seed is None:
        file.unlink(missing_ok=True)


@contextmanager
def _shown() -> Iterator[Callable[[int, int], None]]:
    """Progress of all calls but the last one, whose text is shown as it comes."""
    with ExitStack() as bar:
        advance: Callable[..., None] | None = None

        def show(done: int, total: int) -> None:
            nonlocal advance
            if advance is None and total > 1:
                advance = bar.enter_context(progress("Reading", total - 1, "calls"))
            if advance is not None and done < total:
                advance(1)
            if done == total - 1:
                bar.close()

        yield show
