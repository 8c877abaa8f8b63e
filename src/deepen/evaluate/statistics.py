"""How sure a number is: 95 % intervals of means, of ratios and of paired differences, and what may be said of two models.

Every interval is chosen for its coverage: in repeated samples, small and skewed ones too, it holds the true value 95 times in
100. Numpy alone, and the same numbers for the same seed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from deepen.errors import DataError

Verdict = Literal["better", "worse", "cannot tell"]

_Z = 1.959963984540054  # 97.5 % of the standard normal distribution lies below it
_STUDENT = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306)  # of Student's t, for 1 to 8 degrees of freedom
_RESAMPLES = 1000
_AT_ONCE = 2_000_000  # numbers of resamples that exist at once
_HALVINGS = 60
_LEVEL = 0.05

_Floats = NDArray[np.float64]


class Estimate(NamedTuple):
    """A value with its uncertainty.

    Attributes:
        value: the estimate.
        stderr: its standard error; None if it cannot be known.
        low: lower end of the 95 % interval; None if it cannot be known.
        high: upper end.
    """

    value: float
    stderr: float | None
    low: float | None
    high: float | None

    def within(self, least: float, most: float) -> Estimate:
        """The same with an interval that ends where the value's own range does."""
        low, high = (None if end is None else min(max(end, least), most) for end in (self.low, self.high))
        return self._replace(low=low, high=high)

    def shown(self) -> dict[str, float | None]:
        """The value and the ends of its interval, for a report."""
        return {"value": self.value, "low": self.low, "high": self.high}


class Difference(NamedTuple):
    """What separates two models on the same rows.

    Attributes:
        difference: the first less the second.
        low: lower end of its 95 % interval; None if it cannot be known.
        high: upper end.
        p: of McNemar's exact test, for rows that are right or wrong; otherwise None.
        verdict: of the first model, in view of whether higher is better.
        stderr: the difference's standard error; None if it cannot be known.
    """

    difference: float
    low: float | None
    high: float | None
    p: float | None
    verdict: Verdict
    stderr: float | None


def mean_interval(scores: ArrayLike, *, strata: Sequence[object] | None = None, seed: int = 0) -> Estimate:
    """The mean of independent scores and its 95 % interval.

    For scores of 0 and 1 the interval is the exact binomial one with mid-P (Lancaster, Biometrika 48, 1961; Agresti and
    Gottard, Computational Statistics & Data Analysis 51, 2007); for others the studentised bootstrap, which follows skewness
    (Hall, Annals of Statistics 16, 1988). With strata the value is the plain mean of their means, as MMLU's is of its 57
    subjects, its variance the sum of theirs, and the interval Wilson's with the size of a plain sample of that variance (Dean
    and Pagano, Statistics in Medicine 34, 2015), or normal where scores are not 0 and 1.

    Args:
        scores: shape (rows,).
        strata: for each row what it belongs to.
        seed: of the bootstrap.

    Raises:
        DataError: there are no scores, or one is not finite.
    """
    values = _finite(scores)
    if strata is not None and len(set(strata)) > 1:
        mean, error = _stratified(values, strata)
        return Estimate(mean, error, *(_wilson(mean, error, len(values)) if _binary(values) else _normal(mean, error)))
    if _binary(values):
        count, rows = int(values.sum()), len(values)
        value = count / rows
        return Estimate(value, math.sqrt(value * (1 - value) / (rows - 1)) if rows > 1 else None, *_mid_p(count, rows))
    return ratio_interval(values, seed=seed)


