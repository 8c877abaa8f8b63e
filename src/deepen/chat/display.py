"""Answers on the screen: Markdown on a terminal, plain text anywhere else. What a model writes never steers the terminal."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Protocol, TextIO

from deepen.errors import printable

if TYPE_CHECKING:
    from markdown_it import MarkdownIt

_FRAME_SECONDS = 0.05
_WAITING = "…"
_FRAME_START, _FRAME_END = "\x1b[?2026h", "\x1b[?2026l"  # a terminal that knows it shows what lies between in one go
_CLEAR_LINE, _CLEAR_BELOW = "\x1b[K", "\x1b[J"
_PASTE_ON, _PASTE_OFF = "\x1b[?2004h", "\x1b[?2004l"


class Display(Protocol):
    """Where an answer appears as it comes."""

    def begin(self) -> None:
        """An answer has been asked for."""

    def add(self, text: str) -> None:
        """A piece of it."""

    def end(self) -> None:
        """It is over; what follows starts on a new line."""


class Plain:
    """The text as it comes."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._any = False

    def begin(self) -> None:
        """Nothing is shown yet."""
        self._any = False

    def add(self, text: str) -> None:
        """A piece of the answer."""
        self._any = True
        print(printable(text), end="", file=self._stream, flush=True)

    def end(self) -> None:
        """The end of its last line."""
        print(end="\n" * self._any, file=self._stream, flush=True)
        self._any = False


