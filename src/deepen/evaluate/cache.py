"""Answers of models, kept so that an interrupted evaluation goes on and a finished one is not run again.

`$DEEPEN_CACHE/evaluate/` holds a file for each model, task and set of requests. Its name is a hash of all that shapes the
answers: the bytes of the model's files, the layer plan, type and engine, the versions of the libraries, the batch size, and
every request's text, in which the task's definition, the data, the examples and the limit show. So nothing that changed is
taken for what it was. The scores are worked out from the answers each time.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from deepen.output import cache_folder, storage_errors, write_file

_SECONDS = 5.0  # of work that a crash of the machine may cost
_NOT_THE_MODEL = ("README.md", "deepen.json")  # what is written about a model does not change it


class Kept:
    """The answers of one task by number; see `kept_answers`."""

    def __init__(self, file: BinaryIO | None, answers: dict[int, Any]) -> None:
        self.answers = answers
        self._file, self._synced = file, time.monotonic()

    def add(self, found: Mapping[int, Any]) -> None:
        """Keep new answers; they are on the disk within seconds."""
        new = {number: answer for number, answer in found.items() if number not in self.answers}
        self.answers |= new
        if self._file is None or not new:
            return
        self._file.write(b"".join(json.dumps([number, answer]).encode() + b"\n" for number, answer in new.items()))
        self._file.flush()
        if time.monotonic() - self._synced >= _SECONDS:
            os.fsync(self._file.fileno())
            self._synced = time.monotonic()


@contextmanager
def kept_answers(task: str, identity: Mapping[str, Any] | None) -> Iterator[Kept]:
    """The answers that are kept for a task of a model; those that are added are kept, however the block ends.

    Args:
        task: its name.
        identity: all that shapes the answers; None keeps nothing.
    """
    if identity is None:
        yield Kept(None, {})
        return
    key = hashlib.sha256(json.dumps(identity, sort_keys=True, default=str).encode()).hexdigest()
    path = cache_folder() / "evaluate" / f"{task}-{key[:32]}.jsonl"
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        answers = _read(path)
        with path.open("ab") as file:
            if file.tell() and not _ends_a_line(path):
                file.write(b"\n")  # a line that was cut by a kill
            yield Kept(file, answers)
            file.flush()
            os.fsync(file.fileno())


def request_hash(requests: Iterator[Any]) -> str:
    """A hash of the requests' contents, in order."""
    digest = hashlib.sha256()
    for request in requests:
        digest.update(json.dumps(request, sort_keys=True, default=str).encode() + b"\0")
    return digest.hexdigest()


def content_hash(path: Path) -> str:
    """A hash of the bytes of a model's files: of one, or of all in a folder but those that only tell of it.

    Reading a large model takes a while, so a file's hash is kept and taken again while its size and its times of content and
    status are the same; no program can set the latter.
    """
    files = [path] if path.is_file() else sorted(file for file in path.iterdir() if file.is_file())
    parts = [
        f"{'' if path.is_file() else file.name} {_file_hash(file)}"
        for file in files
        if path.is_file() or (file.name not in _NOT_THE_MODEL and not file.name.startswith("."))
    ]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _file_hash(file: Path) -> str:
    status = file.stat()
    facts = (str(file.resolve()), status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
    place = cache_folder() / "evaluate" / "files" / hashlib.sha256(repr(facts).encode()).hexdigest()[:32]
    with storage_errors(place):
        if place.is_file() and len(known := place.read_text(encoding="ascii")) == hashlib.sha256().digest_size * 2:
            return known
        with file.open("rb") as content:
            found = hashlib.file_digest(content, "sha256").hexdigest()
        place.parent.mkdir(parents=True, exist_ok=True)
        write_file(place, found)
    return found


def _read(path: Path) -> dict[int, Any]:
    found: dict[int, Any] = {}
    for line in path.read_bytes().splitlines() if path.is_file() else ():
        try:
            number, answer = json.loads(line)
        except ValueError:
            continue  # cut by a kill
        found[number] = answer
    return found


def _ends_a_line(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b"\n"
