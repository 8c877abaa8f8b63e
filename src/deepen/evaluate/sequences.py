"""What a model runs to score continuations: each different sequence once, and of that only what is new.

Pure: numbers in, numbers out.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from typing import NamedTuple

Keep = Callable[[int, int, int], int]
"""For the widths of a sequence and of the next, and the tokens that they share: how many of these may be left to the next."""


class Pair(NamedTuple):
    """The tokens of a context and of its continuation."""

    context: tuple[int, ...]
    continuation: tuple[int, ...]


class Answer(NamedTuple):
    """How likely a continuation is, in nats, and whether each of its tokens is the likeliest."""

    log_likelihood: float
    greedy: bool


@dataclass(frozen=True)
class Run:
    """A sequence of tokens that the model runs.

    Attributes:
        tokens: those that the model sees; the last token of a continuation is asked for only.
        first: the place whose logits tell of the first token that is asked for.
        width: to which it is padded on the right.
        kept: leading tokens that earlier runs have left in the cache.
        batch: runs of one number go through the model together; None for one that goes alone.
        asked: by the number of its pair, a continuation whose last token comes after the sequence.
    """

    tokens: tuple[int, ...]
    first: int
    width: int
    kept: int = 0
    batch: int | None = None
    asked: Mapping[int, tuple[int, ...]] = field(default_factory=dict)

    @property
    def cost(self) -> int:
        """Tokens that go through the model."""
        return self.width - self.kept


def arrange(
    pairs: Sequence[Pair], batch_size: int, window: int, *, padded: bool, shared: bool, keep: Keep | None = None
) -> list[Run]:
    """What to run for some pairs.

    Pairs that differ in their last token only, as those of a choice of letters do, are one sequence. The sequences are sorted
    by length, the longest first, and cut into batches as lm-eval does (`Collator` of 0.4.13), which gives each its width. If
    beginnings are shared, they are then run one by one, in the order of their tokens, or in that of their widths and tokens
    where less is run so.

    Args:
        pairs: tokens of contexts and continuations, neither empty.
        batch_size: sequences in a batch.
        window: the longest sequence that the model takes; a longer one loses its beginning.
        padded: whether sequences are as wide as the longest of their batch.
        shared: whether leading tokens are left in a cache for the next.
        keep: how much of what two sequences share may be left; all of it unless given.
    """
    groups: dict[tuple[int, ...], dict[int, tuple[int, ...]]] = {}
    for number, (context, continuation) in enumerate(pairs):
        groups.setdefault(context + continuation[:-1], {})[number] = continuation
    found = []
    for asked in groups.values():
        number = max(asked, key=lambda each: len(asked[each]))  # of equals the first, as there
        whole = pairs[number].context + asked[number]
        found.append((-len(whole), whole, asked))
    found.sort(key=lambda each: each[:2])
    runs = []
    for start in range(0, len(found), batch_size):
        batch = found[start : start + batch_size]
        longest = min(-batch[0][0] - 1, window)
        for _, whole, asked in batch:
            tokens = whole[-(window + 1) :][:-1]
            first = len(tokens) - max(map(len, asked.values()))
            width = longest if padded else len(tokens)
            runs.append(Run(tokens, first, width, 0, None if shared else start, asked))
    if not shared:
        return runs
    orders = (sorted(runs, key=lambda run: run.tokens), sorted(runs, key=lambda run: (run.width, run.tokens)))
    return min((_shared(order, keep) for order in orders), key=lambda each: sum(run.cost for run in each))


def remaining(runs: Sequence[Run], known: Collection[int]) -> list[Run]:
    """The runs that are needed where some answers are known already, so that the others come out the same.

    What a run finds in the cache was put there by earlier ones, piece by piece, and the last bits depend on the pieces. So
    those whose pieces are needed run again; and of a batch all.

    Args:
        runs: all of them, in order.
        known: numbers of pairs that are answered.
    """
    known = set(known)
    wanted = {place for place, run in enumerate(runs) if not known.issuperset(run.asked)}
    batches = {runs[place].batch for place in wanted} - {None}
    needed = wanted | {place for place, run in enumerate(runs) if run.batch in batches}
    for place in sorted(wanted, reverse=True):
        bound, before = runs[place].kept, place
        while bound:
            before -= 1
            if runs[before].kept < bound:
                bound = runs[before].kept
                needed.add(before)
    return [runs[place] for place in sorted(needed)]


def common(first: Sequence[int], second: Sequence[int]) -> int:
    """How many tokens two sequences begin with alike."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(first, second, strict=False)))


def _shared(runs: Sequence[Run], keep: Keep | None) -> list[Run]:
    result: list[Run] = []
    for run in runs:
        kept = 0
        if result:
            before = result[-1]
            kept = min(common(before.tokens, run.tokens), run.first)
            kept = kept if keep is None else keep(before.width, run.width, kept)
        result.append(Run(run.tokens, run.first, run.width, kept, None, run.asked))
    return result
