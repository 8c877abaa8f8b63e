"""Which part of the data is searched on and which is held out, and whether it is enough."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist

from deepen.errors import DataError
from deepen.explore.material import Part, first_tokens
from deepen.units import format_count

# the spread of a paired difference per token, a rule of thumb: SmolLM2-135M's plans have 0.4 to 1.0
_SPREAD = 0.8
_WIDEST = 0.15
_FEWEST_UNITS = 4


def share_out(parts: Sequence[Part], plans: int, *, wanted: int, later: int) -> tuple[list[Part], list[Part]]:
    """The data's first tokens, to search on, and its next ones.

    Args:
        parts: the data.
        plans: how many are to be told apart.
        wanted: tokens to search on.
        later: tokens to score the best on again.

    Raises:
        DataError: there are too few to tell that many plans apart.
    """
    searched, held_out = [], []
    for part in parts:
        there = sum(unit.tokens for unit in part)
        # what is too little for both is shared out as they would have had it
        first, rest = first_tokens(part, min(wanted, math.ceil(there * wanted / (wanted + later))))
        searched.append(first)
        held_out.append(first_tokens(rest, later)[0])
    check_units(searched, "--data")
    texts = [part for part in searched if part[0].right is None]
    if texts:
        _check_tokens(sum(int(unit.counts.sum()) for part in texts for unit in part), plans)
    return searched, held_out


def _check_tokens(tokens: int, plans: int) -> None:
    # the widest of so many intervals that all of them hold with 95 % (Bonferroni)
    width = NormalDist().inv_cdf(1 - 0.025 / plans) * _SPREAD

    def needed(target: float) -> int:
        return math.ceil((width / target) ** 2)

    if tokens < needed(_WIDEST):
        raise DataError(
            f"{tokens:,} tokens are too few for {plans:,} plans: a difference would be known to "
            f"±{width / math.sqrt(tokens or 1):.2f} "
            "nats per token",
            where="--data, --tokens",
            next=f"give {needed(_WIDEST):,} tokens for ±{_WIDEST}, {format_count(needed(0.05))} for ±0.05, or "
            f"{format_count(needed(0.01))} for ±0.01; or fewer plans",
        )


def check_units(parts: Sequence[Part], where: str) -> None:
    """Refuse text of which too few pieces can be drawn again for an interval."""
    for part in parts:
        if len(part) < _FEWEST_UNITS:
            raise DataError(
                f"the text comes to {len(part)} windows, conversations or questions, and an interval needs {_FEWEST_UNITS}",
                where=where,
                next="give more text, more --tokens, or a smaller --window",
            )
