"""Rows of equal length from streams of tokens: what is learned in them, and which are kept to measure on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from deepen.data.corpus import Corpus
from deepen.data.text import IGNORED
from deepen.errors import DataError

Indices = NDArray[np.int64]
_HELD_OUT = 10  # at most a tenth of the rows is held out


class Packed(NamedTuple):
    """Rows of tokens, each of shape (rows, length).

    Attributes:
        tokens: ids.
        labels: the next token; `IGNORED` in the last place of a row, and where the next token begins another document.
        positions: of each token in its document or, where that began before the row, in the row; None if there is only one
            document in each row, so that the usual positions and plain causal attention are right.
    """

    tokens: Indices
    labels: Indices
    positions: Indices | None


def count_rows(corpus: Corpus, length: int) -> int:
    """How many rows of a length there are; the rest that fills no row is left out.

    Raises:
        DataError: there are fewer tokens than one row needs.
    """
    rows = len(corpus.tokens) // length
    if rows == 0:
        raise DataError(
            f"{len(corpus.tokens)} tokens are too few for one row of {length}",
            where=corpus.name,
            next="give more text or a smaller sequence length",
        )
    return rows


def pack_rows(corpora: Sequence[Corpus], sources: Indices, rows: Indices, length: int) -> Packed:
    """Read rows: the n-th is row `rows[n]` of `corpora[sources[n]]`, which begins at token `rows[n] * length`."""
    tokens = np.empty((len(rows), length), np.int64)
    begins = np.zeros((len(rows), length), bool)  # where a document begins, but for the beginning of the row
    for place, (source, row) in enumerate(zip(sources, rows, strict=True)):
        corpus, begin = corpora[source], row * length
        tokens[place] = corpus.tokens[begin : begin + length]
        first, last = np.searchsorted(corpus.starts, [begin + 1, begin + length])
        begins[place, corpus.starts[first:last] - begin] = True
    labels = np.full_like(tokens, IGNORED)
    labels[:, :-1] = np.where(begins[:, 1:], IGNORED, tokens[:, 1:])
    if not begins.any():
        return Packed(tokens, labels, None)
    places = np.broadcast_to(np.arange(length), tokens.shape)
    return Packed(tokens, labels, places - np.maximum.accumulate(np.where(begins, places, 0), axis=1))


def hold_out(corpora: Sequence[Corpus], length: int, tokens: int, *, weights: Sequence[float] | None = None) -> list[Indices]:
    """Which rows are kept to measure on.

    All in all they are `tokens // length` rows, but at least one, and at most a tenth of all rows. Of one file they are the
    last ones; of several files they are spread evenly, since the tail of the data is often the last of the files only. Of
    several corpora each gives its weight's share, but not more than a tenth of its own rows, or one.

    Returns:
        For each corpus row indices, ascending.

    Raises:
        DataError: no corpus has two rows.
    """
    rows = [count_rows(corpus, length) for corpus in corpora]
    if max(rows) < 2:
        raise DataError(
            f"the data makes one row of {length} tokens, and none is left to measure on",
            next="give more data, or validation data of its own",
        )
    wanted = max(1, min(tokens // length, sum(rows) // _HELD_OUT))
    limits = [min(max(1, count // _HELD_OUT), count - 1) for count in rows]
    shares = np.array(rows if weights is None else weights, np.float64)
    exact = wanted * shares / shares.sum()
    counts = exact.astype(int)
    counts[np.argsort(counts - exact, kind="stable")[: wanted - counts.sum()]] += 1
    counts = np.minimum(counts, limits)
    if not counts.any():
        counts[int(np.argmax(limits))] = 1
    return [
        np.arange(total - count, total) if len(corpus.files) == 1 else (np.arange(1, count + 1) * total) // max(1, count) - 1
        for corpus, total, count in zip(corpora, rows, counts, strict=True)
    ]
