"""Printing of results: one JSON object, or a view for people. Results go to stdout."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

from deepen.errors import printable
from deepen.units import format_count, format_energy, format_grams, format_seconds


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


_TRAINING: tuple[tuple[str, str, Callable[[Any], str]], ...] = (
    ("model", "model", str),
    ("num_hidden_layers", "layers", str),
    ("learned_parameters", "parameters learned", format_count),
    ("processes", "processes", str),
    ("steps", "steps", "{:,}".format),
    ("tokens", "tokens", "{:,}".format),
    ("tokens_per_second", "tokens per second", format_count),
    ("training_seconds", "time", format_seconds),
    ("validation_loss_before", "validation loss before", "{:.3f}".format),
    ("validation_loss", "validation loss", "{:.3f}".format),
    ("validation_reward_accuracy", "reward accuracy", "{:.2f}".format),
    ("control_validation_reward_accuracy", "reward accuracy of the control", "{:.2f}".format),
    ("validation_perplexity_before", "perplexity before", "{:.2f}".format),
    ("validation_perplexity", "perplexity", "{:.2f}".format),
    ("base_validation_perplexity", "perplexity of the base", "{:.2f}".format),
    ("control_validation_perplexity", "perplexity of the control", "{:.2f}".format),
    ("recovery", "recovery", lambda recovery: str(recovery["text"])),
    ("energy", "energy", str),
    ("carbon_grams", "CO2", format_grams),
)


def print_training(summary: Mapping[str, Any], *, json: bool = False) -> None:
    """Print what a training run did: a row for each thing that is known of it.

    Args:
        summary: the `results` of its manifest, and `model` and `num_hidden_layers` if they shall be shown.
        json: print the same mapping as one JSON object.
    """
    if json:
        print_json(summary)
        return
    told = {**summary, "tokens_per_second": _rate(summary), "energy": _energy(summary)}
    print_table([(label, text(told[key])) for key, label, text in _TRAINING if told.get(key) is not None])


def _rate(summary: Mapping[str, Any]) -> float | None:
    tokens, seconds = summary.get("tokens"), summary.get("training_seconds")
    return tokens / seconds if tokens and seconds else None


def _energy(summary: Mapping[str, Any]) -> str | None:
    joules, method = summary.get("energy_joules"), summary.get("energy_method")
    return method if joules is None else f"{format_energy(joules)}, {method}"


def print_path(out: Path, *, json: bool) -> None:
    """Say where a result lies; the path alone, so that scripts can read it."""
    if json:
        print_json({"out": out})
    else:
        print_text(str(out))
