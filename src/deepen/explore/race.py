"""Successive halving: all plans on a little text, the better ones on more and more of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import numpy as np

from deepen.explore.results import Candidate
from deepen.explore.statistics import Sample, draws, means

RUNGS = (1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0)
"""Shares of the text after which plans are compared."""


class Score(Protocol):
    """Scores the base and then plans, on the units of each part from one share of it to another."""

    def __call__(self, some: Sequence[Candidate], since: float, until: float) -> list[Sample]:  # noqa: D102
        ...


class Cost(Protocol):
    """What that costs in layer evaluations times tokens."""

    def __call__(self, some: Sequence[Candidate], since: float, until: float) -> float:  # noqa: D102
        ...


@dataclass(frozen=True)
class Standing:
    """How a plan stands.

    Attributes:
        candidate: the plan.
        samples: its scores on the units that it has seen, per part, shape (1, units).
        base: those of the base on the same units.
        share: of the text that it has seen.
    """

    candidate: Candidate
    samples: list[Sample]
    base: list[Sample]
    share: float


def race(
    candidates: Sequence[Candidate],
    score: Score,
    cost: Cost,
    *,
    rungs: Sequence[float],
    budget: float,
    keep: int,
    seed: int,
) -> list[Standing]:
    """Find the best plans of each size without scoring all on everything.

    On each rung the plans are scored on the units that are new, and compared within their size (added layers). A plan goes on
    unless the 95 % interval of its paired difference to the best of its size lies above 0. Where more are left than the budget
    of the next rung pays for, the best go on; where it does not pay for one, the race is over.

    Args:
        candidates: the plans, those that are expected to be best first.
        score: scores plans.
        cost: says what that costs.
        rungs: shares of the text, ascending, the last of them 1.
        budget: layer evaluations times tokens in all; infinite to score everything.
        keep: how many plans go on to the end although their interval says that another is better, if the budget allows it.
        seed: of the bootstrap.

    Returns:
        Every plan that was scored, as it stood when it was left behind or the race was over.
    """
    done: dict[tuple[int, ...], Standing] = {}
    alive, before = list(candidates), 0.0
    for number, share in enumerate(rungs):
        # half of what is left for each rung, so that many are tried; all of it for the last
        allowed = budget if number + 1 == len(rungs) else budget / 2
        alive = _affordable(alive, partial(cost, since=before, until=share), allowed)
        if not alive:
            break
        budget -= cost(alive, before, share)
        new = score(alive, before, share)
        for place, candidate in enumerate(alive):
            old = done.get(candidate.layers)
            mine, base = ([Sample(part.sums[[row]], part.counts) for part in new] for row in (place + 1, 0))
            if old is not None:
                mine, base = _joined(old.samples, mine), _joined(old.base, base)
            done[candidate.layers] = Standing(candidate, mine, base, share)
        if budget != np.inf:
            alive = _survivors([done[candidate.layers] for candidate in alive], keep, seed)
        before = share
    return list(done.values())


def _survivors(standings: Sequence[Standing], keep: int, seed: int) -> list[Candidate]:
    """Those that are not told to be worse than the best of their size, and the `keep` best; best first, sizes in turn."""
    samples = [
        Sample(np.concatenate([each.samples[part].sums for each in standings]), standings[0].samples[part].counts)
        for part in range(len(standings[0].samples))
    ]
    scores, drawn = means(samples), draws(samples, seed)
    by_size: dict[int, list[int]] = {}
    for place in np.argsort(scores, kind="stable"):
        by_size.setdefault(len(standings[place].candidate.layers), []).append(int(place))
    ordered = []
    for places in by_size.values():
        best = drawn[places[0]]
        for order, place in enumerate(places):
            worse = np.nanpercentile(drawn[place] - best, 2.5) > 0 if not np.isnan(best).any() else False
            if order < keep or not worse:
                ordered.append((order, scores[place], place))
    return [standings[place].candidate for _, _, place in sorted(ordered)]


def _affordable(candidates: list[Candidate], cost: Callable[[Sequence[Candidate]], float], budget: float) -> list[Candidate]:
    """As many of the first plans as the budget pays for."""
    if cost(candidates) <= budget:
        return candidates
    least, most = 0, len(candidates)  # the first `least` are paid for, the first `most` are not
    while most - least > 1:
        middle = (least + most) // 2
        least, most = (middle, most) if cost(candidates[:middle]) <= budget else (least, middle)
    return candidates[:least]


def _joined(old: Sequence[Sample], new: Sequence[Sample]) -> list[Sample]:
    pairs = zip(old, new, strict=True)
    return [Sample(np.concatenate([a.sums, b.sums], axis=1), np.concatenate([a.counts, b.counts])) for a, b in pairs]


def differences(standing: Standing) -> list[Sample]:
    """A plan's scores less the base's on the same units."""
    pairs = zip(standing.samples, standing.base, strict=True)
    return [Sample(mine.sums - base.sums, mine.counts) for mine, base in pairs]


def difference(standing: Standing) -> float:
    """The mean difference to the base, by which plans that saw different amounts of text are put in order."""
    return float(means(differences(standing))[0])
