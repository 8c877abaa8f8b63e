"""The half-done output of a batch: a killed run is continued from it, and no answer is lost or doubled."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from deepen.errors import OutputError
from deepen.output import write_file

_MISSING = "nothing"


class Journal:
    """The half-done output of a batch: a head file that says what is being made, and a file of answers.

    Not for use by several threads at once.

    Args:
        folder: where both lie.
    """

    def __init__(self, folder: Path) -> None:
        self._head, self._file = folder / "head.json", folder / "answers.jsonl"
        self._places: dict[int, tuple[int, int]] = {}  # line number: where its answer lies
        self._size = 0
        self.head: dict[str, Any] | None = json.loads(self._head.read_bytes()) if self._head.is_file() else None
        if self.head is not None and self._file.is_file():
            self._read()

    def __contains__(self, number: int) -> bool:
        return number in self._places

    def __len__(self) -> int:
        return len(self._places)

    def check(self, head: Mapping[str, Any], out: Path) -> None:
        """Refuse to continue what was begun with other settings.

        Raises:
            OutputError: they differ; the message says where.
        """
        before = self.head
        if before is None:
            return
        names = [name for name in (*before, *head) if before.get(name) != head.get(name)]
        if names:
            told = "; ".join(
                f"{name} was {before.get(name, _MISSING)}, now {head.get(name, _MISSING)}" for name in dict.fromkeys(names)
            )
            raise OutputError(
                f"a half-done run for this output was made otherwise: {told}",
                where=out,
                next="use the same file, model and options to continue it, or --overwrite to start anew",
            )

    def add(self, head: Mapping[str, Any], number: int, line: str) -> None:
        """Keep the answer to a line; it is on the disk when this returns."""
        if self.head is None:
            write_file(self._head, json.dumps(head, indent=2))
            self.head = dict(head)
        row = f"{number}\t{line}\n".encode()
        with self._file.open("r+b" if self._file.exists() else "wb") as file:
            file.seek(self._size)
            file.write(row)
            file.flush()
            os.fsync(file.fileno())
        self._note(number, row)

    def line(self, number: int) -> str:
        """The answer to a line, as it was kept."""
        start, size = self._places[number]
        with self._file.open("rb") as file:
            file.seek(start)
            return file.read(size).decode()

    def _note(self, number: int, row: bytes) -> None:
        prefix = len(f"{number}\t")
        self._places[number] = self._size + prefix, len(row) - prefix - 1
        self._size += len(row)

    def _read(self) -> None:
        """Find the answers; a last row that was being written when the run was killed is cut off."""
        with self._file.open("r+b") as file:
            for row in file:
                number, _, line = row.partition(b"\t")
                try:
                    json.loads(line)
                    if not row.endswith(b"\n") or int(number) in self._places:
                        break
                except ValueError:
                    break
                self._note(int(number), row)
            file.truncate(self._size)
