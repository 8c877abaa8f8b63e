"""Rows in the order they are learned in, and rows set aside to measure on: what instruction tuning and alignment share."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Generic, TypeVar

import numpy as np

from deepen.data.template import Row
from deepen.data.text import rows_of_step
from deepen.errors import DataError, OptionError
from deepen.train.options import check_above_zero
from deepen.units import parse_count

_Each = TypeVar("_Each")
_TOO_LONG = ("error", "truncate", "drop")
_BATCH_ROWS = 8
_HELD_OUT = 10  # without validation data at most a tenth of the rows is held out


class Order(Generic[_Each]):
    """Which rows each step learns: every epoch is a permutation of all of them, and the last step takes what is left.

    Args:
        rows: all rows.
        epochs: how often each is learned; the last epoch may be a part of one.
        batch: how many a step takes.
        seed: of the permutations.
        size: how many tokens a row has.
    """

    def __init__(self, rows: Sequence[_Each], *, epochs: float, batch: int, seed: int, size: Callable[[_Each], int]) -> None:
        self._total = max(1, math.ceil(round(epochs * len(rows), 6)))
        self._rows, self._batch, self._seed = rows, batch, seed
        self.steps = math.ceil(self._total / batch)
        read = [sum(map(size, self.rows_of(step))) for step in range(self.steps)]
        self._tokens = np.concatenate([[0], np.cumsum(read)])

    def rows_of(self, step: int) -> list[_Each]:
        """The rows of a zero-based step."""
        chosen = rows_of_step(step, rows=len(self._rows), batch=self._batch, seed=self._seed)
        return [self._rows[index] for index in chosen[: self._total - step * self._batch]]

    def tokens(self, step: int) -> int:
        """Tokens read before a step."""
        return int(self._tokens[step])


def check_rows(options: Mapping[str, Any]) -> None:
    """Refuse values that are out of range: of the epochs, sizes, and what happens to rows that are too long.

    Raises:
        OptionError: names the option.
    """
    check_above_zero(options, ("epochs", "sequence_length", "batch_rows", "validation_rows"))
    if options["epochs"] == math.inf:
        raise OptionError("a run without end", where="--epochs", next="give a number such as 1 or 0.5")
    if options["too_long"] not in _TOO_LONG:
        raise OptionError(f"{options['too_long']!r} is no choice", where="--too-long", next=f"use {', '.join(_TOO_LONG)}")


def split(rows: Sequence[_Each], held_out: int, *, what: str) -> tuple[list[_Each], list[_Each]]:
    """Rows to learn and rows to measure on: at most `held_out` and a tenth, at least one, evenly spread.

    Raises:
        DataError: there is only one; the message says what.
    """
    if len(rows) < 2:
        raise DataError(
            f"there is one {what}, and none is left to measure on", next="give more data, or validation data of its own"
        )
    return spread(rows, max(1, min(held_out, len(rows) // _HELD_OUT)))


def spread(rows: Sequence[_Each], count: int) -> tuple[list[_Each], list[_Each]]:
    """Rows without some of them, and those: `count` at most, evenly spread so that every file and kind of row has a share."""
    count = min(count, len(rows))
    chosen = {(2 * place + 1) * len(rows) // (2 * count) for place in range(count)}
    return [row for place, row in enumerate(rows) if place not in chosen], [rows[place] for place in sorted(chosen)]


def rows_per_step(rows: int | None, tokens: str | int | None, length: int, *, what: str = "the sequence length") -> int:
    """How many rows a step takes: 8, unless it is said in rows or as the most tokens that a step may read.

    Args:
        rows: how many, if given.
        tokens: instead, the most tokens.
        length: the most tokens of a row.
        what: that is, in words.

    Raises:
        OptionError: both are given, or the tokens are no multiple of `length`.
    """
    if tokens is None:
        return _BATCH_ROWS if rows is None else rows
    if rows is not None:
        raise OptionError("both --batch-rows and --batch-tokens are given", next="give one of them")
    count = parse_count(tokens)
    if count < 1 or length < 1 or count % length:
        raise OptionError(
            f"{count} is not a multiple of {what} {length}", where="--batch-tokens", next=f"use a multiple such as {2 * length}"
        )
    return count // length


def digest(rows: Iterable[Row]) -> str:
    """A hash of all tokens and labels."""
    total = hashlib.sha256()
    for row in rows:
        total.update(len(row.tokens).to_bytes(8, "little") + row.tokens.tobytes() + row.labels.tobytes())
    return total.hexdigest()
