"""Summaries of documents of any length: one call where they fit, else a tree of summaries along their headings."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from deepen.apps.documents import Document
from deepen.apps.summary.result import Chunks, Citation, Settings, Summary
from deepen.engine import Engine
from deepen.journal import Journal

__all__ = ["Chunks", "Citation", "Settings", "Summary", "summarize_documents"]


def summarize_documents(
    engines: Sequence[Engine],
    documents: Sequence[Document],
    settings: Settings | None = None,
    *,
    journal: Journal | None = None,
    on_text: Callable[[str], None] | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> Summary:
    """Summarise documents that have been read.

    Callbacks are called in the thread that called this; what they raise ends the work, and the requests that are open are
    given up.

    Args:
        engines: one for each request at a time. An engine that several threads may ask at once, such as one behind a URL, may
            stand there several times.
        documents: in the order in which they are to be read; one summary is made of them all.
        settings: how.
        journal: keeps each answer, so that a later call with the same continues.
        on_text: called with each piece of the summary's text as it is certain.
        on_progress: called with the calls that are done and those there are in all.

    Raises:
        DataError: there is no text in the documents.
        OptionError: the context is too small for the summary.
        MachineError: the engine died, or the server is gone.
    """
    raise NotImplementedError
