"""Which rows of training data repeat rows of benchmarks.

A training row repeats a benchmark's row if runs of 13 words or more that both have (of all the words, where the benchmark's row
has 8 to 12) cover at least four fifths of the benchmark's words. The runs are those of GPT-3 (Brown et al. 2020,
arXiv:2005.14165, appendix C), which counts a single one; the share is that of Llama 2 (Touvron et al. 2023, arXiv:2307.09288,
appendix A.6), without which two different questions with a sentence in common would count too.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypeVar

from deepen.data.benchmarks import Row, read_benchmarks, text_of
from deepen.data.ngrams import Index, build_index, find, words_of
from deepen.data.rows import Advance, open_rows
from deepen.data.sources import File, Paths, find_sources
from deepen.errors import DataError
from deepen.progress import progress, say

SHARE = 0.8
"""Of a benchmark's words, those that a training row must have in common runs."""
_MOST_WORDS = 60  # that are quoted
_MARK, _INSIDE = re.compile(r"[^\w\s]|_"), re.compile(r"\w[^\w\s'\u2019]+\w|\w_")


class Match(NamedTuple):
    """A training row that repeats a row of a benchmark.

    Attributes:
        file: of the training data.
        row: in the file, from 1; of a `.txt` or `.md` file the line where it begins.
        benchmark: its name.
        benchmark_row: in its data, from 1.
        share: of the benchmark's words that are in common runs.
        words: the longest common run.
    """

    file: str
    row: int
    benchmark: str
    benchmark_row: int
    share: float
    words: str


@dataclass(frozen=True)
class BenchmarkIndex:
    """The n-grams of benchmarks.

    Attributes:
        index: of their texts.
        texts: these.
        owners: for each text its benchmark and row.
        compared: for each benchmark how many of its rows have enough words.
        rows: for each benchmark how many it has.
    """

    index: Index
    texts: Sequence[str]
    owners: Sequence[tuple[str, int]]
    compared: Mapping[str, int]
    rows: Mapping[str, int]


def index_benchmarks(benchmarks: Mapping[str, Sequence[Row]]) -> BenchmarkIndex:
    """Index the texts of benchmarks, each also as it is without any punctuation."""
    texts: list[str] = []
    owners: list[tuple[str, int]] = []
    for name, rows in benchmarks.items():
        for row in rows:
            for text in row.texts:
                for form in _forms(text):
                    texts.append(form)
                    owners.append((name, row.number))
    index = build_index(texts)
    long_enough = {owner for number, owner in enumerate(owners) if index.compares(number)}
    compared = {name: sum(owner[0] == name for owner in long_enough) for name in benchmarks}
    return BenchmarkIndex(index, texts, owners, compared, {name: len(rows) for name, rows in benchmarks.items()})


def find_matches(index: BenchmarkIndex, data: Paths, *, share: float = SHARE) -> list[Match]:
    """Search training files for rows of benchmarks, in memory that does not grow with them.

    Args:
        index: the benchmarks.
        data: `.txt`, `.md`, `.json`, `.jsonl` and `.parquet` files, folders and globs of them, and data sets of the Hub. A row
            is all its texts one after the other, whatever they are called: the turns of a conversation, a prompt and its
            answers. Text is read through from line to line.
        share: see `SHARE`; 0 for every common run.

    Returns:
        The matches, in the order of the files and rows.

    Raises:
        DataError: something is missing or cannot be read.
        MissingDependencyError, NetworkError: as for other data.
    """
    files = list(_files(data))
    matches: list[Match] = []
    with progress("Comparing with benchmarks", sum(file.size for file in files), "B") as advance:
        for file in files:
            running = file.kind == "text"
            texts = _lines(Path(file.name), advance) if running else _row_texts(Path(file.name), advance)
            matches += _matches(index, file.name, find(index.index, texts, running=running), share, running=running)
    return matches


_Each = TypeVar("_Each")


