"""`metrics.jsonl`: one row per step, and one per validation. The rows of the control carry `"run": "control"`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from deepen.output import write_file

METRICS_FILE = "metrics.jsonl"


def append_row(file: Path, row: Mapping[str, Any]) -> None:
    """Add a row; it is in the file when this returns."""
    with file.open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(dict(row)) + "\n")


def read_rows(file: Path, run: str | None = None) -> list[dict[str, Any]]:
    """All whole rows of a run (None is the main one); a last line that a killed run left unfinished is no row."""
    return [row for row in _rows(file) if row.get("run") == run]


def rewind(file: Path, step: int, run: str | None = None) -> None:
    """Drop what a run logged after the state of a step was saved; its validation goes too, since it is measured again."""
    kept = [
        row for row in _rows(file) if row.get("run") != run or row["step"] < step or (row["step"] == step and "loss" in row)
    ]
    write_file(file, "".join(json.dumps(row) + "\n" for row in kept))


def _rows(file: Path) -> list[dict[str, Any]]:
    if not file.exists():
        return []
    lines = file.read_text(encoding="utf-8").split("\n")
    return [json.loads(line) for line in lines[:-1]]
