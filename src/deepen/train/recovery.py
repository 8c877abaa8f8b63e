"""How many tokens a deepened model took to be as good as its base again, or how many more it needs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

_FEWEST = 4  # points: the start, which lies off the curve, and as many as the fit has parameters
_FARTHEST = 100  # times the tokens seen: no fit means anything beyond
_DRAWN = 3  # times the tokens seen: a picture of more shows little of the run
_EXPONENT, _SLOWEST, _FASTEST = 1 / 2, 1 / 4, 1.0

Points = Sequence[tuple[int, float]]
"""Tokens trained on and validation loss in nats per token, in order; the first before any training."""


@dataclass(frozen=True)
class Fit:
    """A falling curve: loss(tokens) = floor + scale · (tokens / unit + shift) ** -exponent.

    Attributes:
        floor: what it falls towards, in nats.
        scale: above zero, in nats.
        shift: in units.
        exponent: how fast it falls.
        unit: tokens.
    """

    floor: float
    scale: float
    shift: float
    exponent: float
    unit: float

    def loss(self, tokens: float) -> float:
        """The loss after some tokens."""
        return self.floor + self.scale / math.pow(tokens / self.unit + self.shift, self.exponent)

    def tokens(self, loss: float) -> float:
        """The tokens after which it has fallen to a loss; infinite if that is at its floor or below."""
        if loss <= self.floor:
            return math.inf
        return self.unit * (math.pow(self.scale / (loss - self.floor), 1 / self.exponent) - self.shift)


@dataclass(frozen=True)
class Recovery:
    """Whether a run came back to its base's level. Its text is one sentence about it.

    Attributes:
        level: the base's loss, in nats per token.
        seen: tokens of the whole run.
        tokens: how many it took, between two measurements; None if the level was not reached.
        more: how many more it needs, or None if that cannot be told.
        least: the lower end of where that lies.
        most: the upper end; None where it may never get there.
        reason: why it cannot be told.
        fit: the curve that says so.
    """

    level: float
    seen: int
    tokens: int | None = None
    more: int | None = None
    least: int | None = None
    most: int | None = None
    reason: str = ""
    fit: Fit | None = None

    def __str__(self) -> str:
        level = f"the base's level (perplexity {math.exp(self.level):.2f})"
        if self.tokens == 0:
            return f"At {level} from the start."
        if self.tokens is not None:
            return f"Back at {level} after {self.tokens:,} tokens."
        begin = f"Not back at {level} after {self.seen:,} tokens"
        if self.more is None:
            return f"{begin}; how many more it takes cannot be told: {self.reason}."
        span = f"at least {self.least:,}" if self.most is None else f"{self.least:,} to {self.most:,}"
        return f"{begin}; a fit says that it takes about {self.more:,} more ({span})."

    def forecast(self) -> list[tuple[float, float]]:
        """The fit from the end of the run to the level (tokens, perplexity), but no farther than three times the run."""
        if self.fit is None or self.more is None:
            return []
        last = min(self.fit.tokens(self.level), _DRAWN * self.seen)
        return [(tokens, math.exp(self.fit.loss(tokens))) for tokens in np.linspace(self.seen, last).tolist()]

    def results(self) -> dict[str, Any]:
        """For the manifest."""
        return {
            "recovered": self.tokens is not None,
            "recovery_tokens": self.tokens,
            "more_tokens": self.more,
            "least_more_tokens": self.least,
            "most_more_tokens": self.most,
            "text": str(self),
        }


def recovery(points: Points, level: float) -> Recovery:
    """Tokens to recover, measured or extrapolated.

    The measured number lies on the straight line, in loss, between the last measurement above the level and the first one at it
    or below; the curve being convex, that is late rather than early.

    Where the level was not reached, `fit_curve` through all points but the first says how many more tokens it takes if the
    training goes on as before (which a learning rate near zero does not). The exponent 1/2 extrapolated best on real healing
    curves, where 1/4 promised too much and 1 too little in almost every case; so these two give the ends of the span.

    Args:
        points: of the run.
        level: the base's loss on the same tokens.
    """
    seen = points[-1][0]
    for (before, above), (after, below) in pairwise(points):
        if above > level >= below:
            return Recovery(level, seen, round(before + (after - before) * (above - level) / (above - below)))
    if points[0][1] <= level:
        return Recovery(level, seen, points[0][0])
    if len(points) < _FEWEST:
        return Recovery(level, seen, reason=f"there are {len(points)} measurements, and a fit needs {_FEWEST}")
    fit, slow, fast = (fit_curve(points[1:], exponent) for exponent in (_EXPONENT, _SLOWEST, _FASTEST))
    if fit is None:
        return Recovery(level, seen, reason="the loss does not fall")
    needed = fit.tokens(level)
    if math.isinf(needed):
        floor = math.exp(fit.floor)
        return Recovery(level, seen, reason=f"the fitted curve levels off above it, at a perplexity of {floor:.2f}", fit=fit)
    if needed > _FARTHEST * seen:
        return Recovery(level, seen, reason=f"the fit puts it beyond {_FARTHEST} times the tokens seen", fit=fit)
    ends = sorted(each.tokens(level) for each in (slow, fit, fast) if each is not None)
    least, most = (_more(tokens, seen) for tokens in (ends[0], ends[-1]))
    return Recovery(level, seen, None, _more(needed, seen), least, most, fit=fit)


def fit_curve(points: Points, exponent: float) -> Fit | None:
    """The curve of a given exponent through points, by least squares; None if the loss does not fall.

    Floor and scale follow in closed form from the shift, which is searched for on a grid, then on a finer one.

    Args:
        points: at least three.
        exponent: of the curve.
    """
    tokens, losses = (np.array(values, dtype=np.float64) for values in zip(*points, strict=True))
    unit = float(tokens[-1])
    coarse = np.geomspace(1e-3, 30, 200)
    shift = min(coarse, key=lambda each: _fit_line(tokens / unit, losses, each, exponent)[0])
    fine = shift * np.geomspace(0.95, 1 / 0.95, 50)
    error, floor, scale, shift = min(_fit_line(tokens / unit, losses, each, exponent) for each in fine)
    return Fit(floor, scale, shift, exponent, unit) if math.isfinite(error) else None


def _fit_line(
    places: NDArray[np.float64], losses: NDArray[np.float64], shift: float, exponent: float
) -> tuple[float, float, float, float]:
    """Squared error, floor, scale and shift of the best curve; the error is infinite if that rises."""
    falling = (places + shift) ** -exponent
    spread = falling - falling.mean()
    scale = float(spread @ (losses - losses.mean()) / (spread @ spread))
    floor = float(losses.mean() - scale * falling.mean())
    error = float(((floor + scale * falling - losses) ** 2).sum()) if scale > 0 else math.inf
    return error, floor, scale, float(shift)


def _more(tokens: float, seen: int) -> int | None:
    """Further tokens, to two digits; None if they are beyond what can be told."""
    if tokens > _FARTHEST * seen:
        return None
    more = max(tokens - seen, 0.0)
    return int(round(more, 1 - math.floor(math.log10(more)))) if more >= 1 else 0
