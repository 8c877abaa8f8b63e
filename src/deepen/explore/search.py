"""The search itself: a guess from one pass of the base, then a race; afterwards the winners on text that it has not seen."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from deepen.data.text import IGNORED
from deepen.explore.material import Part
from deepen.explore.race import RUNGS, Standing, difference, differences, race
from deepen.explore.results import Candidate, Cell, Interval, Scored
from deepen.explore.score import Scorer, chunks
from deepen.explore.screen import Guess, Likeness, guess, likeness, seams
from deepen.explore.statistics import Sample, draws, interval, means, ranks
from deepen.explore.sweep import evaluations

SHARE = 0.12
"""Of the exhaustive search's work, what the screened one may do."""
MOST_STARTERS = 256
"""Plans that the race begins with at most, but for one of each size."""
MOST_PROBES = 512
"""Blocks that are scored to know what the plans are made of, at most."""


@dataclass(frozen=True)
class Found:
    """What a search found.

    Attributes:
        standings: every plan that was scored, best first.
        likeness: of the base's hidden states.
        guess: what the screening expects of a plan.
        others: blocks that were scored though they are none of the plans, to know what the plans are made of.
    """

    standings: list[Standing]
    likeness: Likeness
    guess: Guess
    others: Sequence[Standing] = ()


def search(
    scorer: Scorer, parts: Sequence[Part], pool: Sequence[Candidate], *, exhaustive: bool, keep: int, seed: int
) -> Found:
    """Find the best of many plans; see `race`.

    Args:
        scorer: scores plans.
        parts: what they are scored on.
        pool: the plans.
        exhaustive: score every plan on everything.
        keep: how many shall be known well at the end.
        seed: of the bootstrap.
    """
    depth = scorer.network.depth
    base = tuple(range(depth))

    def between(since: float, until: float) -> list[tuple[int, Part]]:
        ends = [[math.ceil(share * len(part)) for share in (since, until)] for part in parts]
        return [(first, part[first:end]) for part, (first, end) in zip(parts, ends, strict=True)]

    def score(some: Sequence[Candidate], since: float, until: float) -> list[Sample]:
        plans = [base, *(candidate.layers for candidate in some)]
        new = between(since, until)
        return [scorer.score(f"search {number}:{first}", units, plans) for number, (first, units) in enumerate(new)]

    def cost(some: Sequence[Candidate], since: float, until: float) -> float:
        tokens = sum(unit.tokens for _, units in between(since, until) for unit in units)
        return tokens * (depth + evaluations([candidate.layers for candidate in some], depth + 1)) if tokens else 0

    first, units = between(0, RUNGS[0])[0]
    chunk = next(chunks(f"search 0:{first}", units, scorer.chunk_tokens))
    alike = scorer.kept(f"likeness {chunk.name}", lambda: likeness(scorer.states(chunk)[0], chunk.labels != IGNORED))
    if exhaustive:
        standings = race(pool, score, cost, rungs=[1.0], budget=math.inf, keep=keep, seed=seed)
        return Found(sorted(standings, key=difference), alike, guess(alike, _costs(standings)))
    budget, rungs = SHARE * cost(pool, 0, 1), _distinct(parts)
    blocks = probes(pool, depth, guess(alike, {}))
    probed = race(blocks, score, cost, rungs=rungs[:1], budget=budget / 4, keep=keep, seed=seed)
    budget -= cost([each.candidate for each in probed], 0, rungs[0])
    expected = guess(alike, _costs(probed))
    standings = race(starters(pool, expected), score, cost, rungs=rungs, budget=budget, keep=keep, seed=seed)
    known = {each.candidate.layers for each in standings}
    others = [each for each in probed if each.candidate.layers not in known]
    return Found(sorted(standings, key=difference), alike, expected, others)