def ratio_interval(totals: ArrayLike, counts: ArrayLike | None = None, *, seed: int = 0) -> Estimate:
    """A ratio of sums over independent units, such as nats per token over documents, and its 95 % interval.

    The standard error is that of a ratio of totals, since the parts of a unit are not independent (Cochran, Sampling
    Techniques, 1977, section 6.4): with r the ratio, S the totals, n the counts and K units, sqrt(K / (K - 1) · Σ (S - r·n)²)
    / Σ n. The interval is the studentised bootstrap over the units (Hall 1988); below 10 units it is Student's.

    Args:
        totals: of each unit, shape (units,).
        counts: of each unit what the ratio is per; 1 by default, which gives the mean.
        seed: of the bootstrap.

    Raises:
        DataError: there are no units, or a number is not finite.
    """
    sums = _finite(totals)
    sizes = np.ones_like(sums) if counts is None else _finite(counts)
    value, error = (float(each) for each in _ratio(sums, sizes))
    units = len(sums)
    if units == 1:
        return Estimate(value, None, None, None)
    if units < len(_STUDENT) + 2 or error == 0:
        reach = _STUDENT[min(units - 2, len(_STUDENT) - 1)] * error
        return Estimate(value, error, value - reach, value + reach)
    rng = np.random.default_rng(seed)
    deviates: list[_Floats] = []
    step = max(1, _AT_ONCE // units)
    for first in range(0, _RESAMPLES, step):
        drawn = rng.integers(0, units, (min(step, _RESAMPLES - first), units), dtype=np.int32)
        again, spread = _ratio(sums[drawn], sizes[drawn])
        known = spread > 1e-9 * error  # a resample of equal units says nothing
        deviates.append((again[known] - value) / spread[known])
    below, above = np.quantile(np.concatenate(deviates), (_LEVEL / 2, 1 - _LEVEL / 2))
    return Estimate(value, error, value - float(above) * error, value - float(below) * error)


def paired_difference(
    first: ArrayLike,
    second: ArrayLike,
    *,
    counts: ArrayLike | None = None,
    strata: Sequence[object] | None = None,
    higher_is_better: bool = True,
    seed: int = 0,
) -> Difference:
    """What separates two models that answered the same rows, and whether it is more than chance.

    For scores of 0 and 1 the interval is Tango's (Statistics in Medicine 17, 1998), and p McNemar's exact one; for others the
    studentised bootstrap over pairs. The verdict needs an interval without 0, and for scores of 0 and 1 also p < 0.05.

    Args:
        first: the first model's scores, shape (rows,).
        second: the second's on the same rows.
        counts: if the scores are totals, what each is a total of; the difference is then one of ratios, as in `ratio_interval`.
        strata: as in `mean_interval`.
        higher_is_better: False for a loss.
        seed: of the bootstrap.

    Raises:
        DataError: there are no rows, not as many of both, or a score is not finite.
    """
    ours, theirs = _finite(first), _finite(second)
    if len(ours) != len(theirs):
        raise DataError(f"{len(ours)} scores against {len(theirs)}", next="compare the same rows of both models")
    right_or_wrong = counts is None and _binary(ours) and _binary(theirs)
    gained, lost = int((ours > theirs).sum()), int((ours < theirs).sum())
    p = _mcnemar(gained, lost) if right_or_wrong else None
    if strata is not None and len(set(strata)) > 1:
        value, error = _stratified(ours - theirs, strata)
        found = Estimate(value, error, *_normal(value, error))
    else:
        found = ratio_interval(ours - theirs, counts, seed=seed)
        if right_or_wrong:
            found = found._replace(low=(ends := _tango(gained, lost, len(ours)))[0], high=ends[1])
    return Difference(found.value, found.low, found.high, p, judge(found.low, found.high, p, higher_is_better), found.stderr)


def judge(low: float | None, high: float | None, p: float | None = None, higher_is_better: bool = True) -> Verdict:
    """What may be said of a model whose difference to another lies between `low` and `high`."""
    if low is None or high is None or low <= 0 <= high or (p is not None and p >= _LEVEL):
        return "cannot tell"
    return "better" if (low > 0) == higher_is_better else "worse"


def _finite(values: ArrayLike) -> _Floats:
    array = np.asarray(values, dtype=np.float64)
    if not len(array) or not np.isfinite(array).all():
        what = "a score is not finite" if len(array) else "no scores"
        raise DataError(what, next="check the rows, and the weights of the model")
    return array


def _binary(values: _Floats) -> bool:
    return bool(((values == 0) | (values == 1)).all())


def _ratio(totals: _Floats, counts: _Floats) -> tuple[Any, Any]:
    """The ratio and its standard error along the last axis; the error is 0 for one unit."""
    units, size = totals.shape[-1], counts.sum(-1)
    value = totals.sum(-1) / size
    spread = ((totals - value[..., None] * counts) ** 2).sum(-1)
    return value, np.sqrt(units / max(units - 1, 1) * spread) / size


def _stratified(values: _Floats, strata: Sequence[object]) -> tuple[float, float]:
    """The plain mean of the strata's means, and its standard error."""
    numbers = {each: number for number, each in enumerate(dict.fromkeys(strata))}
    place = np.array([numbers[each] for each in strata])
    sizes = np.bincount(place)
    means = np.bincount(place, values) / sizes
    spread = np.bincount(place, (values - means[place]) ** 2)
    # a stratum of one row does not know its own spread; that of all rows is no smaller on average
    variances = np.where(sizes > 1, spread / np.maximum(sizes - 1, 1), values.var(ddof=1)) / sizes
    return float(means.mean()), math.sqrt(float(variances.sum())) / len(sizes)


def _normal(value: float, error: float) -> tuple[float, float]:
    return value - _Z * error, value + _Z * error


def _wilson(value: float, error: float, rows: int) -> tuple[float, float]:
    """Wilson's interval for a plain sample whose mean has this standard error."""
    size = value * (1 - value) / error**2 if error > 0 else rows
    factor = _Z**2 / size
    middle = (value + factor / 2) / (1 + factor)
    reach = math.sqrt(factor * value * (1 - value) + factor**2 / 4) / (1 + factor)
    return max(0.0, middle - reach), min(1.0, middle + reach)


def _mid_p(count: int, rows: int) -> tuple[float, float]:
    """The shares of which a count of so many or more (and of so many or fewer) has a mid-P of 2.5 %."""

    def below(counted: int) -> float:
        # P(more than `counted`) + P(exactly it) / 2 grows with the share
        ways = _log_factorial(rows) - np.array([_log_factorial(k) + _log_factorial(rows - k) for k in range(counted, rows + 1)])
        hits = np.arange(counted, rows + 1)
        weights = np.where(hits == counted, 0.5, 1.0)
        return _halve(
            lambda share: float(
                weights @ np.exp(ways + hits * math.log(share) + (rows - hits) * math.log1p(-share)) - _LEVEL / 2
            ),
            0.0,
            1.0,
        )

    low = 0.0 if count == 0 else below(count)
    high = 1.0 if count == rows else 1 - below(rows - count)
    return low, high


def _log_factorial(number: int) -> float:
    return math.lgamma(number + 1)


def _tango(gained: int, lost: int, rows: int) -> tuple[float, float]:
    """The differences that the score test does not refuse."""

    def score(difference: float) -> float:
        linear = -gained - lost + (2 * rows - gained + lost) * difference
        free = lost * difference * (1 - difference)
        share = (math.sqrt(max(linear**2 + 8 * rows * free, 0.0)) - linear) / (4 * rows)
        variance = rows * (2 * share + difference * (1 - difference))
        distance = gained - lost - rows * difference
        return distance / math.sqrt(variance) if variance > 0 else math.copysign(math.inf, distance)

    value = (gained - lost) / rows
    return _halve(lambda at: _Z - score(at), -1.0, value), _halve(lambda at: -_Z - score(at), value, 1.0)


def _halve(rising: Callable[[float], float], low: float, high: float) -> float:
    """Where a function that rises from negative to positive between two places is zero."""
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (low, middle) if rising(middle) > 0 else (middle, high)
    return (low + high) / 2


def _mcnemar(gained: int, lost: int) -> float:
    """The exact test: of the rows that only one model has right, half are expected to be the first's (McNemar 1947)."""
    rows, fewer = gained + lost, min(gained, lost)
    logs = [_log_factorial(rows) - _log_factorial(k) - _log_factorial(rows - k) - rows * math.log(2) for k in range(fewer + 1)]
    return min(1.0, 2 * math.fsum(map(math.exp, logs)))
