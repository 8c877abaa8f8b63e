"""A knowledge base: passages of documents in one SQLite file, found by their words (FTS5, BM25)."""

from __future__ import annotations

import hashlib
import json
import math
import re
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Self

from deepen.apps.documents import Document, Found, Reader, Source, Unreadable, passages, source_bytes
from deepen.apps.stems import TOKENIZER, Stemmer
from deepen.database import database_errors, transaction
from deepen.errors import OutputError
from deepen.output import storage_errors
from deepen.progress import Advance

_VERSION = 1
_SECONDS_TO_WAIT = 10.0  # for another program that writes at the same time
_SCHEMA = f"""
CREATE TABLE file (
    id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, stamp TEXT NOT NULL, hash TEXT NOT NULL,
    title TEXT NOT NULL, date TEXT NOT NULL, skipped TEXT NOT NULL
);
CREATE TABLE passage (
    id INTEGER PRIMARY KEY, file INTEGER NOT NULL REFERENCES file (id), headings TEXT NOT NULL, text TEXT NOT NULL,
    start INTEGER NOT NULL, line INTEGER NOT NULL, page INTEGER
);
CREATE INDEX passage_file ON passage (file);
CREATE VIRTUAL TABLE words USING fts5 (title, headings, body, {TOKENIZER});
CREATE VIRTUAL TABLE vocabulary USING fts5vocab (words, row);
"""
_WEIGHTS = (4.0, 4.0, 1.0)  # of a word in the title, in the headings, in the text
_OTHERS = 300  # passages that are thought to be there besides, so that among a few too rare words tell more than others
_SECONDS_BETWEEN_COMMITS = 1.0
# targets of links, tags of HTML and of templates: nothing that a question is about
_LINK = re.compile(r"!?\[([^\[\]]{0,1000})\]\((?:[^()\s]{0,1000}|\{%[^{}\n]{0,300}%\})\)")
_MARKUP = re.compile(r"<[^<>\n]{1,500}>|\{\{?[%<][^{}\n]{0,300}[%>]\}\}?")
_ADDRESS = re.compile(r"https?://\S{1,1000}")
_HYPHEN = re.compile(r"\be-mail", re.I)


@dataclass(frozen=True)
class Hit:
    """A passage that was found.

    Attributes:
        file: the document's name.
        title: the document's title.
        date: its date; empty if it has none.
        headings: the headings that lead to the passage.
        text: the passage.
        line: where it begins, from 1.
        page: the page on which it begins; None in documents without pages.
        score: by BM25, the higher the better; depends on the question.
    """

    file: str
    title: str
    date: str
    headings: tuple[str, ...]
    text: str
    line: int
    page: int | None
    score: float

    @property
    def place(self) -> str:
        """File and line, or page, for people."""
        return f"{self.file}, page {self.page}" if self.page else f"{self.file}:{self.line}"

    @property
    def heading(self) -> str:
        """The document's title and the headings below it."""
        return " > ".join(dict.fromkeys((self.title, *self.headings)))


@dataclass(frozen=True)
class Update:
    """What bringing a knowledge base up to date did.

    Attributes:
        files: documents that it now holds.
        passages: their passages.
        read: documents that were new or had changed.
        gone: documents that it held and that are no longer there.
        skipped: names of files that could not be read, and why.
    """

    files: int
    passages: int
    read: int
    gone: int
    skipped: tuple[tuple[str, str], ...]


