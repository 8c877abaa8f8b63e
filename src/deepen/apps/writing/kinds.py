"""What can be written, and what is asked for: each kind has a template of sections that holds where a model plans none."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass

from deepen.errors import DataError, OptionError

FEWEST, MOST = 30, 20_000
"""Words that can be asked for."""

_LONGEST_BRIEF = 4000  # characters of what it is about
_LONGEST_MANNER = 200  # characters of a tone, an audience or a language
_WORDS_OF_A_SECTION = 60  # a shorter text has fewer sections


@dataclass(frozen=True)
class Planned:
    """A section before it is written.

    Attributes:
        heading: what stands above it.
        points: what it shall say, in a few words each.
    """

    heading: str
    points: tuple[str, ...] = ()


@dataclass(frozen=True)
class Kind:
    """A kind of text.

    Attributes:
        noun: what it is called in an instruction.
        manner: how it is written.
        words: how long it is unless asked otherwise.
        sections: the template, with the share of the words that each section has.
        headed: whether headings are shown.
    """

    noun: str
    manner: str
    words: int
    sections: tuple[tuple[Planned, float], ...]
    headed: bool


KINDS: Mapping[str, Kind] = {
    "article": Kind(
        "an article", "clear and concrete, in full paragraphs", 500,
        (
            (Planned("Introduction", ("what this is about", "why it matters to the reader")), 1.0),
            (Planned("Background", ("how it came about", "what the reader needs to know first")), 1.0),
            (Planned("The main points", ("what is most important", "how it works in practice")), 1.5),
            (Planned("What it means", ("what follows for the reader", "an example")), 1.0),
            (Planned("Conclusion", ("what to remember",)), 0.7),
        ), True,
    ),
    "report": Kind(
        "a report", "sober and exact, the most important thing first", 700,
        (
            (Planned("Summary", ("the result in a few sentences",)), 0.7),
            (Planned("Background", ("the question", "what is known")), 1.0),
            (Planned("Findings", ("what was found, one thing after the other",)), 1.6),
            (Planned("Discussion", ("what the findings mean", "what stays open")), 1.0),
            (Planned("Recommendations", ("what to do next",)), 0.8),
        ), True,
    ),
    "story": Kind(
        "a story", "vivid, in scenes, with people who act and speak", 600,
        (
            (Planned("Beginning", ("who it is about and where", "what that person wants")), 1.0),
            (Planned("Trouble", ("what stands in the way",)), 1.2),
            (Planned("Turning point", ("what changes everything",)), 1.2),
            (Planned("Ending", ("how it ends", "what is different now")), 0.9),
        ), False,
    ),
    "email": Kind(
        "an e-mail", "polite and short, one thing after the other", 130,
        (
            (Planned("Reason", ("why you write",)), 0.8),
            (Planned("Details", ("what the reader must know",)), 1.4),
            (Planned("Request", ("what the reader shall do, and by when",)), 0.8),
        ), False,
    ),
    "product": Kind(
        "a product description", "lively but honest, about what the buyer gains", 160,
        (
            (Planned("In short", ("what it is and for whom",)), 0.8),
            (Planned("What it does for you", ("the most useful properties",)), 1.4),
            (Planned("Good to know", ("details, use and care",)), 1.0),
        ), True,
    ),
}  # fmt: skip
"""What can be written, by name."""


@dataclass(frozen=True)
class Assignment:
    """What shall be written; `check_assignment` makes it.

    Attributes:
        kind: a name of `KINDS`.
        about: what it is about, in the user's words.
        words: how long it shall be.
        tone: such as `friendly`; as the kind has it unless given.
        audience: who will read it.
        language: its name, in English; as the model chooses unless given.
    """

    kind: str
    about: str
    words: int
    tone: str | None = None
    audience: str | None = None
    language: str | None = None

    @property
    def is_english(self) -> bool:
        """Whether the text is English as far as one knows."""
        return self.language is None or self.language.lower() in {"english", "en"}

    @property
    def brief(self) -> str:
        """All that the user said."""
        return "\n".join(filter(None, (self.about, self.tone, self.audience, self.language)))


def check_assignment(
    kind: str,
    about: str,
    *,
    words: int | None = None,
    tone: str | None = None,
    audience: str | None = None,
    language: str | None = None,
) -> Assignment:
    """What shall be written, with the kind's own length unless one is given.

    Raises:
        OptionError: there is no such kind, or a number of words that cannot be written.
        DataError: it says nothing that could be written about, or too much.
    """
    name = kind.strip().lower()
    if name not in KINDS:
        near = difflib.get_close_matches(name, KINDS, n=1, cutoff=0.4)
        meant = f"; {near[0]} is near" if near else ""
        raise OptionError(f"{kind!r} is not a kind of text{meant}", where="--kind", next=f"use one of {', '.join(KINDS)}")
    about = " ".join(about.split())
    if not any(character.isalnum() for character in about):
        raise DataError("it says nothing to write about", where="--about", next='say for example "why bees dance"')
    if len(about) > _LONGEST_BRIEF:
        raise DataError(
            f"a brief has at most {_LONGEST_BRIEF} characters, this one has {len(about)}",
            where="--about",
            next="shorten it, and put facts into a file for --facts",
        )
    if words is not None and not FEWEST <= words <= MOST:
        raise OptionError(f"{words} words cannot be asked for", where="--words", next=f"use a number from {FEWEST} to {MOST}")
    manner = {"tone": tone, "audience": audience, "language": language}
    for option, text in manner.items():
        if text is not None and (not text.strip() or len(text) > _LONGEST_MANNER):
            raise OptionError(
                f"it has from 1 to {_LONGEST_MANNER} characters",
                where=f"--{option}",
                next="say it in a few words, or leave it away",
            )
    given = {option: " ".join(text.split()) for option, text in manner.items() if text is not None}
    return Assignment(name, about, KINDS[name].words if words is None else words, **given)


def most_sections(assignment: Assignment) -> int:
    """How many sections a text of this length has at most."""
    return max(1, min(12, round(assignment.words / _WORDS_OF_A_SECTION)))


def template(assignment: Assignment) -> tuple[Planned, ...]:
    """The kind's own sections; of a short text those that have most to say."""
    sections = KINDS[assignment.kind].sections
    heaviest = sorted(sections, key=lambda each: -each[1])[: most_sections(assignment)]
    return tuple(each[0] for each in sections if each in heaviest)


def share(kind: str, heading: str) -> float:
    """How much of the words a section has, against the others: as the template says, 1 for one that is not in it."""
    return next((weight for planned, weight in KINDS[kind].sections if planned.heading == heading), 1.0)
