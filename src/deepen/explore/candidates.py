"""Which layer plans there are to choose from."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import islice

from deepen.errors import OptionError
from deepen.explore.results import Candidate
from deepen.plan import parse_plan
from deepen.plan.layers import MAX_LAYERS

KINDS = ("repeat", "drop", "double", "times", "union")
MOST = 1_000_000
"""The largest space of plans that is searched."""


def candidates(
    depth: int,
    *,
    kinds: Sequence[str] = KINDS,
    add: int | None = None,
    allowed: Callable[[Candidate], bool] = lambda _: True,
) -> list[Candidate]:
    """Every plan of the wanted kinds once, in a fixed order.

    - `drop`: depth up-scaling: the base without its last m layers, then without its first m (arXiv 2312.15166, section 2).
    - `repeat`: a block i:j twice in place.
    - `times`: a block three times or more.
    - `double`: each layer of a block twice, one after the other.
    - `union`: two blocks without a common layer, each twice.

    Args:
        depth: layers of the base.
        kinds: which kinds.
        add: how many layers a plan adds to the base; any number if None.
        allowed: what a plan has to fulfil besides, such as a bound on its cost.

    Raises:
        OptionError: a kind is unknown, or there is no such plan, or there are more than a million.
    """
    if unknown := [kind for kind in kinds if kind not in KINDS]:
        raise OptionError(f"no kind of plan is called {unknown[0]!r}", where="--kinds", next=f"use {', '.join(KINDS)}")
    if add is not None and add < 1:
        raise OptionError(f"{add} added layers are none", where="--add", next="use 1 or more")
    sizes = range(1, MAX_LAYERS - depth + 1) if add is None else range(add, add + 1)
    made = (each for kind in KINDS if kind in kinds for each in _MAKERS[kind](depth, sizes))
    found: dict[tuple[int, ...], Candidate] = {}
    for number, each in enumerate(made):
        if number >= 2 * MOST or len(found) > MOST:
            raise OptionError(
                f"there are more than {MOST:,} plans",
                where="--kinds, --add, --budget",
                next="bound them: fix the size with --add, the cost with --budget, or leave kinds away",
            )
        # the same layers may have two names: SOLAR's is the one that people know
        if allowed(each) and (each.layers not in found or "drop" in each.options):
            found[each.layers] = each
    if not found:
        raise OptionError(
            f"there is no such plan for a base of {depth} layers",
            where="--kinds, --add, --budget",
            next="add fewer layers, allow a higher cost, or more kinds of plans",
        )
    return list(found.values())


def _repeats(depth: int, sizes: range) -> Iterator[Candidate]:
    for size in islice(sizes, depth):
        for first in range(depth - size + 1):
            yield _named(depth, repeat=f"{first}:{first + size}")


def _drops(depth: int, sizes: range) -> Iterator[Candidate]:
    for drop in range((depth + 1) // 2):
        if depth - 2 * drop in sizes:
            yield _named(depth, drop=drop)


def _doubles(depth: int, sizes: range) -> Iterator[Candidate]:
    for size in islice(sizes, depth):
        for first in range(depth - size + 1):
            layers = [layer for layer in range(depth) for _ in range(1 + (first <= layer < first + size))]
            yield _listed(layers)


def _times(depth: int, sizes: range) -> Iterator[Candidate]:
    for size in range(1, depth + 1):
        for times in range(3, (sizes.stop - 1) // size + 2):
            if (times - 1) * size in sizes:
                for first in range(depth - size + 1):
                    yield _named(depth, repeat=f"{first}:{first + size}x{times}")


def _unions(depth: int, sizes: range) -> Iterator[Candidate]:
    for first in range(depth):
        for end in range(first + 1, depth):
            for second in range(end, depth):
                for stop in range(second + 1, depth + 1):
                    if end - first + stop - second in sizes:
                        yield _listed([*range(end), *range(first, stop), *range(second, depth)])


_MAKERS = {"repeat": _repeats, "drop": _drops, "double": _doubles, "times": _times, "union": _unions}


def _named(depth: int, **options: object) -> Candidate:
    return Candidate(options, parse_plan(depth, **options).layers)  # type: ignore[arg-type]


def _listed(layers: Sequence[int]) -> Candidate:
    plan = Candidate({}, tuple(layers))
    return Candidate({"layers": plan.slices}, plan.layers)
