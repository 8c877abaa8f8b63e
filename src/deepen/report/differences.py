"""The colour of a difference in nats per token: what shows 0.1 as well as 3, and better from worse."""

from __future__ import annotations

import math
from itertools import pairwise

_LINEAR = 0.05  # nats; around zero the scale is linear, beyond it logarithmic
_WORST = 6.0  # nats: what is further away looks the same
# from much better through equal to much worse; blue and orange are told apart by those who see red and green alike
# (Okabe and Ito 2008, jfly.uni-koeln.de/color), and the lightness falls on both sides
_BETTER = ((1.0, "#023e73"), (0.6, "#0072b2"), (0.3, "#56b4e9"), (0.0, "#fbfaf4"))
_WORSE = (
    (0.0, "#fbfaf4"), (0.2, "#fbe6b0"), (0.4, "#f3b63f"), (0.55, "#e0890b"),
    (0.68, "#cb570c"), (0.8, "#9c3013"), (0.92, "#621614"), (1.0, "#2d0a10"),
)  # fmt: skip

TICKS = (-3.0, -1.0, -0.3, -0.1, 0.0, 0.1, 0.3, 1.0, 3.0)
"""Differences worth a label."""


def place(difference: float) -> float:
    """Where a difference stands between -1 (much better), 0 (equal) and 1 (much worse)."""
    bounded = max(-_WORST, min(_WORST, difference))
    return math.asinh(bounded / _LINEAR) / math.asinh(_WORST / _LINEAR)


def difference(place: float) -> float:
    """The inverse of `place`."""
    return _LINEAR * math.sinh(place * math.asinh(_WORST / _LINEAR))


def colour(difference: float) -> str:
    """As `#rrggbb`; one that is not a number is as bad as it gets."""
    where = 1.0 if math.isnan(difference) else place(difference)
    stops = sorted(_BETTER if where < 0 else _WORSE)
    where = abs(where)
    (low, before), (high, after) = next(pair for pair in pairwise(stops) if where <= pair[1][0] or pair[1] is stops[-1])
    part = (where - low) / (high - low)
    channels = [round((1 - part) * int(before[at : at + 2], 16) + part * int(after[at : at + 2], 16)) for at in (1, 3, 5)]
    return "#" + "".join(format(channel, "02x") for channel in channels)


def paler(colour: str, part: float = 0.55) -> str:
    """The same colour, mixed with so much white."""
    channels = [round(255 * part + (1 - part) * int(colour[at : at + 2], 16)) for at in (1, 3, 5)]
    return "#" + "".join(format(channel, "02x") for channel in channels)
