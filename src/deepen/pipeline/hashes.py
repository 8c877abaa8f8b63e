"""Hashes of files that were hashed before: gigabytes of weights are read again only when they may have changed."""

from __future__ import annotations

import hashlib
import json
import time
from pathlib import Path
from typing import Any

from deepen.output import write_file

HASHES_FILE = ".hashes.json"
# What tells of the making, and is no part of the model: it differs when the same model is made again
_ABOUT = {"deepen.json", "README.md", "metrics.jsonl"}
PICTURES = ".png"
_TICK = 100_000_000  # nanoseconds: the clock of a file system may be as coarse as that
_COARSE_TICK = 2_100_000_000  # or as coarse as this, where it counts whole seconds
_LONGEST_WAIT = 2.2  # seconds


class Hashes:
    """SHA-256 of files, kept in a run's folder with what tells whether a file has changed since.

    That is its path, size, inode, and the times of its last change of content and of state; the last one no program can set. A
    file that changed so shortly before it was hashed that another change could have the same time is not kept.

    Args:
        folder: where they are kept.
    """

    def __init__(self, folder: Path) -> None:
        self._file = folder / HASHES_FILE
        self._known = _read(self._file)
        self._new = False

    def content(self, path: Path) -> str:
        """A hash of the content of a file or folder, whatever its name, dates, manifest and card."""
        files = [path]
        if path.is_dir():
            files = sorted(f for f in path.rglob("*") if f.is_file() and f.name not in _ABOUT and f.suffix != PICTURES)
        total = hashlib.sha256()
        for file in files:
            total.update(f"{file.relative_to(path)}\0{self.file(file)}\n".encode())
        return total.hexdigest()

    def file(self, path: Path) -> str:
        """A hash of the content of a file."""
        name, mark = str(path.resolve()), _mark(path)
        if (known := self._known.get(name)) is not None and known[:-1] == mark:
            return str(known[-1])
        settled = _settled(mark)
        with path.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        if settled and _mark(path) == mark:
            self._known[name] = [*mark, digest]
            self._new = True
        return digest

    def keep(self) -> None:
        """Write what is new."""
        if self._new and self._file.parent.is_dir():
            write_file(self._file, json.dumps(self._known, indent=0) + "\n")
            self._new = False


def _mark(path: Path) -> list[int]:
    facts = path.stat()
    return [facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns, facts.st_ino, facts.st_dev]


def _settled(mark: list[int]) -> bool:
    """Wait until a later change of the file must have a later time; whether that was short enough to wait for."""
    _, content, state, *_ = mark
    tick = _COARSE_TICK if content % 10**9 == 0 or state % 10**9 == 0 else _TICK
    left = (max(content, state) + tick - time.time_ns()) / 1e9
    if left > 0:
        time.sleep(min(left, _LONGEST_WAIT))
    return left <= _LONGEST_WAIT


def _read(file: Path) -> dict[str, list[Any]]:
    try:
        known = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    sound = isinstance(known, dict) and all(isinstance(each, list) and len(each) == 6 for each in known.values())
    return known if sound else {}
