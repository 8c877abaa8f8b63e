"""The answers of an endpoint, kept by what was asked: none is paid for twice, and a killed run loses none that arrived."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from deepen.errors import DataError, OutputError
from deepen.output import storage_errors


@dataclass(frozen=True)
class Answer:
    """What an endpoint answered, and what it counted.

    Attributes:
        text: of the answer; nothing if the endpoint gave none.
        finish_reason: as the endpoint says it; "length" is an answer that was cut off.
        prompt_tokens: None where the endpoint does not count.
        completion_tokens: the same.
    """

    text: str
    finish_reason: str
    prompt_tokens: int | None = None
    completion_tokens: int | None = None


def key_of(body: Mapping[str, Any], sample: int) -> str:
    """The name of a request: SHA-256 of its prompt and parameters and of which sample of them it is."""
    content = json.dumps({**body, "sample": sample}, sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(content.encode()).hexdigest()


class Cache:
    """A file of answers that only grows, a JSON object a line. Not for use by several threads at once; see `open_cache`."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = path.open("r+b")
        self._places: dict[str, tuple[int, int]] = {}
        self._size = 0

    def __contains__(self, key: str) -> bool:
        return key in self._places

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, key: str) -> Answer:
        start, size = self._places[key]
        self._file.seek(start)
        row = json.loads(self._file.read(size))
        return Answer(**{name: value for name, value in row.items() if name != "key"})

    def add(self, key: str, answer: Answer) -> None:
        """Keep an answer; it is on the disk when this returns."""
        row = (json.dumps({"key": key, **asdict(answer)}) + "\n").encode()
        self._file.seek(self._size)
        self._file.write(row)
        self._file.flush()
        os.fsync(self._file.fileno())
        self._note(key, row)

    def open(self) -> None:
        """Lock the file and find what is in it; see `open_cache`."""
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            message = "another run uses these answers"
            raise OutputError(message, where=self._path, next="wait for it, or name another --cache") from error
        self._read()

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _note(self, key: str, row: bytes) -> None:
        self._places[key] = self._size, len(row)
        self._size += len(row)

    def _read(self) -> None:
        """Find the answers; a last row that was being written when a run was killed is cut off."""
        for number, row in enumerate(self._file, start=1):
            try:
                content = json.loads(row)
                key, _ = content["key"], Answer(**{name: value for name, value in content.items() if name != "key"})
            except (ValueError, TypeError, KeyError) as error:
                if self._file.read(1) or not (self._size or row.startswith((b'{"key"', b"\0"))):
                    raise DataError(
                        "not an answer as it is kept here", where=f"{self._path}, row {number}", next="name another file"
                    ) from error
                break
            if not row.endswith(b"\n"):
                break
            self._note(str(key), row)
        self._file.truncate(self._size)


@contextmanager
def open_cache(path: Path) -> Iterator[Cache]:
    """The answers in a file, which is made if there is none; one run at a time.

    Raises:
        DataError: the file holds something else.
        OutputError: another run uses it, or it cannot be written.
        StorageError: the disk is full or failing.
    """
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        cache = Cache(path)
    try:
        with storage_errors(path):
            cache.open()
        yield cache
    finally:
        cache.close()
