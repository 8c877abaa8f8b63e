"""In which order rows are learned: a pure function of the seed and the step, also where sources are mixed by weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from fractions import Fraction
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from deepen.data.text import rows_of_step
from deepen.errors import OptionError

Indices = NDArray[np.int64]
_FINEST = 100_000  # shares are multiples of one by this


def row_order(
    rows: Sequence[Indices], *, batch: int, seed: int, weights: Sequence[float] | None = None
) -> Callable[[int], tuple[Indices, Indices]]:
    """The rows of a zero-based step: for each of its `batch` rows the number of its source, and the row in it.

    Without weights there is one source, and each epoch is a permutation of its rows drawn from (seed, epoch): `rows_of_step`.
    With weights every source has epochs of its own, permutations drawn from (seed, source, epoch), and whose turn it is follows
    from the weights alone: after any number of rows each source has given its share to within one row. For this the n-th row
    of a source with share s may come after floor((n - 1) / s) rows and is due within ceil(n / s), and of those that may come
    the one that is due first does (Baruah et al., "Proportionate Progress", 1996).

    Args:
        rows: for each source the rows to take from.
        batch: rows per step.
        seed: of the whole run.
        weights: one for each source; they are divided by their sum.

    Raises:
        OptionError: a weight is not above zero, or there are not as many as sources.
    """
    if weights is None:
        (only,) = rows
        none = np.zeros(batch, np.int64)
        return lambda step: (none, only[rows_of_step(step, rows=len(only), batch=batch, seed=seed)])
    if len(weights) != len(rows):
        raise OptionError(
            f"{len(weights)} weights for {len(rows)} sources of data", where="--weights", next="give one for each source"
        )
    parts = shares(weights)
    turns = _turns(parts)
    # how many rows of its source come before each turn
    before = np.zeros_like(turns)
    for source, part in enumerate(parts):
        before[turns == source] = np.arange(part)
    permutation = lru_cache(2 * len(rows))(
        lambda source, epoch: np.random.default_rng((seed, source, epoch)).permutation(rows[source])
    )

    def rows_of(step: int) -> tuple[Indices, Indices]:
        rounds, places = np.divmod(np.arange(step * batch, (step + 1) * batch), len(turns))
        sources = turns[places]
        numbers = rounds * np.array(parts)[sources] + before[places]
        chosen = []
        for source, number in zip(sources, numbers, strict=True):
            epoch, place = divmod(int(number), len(rows[source]))
            chosen.append(permutation(int(source), epoch)[place])
        return sources, np.array(chosen)

    return rows_of


def shares(weights: Sequence[float]) -> tuple[int, ...]:
    """Weights as whole numbers without a common divisor: exact if their sum is at most 100,000, else rounded to that sum.

    Raises:
        OptionError: a weight is not above zero, or so small that it would be rounded to that.
    """
    if not weights or not all(0 < weight < math.inf for weight in weights):
        raise OptionError(
            f"the weights {', '.join(map(str, weights))} are not all above zero", where="--weights", next="mend them"
        )
    exact = [Fraction(str(weight)) for weight in weights]
    parts = [int(weight * math.lcm(*(weight.denominator for weight in exact))) for weight in exact]
    if sum(parts) // math.gcd(*parts) > _FINEST:
        ideal = [_FINEST * weight / sum(exact) for weight in exact]
        if min(ideal) < 1:
            raise OptionError(
                f"the weight {min(weights)} is less than a {_FINEST:,}th of all", where="--weights", next="leave its data out"
            )
        parts = [int(part) for part in ideal]
        late = sorted(range(len(parts)), key=lambda source: parts[source] - ideal[source])
        for source in late[: _FINEST - sum(parts)]:
            parts[source] += 1
    return tuple(part // math.gcd(*parts) for part in parts)


@lru_cache(maxsize=4)
def _turns(parts: tuple[int, ...]) -> Indices:
    """Whose turn it is at each row of a round, in which each source comes as often as its part says."""
    total = sum(parts)
    given = [0] * len(parts)
    turns = np.empty(total, np.int64)
    for row in range(total):
        released = (source for source, part in enumerate(parts) if given[source] * total <= (row + 1) * part - 1)
        source = min(released, key=lambda source: -(-(given[source] + 1) * total // parts[source]))
        given[source] += 1
        turns[row] = source
    return turns
