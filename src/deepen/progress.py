"""Progress of long work on stderr: how much, how fast, how much longer."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from deepen.errors import printable
from deepen.units import format_bytes, format_count, format_seconds

Advance = Callable[..., None]
"""`advance(amount, note="")` reports work done since the last call and, if given, a short text beside the rate."""

Watch = Callable[[str, float, str], None]
"""`watch(description, share, status)` is told of the work in progress: how much of it is done, and rate and time left."""

_LOG_SECONDS = 10.0  # without a terminal: a line this often, so that logs stay readable


_watches: list[Watch] = []


@contextmanager
def watched(watch: Watch) -> Iterator[None]:
    """Tell of progress by calling `watch` while the block runs, instead of drawing bars."""
    _watches.append(watch)
    try:
        yield
    finally:
        _watches.remove(watch)


@contextmanager
def progress(description: str, total: int, unit: str = "") -> Iterator[Advance]:
    """Show progress while the block runs: a live bar on a terminal, a line now and then in a log.

    Of the processes that a launcher starts together, only the first one shows it.

    Args:
        description: what is being done, a few words.
        total: the amount of work, in `unit`s.
        unit: `"B"` prints bytes; anything else is a plural noun such as `"tokens"`.
    """
    if not _is_first():
        yield lambda *_, **__: None
        return
    description = printable(description)
    amount_text = format_bytes if unit == "B" else format_count
    noun = "" if unit == "B" else f" {unit}"
    start, done = time.monotonic(), 0

    def status(note: str) -> str:
        rate = done / max(time.monotonic() - start, 1e-9)
        left = format_seconds((total - done) / rate) if rate > 0 else "?"
        text = f"{amount_text(done)} of {amount_text(total)}{noun}, {amount_text(rate)}{noun}/s, {left} left"
        return f"{text} · {note}" if note else text

    if _watches:
        tell = _watches[-1]
        tell(description, 0.0, "")

        def advance(amount: int, note: str = "") -> None:
            nonlocal done
            done += amount
            tell(description, done / max(total, 1), status(note))

        yield advance
        return
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn

        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[status]}", markup=False),
        )
        with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task(description, total=max(total, 1), status="")

            def advance(amount: int, note: str = "") -> None:
                nonlocal done
                done += amount
                bar.update(task, advance=amount, status=status(note))

            yield advance
    else:
        last = start

        def advance(amount: int, note: str = "") -> None:
            nonlocal done, last
            done += amount
            if time.monotonic() - last >= _LOG_SECONDS:
                last = time.monotonic()
                print(f"{description}: {status(note)}", file=sys.stderr)

        yield advance
    seconds = time.monotonic() - start
    print(f"{description}: {amount_text(done)}{noun} in {format_seconds(seconds)}", file=sys.stderr)


def say(text: str) -> None:
    """Print a line on stderr; of the processes that a launcher starts together, only the first one does."""
    if _is_first():
        print(printable(text), file=sys.stderr)


def _is_first() -> bool:
    return os.environ.get("RANK", "0") == "0"
