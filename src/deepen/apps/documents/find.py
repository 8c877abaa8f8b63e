"""Which files are documents: those named, and those in folders by their names' endings."""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from deepen.errors import DataError

STDIN = "-"
"""The name of a document that comes through stdin."""

LARGEST = 64 << 20
"""Bytes of a file, and characters of what comes out of it, at most."""

KINDS = {
    ".md": "markdown", ".markdown": "markdown", ".txt": "text", ".text": "text", ".rst": "text", ".html": "html",
    ".htm": "html", ".xhtml": "html", ".ipynb": "notebook", ".pdf": "pdf",
}  # fmt: skip
"""What a file is, by the ending of its name."""


@dataclass(frozen=True)
class Source:
    """A file that is to be read.

    Attributes:
        path: where it lies.
        name: what it is called in answers: its path below the folder that was given, or as it was given.
        kind: `markdown`, `text`, `html`, `notebook` or `pdf`.
        data: its bytes, if they came through stdin.
    """

    path: Path
    name: str
    kind: str
    data: bytes | None = None


@dataclass(frozen=True)
class Found:
    """Documents, in the order of their names, and what was left out: names and why."""

    sources: tuple[Source, ...]
    skipped: tuple[tuple[str, str], ...]


def find_documents(places: Sequence[str | Path]) -> Found:
    """Find the documents among files and below folders.

    In a folder those count whose names end in `.md`, `.txt`, `.rst`, `.html`, `.ipynb` or `.pdf`; a file that is named is taken
    as text unless its ending says more. Hidden files and folders are not entered, nor are links that lead out of the folder.

    Args:
        places: files and folders; `-` is stdin, Markdown or plain text.

    Raises:
        DataError: a place does not exist.
    """
    sources: dict[Path, Source] = {}
    names = [place.resolve().name for place in map(Path, places)]
    skipped: list[tuple[str, str]] = []
    for place in map(Path, places):
        if place == Path(STDIN):
            # one byte more than is read of any file, so that more is refused
            data = sys.stdin.buffer.read(LARGEST + 1) if sys.stdin else b""
            sources[place] = Source(place, "stdin", "markdown", data)
            continue
        if not place.exists():
            raise DataError("there is no such file or folder", where=place, next="name the documents, or a folder with them")
        if not place.is_dir():
            _take(place, place.as_posix(), KINDS.get(place.suffix.lower(), "text"), sources, skipped)
            continue
        root = place.resolve()
        for path in _walk(root):
            name = path.relative_to(root).as_posix()
            if len(places) > 1:  # several folders may hold a file of the same name
                name = (Path(root.name) if names.count(root.name) == 1 else place).joinpath(name).as_posix()
            if path.is_symlink() and not path.resolve().is_relative_to(root):
                skipped.append((name, "a link that leads out of the folder"))
            else:
                _take(path, name, KINDS[path.suffix.lower()], sources, skipped)
    return Found(tuple(sorted(sources.values(), key=lambda source: source.name)), tuple(skipped))


def _walk(root: Path) -> Iterator[Path]:
    for folder, folders, files in os.walk(root):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            if not name.startswith(".") and Path(name).suffix.lower() in KINDS:
                yield Path(folder, name)


def _take(path: Path, name: str, kind: str, sources: dict[Path, Source], skipped: list[tuple[str, str]]) -> None:
    # a pipe or a device would be waited for
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            skipped.append((name, "not a regular file"))
        else:
            sources.setdefault(path.resolve() if path.is_symlink() else path.absolute(), Source(path, name, kind))
    except OSError as error:
        skipped.append((name, error.strerror or "it cannot be read"))
