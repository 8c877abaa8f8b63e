"""A text about what is asked for, written section by section, with its facts marked and its length kept."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict
from pathlib import Path
from typing import Any

from deepen.apps.documents import Found, Source, find_documents, source_bytes
from deepen.apps.writing import Assignment, Facts, Outline, Writing, check_assignment, compose, read_facts, read_outline
from deepen.checkpoint import resolve
from deepen.engine.llamacpp import LlamacppEngine
from deepen.engine.request import check_request
from deepen.errors import DataError, OptionError
from deepen.journal import Journal
from deepen.output import cache_folder, check_target, new_file
from deepen.prepare import fingerprint, given, open_engine
from deepen.progress import say

__all__ = ["Writing", "as_markdown", "write"]


def write(
    model: str | Path,
    *,
    kind: str,
    about: str,
    facts: Sequence[str | Path] | str | Path = (),
    outline: bool = False,
    outline_file: str | Path | None = None,
    words: int | None = None,
    tone: str | None = None,
    audience: str | None = None,
    language: str | None = None,
    revise: bool = True,
    out: str | Path | None = None,
    overwrite: bool = False,
    engine: str = "auto",
    temperature: float = 0.0,
    seed: int | None = None,
    on_text: Callable[[str], None] | None = None,
    on_step: Callable[[str], None] = say,
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
) -> Writing:
    """Write an article, a report, a story, an e-mail or a product description.

    The model plans an outline, or the kind's template holds; it writes section after section and goes over each once more.
    Code keeps the length, leaves out what repeats, echoes or contradicts a fact, marks each sentence that rests on a fact, and
    lists the numbers and names that rest on none. At temperature 0 or with a seed, a run that was killed is continued.

    Args:
        model: a checkpoint folder, a Hub id or a GGUF file; a model's name there if `engine` is a URL.
        kind: `article`, `report`, `story`, `email` or `product`.
        about: what it is about, in plain words.
        facts: documents that it may rest on: .md, .txt, .rst, .html, .ipynb, .pdf; `-` is stdin.
        outline: stop after the outline; it is the result's text.
        outline_file: an outline to write from, such as one that was printed and changed; `-` is stdin.
        words: how long it shall be, from 30 to 20,000; the program steers towards it. As the kind has it unless given.
        tone: such as `friendly`.
        audience: who will read it.
        language: its name in English, such as `German`.
        revise: let the model go over each section once more; a revision that is worse by the checks is not taken.
        out: a Markdown file for the text, its sources and what is not from the facts.
        overwrite: replace `out` if it exists.
        engine: `llamacpp`, `transformers`, the URL of a server of OpenAI's protocol, or `auto` to choose.
        temperature: 0 takes the likeliest token each time, but where the model only repeats itself; higher is more varied.
        seed: makes sampling repeatable.
        on_text: called with each piece of the text as it is certain: a section, or a sentence without `revise`.
        on_step: called with a few words on what is being done; they go to stderr unless it is given.
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
        DataError: the brief is empty, the facts cannot be read, or the outline is none.
        UnsupportedModelError: nothing that the model wrote could be kept.
        OutputError: `out` exists or cannot be written.
        CheckpointError: the model is missing or broken.
    """
    assignment = check_assignment(kind, about, words=words, tone=tone, audience=audience, language=language)
    check_request(max_new_tokens=1, temperature=temperature, seed=seed, trim=None, engine=engine)
    places = [facts] if isinstance(facts, str | Path) else list(facts)
    planned = _read_outline(outline, outline_file, places)
    if out is not None:
        check_target(out, overwrite=overwrite)
    options = given(drop=drop, layers=layers, repeat=repeat, expand=expand, plan=plan, identity_init=identity_init)
    with ExitStack() as stack:
        told: Facts | None = None
        found = find_documents(places) if places else None
        if found is not None:
            told = stack.enter_context(read_facts(found))
        path = model if "://" in engine else resolve(model)
        opened = stack.enter_context(
            closing(
                open_engine(
                    path, engine=engine, plan=options, device=device, dtype=dtype, context=context, quantize=quantize,
                    draft=draft,
                )
            )
        )  # fmt: skip
        journal: Journal | None = None
        if temperature == 0 or seed is not None:
            depends = {
                "engine": [engine, opened.name, opened.context, dtype, device, quantize, str(draft)], "plan": str(options),
                "temperature": temperature, "seed": seed, "revise": revise,
            }  # fmt: skip
            file = _journal_file(path, assignment, found, planned, depends)
            journal = stack.enter_context(Journal(file))
            if len(journal):
                say("Continued: what an interrupted run had written is kept")

        def step(what: str) -> None:
            on_step(what)
            # what a section is must not depend on which prompts were asked before it in this run
            if isinstance(opened, LlamacppEngine):
                opened.forget()

        writing = compose(
            opened, assignment, facts=told, outline=planned, outline_only=outline, revise=revise, temperature=temperature,
            seed=seed, on_text=on_text, on_step=step, journal=journal,
        )  # fmt: skip
        if out is not None:
            with new_file(out, overwrite=overwrite) as partial:
                partial.write_text(as_markdown(writing), encoding="utf-8")
        if journal is not None:
            file.unlink(missing_ok=True)
    if writing.passages_left_out:
        say(
            f"Facts: {writing.passages_left_out} of {writing.passages} passages were left out: there is no room for all, and"
            " others say more of what is written"
        )
    return writing


def as_markdown(writing: Writing) -> str:
    """The text, its sources, and what in it is not from the facts."""
    shown = [writing.text.rstrip() + "\n"]
    if notes := notes_of(writing):
        shown.append(f"---\n\n{notes}")
    return "\n".join(shown)


def notes_of(writing: Writing) -> str:
    """The sources of a text, and what in it is not from the facts or the brief, in Markdown; empty if there is nothing."""
    blocks = []
    if writing.citations:
        told = [f"[{each.number}] {each.place}: “{each.text}”" for each in writing.citations]
        blocks.append("Sources:\n\n" + "\n".join(f"- {each}" for each in told) + "\n")
    # what a story invents without facts is meant to be
    loose = writing.unsupported if writing.passages or writing.kind != "story" else ()
    kept = [each for each in loose if not each.removed]
    if kept:
        source = "your facts" if writing.passages else "your brief"
        blocks.append(f"Not from {source}:\n\n" + "\n".join(f"- {_loose(each)}" for each in kept) + "\n")
    removed = {each.sentence: each for each in loose if each.removed}
    if removed:
        told = [f"- “{sentence}”" for sentence in removed]
        blocks.append("Left out, since a fact says it with other numbers:\n\n" + "\n".join(told) + "\n")
    return "\n".join(blocks)


def _loose(each: Any) -> str:
    where = " (in your facts, but not of this)" if each.reason == "elsewhere" else ""
    return f"{each.text}{where}: “{each.sentence}”"


def _read_outline(wanted: bool, file: str | Path | None, facts: Sequence[str | Path]) -> Outline | None:
    if file is None:
        return None
    if wanted:
        raise OptionError(
            "an outline is printed or written from, not both", where="--outline-file", next="leave --outline away"
        )
    if str(file) == "-":
        if any(str(place) == "-" for place in facts):
            raise OptionError("stdin gives facts or an outline, not both", where="--outline-file", next="put one into a file")
        return read_outline(Path("stdin"), sys.stdin.buffer.read() if sys.stdin else b"")
    path = Path(file)
    if not path.is_file():
        raise DataError("there is no such file", where=path, next="`deepen write --outline` prints an outline to begin with")
    return read_outline(path, path.read_bytes())


def _journal_file(
    model: str | Path, assignment: Assignment, found: Found | None, outline: Outline | None, depends: dict[str, Any]
) -> Path:
    """Where a run keeps what it has: another file for all that would bring another text."""
    facts = [(each.name, _digest(each)) for each in found.sources] if found else []
    name = fingerprint(model, "") if isinstance(model, Path) else model
    key = [name, asdict(assignment), facts, outline and asdict(outline), depends]
    digest = hashlib.sha256(json.dumps(key, default=str).encode(errors="surrogateescape")).hexdigest()
    return cache_folder() / "write" / f"{digest[:24]}.journal"


def _digest(source: Source) -> str:
    try:
        return hashlib.sha256(source_bytes(source)).hexdigest()
    except OSError:
        return "unreadable"  # and so left out of the facts, by name