class Rendered:
    """Markdown, block by block: paragraphs, lists, code.

    A block that is complete is rendered and printed for good. The one that is still coming stands below as plain text and is
    redrawn in place, its last lines only where it is higher than the screen. So nothing that has scrolled away is ever touched,
    and another size of the window changes only what comes next.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._pending = ""
        self._tail: list[str] = []  # lines on the screen that the next frame replaces
        self._drawn = 0.0
        self._printed = False

    def begin(self) -> None:
        """A mark where the answer will be."""
        self._pending, self._printed = "", False
        self._draw()

    def add(self, text: str) -> None:
        """A piece of the answer."""
        self._pending = (self._pending + text).replace("\r\n", "\n").replace("\r", "\n")
        if time.monotonic() - self._drawn >= _FRAME_SECONDS:
            self._draw()

    def end(self) -> None:
        """Render what is left, and leave a line free."""
        self._write(split_blocks(self._pending), [])
        self._pending = ""
        print(file=self._stream, flush=True)

    def _draw(self) -> None:
        finished, self._pending = finished_blocks(self._pending)
        width, height = screen_size(self._stream)
        # a column is left free, so that no line wraps; of a high block its end is shown
        lines = _wrapped(printable(self._pending.strip("\n")), width - 1)[-max(1, height - 2) :]
        self._write(finished, lines if lines or self._printed or finished else [_WAITING])
        self._drawn = time.monotonic()

    def _write(self, finished: list[str], tail: list[str]) -> None:
        width, height = screen_size(self._stream)
        start = ""
        if self._tail:
            rows = sum(max(1, -(-_cells(line) // width)) for line in self._tail)  # as a terminal that was resized wrapped them
            start = "\r" + f"\x1b[{min(rows, height) - 1}A" * (min(rows, height) > 1)
        lines: list[str] = []
        for block in finished:
            lines += [""] * self._printed + _rendered(block, width - 1, self._stream)
            self._printed = True
        self._tail = [""] * bool(tail and self._printed) + tail
        # line by line over the old ones: to clear the screen from its first line would fill the scrollback of some terminals
        frame = "\n".join(line + _CLEAR_LINE for line in lines + (self._tail or [""]))
        print(_FRAME_START + start + frame + _CLEAR_BELOW + _FRAME_END, end="", file=self._stream, flush=True)


def make_display(stream: TextIO) -> Display:
    """Rendered on a terminal that can redraw lines, else plain."""
    return Rendered(stream) if stream.isatty() and os.environ.get("TERM", "dumb") not in {"dumb", "unknown"} else Plain(stream)


def split_blocks(text: str) -> list[str]:
    """Markdown as its blocks: paragraphs, lists, code."""
    starts = [token.map[0] for token in _parser().parse(text) if token.level == 0 and token.map and token.nesting >= 0]
    lines = text.split("\n")
    ends = [*starts[1:], len(lines)][: len(starts)]
    return ["\n".join(lines[start:end]) for start, end in zip(starts, ends, strict=True)]


def finished_blocks(text: str) -> tuple[list[str], str]:
    """The blocks of a text that nothing after it can change, and the rest of it."""
    whole = text.rfind("\n") + 1  # half a line may turn out to be of the block before
    *finished, last = split_blocks(text[:whole]) or [""]
    return (finished, last + text[whole:]) if finished else ([], text)


def screen_size(stream: TextIO) -> tuple[int, int]:
    """Columns and rows of a terminal, now."""
    try:
        width, height = os.get_terminal_size(stream.fileno())
    except OSError:
        width, height = 0, 0
    return width or 80, height or 24


@contextmanager
def hushed(keyboard: TextIO, screen: TextIO) -> Iterator[None]:
    """Keys that are pressed while nothing is asked for are neither shown nor lost, and a paste stays one."""
    import termios

    descriptor = keyboard.fileno()
    before = termios.tcgetattr(descriptor)
    quiet = [*before[:6], list(before[6])]
    quiet[3] &= ~(termios.ECHO | termios.ICANON)  # line by line, the system would drop what is longer than 4096 characters
    quiet[6][termios.VMIN], quiet[6][termios.VTIME] = 1, 0
    termios.tcsetattr(descriptor, termios.TCSADRAIN, quiet)
    print(_PASTE_ON, end="", file=screen, flush=True)
    try:
        yield
    finally:
        print(_PASTE_OFF, end="", file=screen, flush=True)
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)


def _rendered(text: str, width: int, stream: TextIO) -> list[str]:
    """A block of Markdown as lines for a terminal; neither the first nor the last is empty."""
    from rich.console import Console
    from rich.markdown import Markdown
    from rich.segment import Segment, Segments
    from rich.theme import Theme

    markdown = Markdown("", code_theme="ansi_dark", hyperlinks=False)
    markdown.markup, markdown.parsed = text, _parser().parse(printable(text))
    for token in markdown.parsed:
        for child in token.children or ():
            if child.type == "softbreak":  # models end lines where they mean it
                child.type = "hardbreak"
    # a background of its own would be a hole in a light screen
    theme = Theme({"markdown.code": "bold cyan", "markdown.code_block": "cyan"})
    console = Console(file=stream, width=width, force_terminal=True, theme=theme)
    # printable once more, since Markdown can write a character as a number
    lines = console.render_lines(markdown, console.options.update(width=width), pad=False)
    with console.capture() as capture:
        for line in lines:
            shown = [Segment(printable(each.text), each.style) for each in line]
            while shown and not shown[-1].text.strip():
                shown.pop()
            if shown:
                shown.append(Segment(shown[-1].text.rstrip(), shown.pop().style))
            console.print(Segments([*shown, Segment.line()]), end="", soft_wrap=True)
    return capture.get().strip("\n").split("\n")


def _wrapped(text: str, width: int) -> list[str]:
    from rich.console import Console
    from rich.text import Text

    if not text:
        return []
    return [line.plain for line in Text(text).wrap(Console(width=width), width, tab_size=8, no_wrap=False)]


def _cells(line: str) -> int:
    from rich.cells import cell_len

    return cell_len(line)


@cache
def _parser() -> MarkdownIt:
    from markdown_it import MarkdownIt

    # HTML and the targets of references are text, which the reader should see
    return MarkdownIt("commonmark", {"html": False}).enable(["strikethrough", "table"]).disable("reference")
