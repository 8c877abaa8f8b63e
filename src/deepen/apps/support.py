"""Answers from a folder of documents, with citations, or a plain "I do not know"."""

from __future__ import annotations

import csv
import hashlib
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Literal, Self

from deepen.apps.alike import Alike, open_alike
from deepen.apps.documents import Found, find_documents
from deepen.apps.evidence import Evidence, find_evidence, question_parts
from deepen.apps.grounded import Checker, Source, is_bullet, make_prompt, sentences
from deepen.apps.knowledge import Knowledge
from deepen.checkpoint import resolve
from deepen.engine import Chunk, Engine
from deepen.engine.request import check_request
from deepen.errors import DataError, DeepenError, OptionError, printable
from deepen.output import cache_folder, storage_errors
from deepen.prepare import given, open_engine
from deepen.progress import progress

UNKNOWN = "I do not know: the documents do not answer this."
HANDOVER = "Shall I pass the question on to a person?"

Status = Literal["answered", "unknown", "ambiguous"]
_TURNS = 2  # questions and answers that a question may point back to
_COLUMNS = ("time", "question", "status", "weight", "needed", "nearest", "heading")
_MANY = 50  # documents, from which on progress is shown
_LONGEST_QUESTION = 20_000


@dataclass(frozen=True)
class Passage:
    """A passage that was found for a question.

    Attributes:
        id: the label by which the answer cites it.
        file: the document's name.
        title: the document's title.
        headings: the headings that lead to it.
        line: where it begins in the document, from 1.
        page: its page, from 1; None in documents without pages.
        date: the document's date; empty if it has none.
        text: the passage.
        score: by BM25.
        coverage: the share of the question's words that it has, by weight.
        weight: coverage and half the prominence; the answer is refused if no passage reaches `Answer.needed`.
        cited: whether the answer cites it.
    """

    id: str
    file: str
    title: str
    headings: tuple[str, ...]
    line: int
    page: int | None
    date: str
    text: str
    score: float
    coverage: float
    weight: float
    cited: bool


@dataclass(frozen=True)
class Answer:
    """An answer, and what it rests on.

    Attributes:
        question: what was asked.
        status: `answered`; `unknown` where the documents do not carry an answer; `ambiguous` where it is asked back.
        text: what the user reads; each sentence of an answer has the label of a passage.
        citations: labels of the passages that the text cites.
        choices: titles of documents between which the question does not tell, if it is asked back.
        passages: what was found, the best first.
        needed: the weight from which a passage carries an answer.
        search_seconds: without the model.
        model_seconds: with it; 0 if it was not asked.
        completion_tokens: of the model.
        engine: which one answered; None if none was asked.
    """

    question: str
    status: Status
    text: str
    citations: tuple[str, ...]
    choices: tuple[str, ...]
    passages: tuple[Passage, ...]
    needed: float
    search_seconds: float
    model_seconds: float
    completion_tokens: int
    engine: str | None


class Desk:
    """Answers questions from documents, one after the other; a context manager. The model is loaded for the first answer.

    Args:
        knowledge: the documents; closed with the desk.
        open_engine: loads the model.
        alike: words that mean nearly the same, if they are known.
        passages: how many passages the model is given.
        max_new_tokens: of an answer.
        temperature: 0 takes the likeliest token each time.
        seed: makes sampling repeatable.
        handover: what is said after "I do not know".
        log: a CSV file that gets a row for each question without an answer.
    """

    def __init__(
        self,
        knowledge: Knowledge,
        open_engine: Callable[[], Engine],
        *,
        alike: Alike | None = None,
        passages: int = 4,
        max_new_tokens: int = 256,
        temperature: float = 0.0,
        seed: int | None = None,
        handover: str = HANDOVER,
        log: Path | None = None,
    ) -> None:
        self.knowledge = knowledge
        self.turns: list[tuple[str, str]] = []
        self._open = open_engine
        self._engine: Engine | None = None
        self._alike = alike
        self._passages = passages
        self._sampling: dict[str, Any] = {
            "max_new_tokens": max_new_tokens,
            "temperature": temperature,
            "seed": seed,
            "stop": (),
        }
        self._handover = handover
        self._log = log

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Give back the engine's memory and close the knowledge base."""
        if self._engine is not None:
            self._engine.close()
            self._engine = None
        self.knowledge.close()

    def ask(self, question: str, *, on_text: Callable[[str], None] | None = None) -> Answer:
        """Answer a question, which may point back to the ones before it.

        Args:
            question: in plain words.
            on_text: called with each piece of the answer's text as it is certain.

        Raises:
            DataError: the question is empty or longer than 20,000 characters.
        """
        question = check_question(question)
        start = time.perf_counter()
        before = [asked for asked, _ in self.turns[-_TURNS:]]
        evidence = find_evidence(self.knowledge, question, before, alike=self._alike, most=self._passages)
        sources = [Source(f"S{number}", each.hit) for number, each in enumerate(evidence.passages, start=1)]
        searched = time.perf_counter() - start
        pieces: list[str] = []

        def tell(text: str) -> None:
            pieces.append(text)
            if on_text is not None:
                on_text(text)

        cited: Sequence[Source] = ()
        status: Status = "answered"
        tokens, asking = 0, 0.0
        if evidence.choices:
            status = "ambiguous"
            tell(_ask_back(evidence))
        elif not evidence.carried:
            status = "unknown"
        else:
            start = time.perf_counter()
            cited, tokens = self._answer(question, sources, tell)
            asking = time.perf_counter() - start
            status = "answered" if cited else "unknown"
        if status == "unknown":
            tell(f"{UNKNOWN} {self._handover}".strip())
        answer = Answer(
            question=question,
            status=status,
            text="".join(pieces),
            citations=tuple(each.label for each in cited),
            choices=tuple(each.hit.title for each in evidence.choices),
            passages=tuple(_passages(evidence, sources, cited)),
            needed=evidence.needed,
            search_seconds=searched,
            model_seconds=asking,
            completion_tokens=tokens,
            engine=self._engine.name if asking and self._engine else None,
        )
        self.turns.append((question, answer.text))
        if status == "unknown" and self._log is not None:
            _write_log(self._log, answer)
        return answer

    def _answer(self, question: str, sources: Sequence[Source], tell: Callable[[str], None]) -> tuple[Sequence[Source], int]:
        """What the model says and the sources support; where nothing is left of it, what the best source says itself.

        Returns: the sources that are cited (none if the model said that they do not tell), and the tokens that it took.
        """
        if self._engine is None:
            self._engine = self._open()
        prompt = make_prompt(self._engine, question, sources, self.turns[-_TURNS:], self._sampling["max_new_tokens"])
        checker = Checker(self.knowledge, sources)
        last = Chunk("")

        def texts(chunks: Iterator[Chunk]) -> Iterator[str]:
            nonlocal last
            for last in chunks:
                yield last.text

        def show(sentence: str) -> None:
            if checked := checker.check(sentence):
                space = ("\n" if is_bullet(sentence) else " ") if checker.told else ""
                tell(space + checked)
                checker.told = True

        held = ""
        with closing(self._engine.stream(prompt, **self._sampling)) as chunks:
            for sentence in sentences(texts(chunks)):
                show(held)
                held = sentence
        # a last sentence that the limit cut is left out, unless it is all there is
        if last.finish_reason != "length" or not checker.told:
            show(held)
        if not checker.told and not checker.denied:
            tell(checker.quote(question_parts(self.knowledge, question, self._alike)))
        return checker.cited, last.completion_tokens


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
        docs: folders and files: .md, .txt, .rst, .html, .ipynb, .pdf.
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
    if not 1 <= passages <= 20:
        raise OptionError(f"{passages} passages cannot be given", where="--passages", next="use a number from 1 to 20")
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


