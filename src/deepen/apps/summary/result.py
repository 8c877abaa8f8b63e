"""What a summary is asked to be, and what comes back."""

from __future__ import annotations

import re
from dataclasses import dataclass

from deepen.errors import OptionError

STYLES = ("bullets", "abstract", "report")
LENGTHS = {"short": 75, "medium": 200, "long": 500}
"""Words of a summary, by name."""

_MOST_WORDS = 5000
_LONGEST_WISH = 500  # characters of a focus
_SMALLEST_CHUNK = 32


@dataclass(frozen=True)
class Settings:
    """How documents are to be summarised.

    Attributes:
        style: `bullets`, `abstract` (one paragraph) or `report` (paragraphs under headings).
        length: `short`, `medium`, `long`, or a number of words. A summary is never more than a fifth longer.
        focus: what the reader wants to know most; everything unless given.
        language: of the summary; the documents' unless given.
        cite: give each sentence the number of a passage that supports it.
        temperature: 0 takes the likeliest token each time.
        seed: makes sampling repeatable.
        chunk_tokens: the model reads at most so many tokens of the documents at once; unless given, all of them where they
            fit, or else 3,000.
        context: tokens of prompt and answer, for a server that does not tell; 4,096 there unless given.

    Raises:
        OptionError: one of them is none of these.
    """

    style: str = "bullets"
    length: str | int = "medium"
    focus: str = ""
    language: str = ""
    cite: bool = False
    temperature: float = 0.0
    seed: int | None = None
    chunk_tokens: int | None = None
    context: int | None = None

    def __post_init__(self) -> None:
        if self.style not in STYLES:
            raise OptionError(f"{self.style!r} is not a style", where="--style", next=f"use one of {', '.join(STYLES)}")
        assert self.words
        if len(self.focus) > _LONGEST_WISH:
            raise OptionError(f"a focus has at most {_LONGEST_WISH} characters", where="--focus", next="say it shorter")
        if self.language and not re.fullmatch(r"[^\W\d_][\w .()'-]{0,39}", self.language):
            raise OptionError(f"{self.language!r} is not a language", where="--language", next='name one, such as "French"')
        if self.chunk_tokens is not None and self.chunk_tokens < _SMALLEST_CHUNK:
            raise OptionError(
                f"{self.chunk_tokens} tokens are too few", where="--chunk-tokens", next=f"use {_SMALLEST_CHUNK} or more"
            )

    @property
    def words(self) -> int:
        """The length in words."""
        text = str(self.length).strip().lower()
        if text in LENGTHS:
            return LENGTHS[text]
        number = re.fullmatch(r"(\d{1,6})(?: words?)?", text)
        if number is None or not 5 <= int(number[1]) <= _MOST_WORDS:
            raise OptionError(
                f"{self.length!r} is not a length",
                where="--length",
                next=f"use {', '.join(LENGTHS)}, or a number of words from 5 to {_MOST_WORDS}",
            )
        return int(number[1])


@dataclass(frozen=True)
class Citation:
    """A passage that supports a sentence of the summary.

    Attributes:
        id: the number by which the summary cites it, from 1.
        file: the document's name.
        title: the document's title.
        headings: the headings that lead to it.
        line: where it begins in the document, from 1.
        page: its page, from 1; None in documents without pages.
        text: the passage.
    """

    id: int
    file: str
    title: str
    headings: tuple[str, ...]
    line: int
    page: int | None
    text: str

    @property
    def place(self) -> str:
        """File and line, or page, for people."""
        return f"page {self.page} of {self.file}" if self.page else f"{self.file}:{self.line}"


@dataclass(frozen=True)
class Chunks:
    """What the documents were read in.

    Attributes:
        count: how many there are; each is read exactly once.
        tokens: of the documents' text, by the model's own tokenizer, headings and instructions not counted.
        counted: whether that is so; else the tokens are estimated, since a server does not tell them.
        repeated: passages left out because they are word for word the same as one before.
        quoted: chunks for which the model said nothing usable, so that their most central sentences stand for them.
        dropped: sentences about chunks that were left out because a number of theirs is not in the text.
        resumed: answers that an earlier run had.
    """

    count: int
    tokens: int
    counted: bool
    repeated: int
    quoted: int
    dropped: int
    resumed: int


@dataclass(frozen=True)
class Summary:
    """A summary, and how it was made.

    Attributes:
        summary: the text, as Markdown.
        style: as asked for.
        words: the length that was asked for.
        focus: as asked for.
        language: as asked for.
        documents: names of the documents, in order.
        chunks: what they were read in.
        calls: answers of the model that it is made from.
        depth: levels of the tree of summaries: 1 for a single call.
        quoted: whether the summary itself is made of the most central sentences, since the model said nothing usable.
        citations: the passages that the summary cites; empty unless asked for.
        uncited: sentences for which no passage was found that supports them; they are marked in the text.
        unsupported_numbers: numbers of the summary that do not occur in the documents.
        unsupported_names: names of the summary that do not occur in the documents.
        prompt_tokens: that the model read.
        completion_tokens: that it wrote.
        seconds: without the loading of the model.
        engine: which one answered.
    """

    summary: str
    style: str
    words: int
    focus: str
    language: str
    documents: tuple[str, ...]
    chunks: Chunks
    calls: int
    depth: int
    quoted: bool
    citations: tuple[Citation, ...]
    uncited: int
    unsupported_numbers: tuple[str, ...]
    unsupported_names: tuple[str, ...]
    prompt_tokens: int
    completion_tokens: int
    seconds: float
    engine: str
