"""What people name as data: files, folders, globs and data sets of the Hub, read document by document from any place on."""

from __future__ import annotations

import glob
import json
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NamedTuple

from deepen.data import hub
from deepen.errors import DataError, MissingDependencyError

Paths = str | Path | Sequence[str | Path]
OVERLAP = 4096
"""Bytes at the end of a piece that the next piece begins with (give or take half a character)."""
PIECE = 1 << 18
"""Bytes from the beginning of a piece to that of the next: a longer document comes in several."""

_KINDS = {".txt": "text", ".md": "text", ".jsonl": "JSON lines", ".parquet": "Parquet"}
_SUFFIXES = ".txt, .md, .jsonl or .parquet"
_BATCH_ROWS = 256
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(@[\w./-]+)?(:[^:\[]*(:[^:\[]*(\[[^]]*\])?)?)?")


class File(NamedTuple):
    """Something that documents are read from.

    Attributes:
        name: its path, or the name of a data set.
        kind: `text`, `JSON lines`, `Parquet`, or `data set`.
        size: bytes, for progress.
        rows: the opened data set, if it is one.
    """

    name: str
    kind: str
    size: int
    rows: Any = None


class Source(NamedTuple):
    """What one of the user's words stands for: `kind` says it in words."""

    name: str
    kind: str
    files: tuple[File, ...]


class Place(NamedTuple):
    """Where reading goes on: in which file, at which byte (0 where rows are not found by bytes), at which row."""

    file: int = 0
    offset: int = 0
    row: int = 0


START = Place()


@dataclass(frozen=True)
class Piece:
    """A document, or a part of a long one.

    Attributes:
        text: what it says, with what it has in common with the next piece of its document at its end.
        first: it begins a document.
        last: it ends it.
        place: where this piece begins; None inside a row, where reading cannot begin.
        step: how many characters further in its document the next piece begins.
        advance: bytes of the files that are done with it.
    """

    text: str
    first: bool
    last: bool
    place: Place | None
    step: int
    advance: int


def find_sources(data: Paths) -> list[Source]:
    """Find out what each of the user's words stands for; what exists as a path wins over the Hub.

    A folder is searched recursively and in order, without hidden files, for files of known kinds; so are the matches of a glob.
    A folder in the layout of the Hub, that is with a README whose header names its configurations, is a data set.

    Raises:
        DataError: something does not exist, is of no known kind, or has no file of a known kind.
        MissingDependencyError, NetworkError: as `hub.open_rows`.
    """
    words = [str(data)] if isinstance(data, str | Path) else [str(word) for word in data]
    if not words:
        raise DataError("no data", next=f"name one or more {_SUFFIXES} files, folders of them, or data sets of the Hub")
    return [_find(word) for word in words]


def read_pieces(files: Sequence[File], column: str, place: Place = START) -> Iterator[Piece]:
    """The documents of files from a place on, in pieces; a text of nothing but white space is no document.

    Args:
        files: what to read.
        column: the name of the text in rows.
        place: of the piece to begin with.

    Raises:
        DataError: a file or a row of it cannot be read; the message names both.
        MissingDependencyError: a Parquet file, and pyarrow is not installed.
    """
    readers = {"JSON lines": _jsonl_rows, "Parquet": _parquet_rows, "data set": _data_set_rows}
    for number, file in enumerate(files[place.file :], start=place.file):
        begin = place if number == place.file else Place(number)
        if file.kind == "text":
            if begin.offset or _has_text(Path(file.name)):
                yield from _text_pieces(Path(file.name), begin)
            continue
        for at, advance, value in readers[file.kind](file, column, begin):
            text = _checked(value, column, f"{file.name}, row {at.row + 1}")
            if text.strip():
                yield from _cut(text, at, advance)


def read_documents(files: Sequence[File], column: str) -> Iterator[str]:
    """The documents of files, each in one piece; see `read_pieces` for the rest."""
    parts: list[str] = []
    for piece in read_pieces(files, column):
        parts.append(piece.text[: piece.step])
        if piece.last:
            yield "".join(parts)
            parts = []


def no_text(name: str) -> DataError:
    """The error for data in which there is nothing to read."""
    return DataError("there is no text in it", where=name, next="give a file with text")


def several_documents(name: str) -> DataError:
    """The error for documents that nothing can part."""
    return DataError(
        "there are several documents, but the tokenizer has no end-of-text token to part them",
        where=name,
        next="join them into one text file",
    )


def _find(word: str) -> Source:
    path = Path(word)
    if path.is_dir():
        return _data_set(word) if hub.is_data_set(path) else _folder(word, sorted(_walk(path)))
    if path.exists():
        if path.suffix not in _KINDS:
            raise DataError(f"not a {_SUFFIXES} file", where=word, next="convert it to one of these")
        file = _file(path)
        return Source(word, file.kind, (file,))
    if path.suffix not in _KINDS and _HUB_ID.fullmatch(word):
        return _data_set(word)
    if ":" in word and hub.is_data_set(Path(hub.parse(word).name)):
        return _data_set(word)
    if glob.has_magic(word):
        return _folder(word, sorted(path for path in map(Path, glob.glob(word, recursive=True)) if path.is_file()))  # noqa: PTH207
    raise DataError("no such file", where=word, next="check the path")


def _walk(folder: Path) -> Iterator[Path]:
    for root, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield from (Path(root) / name for name in names if not name.startswith("."))


def _folder(word: str, paths: Sequence[Path]) -> Source:
    files = tuple(_file(path) for path in paths if path.suffix in _KINDS)
    if not files:
        what = "it has" if Path(word).is_dir() else "it matches"
        raise DataError(f"{what} no {_SUFFIXES} file", where=word, next="check the path")
    kinds = [file.kind for file in files]
    counts = [f"{kinds.count(kind)} {kind}" for kind in dict.fromkeys(kinds)]
    return Source(word, f"files ({', '.join(counts)})", files)


def _file(path: Path) -> File:
    if not path.is_file():
        raise DataError("no such file", where=path, next="check the path")
    if not os.access(path, os.R_OK):
        raise DataError("the file may not be read", where=path, next="change its permissions")
    return File(str(path), _KINDS[path.suffix], path.stat().st_size)


def _data_set(word: str) -> Source:
    rows = hub.open_rows(word)
    return Source(word, "data set", (File(word, "data set", max(1, rows.data.nbytes), rows),))


def _has_text(path: Path) -> bool:
    with path.open("rb") as stream:
        while block := stream.read(PIECE):
            if block.decode("utf-8", errors="replace").lstrip("\ufeff").strip():
                return True
    return False


def _text_pieces(path: Path, place: Place) -> Iterator[Piece]:
    offset = place.offset
    with path.open("rb") as stream:
        last = False
        while not last:
            stream.seek(offset)
            data = stream.read(PIECE + OVERLAP + 1)
            last = len(data) <= PIECE + OVERLAP
            end = len(data) if last else _character(data, PIECE + OVERLAP)
            step = end if last else _character(data, PIECE)
            text, common = _decode(data[:end], offset, str(path)), len(_decode(data[step:end], offset + step, str(path)))
            begin = int(offset == 0 and text.startswith("\ufeff"))  # a byte order mark is not text
            yield Piece(text[begin:], offset == 0, last, Place(place.file, offset), len(text) - begin - common, step)
            offset += step


def _character(data: bytes, index: int) -> int:
    """Where the character of UTF-8 begins that the byte at an index belongs to."""
    return next((at for at in range(index, index - 4, -1) if data[at] & 0xC0 != 0x80), index)


def _decode(data: bytes, offset: int, where: str) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"not UTF-8 (byte {offset + error.start})", where=where, next="convert it to UTF-8") from error


