"""Documents as text with headings and passages: text, Markdown, HTML, notebooks, PDF. A document is data and nothing else."""

from deepen.apps.documents.find import STDIN, Found, Source, find_documents
from deepen.apps.documents.neutral import neutral
from deepen.apps.documents.passages import Document, Passage, make_document, passages, with_chapters
from deepen.apps.documents.read import Reader, Unreadable, source_bytes

__all__ = [
    "STDIN",
    "Document",
    "Found",
    "Passage",
    "Reader",
    "Source",
    "Unreadable",
    "find_documents",
    "make_document",
    "neutral",
    "passages",
    "source_bytes",
    "with_chapters",
]
