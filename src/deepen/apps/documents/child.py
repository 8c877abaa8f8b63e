"""The child process that parses what strangers made: limited in memory, and killed by its parent when it takes too long.

A line of JSON with a path comes in through stdin, a line of JSON with a text or an error goes out.
"""

from __future__ import annotations

import json
import sys
from typing import Any

_MEMORY = 1 << 30


class _TooLong(Exception):
    pass


def main() -> None:
    """Answer until stdin ends."""
    try:
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    except (ImportError, ValueError, OSError):  # not on this system; the time still is limited
        pass
    # what a parser prints must not get between the answers
    answers, sys.stdout = sys.stdout, sys.stderr
    for line in sys.stdin:
        print(json.dumps(_answer(json.loads(line))), file=answers, flush=True)


def _answer(request: dict[str, Any]) -> dict[str, str]:
    try:
        if request["kind"] == "pdf":
            return _pdf(request["path"], request["largest"])
        from deepen.apps.documents.html import html_text

        with open(request["path"], "rb") as file:  # noqa: PTH123
            title, text = html_text(file.read().decode("utf-8-sig"))
        return {"title": title, "text": text}
    except _TooLong:
        return {"error": "its text is too long"}
    except (MemoryError, RecursionError):
        return {"error": "it takes too much memory"}
    except Exception as error:  # a parser may fail in any way on a broken file
        return {"error": f"broken ({type(error).__name__})"}


def _pdf(path: str, largest: int) -> dict[str, str]:
    try:
        import pypdf
    except ImportError:
        return {"error": "PDF needs pypdf: pip install 'deepen[apps]'"}
    reader = pypdf.PdfReader(path)
    if reader.is_encrypted:
        try:
            opened = reader.decrypt("")
        except Exception:  # a cipher that needs another package
            opened = pypdf.PasswordType.NOT_DECRYPTED
        if opened == pypdf.PasswordType.NOT_DECRYPTED:
            return {"error": "encrypted"}
    pages, size = [], 0
    for page in reader.pages:
        pages.append(page.extract_text())
        size += len(pages[-1])
        if size > largest:
            raise _TooLong
    if not "".join(pages).strip():
        return {"error": "a PDF without text"}
    title = reader.metadata.title if reader.metadata else ""
    return {"title": " ".join(str(title or "").split())[:300], "text": "\f".join(pages)}


if __name__ == "__main__":
    main()
