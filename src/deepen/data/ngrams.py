"""N-grams of words that texts have in common, found as 64-bit hashes in sorted arrays.

Words are compared in lower case and without punctuation: an apostrophe vanishes, every other mark parts two words. A letter
from a to j before a bracket, full stop or colon numbers an answer, as in "B.", and is no word.

Two different n-grams have the same hash with a chance of 2^-64: among ten million in the index and ten million compared with
them, one such accident is expected in two hundred thousand runs.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

LONGEST, SHORTEST = 13, 8
"""Words of an n-gram: 13, or all of a text that has fewer; a text of fewer than 8 is not compared. Brown et al. 2020 (GPT-3),
arXiv:2005.14165, appendix C."""

Hashes = NDArray[np.uint64]
Ints = NDArray[np.int64]

_BATCH = 1 << 18  # characters that are worked on at once: their arrays stay in a core's cache
_PIECE, _COMMON = 1 << 16, 1 << 11  # a longer text is cut into pieces that have some words in common
_PARTS, _WORD, _NOTHING = 0, 1, 2  # what a character does
_APOSTROPHES = "'`\u02bc\u2018\u2019\u201b\u2032"
_MARKS = np.array([ord(mark) for mark in ").:"], dtype=np.uint32)  # they follow the letter of an answer
_BASE = 0x9E3779B97F4A7C15  # odd, so that its powers have inverses modulo 2^64
_FACTORS = np.random.default_rng(13).integers(1, 2**64, LONGEST, dtype=np.uint64) | np.uint64(1)


class Split(NamedTuple):
    """The words of a text.

    Attributes:
        points: code points of the characters that matter, shape (characters,).
        places: where in the text each of these stands.
        begins: the first of the characters of each word, shape (words,).
        ends: the one after its last.
    """

    points: NDArray[np.uint32]
    places: Ints
    begins: Ints
    ends: Ints


class Table(NamedTuple):
    """All n-grams of one length, sorted by hash: in which text each is, and at which word it begins there."""

    hashes: Hashes
    texts: NDArray[np.int32]
    places: NDArray[np.int32]
    seen: NDArray[np.bool_]  # whether any has these lowest bits: almost all that is looked up is turned away here


@dataclass(frozen=True)
class Index:
    """The n-grams of texts.

    Attributes:
        tables: for each length of n-grams.
        words: how many words each text has, shape (texts,).
    """

    tables: dict[int, Table]
    words: Ints

    def length(self, text: int) -> int:
        """Words of the n-grams of a text."""
        return min(LONGEST, int(self.words[text]))

    def compares(self, text: int) -> bool:
        """Whether a text has enough words to be found."""
        return int(self.words[text]) >= SHORTEST


def normal(text: str) -> str:
    """A text in lower case and in one of the ways that Unicode has to write it."""
    return (text if text.isascii() else unicodedata.normalize("NFKC", text)).casefold()


def split(text: str) -> Split:
    """The words of a text that is `normal`."""
    points = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
    kinds = _kinds()[np.minimum(points, 0xFFFF)]
    places = np.flatnonzero(kinds != _NOTHING)
    if len(places) < len(points):
        points, kinds = points[places], kinds[places]
    inside = np.zeros(len(points) + 2, dtype=np.bool_)
    inside[1:-1] = kinds == _WORD
    edges = np.flatnonzero(inside[1:] != inside[:-1])
    begins, ends = edges[::2], edges[1::2]
    one = np.flatnonzero((ends - begins == 1) & (ends < len(points)))
    letters = points[begins[one]]
    numbering = one[(letters >= ord("a")) & (letters <= ord("j")) & np.isin(points[ends[one]], _MARKS)]
    if len(numbering):
        begins, ends = np.delete(begins, numbering), np.delete(ends, numbering)
    return Split(points, places, begins, ends)


def words_of(text: str) -> list[str]:
    """The words of a text as they are compared."""
    points, _, begins, ends = split(normal(text))
    return ["".join(map(chr, points[begin:end])) for begin, end in zip(begins, ends, strict=True)]


def build_index(texts: Iterable[str]) -> Index:
    """The index of the n-grams of texts; it takes some 16 bytes for each word."""
    parts: dict[int, tuple[list[Any], list[Any], list[Any]]] = {}
    counts: list[Ints] = []
    for batch, numbers, starts in _batches(enumerate(texts), whole=True):
        hashes, begins = _hashes(batch)
        owners = np.searchsorted(starts, begins, side="right") - 1
        firsts = np.searchsorted(owners, np.arange(len(starts)))
        words = np.bincount(owners, minlength=len(starts))
        counts.append(words)
        lengths = np.minimum(words, LONGEST)
        for length, grams in _grams(hashes, sorted({int(each) for each in lengths if each >= SHORTEST})):
            own = owners[: len(grams)]
            chosen = np.flatnonzero((own == owners[length - 1 :]) & (lengths[own] == length))
            columns = parts.setdefault(length, ([], [], []))
            columns[0].append(grams[chosen])
            columns[1].append((own[chosen] + numbers[0]).astype(np.int32))
            columns[2].append((chosen - firsts[own[chosen]]).astype(np.int32))
    tables = {length: _table(columns) for length, columns in sorted(parts.items())}
    return Index(tables, np.concatenate(counts) if counts else np.empty(0, dtype=np.int64))


def find(index: Index, texts: Iterable[tuple[int, str]], *, running: bool = False) -> dict[tuple[int, int], set[int]]:
    """Find n-grams of the index in texts, each of which has a number.

    Args:
        index: what is looked for.
        texts: any number of them, such as the rows of a file, in constant memory.
        running: they are lines of one text, and an n-gram may go on from one into the next.

    Returns:
        For the number of a text and a text of the index that have n-grams in common: where in the latter these begin (words).
    """
    found: dict[tuple[int, int], set[int]] = {}
    for batch, numbers, starts in _batches(texts, running=running):
        hashes, begins = _hashes(batch)
        owners = np.searchsorted(starts, begins, side="right") - 1
        for length, grams in _grams(hashes, list(index.tables)):
            table = index.tables[length]
            asked = np.flatnonzero(table.seen[grams & np.uint64(len(table.seen) - 1)])
            if not running:
                asked = asked[owners[asked] == owners[asked + length - 1]]
            first, after = (np.searchsorted(table.hashes, grams[asked], side) for side in ("left", "right"))
            for hit in np.flatnonzero(first < after):
                number = numbers[owners[asked[hit]]]
                for entry in range(first[hit], after[hit]):
                    found.setdefault((number, int(table.texts[entry])), set()).add(int(table.places[entry]))
    return found


def _grams(hashes: Hashes, lengths: Sequence[int]) -> Iterator[tuple[int, Hashes]]:
    """For each of some ascending lengths the hashes of the n-grams that begin at each word."""
    total = np.zeros(len(hashes) + 1, dtype=np.uint64)
    for length in range(1, max(lengths, default=0) + 1):
        if length > len(hashes):
            return
        total = total[:-1] + hashes[length - 1 :] * _FACTORS[length - 1]
        if length in lengths:
            yield length, total


def _hashes(text: str) -> tuple[Hashes, Ints]:
    """A hash of each word, and at which character of the text it begins.

    A word's hash is a polynomial of its characters modulo 2^64: the difference of two sums from the beginning of the text,
    divided by a power of the base.
    """
    points, places, begins, ends = split(text)
    powers, inverses = _powers(1 << max(0, len(points) - 1).bit_length())
    sums = np.zeros(len(points) + 1, dtype=np.uint64)
    np.cumsum(points * powers[: len(points)], out=sums[1:])
    hashes = (sums[ends] - sums[begins]) * inverses[begins]
    for shift in (32, 29):  # the lowest bits of a product depend on the lowest bits alone
        hashes ^= hashes >> np.uint64(shift)
        hashes *= np.uint64(0xBF58476D1CE4E5B9)
    hashes ^= hashes >> np.uint64(32)
    return hashes, places[begins]


@lru_cache(maxsize=4)
def _powers(count: int) -> tuple[Hashes, Hashes]:
    """The powers of the base from 0 on, and their inverses."""
    first, second = (np.full(count, base, dtype=np.uint64) for base in (_BASE, pow(_BASE, -1, 2**64)))
    first[0] = second[0] = 1
    return np.cumprod(first, dtype=np.uint64), np.cumprod(second, dtype=np.uint64)


@lru_cache(maxsize=1)
def _kinds() -> NDArray[np.uint8]:
    """What each character does; those beyond the basic plane that are still there after normalisation part words."""
    kinds = np.full(0x10000, _PARTS, dtype=np.uint8)
    for point in range(0xFFFF):
        category = unicodedata.category(chr(point))
        if category == "Cf" or 0xFE00 <= point <= 0xFE0F or chr(point) in _APOSTROPHES:
            kinds[point] = _NOTHING
        elif category[0] in "LNM":
            kinds[point] = _WORD
    return kinds


def _table(columns: tuple[list[Any], list[Any], list[Any]]) -> Table:
    hashes = _joined_arrays(columns[0])
    order = np.argsort(hashes)
    hashes = hashes[order]
    seen = np.zeros(1 << min(24, max(10, 3 + len(hashes).bit_length())), dtype=np.bool_)
    for first in range(0, len(hashes), _BATCH):
        seen[hashes[first : first + _BATCH] & np.uint64(len(seen) - 1)] = True
    return Table(hashes, _joined_arrays(columns[1])[order], _joined_arrays(columns[2])[order], seen)


def _joined_arrays(parts: list[Any]) -> Any:
    """Arrays as one; both are held no longer than that takes."""
    whole = np.concatenate(parts)
    parts.clear()
    return whole


def _batches(
    texts: Iterable[tuple[int, str]], *, running: bool = False, whole: bool = False
) -> Iterator[tuple[str, list[int], Ints]]:
    """Numbered texts joined, with their numbers and where each begins.

    A long text comes in pieces, unless `whole`. These have some words in common, unless texts are running on: then a batch
    begins with the last texts of the one before.
    """
    parts: list[str] = []
    numbers: list[int] = []
    size = 0
    for number, text in texts:
        for part in [normal(text)] if whole else _pieces(normal(text), common=0 if running else _COMMON):
            parts.append(part)
            numbers.append(number)
            size += len(part) + 1
            if size >= _BATCH:
                yield _joined(parts, numbers)
                kept = _tail(parts) if running else len(parts)
                parts, numbers = parts[kept:], numbers[kept:]
                size = sum(map(len, parts)) + len(parts)
    if parts:
        yield _joined(parts, numbers)


def _joined(parts: list[str], numbers: list[int]) -> tuple[str, list[int], Ints]:
    starts = np.zeros(len(parts), dtype=np.int64)
    np.cumsum([len(part) + 1 for part in parts[:-1]], out=starts[1:])
    return "\n".join(parts), numbers, starts


def _tail(parts: list[str]) -> int:
    """From where on there are still enough words to begin an n-gram with."""
    size, first = 0, len(parts)
    while first and size < _COMMON:
        first -= 1
        size += len(parts[first])
    return first


def _pieces(text: str, *, common: int) -> Iterator[str]:
    """A text in pieces that end between words where they can."""
    begin = 0
    while len(text) - begin > _PIECE:
        end = max(text.rfind(" ", begin + _PIECE // 2, begin + _PIECE), text.rfind("\n", begin + _PIECE // 2, begin + _PIECE))
        end = end if end > 0 else begin + _PIECE
        yield text[begin:end]
        back = text.rfind(" ", begin, end - common) if common else end
        begin = back if back > begin else end - common
    yield text[begin:]