def probes(pool: Sequence[Candidate], depth: int, expected: Guess) -> list[Candidate]:
    """The blocks that plans of several jumps are made of, each run twice by itself; those that look best, if they are many."""
    jumps = {jump for each in pool if len(found := seams(each.layers)) > 1 for jump in found}
    blocks = [Candidate({"repeat": f"{first}:{end}"}, (*range(end), *range(first, depth))) for end, first in sorted(jumps)]
    return sorted(blocks, key=lambda each: expected(each.layers))[:MOST_PROBES]


def _costs(standings: Sequence[Standing]) -> dict[tuple[int, int], float]:
    """What single jumps cost, as far as they were scored."""
    jumps = ((seams(each.candidate.layers), difference(each)) for each in standings)
    return {found[0]: value for found, value in jumps if len(found) == 1}


def starters(pool: Sequence[Candidate], expected: Guess) -> list[Candidate]:
    """The plans that are expected to be best, sizes in turn; SOLAR's plan of each size is among the first."""
    by_size: dict[int, list[Candidate]] = {}
    for candidate in sorted(pool, key=lambda each: ("drop" not in each.options, expected(each.layers))):
        by_size.setdefault(len(candidate.layers), []).append(candidate)
    turns = [(turn, size, each) for size, some in by_size.items() for turn, each in enumerate(some)]
    ordered = [each for _, _, each in sorted(turns, key=lambda turn: turn[:2])]
    return ordered[: max(MOST_STARTERS, len(by_size))]


def rescore(scorer: Scorer, name: str, parts: Sequence[Part], plans: Sequence[Candidate]) -> list[Sample]:
    """Scores of the base and of plans, in that order, on everything."""
    layers = [tuple(range(scorer.network.depth)), *(candidate.layers for candidate in plans)]
    return [scorer.score(f"{name} {number}", part, layers) for number, part in enumerate(parts)]


def scored(standing: Standing, expected: float | None, cost: Mapping[str, float], seed: int) -> Scored:
    """A standing as users see it."""
    values, less = standing.samples, differences(standing)
    return Scored(
        candidate=standing.candidate,
        score=interval(means(values)[0], draws(values, seed)[0]),
        difference=interval(means(less)[0], draws(less, seed)[0]),
        tokens=int(sum(part.counts.sum() for part in values)),
        cost=cost,
        predicted=expected,
    )


def intervals(samples: Sequence[Sample], seed: int) -> list[Interval]:
    """The score of each plan with its interval."""
    return [interval(value, drawn) for value, drawn in zip(means(samples), draws(samples, seed), strict=True)]


def ranked(plans: Sequence[Scored], samples: Sequence[Sample], seed: int) -> list[Scored]:
    """Plans in the order of their scores on held-out text, with places.

    Args:
        plans: as they were scored there.
        samples: their scores there, a row for each.
        seed: of the bootstrap.
    """
    scores = means(samples)
    order = np.argsort(scores, kind="stable")
    places = ranks(draws(samples, seed)[order])
    return [replace(plans[index], rank=place) for index, place in zip(order, places, strict=True)]


def grid(found: Found, depth: int) -> tuple[Cell, ...]:
    """Every block run twice: its score where there is one, else what is expected."""
    known: dict[Any, Standing] = {standing.candidate.layers: standing for standing in (*found.others, *found.standings)}
    cells = []
    for first in range(depth):
        for end in range(first + 1, depth + 1):
            layers = (*range(end), *range(first, depth))
            standing = known.get(layers)
            if standing is None:
                cells.append(Cell(first, end, found.guess(layers), False, 0))
            else:
                tokens = int(sum(part.counts.sum() for part in standing.samples))
                cells.append(Cell(first, end, difference(standing), True, tokens))
    return tuple(cells)


def _distinct(parts: Sequence[Part]) -> list[float]:
    """The rungs that differ: the first of those that give a part the same units, and the whole."""
    seen, rungs = set(), []
    for share in RUNGS:
        ends = tuple(math.ceil(share * len(part)) for part in parts)
        if ends not in seen:
            seen.add(ends)
            rungs.append(share)
    return rungs