class Knowledge:
    """A file with the passages of documents; several programs may use it at once, but not several threads.

    Raises:
        OutputError: the file cannot be written, or is something else.
        StorageError: the disk is full or failing.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        with storage_errors(file):
            file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            file.touch(mode=0o600)
        with self._errors():
            self._database = sqlite3.connect(file, timeout=_SECONDS_TO_WAIT, isolation_level=None, check_same_thread=False)
            self._stemmer = Stemmer()
            with transaction(self._database):
                made = self._database.execute("PRAGMA user_version").fetchone()[0]
                known = self._database.execute("SELECT COUNT(*) FROM sqlite_master").fetchone()[0]
                if made == 0 and not known:
                    for statement in _SCHEMA.split(";"):
                        self._database.execute(statement)
                    self._database.execute(f"PRAGMA user_version = {_VERSION}")
                    made = _VERSION
            self.size = self._database.execute("SELECT COUNT(*) FROM passage").fetchone()[0] if made == _VERSION else 0
            """How many passages it holds."""
        if made != _VERSION:
            self._database.close()
            raise OutputError("not an index that this version made", where=file, next="name another file, or delete this one")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def documents(self) -> int:
        """How many documents it holds."""
        with self._errors():
            (count,) = self._database.execute("SELECT COUNT(*) FROM file WHERE skipped = ''").fetchone()
        return int(count)

    def close(self) -> None:
        """Close the file."""
        self._database.close()
        self._stemmer.close()

    def update(self, found: Found, advance: Advance | None = None) -> Update:
        """Read the documents that are new or have changed, and forget those that are no longer there.

        A document whose size and times are the same is not opened; one whose bytes are the same is not parsed.
        """
        skipped = list(found.skipped)
        read, changed = 0, []
        with self._errors():
            known = {
                name: (stamp, digest) for name, stamp, digest in self._database.execute("SELECT name, stamp, hash FROM file")
            }
            for source in found.sources:
                stamp = _stamp(source)
                if known.get(source.name, ("",))[0] != stamp:
                    changed.append((source, stamp))
            gone = known.keys() - {source.name for source in found.sources}
            with self._steps() as step, Reader() as reader:
                for name in gone:
                    self._forget(name)
                for source, stamp in changed:
                    step()
                    if advance is not None:
                        advance(1)
                    try:
                        data = source_bytes(source)
                    except OSError as error:
                        self._forget(source.name)
                        skipped.append((source.name, error.strerror or "it cannot be read"))
                        continue
                    digest = hashlib.sha256(data).hexdigest()
                    if known.get(source.name, ("", ""))[1] == digest:
                        self._database.execute("UPDATE file SET stamp = ? WHERE name = ?", (stamp, source.name))
                        continue
                    self._read(reader, source, data, (stamp, digest))
                    read += 1
            skipped += self._database.execute("SELECT name, skipped FROM file WHERE skipped != '' ORDER BY name").fetchall()
            files = self._database.execute("SELECT COUNT(*) FROM file WHERE skipped = ''").fetchone()[0]
            self.size = self._database.execute("SELECT COUNT(*) FROM passage").fetchone()[0]
        return Update(files, self.size, read, len(gone), tuple(skipped))

    def search(self, words: Sequence[str], most: int) -> list[Hit]:
        """The passages that these words describe best, by BM25 with titles and headings weighted.

        Args:
            words: plain words; a passage needs not have all of them.
            most: how many passages at most.
        """
        if not words:
            return []
        query = " OR ".join('"' + word.replace('"', '""') + '"' for word in words)
        with self._errors():
            rows = self._database.execute(
                "SELECT file.name, title, date, passage.headings, text, line, page, -score FROM"
                " (SELECT rowid AS id, bm25(words, ?, ?, ?) AS score FROM words WHERE words MATCH ? ORDER BY score LIMIT ?)"
                " JOIN passage USING (id) JOIN file ON file.id = passage.file ORDER BY score",
                (*_WEIGHTS, query, most),
            ).fetchall()
        return [Hit(name, title, date, tuple(json.loads(headings)), *rest) for name, title, date, headings, *rest in rows]

    def all(self) -> list[Hit]:
        """Every passage, in the order of the documents' names and of their texts; their score is 0."""
        with self._errors():
            rows = self._database.execute(
                "SELECT file.name, title, date, headings, text, line, page, 0.0"
                " FROM passage JOIN file ON file.id = passage.file ORDER BY file.name, start"
            ).fetchall()
        return [Hit(name, title, date, tuple(json.loads(headings)), *rest) for name, title, date, headings, *rest in rows]

    def stems(self, text: str) -> list[str]:
        """The words of a text in order, as the index has them: small letters, without accents and endings."""
        with self._errors():
            return self._stemmer.stems(plain(text))

    def frequencies(self, stems: Sequence[str]) -> dict[str, int]:
        """How many passages have each of these stems."""
        with self._errors():
            counted = {}
            for stem in dict.fromkeys(stems):
                row = self._database.execute("SELECT doc FROM vocabulary WHERE term = ?", (stem,)).fetchone()
                counted[stem] = row[0] if row else 0
            return counted

    def rarity(self, frequency: int) -> float:
        """How much a word says that so many passages have: the logarithm of one in how many that is."""
        return math.log((self.size + _OTHERS) / (frequency + 1))

    def _read(self, reader: Reader, source: Source, data: bytes, stamps: tuple[str, str]) -> None:
        """Put a document's passages in the place of those that it had."""
        self._forget(source.name)
        try:
            document, reason = reader.read(source, data), ""
        except Unreadable as error:
            document, reason = Document(source.name, source.name, "", "", "", ()), str(error)
        row = (source.name, *stamps, document.title, document.date, reason)
        file = self._database.execute("INSERT INTO file VALUES (NULL, ?, ?, ?, ?, ?, ?)", row).lastrowid
        # words of the path help: `travel-guide-faq.md`
        about = f"{document.title} {re.sub(r'[-_./]', ' ', source.name)} {document.about}"
        for piece in passages(document):
            place = (file, json.dumps(piece.headings), piece.text, piece.start, piece.line, piece.page)
            passage = self._database.execute("INSERT INTO passage VALUES (NULL, ?, ?, ?, ?, ?, ?)", place).lastrowid
            words = (passage, about, plain(" ".join(piece.headings)), plain(piece.text))
            self._database.execute("INSERT INTO words (rowid, title, headings, body) VALUES (?, ?, ?, ?)", words)

    def _forget(self, name: str) -> None:
        row = self._database.execute("SELECT id FROM file WHERE name = ?", (name,)).fetchone()
        if row:
            self._database.execute("DELETE FROM words WHERE rowid IN (SELECT id FROM passage WHERE file = ?)", row)
            self._database.execute("DELETE FROM passage WHERE file = ?", row)
            self._database.execute("DELETE FROM file WHERE id = ?", row)

    @contextmanager
    def _steps(self) -> Iterator[Callable[[], None]]:
        """A long piece of work, of which what is done is kept about each second."""
        since = time.monotonic()

        def step() -> None:
            nonlocal since
            if time.monotonic() - since > _SECONDS_BETWEEN_COMMITS:
                self._database.execute("COMMIT")
                self._database.execute("BEGIN IMMEDIATE")
                since = time.monotonic()

        with transaction(self._database):
            yield step

    def _errors(self) -> AbstractContextManager[None]:
        return database_errors(
            self.file,
            "the index cannot be used",
            full="free some space, or name a file on another disk with --index",
            otherwise="delete it, or name another with --index",
        )


def plain(text: str) -> str:
    """Text for search: without tags and addresses, and words that are spelt in two ways spelt in one."""
    return _HYPHEN.sub("email", _ADDRESS.sub(" ", readable(text)))


def readable(text: str) -> str:
    """Text without the targets of links, and without tags of HTML and of templates."""
    return _MARKUP.sub(" ", _LINK.sub(r"\1", text))


def _stamp(source: Source) -> str:
    """What tells that a file has not changed: size, times, place on the disk; and what a PDF would be read with."""
    if source.data is not None:
        return hashlib.sha256(source.data).hexdigest()
    status = source.path.stat()
    parser = version("pypdf") if source.kind == "pdf" and find_spec("pypdf") else ""
    return f"{status.st_size} {status.st_mtime_ns} {status.st_ctime_ns} {status.st_ino} {parser}"
