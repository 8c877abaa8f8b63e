"""A document's sections by its headings, and passages of a few hundred words that respect them."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice

WORDS = 250
"""Words of a passage at most."""

_LONGEST = 12 * WORDS  # characters of a passage, for text that is not made of words
_SHORT = WORDS // 5  # a section of fewer words goes together with the next one
_FRONT = re.compile(r"\ufeff?---[ \t]*\r?\n(.{0,65536}?)^(?:---|\.\.\.)[ \t]*\r?$\n?", re.S | re.M)
_FIELD = re.compile(r"^(title|date|lastmod|description|keywords)[ \t]*:[ \t]*(\S.{0,400}?)[ \t]*\r?$", re.M)
_FENCE = re.compile(r"[ ]{0,3}(```+|~~~+)")
_HEADING = re.compile(r"[ ]{0,3}(#{1,6})[ \t]+(\S.{0,400}?)[ \t]*#*[ \t]*$")
_UNDERLINE = re.compile(r"[ ]{0,3}(=+|--+)[ \t]*$")
_MARKUP = re.compile(r"<[^<>]{0,300}>|\]\([^()\s]{0,500}\)|[*_`\[\]{}]|\{\{?[%<][^{}]{0,300}[%>]\}\}?")
_WORD = re.compile(r"\S+")
_CHAPTER = re.compile(
    r"^[ \t]*((?:(?:volume|book|part)|(chapter|letter|act|scene))[ \t]+"
    r"(?:[ivxlcdm]+(?![a-z])|\d{1,3}(?!\w)|(?:the[ \t]+)?[a-z]{3,12}(?=[ \t.:]*\r?$))[^\n]{0,60})$",
    re.I | re.M,
)


@dataclass(frozen=True)
class Section:
    """What stands under one heading, up to the next heading of any level.

    Attributes:
        headings: the headings that lead to it, outermost first; empty before the first one.
        start: its first character in the document's text, heading included.
        end: the character after its last one.
    """

    headings: tuple[str, ...]
    start: int
    end: int


@dataclass(frozen=True)
class Document:
    """A document that has been read.

    Attributes:
        name: what it is called.
        title: from its front matter, its first heading, or its name.
        date: from its front matter; empty if there is none.
        about: description and keywords from its front matter.
        text: all of it; a form feed stands between pages.
        sections: in order, without gaps.
    """

    name: str
    title: str
    date: str
    about: str
    text: str
    sections: tuple[Section, ...]


@dataclass(frozen=True)
class Passage:
    """A piece of a document that is found and cited as a whole.

    Attributes:
        headings: the headings that lead to it.
        text: its text.
        start: its first character in the document's text.
        line: the line on which it begins, from 1.
        page: the page on which it begins, from 1; None for a document without pages.
    """

    headings: tuple[str, ...]
    text: str
    start: int
    line: int
    page: int | None


def make_document(name: str, text: str, *, markdown: bool, title: str = "") -> Document:
    """A document with its title, its date and its sections.

    Args:
        name: what it is called.
        text: its text, whole.
        markdown: look for headings and front matter.
        title: its title, if that is known already.
    """
    fields: dict[str, str] = {}
    body = 0
    if markdown and (front := _FRONT.match(text)):
        body = front.end()
        fields = {field[1]: field[2].strip("\"'") for field in _FIELD.finditer(front[1])}
    sections = tuple(_sections(text, body)) if markdown else (Section((), 0, len(text)),)
    first = next((section.headings[0] for section in sections if section.headings), "")
    plain = name.rsplit("/", 1)[-1].rsplit(".", 1)[0].replace("-", " ").replace("_", " ")
    return Document(
        name=name,
        title=title or fields.get("title", "") or first or plain,
        date=fields.get("date", fields.get("lastmod", "")),
        about=" ".join(fields[key] for key in ("description", "keywords") if key in fields),
        text=text,
        sections=sections,
    )


def with_chapters(document: Document) -> Document:
    """A book that has no headings, with those that its lines of the form `CHAPTER I` are; any other document as it is."""
    text = document.text
    found = [each for each in _CHAPTER.finditer(text) if each[1][0].isupper()]
    if len(found) < 2 or any(section.headings for section in document.sections):
        return document
    sections, begun, book, chapter = [], 0, "", ""
    for each in (*found, None):
        end = each.start() if each else len(text)
        if text[begun:end].strip():
            sections.append(Section(tuple(filter(None, (book, chapter))), begun, end))
        if each:
            heading, begun = " ".join(each[1].split()), end
            book, chapter = (book, heading) if each[2] else (heading, "")
    return replace(document, sections=tuple(sections))


def passages(document: Document, words: int = WORDS) -> list[Passage]:
    """Passages of at most so many words, cut between paragraphs where that is possible, never across a long section's heading.

    A section of a few words goes together with the next one that lies below it or beside it.

    Args:
        document: what is cut.
        words: words of a passage at most.
    """
    text = document.text
    lines = [0, *(match.end() for match in re.finditer("\n", text))]
    pages = [match.start() for match in re.finditer("\f", text)]
    found = []
    for section in _merged(document, words):
        for start, end in _pieces(text, section.start, section.end, words):
            piece = text[start:end]
            if piece.strip():
                start += len(piece) - len(piece.lstrip())
                page = bisect_right(pages, start) + 1 if pages else None
                found.append(Passage(section.headings, piece.strip(), start, bisect_right(lines, start), page))
    return found


def _sections(text: str, body: int) -> Iterator[Section]:
    """Sections of Markdown: `#` headings and underlined ones, none inside fenced code."""
    path: list[tuple[int, str]] = []
    begun, fence, before, place = body, "", "", body
    for line in _lines(text, body):
        bare = line.rstrip("\r\n") if len(line) <= 1000 else ""
        level, heading, start = 0, "", place
        if mark := _FENCE.match(bare):
            fence = "" if fence and bare.strip().startswith(fence) else fence or mark[1]
        elif not fence:
            if hashes := _HEADING.match(bare):
                level, heading = len(hashes[1]), hashes[2]
            elif before.strip() and (under := _UNDERLINE.match(bare)):
                level, heading, start = 1 if under[1][0] == "=" else 2, before.strip(), place - len(before)
        if heading:
            if text[begun:start].strip():
                yield Section(tuple(title for _, title in path), begun, start)
            path = [*((depth, title) for depth, title in path if depth < level), (level, _plain(heading))]
            begun = start
        paragraph = bare and not heading and not fence and not bare.lstrip().startswith(("#", "-", "*", ">", "|", "`", "+"))
        before = line if paragraph and not before.strip() else ""
        place += len(line)
    yield Section(tuple(title for _, title in path), begun, len(text))


def _lines(text: str, start: int) -> Iterator[str]:
    """Lines with their ends; only a line feed ends one, so that places add up."""
    while start < len(text):
        end = text.find("\n", start) + 1 or len(text)
        yield text[start:end]
        start = end


def _plain(heading: str) -> str:
    return " ".join(_MARKUP.sub(" ", heading).split())


def _merged(document: Document, words: int) -> Iterator[Section]:
    """Sections, short ones together with what follows under the same parent."""
    held: Section | None = None
    for section in document.sections:
        if held is None:
            held = section
            continue
        parent = held.headings[:-1]
        size = _count(document.text, held.start, section.end, words)
        if (
            _count(document.text, held.start, held.end, _SHORT) < _SHORT
            and size <= words
            and section.headings[: len(parent)] == parent
        ):
            below = section.headings[: len(held.headings)] == held.headings
            headings = section.headings if below else parent or held.headings
            held = Section(headings, held.start, section.end)
        else:
            yield held
            held = section
    if held is not None:
        yield held


def _count(text: str, start: int, end: int, most: int) -> int:
    """Words of a part of a text; more than `most` are not counted."""
    found = islice(_WORD.finditer(text, start, end), most + 1)
    return sum(1 for _ in found) if end - start <= _LONGEST else most + 1


def _pieces(text: str, start: int, end: int, words: int) -> Iterator[tuple[int, int]]:
    """Cut a part of a text: after a paragraph, a line, a sentence or a word, whatever comes last in the second half."""
    while start < end:
        limit = min(end, start + _LONGEST)
        for word in islice(_WORD.finditer(text, start, limit), words, words + 1):
            limit = word.start()
        if limit < end:
            middle = start + (limit - start) // 2
            for mark in ("\n\n", "\n", ". ", " "):
                if (cut := text.rfind(mark, middle, limit)) >= 0:
                    limit = cut + len(mark)
                    break
        yield start, limit
        start = limit
