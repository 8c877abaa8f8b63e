"""The memory of a search: what was computed once is read again by the run that continues it."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from deepen.errors import OutputError


class Journal:
    """Values by name, each on the disk when `keep` returns.

    Args:
        file: where they lie; it is made when it is not there.
        head: what the values depend on.
        out: the output, for messages.

    Raises:
        OutputError: the file was begun with another head.
    """

    def __init__(self, file: Path, head: Mapping[str, Any], out: Path) -> None:
        self._file = file
        self._values: dict[str, Any] = {}
        self._size = 0
        if file.is_file():
            self._read()
        before = self._values.get("head")
        if before is None:
            self.keep("head", head)
        elif before != json.loads(json.dumps(head)):
            names = [name for name in dict.fromkeys((*before, *head)) if before.get(name) != head.get(name)]
            raise OutputError(
                f"a half-done search for this output was made with another {', '.join(names)}",
                where=out,
                next="use the same model, data and options to continue it, or --overwrite to start anew",
            )

    def get(self, name: str) -> Any:
        """What was kept under a name, or None."""
        return self._values.get(name)

    def keep(self, name: str, value: Any) -> None:
        """Keep a value of plain data."""
        row = json.dumps([name, value]).encode() + b"\n"
        with self._file.open("r+b" if self._file.exists() else "wb") as file:
            file.seek(self._size)
            file.write(row)
            file.flush()
            os.fsync(file.fileno())
        self._size += len(row)
        self._values[name] = value

    def _read(self) -> None:
        """Read the values; a last row that was being written when the run was killed is cut off."""
        with self._file.open("r+b") as file:
            for row in file:
                if not row.endswith(b"\n"):
                    break
                try:
                    name, value = json.loads(row)
                except ValueError:
                    break
                self._values[name] = value
                self._size += len(row)
            file.truncate(self._size)
