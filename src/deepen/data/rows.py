"""Rows of files and data sets in one of several layouts; what is malformed is refused by row."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from deepen.checkpoint.hub import is_hub_id
from deepen.data import hub
from deepen.data.text import Paths
from deepen.errors import DataError, MissingDependencyError, OptionError
from deepen.progress import progress, say
from deepen.units import parse_count

Layouts = Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]]
"""For the name of a layout, the columns that tell it and those that it may have besides; the first that fits is taken."""
Advance = Callable[[int], None]
_KINDS = ".json, .jsonl or .parquet"


_Each = TypeVar("_Each")


def read_rows(
    data: Paths,
    layouts: Layouts,
    read: Callable[[Mapping[str, Any], str, str], _Each | None],
    *,
    cap: Sequence[str] = (),
    seed: int = 0,
    reason: str = "",
) -> list[list[_Each]]:
    """Read rows in one of several layouts; what each file or data set was read as is printed on stderr.

    The first row's columns decide for the whole file.

    Args:
        data: one path or several: `.json`, `.jsonl` and `.parquet` files, and data sets of the Hub, which are called
            `org/name[@revision][:config][:split]` or are a folder in its layout.
        layouts: those that are known.
        read: makes something of a row, its layout, and the words that say where it stands; `None` leaves the row out.
        cap: `PATH=N` takes N rows of that path, drawn by the seed and kept in order.
        seed: of the drawing.
        reason: why `read` leaves rows out, as in "without 3 that …".

    Returns:
        For each path what was made of its rows, in order.

    Raises:
        DataError: a file is missing, empty or of an unknown layout, or a row is malformed; the message names file and row.
        OptionError: a cap is no `PATH=N`, or names none of the paths.
        MissingDependencyError: a library is not installed: pyarrow for Parquet, datasets for data sets.
        NetworkError: the connection to the Hub broke.
    """
    paths = [Path(data)] if isinstance(data, str | Path) else [Path(path) for path in data]
    if not paths:
        raise DataError("no data", next=f"name one or more {_KINDS} files")
    limits = _limits(cap, paths)
    sets = []
    for number, path in enumerate(paths):
        rows, found = _read_file(path, layouts, read, reason)
        total = len(rows)
        if limits.get(path, total) < total:
            chosen = np.random.default_rng((seed, number)).permutation(total)[: limits[path]]
            rows = [rows[index] for index in sorted(chosen)]
        kept = "" if len(rows) == total else f", {len(rows):,} of them taken"
        say(f"{path}: {found}{kept}")
        sets.append(rows)
    return sets


def _limits(cap: Sequence[str], paths: Sequence[Path]) -> dict[Path, int]:
    limits = {}
    for text in cap:
        name, _, count = text.rpartition("=")
        if Path(name) not in paths:
            raise OptionError(
                f"{text!r} caps none of the data files", where="--cap", next="write PATH=N with a path as in --data"
            )
        limits[Path(name)] = parse_count(count)
        if limits[Path(name)] < 1:
            raise OptionError(f"{text!r} takes no row", where="--cap", next="leave the file out, or give a larger number")
    return limits


def _read_file(
    path: Path, layouts: Layouts, read: Callable[[Mapping[str, Any], str, str], _Each | None], reason: str
) -> tuple[list[_Each], str]:
    """What was made of a file's rows, and what it was read as."""
    size, numbered = open_rows(path)
    rows: list[_Each] = []
    layout, description, left_out = "", "", 0
    with progress(f"Reading {path.name}", size, "B") as advance:
        for number, row in numbered(advance):
            where = f"{path}, row {number}"
            if not isinstance(row, dict):
                raise malformed("not an object with named columns", where)
            if not layout:
                layout = _detect(row, layouts, where)
                description = _describe(*layouts[layout], row)
            if missing := [column for column in layouts[layout][0] if row.get(column) is None]:
                raise DataError(
                    f"no {' and no '.join(missing)}",
                    where=where,
                    next=f"give every row the columns of the first, here {layout}",
                )
            made = read(row, layout, where)
            if made is None:
                left_out += 1
            else:
                rows.append(made)
    if not rows:
        problem = f"all its {left_out:,} rows {reason}" if left_out else "there are no rows in it"
        raise DataError(problem, where=path, next="give a file with rows to learn from")
    without = f", without {left_out:,} that {reason}" if left_out else ""
    return rows, f"{layout} {description}; {len(rows) + left_out:,} rows{without}"


