"""Documents that come with a request: checked, named for people, and files only where a parser needs them."""

from __future__ import annotations

import base64
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http import HTTPStatus
from pathlib import Path, PurePosixPath
from typing import Any

from deepen.apps.documents import Document, Found, Reader, Source, Unreadable, source_bytes
from deepen.apps.documents.find import KINDS
from deepen.errors import DataError, printable
from deepen.serve.wire import Refused

_MOST = 200
_LONGEST_NAME = 200
_PARSED = {"pdf", "html"}  # by a child process, from a file


@contextmanager
def uploaded(values: Sequence[Any], key: str) -> Iterator[Found]:
    """The documents of a request, in its order, for as long as the block lasts.

    Args:
        values: objects with `name` and either `text` or `base64`. The ending of the name says what a document is; without one
            it is Markdown.
        key: of the request that they are in, for messages.

    Raises:
        Refused: they are something else, or too many.
    """
    if len(values) > _MOST:
        raise Refused(HTTPStatus.BAD_REQUEST, f"{key!r} has {len(values)} documents; at most {_MOST} are taken")
    with tempfile.TemporaryDirectory(prefix="deepen-request-") as folder:
        sources: list[Source] = []
        names: set[str] = set()
        for number, value in enumerate(values, start=1):
            data = _data(value, key)
            name = _name(value.get("name", ""), number, names)
            ending = PurePosixPath(name).suffix.lower()
            kind = KINDS.get(ending, "text" if ending else "markdown")
            path = Path(folder, f"{number}{ending if kind in _PARSED else ''}")
            if kind in _PARSED:
                path.write_bytes(data)
            sources.append(Source(path, name, kind, data))
        yield Found(tuple(sources), ())


def read_all(found: Found) -> tuple[list[Document], list[tuple[str, str]]]:
    """The documents that can be read, and the names of the others with why they cannot.

    Raises:
        DataError: there is none.
    """
    documents: list[Document] = []
    skipped: list[tuple[str, str]] = []
    with Reader() as reader:
        for source in found.sources:
            try:
                documents.append(reader.read(source, source_bytes(source)))
            except Unreadable as error:
                skipped.append((source.name, str(error)))
    if not documents:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in skipped) or "none was sent"
        advice = "send text, Markdown, HTML, notebooks or PDF with a text in it"
        raise DataError(f"there is no document that can be read ({reasons})", next=advice)
    return documents, skipped


def _data(value: object, key: str) -> bytes:
    wanted = f"{key!r} is a list of objects with a 'name' and either 'text' or 'base64'"
    if not isinstance(value, dict) or not all(isinstance(each, str) for each in value.values()):
        raise Refused(HTTPStatus.BAD_REQUEST, wanted)
    if not value.keys() <= {"name", "text", "base64"} or ("text" in value) == ("base64" in value):
        raise Refused(HTTPStatus.BAD_REQUEST, wanted)
    if "text" in value:
        return bytes(value["text"].encode())
    try:
        return base64.b64decode(value["base64"], validate=True)
    except ValueError:
        raise Refused(HTTPStatus.BAD_REQUEST, f"a document in {key!r} is not valid base64") from None


def _name(asked: str, number: int, taken: set[str]) -> str:
    """What a document is called in answers: the last part of its name, and not twice the same."""
    last = " ".join(printable(asked.replace("\\", "/").rsplit("/", 1)[-1]).split())[-_LONGEST_NAME:] or f"document {number}"
    name, again = last, 2
    while name in taken:
        stem, dot, ending = last.rpartition(".")
        name = f"{stem or ending} ({again}){dot if stem else ''}{ending if stem else ''}"
        again += 1
    taken.add(name)
    return name
