"""A desk that answers questions from documents, one after the other."""

from __future__ import annotations

import csv
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, Self

from deepen.apps.alike import Alike
from deepen.apps.evidence import Evidence, find_evidence, question_parts
from deepen.apps.grounded import Checker, Source, is_bullet, make_prompt, sentences
from deepen.apps.knowledge import Knowledge
from deepen.engine import Chunk, Engine
from deepen.errors import DataError
from deepen.output import storage_errors

UNKNOWN = "I do not know: the documents do not answer this."
HANDOVER = "Shall I pass the question on to a person?"

Status = Literal["answered", "unknown", "ambiguous"]
_TURNS = 2  # questions and answers that a question may point back to
_COLUMNS = ("time", "question", "status", "weight", "needed", "nearest", "heading")
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

        def show(sentence: str, before: str) -> None:
            if checked := checker.check(sentence):
                space = "\n" if is_bullet(sentence) or before.endswith("\n") else " "
                tell(space + checked if checker.told else checked)
                checker.told = True

        held = before = ""
        with closing(self._engine.stream(prompt, **self._sampling)) as chunks:
            for sentence in sentences(texts(chunks)):
                show(held, before)
                held, before = sentence, held
        # a last sentence that the limit cut is left out, unless it is all there is
        if last.finish_reason != "length" or not checker.told:
            show(held, before)
        if not checker.told and not checker.denied:
            tell(checker.quote(question_parts(self.knowledge, question, self._alike)))
        return checker.cited, last.completion_tokens


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
