"""Documents from files, folders, stdin and pages of this machine, read into memory in the order in which they were named."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from deepen.apps.documents.find import STDIN, Source, find_documents
from deepen.apps.documents.local import is_address, open_address
from deepen.apps.documents.passages import Document
from deepen.apps.documents.read import Reader, Unreadable, source_bytes
from deepen.errors import DataError
from deepen.progress import say


def gather_documents(places: Sequence[str | Path], where: str) -> list[Document]:
    """Read documents; says on stderr what was left out.

    Args:
        places: files, folders, addresses of this machine; `-` is stdin.
        where: how the user named them, for messages.

    Raises:
        DataError: a place does not exist or is on another machine, or none of the documents can be read.
    """
    opened = [open_address(str(place)) if is_address(place) else Path(place) for place in places]
    paths = [place for place in opened if not isinstance(place, Source)]
    found = find_documents(paths)
    sources = [place for place in opened if isinstance(place, Source)] + list(found.sources)
    sources.sort(key=lambda source: _order(source, opened))
    documents, skipped = [], list(found.skipped)
    with Reader() as reader:
        for source in sources:
            try:
                document = reader.read(_recognised(source), source_bytes(source))
                if not document.text.strip():
                    raise Unreadable("empty")
                documents.append(document)
            except Unreadable as error:
                skipped.append((source.name, str(error)))
            except OSError as error:
                skipped.append((source.name, error.strerror or "it cannot be read"))
    say_left_out(skipped, len(documents))
    if not documents:
        raise DataError(
            "there is no document that can be read", where=where, next="name .md, .txt, .html, .ipynb or .pdf files"
        )
    return documents


def say_left_out(skipped: Sequence[tuple[str, str]], read: int) -> None:
    """Say on stderr which documents were left out, and how many of all."""
    for name, reason in skipped:
        say(f"Left out: {name}: {reason}")
    if skipped:
        say(f"Left out: {len(skipped)} of {read + len(skipped)} files")


def _order(source: Source, places: Sequence[Path | Source]) -> int:
    for number, place in enumerate(places):
        if place is source or (not isinstance(place, Source) and source.path in (place, place.absolute())):
            return number
    folders = (number for number, place in enumerate(places) if isinstance(place, Path) and place.is_dir())
    return next((number for number in folders if source.path.is_relative_to(_folder(places[number]))), len(places))


def _folder(place: Path | Source) -> Path:
    assert isinstance(place, Path)
    return place.resolve()


def _recognised(source: Source) -> Source:
    """What comes through stdin has no name that says what it is."""
    if source.path != Path(STDIN) or source.data is None:
        return source
    begin = source.data[:1024].lstrip().lower()
    if begin.startswith(b"%pdf-"):
        return replace(source, kind="pdf")
    return replace(source, kind="html") if begin.startswith((b"<!doctype html", b"<html")) else source