def open_rows(path: Path) -> tuple[int, Callable[[Advance], Iterator[tuple[int, Any]]]]:
    """The size of a file or data set in bytes, and what reads its rows, numbered from 1.

    Raises:
        DataError: it is missing or of no known kind; the reader raises it for what cannot be read.
    """
    readers = {".json": _json_rows, ".jsonl": _jsonl_rows, ".parquet": _parquet_rows}
    name = hub.parse(str(path)).name
    if hub.is_data_set(Path(name)) or (not path.exists() and path.suffix not in readers and is_hub_id(name)):
        rows = hub.open_rows(str(path))
        return max(1, rows.data.nbytes), lambda advance: _data_set_rows(rows, advance)
    if path.is_file() and path.suffix not in readers:
        raise DataError(f"not a {_KINDS} file", where=path, next="convert it to one of these")
    if not path.is_file():
        raise DataError("no such file", where=path, next=f"check the path; give {_KINDS} files, or data sets of the Hub")
    return path.stat().st_size, lambda advance: readers[path.suffix](path, advance)


def _detect(row: Mapping[str, Any], layouts: Layouts, where: str) -> str:
    for layout, (columns, _) in layouts.items():
        if all(column in row for column in columns):
            return layout
    known = "; ".join(" and ".join(columns) for columns, _ in layouts.values())
    raise DataError(
        f"the columns {', '.join(map(str, row)) or '(none)'} are those of no known layout",
        where=where,
        next=f"name the columns as one of: {known}",
    )


def _describe(columns: Sequence[str], besides: Sequence[str], row: Mapping[str, Any]) -> str:
    used = [column for column in (*columns, *besides) if column in row]
    others = [column for column in row if column not in used]
    return f"({', '.join(used)})" + (f", without {', '.join(others)}" if others else "")


def malformed(problem: str, where: str) -> DataError:
    """The error about a row that its author must mend."""
    return DataError(problem, where=where, next="mend or remove the row")


def _json_rows(path: Path, advance: Advance) -> Iterator[tuple[int, Any]]:
    data = path.read_bytes()
    rows = _parse(data, str(path), "give a list of objects, or name a file of one object per line .jsonl")
    if not isinstance(rows, list):
        raise DataError("not a list of rows", where=path, next="give a list of objects")
    advance(len(data))
    yield from enumerate(rows, start=1)


def _jsonl_rows(path: Path, advance: Advance) -> Iterator[tuple[int, Any]]:
    with path.open("rb") as stream:
        for number, line in enumerate(stream, start=1):
            if line.strip():
                yield number, _parse(line, f"{path}, row {number}", "write one JSON object per line")
            advance(len(line))


def _parse(data: bytes, where: str, advice: str) -> Any:
    try:
        return json.loads(data.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise DataError(f"not UTF-8 (byte {error.start})", where=where, next="convert it to UTF-8") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"not valid JSON ({str(error)[:200]})", where=where, next=advice) from error


def _parquet_rows(path: Path, advance: Advance) -> Iterator[tuple[int, Any]]:
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile
    except ImportError as error:
        raise MissingDependencyError("reading Parquet needs pyarrow", where=path, next="pip install pyarrow") from error
    try:
        number = 0
        with ParquetFile(path) as file:
            for batch in file.iter_batches():
                for row in batch.to_pylist():
                    number += 1
                    yield number, row
    except ArrowException as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise DataError(f"not a Parquet file that can be read ({reason})", where=path, next="write it again") from error
    advance(path.stat().st_size)


def _data_set_rows(rows: Any, advance: Advance) -> Iterator[tuple[int, Any]]:
    step = rows.data.nbytes / max(1, len(rows))
    for number, row in enumerate(rows, start=1):
        yield number, row
        advance(int(number * step) - int((number - 1) * step))
