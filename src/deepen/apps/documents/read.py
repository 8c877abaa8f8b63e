"""Bytes of a file to a document. What may take long to parse is parsed by a child process with limits."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from deepen.apps.documents.find import LARGEST, Source
from deepen.apps.documents.passages import Document, make_document

SECONDS = 20.0
"""A file is parsed in this time or not at all."""


class Unreadable(Exception):
    """A file that is no document; the text says why."""


class Reader:
    """Reads documents; a context manager, since it keeps a child process for PDF and HTML.

    Args:
        seconds: time for each file that the child process parses.
    """

    def __init__(self, seconds: float = SECONDS) -> None:
        self._seconds = seconds
        self._child: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """End the child process."""
        if self._child is not None:
            self._child.kill()
            self._child.communicate()
            self._child = None

    def read(self, source: Source, data: bytes) -> Document:
        """The document that these bytes of a file are.

        Raises:
            Unreadable: binary, encrypted, broken, too large, or not parsed in time.
        """
        if len(data) > LARGEST:
            raise Unreadable(f"larger than {LARGEST >> 20} MB")
        if source.kind == "pdf":
            if b"%PDF-" not in data[:1024]:
                raise Unreadable("not a PDF")
            parsed = self._parse(source, data)
            return make_document(source.name, parsed["text"], markdown=False, title=parsed["title"])
        text = decode(data)
        if source.kind == "html":
            parsed = self._parse(source, data)
            return make_document(source.name, parsed["text"], markdown=True, title=parsed["title"])
        if source.kind == "notebook":
            return make_document(source.name, notebook_text(text), markdown=True)
        return make_document(source.name, text, markdown=source.kind == "markdown")

    def _parse(self, source: Source, data: bytes) -> dict[str, Any]:
        if source.data is not None:  # the child reads files
            with tempfile.NamedTemporaryFile() as file:
                file.write(data)
                file.flush()
                return self._parse(replace(source, path=Path(file.name), data=None), data)
        child = self._running()
        assert child.stdin is not None
        request = json.dumps({"path": str(source.path.absolute()), "kind": source.kind, "largest": LARGEST})
        try:
            child.stdin.write(request.encode() + b"\n")
            child.stdin.flush()
            reply: dict[str, Any] = json.loads(self._line(child))
        except (BrokenPipeError, ValueError):
            self.close()
            raise Unreadable("it breaks the parser") from None
        except TimeoutError:
            self.close()
            raise Unreadable(f"not parsed in {self._seconds:.0f} s") from None
        if "error" in reply:
            raise Unreadable(reply["error"])
        return reply

    def _running(self) -> subprocess.Popen[bytes]:
        if self._child is None:
            # its own copy of this package, also where that is not installed
            roots = [str(Path(__file__).parents[3]), os.environ.get("PYTHONPATH", "")]
            self._child = subprocess.Popen(
                [sys.executable, "-m", "deepen.apps.documents.child"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, roots))},
            )
        return self._child

    def _line(self, child: subprocess.Popen[bytes]) -> bytes:
        """The next line of the child; what came of one when the child died."""
        assert child.stdout is not None
        pieces: list[bytes] = []
        until = time.monotonic() + self._seconds
        while not pieces or not pieces[-1].endswith(b"\n"):
            if not select.select([child.stdout], [], [], max(0.0, until - time.monotonic()))[0]:
                raise TimeoutError
            pieces.append(os.read(child.stdout.fileno(), 1 << 20))
            if not pieces[-1]:
                break
        return b"".join(pieces)


def source_bytes(source: Source) -> bytes:
    """The bytes of a document; of one that is too large only so many that this is seen."""
    if source.data is not None:
        return source.data
    with source.path.open("rb") as file:
        return file.read(LARGEST + 1)


def decode(data: bytes) -> str:
    """Bytes of a text file as text.

    Raises:
        Unreadable: they are none in UTF-8.
    """
    if b"\0" in data:
        raise Unreadable("binary, not a text")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise Unreadable("not a text in UTF-8") from None


def notebook_text(text: str) -> str:
    """A notebook's cells as Markdown, code in fences; outputs are left out.

    Raises:
        Unreadable: it is no notebook.
    """
    try:
        cells = [(cell["cell_type"], cell["source"]) for cell in json.loads(text)["cells"]]
        if not all(isinstance(source, str | list) for _, source in cells):
            raise TypeError
        texts = [(kind, source if isinstance(source, str) else "".join(source)) for kind, source in cells]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise Unreadable("not a notebook") from None
    return "\n\n".join(f"```\n{source}\n```" if kind == "code" else source for kind, source in texts) + "\n"
