"""`metrics.jsonl`: one row per step, and one per validation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from deepen.output import write_file

METRICS_FILE = "metrics.jsonl"


def append_row(file: Path, row: dict[str, Any]) -> None:
    """Add a row; it is in the file when this returns."""
    with file.open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(row) + "\n")


def read_rows(file: Path) -> list[dict[str, Any]]:
    """All whole rows; a last line that a killed run left unfinished is no row."""
    lines = file.read_text(encoding="utf-8").split("\n")
    return [json.loads(line) for line in lines[:-1]]


def rewind(file: Path, step: int) -> None:
    """Drop what was logged after the state of a step was saved; its validation goes too, since it is measured again."""
    rows = read_rows(file) if file.exists() else []
    kept = [row for row in rows if row["step"] < step or (row["step"] == step and "loss" in row)]
    write_file(file, "".join(json.dumps(row) + "\n" for row in kept))
