"""Near-duplicates: texts that share almost all their runs of three words."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable
from fractions import Fraction

from deepen.data.ngrams import words_of

_RUN = 3


class Similar:
    """Texts, and the search for one that another repeats: with the same numbers, and with a Jaccard index of the
    sets of their runs of three words that reaches a threshold.

    Two problems that differ in a number are two problems, however alike they are. The search is exact, not by sketches: of
    two sets that are alike enough, the first few members in any fixed order have one in common (prefix filtering: Chaudhuri,
    Ganti and Kaushik 2006, "A primitive operator for similarity joins in data cleaning", section 4).

    Args:
        threshold: from which Jaccard index on, above 0.
    """

    def __init__(self, threshold: float) -> None:
        self._threshold = Fraction(str(threshold))
        self._texts: list[frozenset[bytes]] = []
        self._index: dict[tuple[bytes, bytes], list[int]] = {}

    def add(self, text: str) -> None:
        """Keep a text, to be found later."""
        numbers, runs = _features(text)
        for run in self._prefix(runs):
            self._index.setdefault((numbers, run), []).append(len(self._texts))
        self._texts.append(runs)

    def has(self, text: str) -> bool:
        """Whether a text that is kept is nearly this one."""
        numbers, runs = _features(text)
        near = {place for run in self._prefix(runs) for place in self._index.get((numbers, run), ())}
        return any(_jaccard(runs, self._texts[place]) >= self._threshold for place in near)

    def _prefix(self, runs: frozenset[bytes]) -> list[bytes]:
        return sorted(runs)[: len(runs) - math.ceil(self._threshold * len(runs)) + 1]


def are_similar(first: str, second: str, threshold: float) -> bool:
    """Whether one text nearly repeats the other; see `Similar`."""
    (numbers, runs), (other_numbers, others) = _features(first), _features(second)
    return numbers == other_numbers and _jaccard(runs, others) >= Fraction(str(threshold))


def _jaccard(first: frozenset[bytes], second: frozenset[bytes]) -> Fraction:
    return Fraction(len(first & second), len(first | second))


def _features(text: str) -> tuple[bytes, frozenset[bytes]]:
    """A text's numbers, and its runs of words; of a text of fewer words, all of them as one run."""
    words = words_of(text)
    runs = [words[place : place + _RUN] for place in range(max(1, len(words) - _RUN + 1))]
    return _hash(sorted(word for word in words if any(map(str.isdigit, word)))), frozenset(map(_hash, runs))


def _hash(words: Iterable[str]) -> bytes:
    return hashlib.blake2b(" ".join(words).encode(errors="surrogatepass"), digest_size=12).digest()
