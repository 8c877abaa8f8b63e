"""Answers from a folder of documents, with citations, or a plain "I do not know"."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from deepen.apps.alike import Alike, open_alike
from deepen.apps.desk import HANDOVER, Answer, Desk, Passage, check_question
from deepen.apps.documents import Found, find_documents
from deepen.apps.documents.gather import say_left_out
from deepen.apps.knowledge import Knowledge
from deepen.checkpoint import resolve
from deepen.engine import Engine
from deepen.engine.request import check_request
from deepen.errors import DataError, DeepenError, OptionError
from deepen.output import cache_folder
from deepen.prepare import given, open_engine
from deepen.progress import progress

__all__ = ["Answer", "Desk", "Library", "Passage", "library_desk", "open_desk", "open_knowledge", "open_library", "support"]

_MANY = 50  # documents, from which on progress is shown


def support(
    model: str | Path,
    question: str,
    *,
    docs: Sequence[str | Path] | str | Path,
    index: str | Path | None = None,
    passages: int = 4,
    handover: str = HANDOVER,
    log: str | Path | None = None,
    engine: str = "auto",
    max_new_tokens: int = 256,
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
) -> Answer:
    """Answer a question from documents alone, with citations, or say that they do not answer it.

    The documents are indexed once, into one SQLite file, and again where they change. Passages are found by BM25. Whether they
    carry an answer is decided before the model is asked. Each sentence of the model is checked: what no passage supports is
    left out, and each has the label of a passage that supports it.

    Args:
        model: a checkpoint folder, a Hub id or a GGUF file; a model's name there if `engine` is a URL.
        question: in plain words.
        docs: folders and files: .md, .txt, .rst, .html, .ipynb, .pdf; `-` is stdin.
        index: the SQLite file; in `$DEEPEN_CACHE` (or `deepen` in the user's cache), by the names of `docs`, unless given.
        passages: how many passages the model is given.
        handover: what is said after "I do not know".
        log: a CSV file that gets a row for each question without an answer.
        engine: `llamacpp`, `transformers`, the URL of a server of OpenAI's protocol, or `auto` to choose.
        max_new_tokens: of an answer.
        temperature: 0 takes the likeliest token each time; higher is more varied.
        seed: makes sampling repeatable.
        on_text: called with each piece of the answer's text as it is certain.
        context: hold at most so many tokens of prompt and answer (engine llamacpp; what fits, at most 8192, unless given).
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
        DataError: there are no documents that can be read; the question is empty.
        CheckpointError: the model is missing or broken.
    """
    check_question(question)
    with open_desk(
        model, docs=docs, index=index, passages=passages, handover=handover, log=log, engine=engine,
        max_new_tokens=max_new_tokens, temperature=temperature, seed=seed, context=context, quantize=quantize, device=device,
        dtype=dtype, draft=draft, drop=drop, layers=layers, repeat=repeat, expand=expand, plan=plan,
        identity_init=identity_init,
    ) as desk:  # fmt: skip
        return desk.ask(question, on_text=on_text)


def open_desk(
    model: str | Path,
    *,
    docs: Sequence[str | Path] | str | Path,
    index: str | Path | None = None,
    passages: int = 4,
    handover: str = HANDOVER,
    log: str | Path | None = None,
    engine: str = "auto",
    max_new_tokens: int = 256,
    temperature: float = 0.0,
    seed: int | None = None,
    context: int | None = None,
    quantize: str | None = None,
    device: str | None = None,
    dtype: str | None = None,
    draft: str | Path | None = None,
    **plan: Any,
) -> Desk:
    """Bring the index up to date and be ready for questions; the arguments and errors are those of `support`.

    Says on stderr what was read and what was left out.
    """
    check_request(max_new_tokens=max_new_tokens, temperature=temperature, seed=seed, trim=None, engine=engine)
    _check_passages(passages)
    places = [docs] if isinstance(docs, str | Path) else list(docs)
    if not places:
        raise OptionError("there are no documents", where="--docs", next="name a folder or files")
    found = find_documents(places)
    alike = None if "://" in engine else open_alike(resolve(model))
    if alike is None:
        print("Words: found as they are written, since the model's own are not at hand", file=sys.stderr)
    opening = partial(
        open_engine, model, engine=engine, plan=given(**plan), device=device, dtype=dtype, context=context, quantize=quantize,
        draft=draft,
    )  # fmt: skip
    return Desk(
        open_knowledge(found, _index_file(places) if index is None else Path(index)),
        opening,
        alike=alike,
        passages=passages,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        seed=seed,
        handover=handover,
        log=None if log is None else Path(log),
    )


@dataclass(frozen=True)
class Library:
    """Documents that are indexed and ready, for any number of desks; see `open_library`.

    Attributes:
        name: their places, one a line.
        index: the SQLite file.
        alike: words that mean nearly the same, if they are known.
        documents: how many could be read.
        passages: how many they have.
    """

    name: str
    index: Path
    alike: Alike | None
    documents: int
    passages: int


def open_library(model: Path, docs: Sequence[str | Path], *, option: str = "--docs") -> Library:
    """Bring the index of documents up to date; says on stderr what was left out.

    Args:
        model: a checkpoint folder or a GGUF file, for the words that it holds to be alike.
        docs: folders and files.
        option: what named them, for messages.

    Raises:
        DataError: none of them can be read.
    """
    file, name = _index_file(docs), "\n".join(sorted(str(Path(place).resolve()) for place in docs))
    with open_knowledge(find_documents(docs), file, option=option) as knowledge:
        return Library(name, file, open_alike(model), knowledge.documents, knowledge.size)


def library_desk(
    library: Library,
    open_engine: Callable[[], Engine],
    *,
    passages: int = 4,
    handover: str = HANDOVER,
    max_new_tokens: int = 256,
    temperature: float = 0.0,
    seed: int | None = None,
) -> Desk:
    """A desk of its own for one thread, over documents that are ready; the arguments and errors are those of `support`."""
    check_request(max_new_tokens=max_new_tokens, temperature=temperature, seed=seed, trim=None, engine="auto")
    _check_passages(passages)
    return Desk(
        Knowledge(library.index), open_engine, alike=library.alike, passages=passages, max_new_tokens=max_new_tokens,
        temperature=temperature, seed=seed, handover=handover,
    )  # fmt: skip


def open_knowledge(found: Found, file: Path, *, option: str = "--docs") -> Knowledge:
    """The knowledge base of documents, up to date; says on stderr what was read and what was left out.

    Args:
        found: the documents.
        file: where the index is or shall be.
        option: what named them, for messages.

    Raises:
        DataError: none of them can be read.
    """
    knowledge = Knowledge(file)
    try:
        if knowledge.size or len(found.sources) < _MANY:
            update = knowledge.update(found)
        else:
            with progress("Reading documents", len(found.sources), "documents") as advance:
                update = knowledge.update(found, advance)
        say_left_out(update.skipped, update.files)
        if not update.passages:
            raise DataError(
                "there is no document that can be read", where=option, next="name .md, .txt, .html, .ipynb or .pdf files"
            )
    except DeepenError:
        knowledge.close()
        raise
    return knowledge


def _check_passages(passages: int) -> None:
    if not 1 <= passages <= 20:
        raise OptionError(f"{passages} passages cannot be given", where="--passages", next="use a number from 1 to 20")


def _index_file(places: Sequence[str | Path]) -> Path:
    name = "\n".join(sorted(str(Path(place).resolve()) for place in places))
    return cache_folder() / "support" / f"{hashlib.sha256(name.encode(errors='surrogateescape')).hexdigest()[:16]}.sqlite"