def open_knowledge(found: Found, file: Path) -> Knowledge:
    """The knowledge base of documents, up to date; says on stderr what was read and what was left out.

    Args:
        found: the documents.
        file: where the index is or shall be.

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
        for name, reason in update.skipped:
            print(printable(f"Left out: {name}: {reason}"), file=sys.stderr)
        if update.skipped:
            print(f"Left out: {len(update.skipped)} of {update.files + len(update.skipped)} files", file=sys.stderr)
        if not update.passages:
            raise DataError(
                "there is no document that can be read", where="--docs", next="name .md, .txt, .html, .ipynb or .pdf files"
            )
    except DeepenError:
        knowledge.close()
        raise
    return knowledge


def check_question(question: str) -> str:
    """The question without space around it.

    Raises:
        DataError: it is empty or too long.
    """
    question = question.strip()
    if not any(character.isalnum() for character in question):
        raise DataError("the question is empty", where="QUESTION", next='ask for example "How do I get a refund?"')
    if len(question) > _LONGEST_QUESTION:
        raise DataError(f"a question has at most {_LONGEST_QUESTION} characters", where="QUESTION", next="shorten it")
    return question


def _index_file(places: Sequence[str | Path]) -> Path:
    name = "\n".join(sorted(str(Path(place).resolve()) for place in places))
    return cache_folder() / "support" / f"{hashlib.sha256(name.encode(errors='surrogateescape')).hexdigest()[:16]}.sqlite"


def _ask_back(evidence: Evidence) -> str:
    titles = "\n".join(f"- {each.hit.heading}" for each in evidence.choices)
    return f"Several documents speak of this. Which do you mean?\n{titles}"


def _passages(evidence: Evidence, sources: Sequence[Source], cited: Sequence[Source]) -> Iterator[Passage]:
    for source, each in zip(sources, evidence.passages, strict=True):
        hit = each.hit
        yield Passage(
            source.label, hit.file, hit.title, hit.headings, hit.line, hit.page, hit.date, hit.text, hit.score, each.coverage,
            each.weight, source in cited,
        )  # fmt: skip


def _write_log(log: Path, answer: Answer) -> None:
    best = max(answer.passages, key=lambda each: each.weight, default=None)
    row = (
        datetime.now(UTC).isoformat(timespec="seconds"),
        answer.question,
        answer.status,
        f"{best.weight:.2f}" if best else "0",
        f"{answer.needed:.2f}",
        best.file if best else "",
        " > ".join((best.title, *best.headings)) if best else "",
    )
    with storage_errors(log):
        is_new = not log.exists() or not log.stat().st_size
        with log.open("a", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            if is_new:
                writer.writerow(_COLUMNS)
            writer.writerow([_cell(each) for each in row])


def _cell(text: str) -> str:
    """A cell that no spreadsheet takes for a formula."""
    text = text.replace("\0", "").encode("utf-8", "replace").decode()
    return f"'{text}" if text.lstrip()[:1] in {"=", "+", "-", "@"} or text[:1] in {"\t", "\r", "\n"} else text
