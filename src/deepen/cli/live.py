"""A run on a terminal: its stages, the work in progress, the loss as a sparkline, and the time left."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from deepen.errors import printable
from deepen.progress import watched
from deepen.units import format_seconds

if TYPE_CHECKING:
    from rich.console import RenderableType

_LOSS = re.compile(r"loss (\d+\.?\d*)")
_BLOCKS = "▁▂▃▄▅▆▇█"
_WIDTH = 32  # of a sparkline, and of a bar
_PER_SECOND = 4


def sparkline(values: list[float], width: int = _WIDTH) -> str:
    """Values as blocks of different height, the newest to the right; more than `width` of them are averaged."""
    if not values:
        return ""
    size = -(-len(values) // width)
    means = [sum(part) / len(part) for part in (values[first : first + size] for first in range(0, len(values), size))]
    low, high = min(means), max(means)
    return "".join(_BLOCKS[round((mean - low) / ((high - low) or 1.0) * (len(_BLOCKS) - 1))] for mean in means)


class View:
    """What is shown. Every call changes it; `render` draws it."""

    def __init__(self) -> None:
        self._stages: list[list[Any]] = []  # name, verb, status, and when it began and ended
        self._total = 0
        self._work = ("", 0.0, "")
        self._losses: list[float] = []

    def stage(self, _number: int, total: int, stage: dict[str, Any]) -> None:
        """Another stage begins."""
        self.end()
        self._total = total
        self._stages.append([printable(stage["name"]), stage["stage"], stage["status"], time.monotonic(), None])
        self._work, self._losses = ("", 0.0, ""), []

    def progress(self, description: str, share: float, status: str) -> None:
        """Work goes on."""
        if description != self._work[0]:
            self._losses = []
        self._work = (description, min(share, 1.0), status)
        if loss := _LOSS.search(status):
            self._losses.append(float(loss[1]))

    def end(self) -> None:
        """The stage that was at work is done."""
        if self._stages and self._stages[-1][4] is None:
            self._stages[-1][4] = time.monotonic()

    def render(self) -> RenderableType:
        """A row per stage, and below it what the last one is doing."""
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        rows = Table.grid(padding=(0, 2))
        for name, verb, status, begin, end in self._stages:
            at_work = end is None and status != "done"
            mark = Text("▶", "bold cyan") if at_work else Text("✓", "green")
            took = "done already" if status == "done" else format_seconds((end or time.monotonic()) - begin)
            rows.add_row(mark, Text(name, "bold" if at_work else ""), Text(verb, "dim"), Text(took))
        waiting = self._total - len(self._stages)
        if waiting > 0:
            rows.add_row(Text("·", "dim"), Text(f"{waiting} more", "dim"))
        description, share, status = self._work
        if not description or not self._stages or self._stages[-1][4] is not None:
            return rows
        full = round(share * _WIDTH)
        lines = [
            Text.assemble(
                ("━" * full, "cyan"), ("━" * (_WIDTH - full), "bright_black"), f" {100 * share:3.0f} %  ", description
            )
        ]
        if status:
            lines.append(Text(status, "dim"))
        if self._losses:
            lines.append(Text.assemble((sparkline(self._losses), "yellow"), f"  loss {self._losses[-1]:.3f}"))
        return Group(rows, *lines)


@contextmanager
def live_view() -> Iterator[Callable[[int, int, dict[str, Any]], None]]:
    """Draw a run on the terminal while the block runs; what is printed meanwhile appears above.

    Yields:
        What is to be called before each stage.
    """
    from rich.console import Console
    from rich.live import Live

    view = View()
    console = Console(stderr=True)
    with Live(get_renderable=view.render, console=console, refresh_per_second=_PER_SECOND), watched(view.progress):
        yield view.stage
        view.end()
