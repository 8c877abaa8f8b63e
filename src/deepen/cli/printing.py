"""Printing of results: one JSON object, or a view for people. Results go to stdout."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

from deepen.errors import printable


def print_json(result: object) -> None:
    """Print a result as exactly one JSON object on stdout; ASCII, and null where a number is not finite."""
    print(json.dumps(plain(result), indent=2))


def plain(value: object) -> Any:
    """A result as JSON holds it: dicts, lists, texts, finite numbers."""
    if hasattr(value, "to_dict"):
        return plain(value.to_dict())
    if is_dataclass(value) and not isinstance(value, type):
        return plain(asdict(value))
    if isinstance(value, Mapping):
        return {str(key): plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def print_text(text: str) -> None:
    """Print text for people on stdout, with nothing in it that steers the terminal."""
    print(printable(text))


def print_table(rows: Iterable[Sequence[object]], header: Sequence[str] = ()) -> None:
    """Print rows in aligned columns on stdout: on a terminal as a table, in a pipe as plain columns.

    Args:
        rows: cells, printed with `str`; a column whose every cell starts like a number is aligned to the right.
        header: names of the columns, if they need some.
    """
    cells = [[printable(cell).replace("\n", " ") for cell in row] for row in rows]
    if not cells:
        return
    columns = list(zip(*cells, strict=True))
    numeric = [all(cell[:1].isdigit() or cell in {"", "-"} for cell in column) for column in columns]
    if sys.stdout.isatty():
        from rich import box
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        table = Table(*header, show_header=bool(header), box=box.SIMPLE_HEAD if header else None, pad_edge=False)
        for number, is_numeric in enumerate(numeric):
            if not header:
                table.add_column()
            table.columns[number].justify = "right" if is_numeric else "left"
        for row in cells:
            table.add_row(*map(Text, row))
        Console().print(table)
        return
    lines = [list(header), *cells] if header else cells
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        padded = [
            cell.rjust(width) if is_numeric else cell.ljust(width)
            for cell, width, is_numeric in zip(line, widths, numeric, strict=True)
        ]
        print("  ".join(padded).rstrip())


def print_path(out: Path, *, json: bool) -> None:
    """Say where a result lies; the path alone, so that scripts can read it."""
    if json:
        print_json({"out": out})
    else:
        print_text(str(out))
