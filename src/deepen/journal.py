"""Values by name in a file that only grows: what a killed run had is read again by the run that continues it."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, Self

from deepen.errors import OutputError
from deepen.output import storage_errors

_HEAD = "head"
_MISSING = "nothing"


class Journal:
    """A file of rows `[name, value]`, each on the disk when `keep` returns; only their places are held in memory.

    One run at a time, and one thread.

    Args:
        file: where they lie; it is made for the first value.

    Raises:
        OutputError: another run uses the file, or it holds something else.
        StorageError: the disk is full or failing.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self._places: dict[str, tuple[int, int]] = {}
        self._size = 0
        self._stream: BinaryIO | None = None
        self._head: dict[str, Any] | None = None  # to be kept with the first value
        if file.exists():
            self._stream = self._open()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __contains__(self, name: str) -> bool:
        return name in self._places

    def __len__(self) -> int:
        """How many values there are, the head aside."""
        return len(self._places.keys() - {_HEAD})

    @property
    def head(self) -> dict[str, Any]:
        """What the values depend on; nothing before `begin`."""
        found: dict[str, Any] = self.get(_HEAD) or {}
        return found

    def begin(self, head: Mapping[str, Any], out: Path) -> None:
        """Say what the values depend on.

        Args:
            head: names and values.
            out: the output, for messages.

        Raises:
            OutputError: there are values that were made with another head.
        """
        before, now = self.head, json.loads(json.dumps(head))
        self._head = None if before == now else now
        if len(self) and before != now:
            names = [name for name in dict.fromkeys((*before, *now)) if before.get(name) != now.get(name)]
            told = "; ".join(f"{name} was {before.get(name, _MISSING)}, now {now.get(name, _MISSING)}" for name in names)
            raise OutputError(
                f"a half-done run for this output was made otherwise: {told}",
                where=out,
                next="use the same model, data and options to continue it, or --overwrite to start anew",
            )

    def get(self, name: str) -> Any:
        """What was kept under a name, or None."""
        if name not in self._places or self._stream is None:
            return None
        start, size = self._places[name]
        self._stream.seek(start)
        return json.loads(self._stream.read(size))[1]

    def keep(self, name: str, value: Any) -> None:
        """Keep a value of plain data."""
        if self._head is not None:
            head, self._head = self._head, None
            self.keep(_HEAD, head)
        if self._stream is None:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            self._file.touch()
            self._stream = self._open()
        row = json.dumps([name, value]).encode() + b"\n"
        self._stream.seek(self._size)
        self._stream.write(row)
        self._stream.flush()
        os.fsync(self._stream.fileno())
        self._note(name, row)

    def close(self) -> None:
        """Close the file."""
        if self._stream is not None:
            self._stream.close()

    def _open(self) -> BinaryIO:
        with storage_errors(self._file):
            stream = self._file.open("r+b")
            try:
                self._lock(stream)
                self._read(stream)
            except BaseException:
                stream.close()
                raise
        return stream

    def _lock(self, stream: BinaryIO) -> None:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise OutputError("another run uses this file", where=self._file, next="wait for it, or name another") from error

    def _note(self, name: str, row: bytes) -> None:
        self._places[name] = self._size, len(row)
        self._size += len(row)

    def _read(self, stream: BinaryIO) -> None:
        """Find the values; a last row that was being written when the run was killed is cut off."""
        for number, row in enumerate(stream, start=1):
            name = _name(row)
            if name is None or not row.endswith(b"\n"):
                if stream.read(1) or not (self._size or _may_be_torn(row)):
                    where = f"{self._file}, row {number}"
                    raise OutputError("not a value as it is kept here", where=where, next="name another file")
                break
            self._note(name, row)
        stream.truncate(self._size)


def _name(row: bytes) -> str | None:
    try:
        content = json.loads(row)
    except ValueError:
        return None
    sound = isinstance(content, list) and len(content) == 2 and isinstance(content[0], str)
    return content[0] if sound else None


def _may_be_torn(row: bytes) -> bool:
    """Whether it is the beginning of a row, or what a crash of the machine leaves in its place."""
    return b'["'.startswith(row[:2]) or row.startswith(b"\0")