def _cut(text: str, place: Place, advance: int) -> Iterator[Piece]:
    """A row's text in pieces."""
    for begin in range(0, max(1, len(text) - OVERLAP), PIECE):
        last = begin + PIECE + OVERLAP >= len(text)
        part = text[begin : begin + PIECE + OVERLAP]
        yield Piece(part, begin == 0, last, place if begin == 0 else None, len(part) if last else PIECE, advance if last else 0)


_Rows = Iterator[tuple[Place, int, Any]]


def _jsonl_rows(file: File, column: str, place: Place) -> _Rows:
    _, offset, row = place
    with Path(file.name).open("rb") as stream:
        stream.seek(offset)
        for line in stream:
            if line.strip():
                where = f"{file.name}, row {row + 1}"
                value = _parse(line, where)
                if column not in value:
                    raise no_column(column, list(value), where)
                yield Place(place.file, offset, row), len(line), value[column]
            offset, row = offset + len(line), row + 1


def _parse(line: bytes, where: str) -> dict[str, Any]:
    try:
        value = json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise DataError(f"not UTF-8 (byte {error.start})", where=where, next="convert it to UTF-8") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"not valid JSON ({str(error)[:200]})", where=where, next="write one JSON object per line") from error
    if not isinstance(value, dict):
        raise DataError("not an object with named columns", where=where, next='write {"text": "…"} per line')
    return value