def without_matches(
    rows: Sequence[_Each], text: Callable[[_Each], str], index: BenchmarkIndex, *, what: str
) -> tuple[list[_Each], dict[str, int]]:
    """Rows that do not repeat any of a benchmark; how many others there were is printed on stderr.

    Args:
        rows: of training data.
        text: what a row says.
        index: the benchmarks.
        what: the rows are, in the plural.

    Returns:
        The rows that are left, in order, and for each benchmark how many repeated it.

    Raises:
        DataError: no row is left.
    """
    found = find(index.index, enumerate(map(text, rows)))
    pairs = {(match.row, match.benchmark) for match in _matches(index, "", found, SHARE, running=False)}
    out = {row for row, _ in pairs}
    counts = {name: sum(benchmark == name for _, benchmark in pairs) for name in index.rows}
    listed = ", ".join(f"{count:,} of {name}" for name, count in counts.items() if count)
    say(f"{len(out):,} of {len(rows):,} {what} repeat rows of benchmarks and are left out{f' ({listed})' if listed else ''}")
    if len(out) == len(rows):
        raise DataError(f"all {what} repeat rows of benchmarks", next="give other data, or exclude fewer benchmarks")
    return [row for number, row in enumerate(rows) if number not in out], counts


def open_index(words: Paths, data: Path | None = None) -> BenchmarkIndex:
    """The index of benchmarks by their names; see `read_benchmarks`."""
    return index_benchmarks(read_benchmarks(words, data))


def _forms(text: str) -> list[str]:
    """A text and, if that has other words, what is left of it when marks are deleted instead of parting words: "wellknown"."""
    return [text, _MARK.sub("", text)] if _INSIDE.search(text) else [text]


def _files(data: Paths) -> Iterator[File]:
    for word in [data] if isinstance(data, str | Path) else data:
        path = Path(word)
        if path.suffix == ".json" and path.is_file():
            yield File(str(path), "JSON", path.stat().st_size)
        else:
            for source in find_sources(word):
                yield from source.files


def _lines(path: Path, advance: Advance) -> Iterator[tuple[int, str]]:
    with path.open("rb") as stream:
        for number, line in enumerate(stream, start=1):
            advance(len(line))
            try:
                yield number, line.decode("utf-8")
            except UnicodeDecodeError as error:
                raise DataError(
                    f"not UTF-8 (byte {error.start} of the line)", where=f"{path}, line {number}", next="convert it to UTF-8"
                ) from error


def _row_texts(path: Path, advance: Advance) -> Iterator[tuple[int, str]]:
    _, numbered = open_rows(path)
    return ((number, text_of(row)) for number, row in numbered(advance))


def _matches(
    index: BenchmarkIndex, file: str, found: Mapping[tuple[int, int], set[int]], share: float, *, running: bool
) -> list[Match]:
    best: dict[tuple[int, str, int], Match] = {}
    for row, text, places in _runs_on(found) if running else ((*key, places) for key, places in found.items()):
        length = index.index.length(text)
        common = _runs(places, length)
        part = sum(end - begin for begin, end in common) / int(index.index.words[text])
        key = (row, *index.owners[text])
        if part >= share and (key not in best or part > best[key].share):
            begin, end = max(common, key=lambda run: run[1] - run[0])
            words = words_of(index.texts[text])[begin : min(end, begin + _MOST_WORDS)]
            best[key] = Match(file, row, *index.owners[text], part, " ".join(words))
    return [best[key] for key in sorted(best)]


def _runs(places: Iterable[int], length: int) -> list[tuple[int, int]]:
    """From where n-grams begin, the runs of words that they cover."""
    runs: list[tuple[int, int]] = []
    for place in sorted(places):
        if runs and place <= runs[-1][1]:
            runs[-1] = (runs[-1][0], place + length)
        else:
            runs.append((place, place + length))
    return runs


def _runs_on(found: Mapping[tuple[int, int], set[int]]) -> Iterator[tuple[int, int, set[int]]]:
    """N-grams that begin on lines of a text, put together where one copy goes on over several lines."""
    by_text: dict[int, list[tuple[int, set[int]]]] = {}
    for (line, text), places in sorted(found.items()):
        by_text.setdefault(text, []).append((line, places))
    for text, lines in by_text.items():
        first, last, copy = lines[0][0], lines[0][0], set(lines[0][1])
        for line, places in lines[1:]:
            if line - last > 2 or min(places) <= max(copy):
                yield first, text, copy
                first, copy = line, set()
            last = line
            copy |= places
        yield first, text, copy
