"""Scores with their uncertainty: units of text are drawn again, the same ones for every plan."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from deepen.explore.results import Interval

Floats = NDArray[np.float64]
_DRAWS = 2000
_LEVEL = (2.5, 97.5)


@dataclass(frozen=True)
class Sample:
    """What plans scored on the units of one part.

    Attributes:
        sums: nats, shape (plans, units).
        counts: what the nats are the sum over, shape (units,).
    """

    sums: Floats
    counts: Floats


def means(parts: Sequence[Sample]) -> Floats:
    """Nats per token of each plan, the mean over parts, shape (plans,)."""
    return np.mean([part.sums.sum(1) / part.counts.sum() for part in parts], axis=0)  # type: ignore[no-any-return]


def draws(parts: Sequence[Sample], seed: int) -> Floats:
    """The bootstrap (Efron 1979): scores of each plan when units are drawn again with replacement.

    Every plan sees the same draws, so the difference of two rows is a paired difference.

    Returns:
        Shape (plans, draws); NaN for a part of one unit, which says nothing about its spread.
    """
    drawn = []
    for number, part in enumerate(parts):
        units = len(part.counts)
        random = np.random.default_rng((seed, number))
        weights = random.multinomial(units, np.full(units, 1 / units), size=_DRAWS).T.astype(np.float64)
        drawn.append(part.sums @ weights / (part.counts @ weights) if units > 1 else np.full((len(part.sums), _DRAWS), np.nan))
    return np.mean(drawn, axis=0)  # type: ignore[no-any-return]


def interval(value: float, drawn: Floats) -> Interval:
    """A value with the 95 % interval of its draws."""
    low, high = np.percentile(drawn, _LEVEL)
    return Interval(float(value), float(low), float(high))


def ranks(drawn: Floats) -> list[int]:
    """Places of plans that are in the order of their scores; one that cannot be told apart from the first of a place shares it.

    Args:
        drawn: draws of each plan, shape (plans, draws).
    """
    places: list[int] = []
    leader = 0
    for place in range(len(drawn)):
        low, high = np.percentile(drawn[place] - drawn[leader], _LEVEL)
        if place and (low > 0 or high < 0):
            leader = place
        places.append(leader + 1)
    return places