def _parquet_rows(file: File, column: str, place: Place) -> _Rows:
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile
    except ImportError as error:
        raise MissingDependencyError("reading Parquet needs pyarrow", where=file.name, next="pip install pyarrow") from error
    try:
        with ParquetFile(file.name) as table:
            if column not in table.schema_arrow.names:
                raise no_column(column, table.schema_arrow.names, file.name)
            advance = file.size / max(1, table.metadata.num_rows)
            row = 0
            for group in range(table.num_row_groups):
                rows = table.metadata.row_group(group).num_rows
                if row + rows > place.row:
                    for batch in table.iter_batches(_BATCH_ROWS, row_groups=[group], columns=[column]):
                        yield from _values(batch.column(0), row, place, advance)
                        row += len(batch)
                else:
                    row += rows
    except (ArrowException, OSError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise DataError(f"not a Parquet file that can be read ({reason})", where=file.name, next="write it again") from error


def _data_set_rows(file: File, column: str, place: Place) -> _Rows:
    if column not in file.rows.column_names:
        raise no_column(column, file.rows.column_names, file.name)
    table = file.rows.select_columns([column]).with_format("arrow")
    advance = file.size / max(1, len(table))
    for row in range(place.row, len(table), _BATCH_ROWS):
        yield from _values(table[row : row + _BATCH_ROWS].column(0), row, place, advance)


def _values(column: Any, row: int, place: Place, advance: float) -> _Rows:
    for number, value in enumerate(column.to_pylist(), start=row):
        if number >= place.row:
            yield Place(place.file, 0, number), int((number + 1) * advance) - int(number * advance), value


def no_column(column: str, columns: Sequence[str], where: str) -> DataError:
    """The error for rows without the column of the text."""
    names = ", ".join(map(str, columns)) or "none"
    nearest = get_close_matches(column, list(map(str, columns)), 1, cutoff=0.0)
    advice = f"pass --text-column {nearest[0]}, or the one that holds the text" if nearest else "give rows with text"
    return DataError(f"no column {column!r}; the columns are: {names}", where=where, next=advice)


def _checked(value: object, column: str, where: str) -> str:
    if not isinstance(value, str):
        raise DataError(
            f"{'nothing' if value is None else type(value).__name__} instead of text in the column {column!r}",
            where=where,
            next="mend or remove the row, or pass --text-column with the column that holds the text",
        )
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise DataError("half a character (a lone surrogate)", where=where, next="mend or remove the row") from error
    return value
