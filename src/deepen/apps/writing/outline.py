"""An outline as people write it: a title, and headings with points below them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from deepen.apps.writing.kinds import Assignment, Planned, template
from deepen.errors import DataError

MOST_SECTIONS = 40
"""Of an outline that the user gives."""

_LONGEST_FILE = 1 << 20  # bytes
_LONGEST_HEADING, _LONGEST_POINT = 12, 40  # words
_LONGEST_TITLE = 14
_TITLE = re.compile(r"\s*(?:#\s+|\W*(?:title|subject)\W*:\s*)(.+)$", re.I)
_HEADING = re.compile(r"\s{0,3}(?:#{2,6}\s+|\**\s*(?:section\s+)?(?:\d{1,2}|[IVX]{1,4})\s*[.):]\s*)(.+)$", re.I)
_POINT = re.compile(r"\s*(?:[-*+\u2022]|[a-z][.)])\s+(.+)$")
_NUMBERING = re.compile(r"^\W*(?:\d{1,2}\s*[.)]\s*)+")
# placeholders, and what an instruction says of lengths
_MEANS_NOTHING = re.compile(
    r"^(?:title|heading|section|point|outline|subject)\b\s*\d*$|what it says|[\[\]<>{}]|\bwords?\b.*\d|\d.*\bwords\b", re.I
)


@dataclass(frozen=True)
class Outline:
    """What shall be written, section by section.

    Attributes:
        title: of the text; the subject of an e-mail.
        sections: in order.
        origin: who planned it: the `model`, the `template` of the kind, or the user's `file`.
    """

    title: str
    sections: tuple[Planned, ...]
    origin: Literal["model", "template", "file"]

    @property
    def text(self) -> str:
        """As `read_outline` reads it."""
        shown = [f"# {self.title}\n"]
        for section in self.sections:
            shown.append("\n".join([f"## {section.heading}", *(f"- {point}" for point in section.points)]) + "\n")
        return "\n".join(shown)


def read_outline(file: Path, data: bytes) -> Outline:
    """The outline that a user wrote or changed: `# title`, `## heading`, `- point`.

    Args:
        file: where it came from, for messages.
        data: its bytes.

    Raises:
        DataError: it is no text, or has no headings, or too many.
    """
    try:
        text = data[: _LONGEST_FILE + 1].decode("utf-8-sig")
    except UnicodeDecodeError:
        raise DataError("the outline is not a text in UTF-8", where=file, next="save it as UTF-8") from None
    if len(data) > _LONGEST_FILE or "\0" in text:
        raise DataError("this is no outline", where=file, next="name a small text with # title, ## headings and - points")
    title, sections = parse(text)
    if not sections:
        raise DataError(
            "the outline has no headings", where=file, next="write each as `## heading`; `deepen write --outline` prints one"
        )
    if len(sections) > MOST_SECTIONS:
        raise DataError(
            f"the outline has {len(sections)} sections; at most {MOST_SECTIONS} can be written", where=file, next="join some"
        )
    return Outline(title, tuple(sections), "file")


def parse(text: str) -> tuple[str, list[Planned]]:
    """The title and the sections of a text that is meant as an outline; no sections if it is none."""
    title, sections, points = "", [], []  # type: str, list[Planned], list[str]
    for line in text.splitlines():
        if heading := _HEADING.match(line):
            name, _, point = _plain(_NUMBERING.sub("", heading[1])).partition(": ")
            points = [point] if point else []
            sections.append(Planned(name, tuple(points)))
        elif not title and (match := _TITLE.match(line)):
            title = _plain(match[1])
        elif sections and (point_line := _POINT.match(line)):
            points.append(_plain(point_line[1]))
            sections[-1] = Planned(sections[-1].heading, tuple(points))
    return title, [section for section in sections if section.heading]


def sound(sections: Sequence[Planned], most: int) -> list[Planned]:
    """Those sections of a model's outline that can be used: headings of a few words, none twice, none an instruction.

    Args:
        sections: what was parsed.
        most: how many are wanted at most; the first ones and the last stay.
    """
    kept: dict[str, Planned] = {}
    for section in sections:
        words = section.heading.split()
        key = " ".join(re.findall(r"\w+", section.heading.lower()))
        if 0 < len(words) <= _LONGEST_HEADING and key and key not in kept and not _MEANS_NOTHING.search(section.heading):
            points = [each for each in dict.fromkeys(section.points) if each and len(each.split()) <= _LONGEST_POINT]
            kept[key] = Planned(section.heading, tuple(points[:4]))
    found = list(kept.values())
    return found[:1] if most == 1 else found if len(found) <= most else [*found[: most - 1], found[-1]]


def fallback(assignment: Assignment, title: str = "") -> Outline:
    """The outline of the kind's template."""
    return Outline(title or plain_title(assignment), template(assignment), "template")


def sound_title(title: str, assignment: Assignment) -> str:
    """A model's title if it can be used, else one made of the brief."""
    words = title.split()
    usable = 0 < len(words) <= _LONGEST_TITLE and not _MEANS_NOTHING.search(title) and any(map(str.isalnum, title))
    return title if usable else plain_title(assignment)


def plain_title(assignment: Assignment) -> str:
    """The brief as a title: its first words with a capital."""
    first = re.split(r"(?<=\w)[.!?;:]\s", assignment.about)[0].rstrip(" .!?;:,")
    words = first.split()
    short = " ".join(words[:_LONGEST_TITLE]) + ("\u2026" if len(words) > _LONGEST_TITLE else "")
    return short[:1].upper() + short[1:]


def _plain(text: str) -> str:
    """A heading or a point without marks of Markdown."""
    return " ".join(re.sub(r"[*_`#]+", "", text).split()).strip(' :-\u2013\u2014"\u201c\u201d')
