"""A report as a value: sections of blocks, written as one HTML page or as Markdown."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from deepen.checkpoint.card import escape_markdown
from deepen.errors import printable
from deepen.report import page
from deepen.report.lines import STYLE
from deepen.report.page import Html, element


@dataclass(frozen=True)
class Text:
    """A paragraph."""

    text: str


@dataclass(frozen=True)
class Table:
    """A table; the first cell of a row names it.

    Attributes:
        caption: what it shows, a few words.
        header: names of the columns.
        rows: cells.
        numbers: columns that are aligned to the right.
    """

    caption: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    numbers: Sequence[int] = ()


@dataclass(frozen=True)
class Drawing:
    """A chart on the page; in Markdown its words, and a picture beside the report if there is one."""

    svg: Html
    caption: str
    picture: str | None = None


@dataclass(frozen=True)
class Code:
    """Lines as they are, folded under a summary where one is given."""

    text: str
    summary: str | None = None


Block = Text | Table | Drawing | Code


@dataclass(frozen=True)
class Section:
    """A heading with blocks below it."""

    heading: str
    blocks: Sequence[Block] = field(default_factory=tuple)


def to_html(title: str, about: str, sections: Sequence[Section]) -> str:
    """The whole page."""
    shown = [page.section(section.heading, *map(_html, section.blocks)) for section in sections if section.blocks]
    return page.page(title, shown, about=about, style=STYLE)


def to_markdown(title: str, about: str, sections: Sequence[Section]) -> str:
    """The same as Markdown."""
    parts = [f"# {escape_markdown(title)}", escape_markdown(about)]
    for section in sections:
        if section.blocks:
            parts += [
                f"## {escape_markdown(section.heading)}",
                *(text for block in section.blocks for text in _markdown(block)),
            ]
    return "\n\n".join(parts) + "\n"


def _html(block: Block) -> Html:
    match block:
        case Text(text):
            return element("p", text)
        case Table(caption, header, rows, numbers):
            return page.table(header, rows, caption=caption, numbers=numbers)
        case Drawing(svg, caption):
            return page.figure(svg, caption)
        case Code(text, summary):
            shown = element("pre", element("code", text))
            return shown if summary is None else page.fold(summary, shown)


def _markdown(block: Block) -> Iterator[str]:
    match block:
        case Text(text):
            yield escape_markdown(text)
        case Table(caption, header, rows, numbers):
            marks = ["---:" if place in numbers else "---" for place in range(len(header))]
            cells = [[escape_markdown(cell) for cell in row] for row in (header, *rows)]
            lines = ["| " + " | ".join(row) + " |" for row in (cells[0], marks, *cells[1:])]
            yield f"{escape_markdown(caption)}:"
            yield "\n".join(lines)
        case Drawing(_, caption, picture):
            yield escape_markdown(caption) if picture is None else f"![{escape_markdown(caption)}](<{printable(picture)}>)"
        case Code(text, summary):
            fence = "```"
            while fence in text:
                fence += "`"
            yield (
                f"{escape_markdown(summary)}:\n\n" if summary else ""
            ) + f"{fence}text\n{printable(text.strip(chr(10)))}\n{fence}"
