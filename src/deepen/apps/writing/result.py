"""What came of an assignment: the text, what its sentences rest on, and what rests on nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from deepen.apps.writing.kinds import Planned

Reason = Literal["absent", "elsewhere", "contradicts"]


@dataclass(frozen=True)
class Section:
    """A section of the text.

    Attributes:
        heading: what it is called; not shown in every kind of text.
        text: its sentences; one that rests on a fact has the fact's number, such as `[1]`.
        words: of its sentences.
        target_words: what was aimed at.
        citations: numbers of the facts that it rests on.
        revised: whether it is the revision that was kept; else it is the draft.
        origin: `model`; `facts` where the model wrote nothing, so that the facts say it themselves; `nothing` if it is empty.
    """

    heading: str
    text: str
    words: int
    target_words: int
    citations: tuple[int, ...]
    revised: bool
    origin: Literal["model", "facts", "nothing"]


@dataclass(frozen=True)
class Citation:
    """A fact that the text rests on.

    Attributes:
        number: by which the text cites it.
        file: the document's name.
        line: where the fact begins in it, from 1.
        page: its page, from 1; None in documents without pages.
        headings: the headings that lead to it.
        text: what the document says.
    """

    number: int
    file: str
    line: int
    page: int | None
    headings: tuple[str, ...]
    text: str

    @property
    def place(self) -> str:
        """File and line, or page, for people."""
        return f"{self.file}, page {self.page}" if self.page else f"{self.file}:{self.line}"


@dataclass(frozen=True)
class Unsupported:
    """A number or a name that is not from the facts.

    Attributes:
        text: the number or the name.
        what: which of the two.
        reason: `absent`: neither the facts nor the brief have it; `elsewhere`: a number that the facts have, but not where
            they speak of what the sentence says; `contradicts`: a fact says the same with another number.
        sentence: where it stands, or stood.
        section: the section's heading.
        removed: whether the sentence was taken out of the text, as is every one that contradicts.
    """

    text: str
    what: Literal["number", "name"]
    reason: Reason
    sentence: str
    section: str
    removed: bool


@dataclass(frozen=True)
class Writing:
    """A text, and how it was made.

    Attributes:
        kind: what it is.
        about: what it was to be about.
        title: above it; the subject of an e-mail.
        outline: its sections as they were planned.
        outline_origin: who planned them: `model`, `template` or `file`.
        sections: as they were written; none if only an outline was asked for.
        text: all of it in Markdown, without the list of citations; the outline if only that was asked for.
        words: of title, headings and sentences, without the numbers of facts.
        target_words: what was asked for.
        within_target: whether `words` is within 15 % of it; None for an outline.
        citations: the facts that it rests on.
        unsupported: numbers and names that are not from the facts or the brief.
        passages: how many passages the facts have.
        passages_left_out: how many of these the model was never shown, for want of room.
        tokens: that the model generated.
        seconds: that it took, without the loading of the model.
        engine: which one.
    """

    kind: str
    about: str
    title: str
    outline: tuple[Planned, ...]
    outline_origin: Literal["model", "template", "file"]
    sections: tuple[Section, ...]
    text: str
    words: int
    target_words: int
    within_target: bool | None
    citations: tuple[Citation, ...]
    unsupported: tuple[Unsupported, ...]
    passages: int
    passages_left_out: int
    tokens: int
    seconds: float
    engine: str
