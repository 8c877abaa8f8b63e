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

    def begin(self) -> None:
        """Nothing is shown yet."""

    def add(self, text: str) -> None:
        """A piece of the answer."""
        print(printable(text), end="", file=self._stream, flush=True)

    def end(self) -> None:
        """The end of its last line."""
        print(file=self._stream, flush=True)


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
        """Render what is left."""
        self._write(self._pending, [])
        self._pending = ""

    def _draw(self) -> None:
        finished, self._pending = split_blocks(self._pending)
        width, height = screen_size(self._stream)
        # a column is left free, so that no line wraps; of a high block its end is shown
        lines = _wrapped(printable(self._pending.strip("\n")), width - 1)[-max(1, height - 2) :]
        self._write(finished, lines if lines or self._printed or finished else [_WAITING])
        self._drawn = time.monotonic()

    def _write(self, finished: str, tail: list[str]) -> None:
        width, height = screen_size(self._stream)
        frame = ""
        if self._tail:
            rows = sum(max(1, -(-_cells(line) // width)) for line in self._tail)  # as a terminal that was resized wrapped them
            up = min(rows, height) - 1
            frame = "\r" + (f"\x1b[{up}A" if up else "") + "\x1b[J"
        if finished.strip():
            frame += "\n" * self._printed + _rendered(finished, width, self._stream)
            self._printed = True
        if tail and self._printed:
            tail = ["", *tail]
        self._tail = tail
        print(_FRAME_START + frame + "\n".join(tail) + _FRAME_END, end="", file=self._stream, flush=True)


def make_display(stream: TextIO) -> Display:
    """Rendered on a terminal that can redraw lines, else plain."""
    return Rendered(stream) if stream.isatty() and os.environ.get("TERM", "dumb") not in {"dumb", "unknown"} else Plain(stream)


def split_blocks(text: str) -> tuple[str, str]:
    """Markdown that is still coming, as the blocks that nothing to come can change, and the rest."""
    starts = [token.map[0] for token in _parser().parse(text) if token.level == 0 and token.map and token.nesting >= 0]
    if len(starts) < 2:
        return "", text
    lines = text.split("\n")
    return "\n".join(lines[: starts[-1]]), "\n".join(lines[starts[-1] :])


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


def _rendered(text: str, width: int, stream: TextIO) -> str:
    """Markdown as lines for a terminal, each ended."""
    from rich.console import Console
    from rich.markdown import Markdown
    from rich.segment import Segment, Segments

    markdown = Markdown("", code_theme="ansi_dark", hyperlinks=False)
    markdown.markup, markdown.parsed = text, _parser().parse(text)
    for token in markdown.parsed:
        for child in token.children or ():
            if child.type == "softbreak":  # models end lines where they mean it
                child.type = "hardbreak"
    console = Console(file=stream, width=width, force_terminal=True, highlight=False)
    lines = console.render_lines(markdown, console.options.update(width=width), pad=False)
    shown = [[*(Segment(printable(each.text), each.style) for each in line), Segment.line()] for line in lines]
    with console.capture() as capture:
        console.print(Segments([each for line in shown for each in line]), end="", soft_wrap=True)
    return capture.get()


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

    # HTML is text that the reader should see
    return MarkdownIt("commonmark", {"html": False}).enable(["strikethrough", "table"])
