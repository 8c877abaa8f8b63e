"""A section while it is written: what is put first in it, and whether a revision may take its place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from deepen.apps.writing.facts import Fact, Number, Verdict
from deepen.apps.writing.part import Checked
from deepen.apps.writing.prose import Sentence, count_words, is_whole

TOLERANCE = 0.15
"""The share of its words by which a text may miss its length."""


@dataclass
class Draft:
    """A section while it is written."""

    kept: list[Checked] = field(default_factory=list)
    removed: list[Checked] = field(default_factory=list)
    words: int = 0
    tokens: int = 0
    cut: bool = False

    @property
    def resting(self) -> set[Number]:
        """The facts that it rests on."""
        return {number for each in self.kept for number in each.verdict.facts}


def quote(draft: Draft, facts: Sequence[Fact], budget: int) -> None:
    """Let facts speak for themselves in a section that rests on none: one at least, and half of it where there is more."""
    quoted: list[Checked] = []
    left = budget / 2 if draft.kept else budget
    for fact in facts:
        left -= count_words(fact.text)
        if quoted and left < 0:
            break
        text = fact.text if is_whole(fact.text) else f"{fact.text}."
        quoted.append(Checked(Sentence(" ", text), Verdict((fact.number,))))
    put_first(draft, quoted, budget)


def put_first(draft: Draft, first: Sequence[Checked], budget: int) -> None:
    """Begin a section with sentences; of the others the last ones go while that brings it nearer to its length."""
    draft.kept = [*first, *draft.kept]
    draft.words += sum(count_words(each.sentence.text) for each in first)
    while len(draft.kept) > max(len(first), 1):
        words = draft.words - count_words(draft.kept[-1].sentence.text)
        if abs(words - budget) > abs(draft.words - budget):
            break
        draft.kept.pop()
        draft.words = words


def is_better(better: Draft, draft: Draft, budget: int) -> bool:
    """Whether a revision may take the place of the draft: whole, as long, and resting on as much and on nothing new."""
    loose = {number for each in draft.kept for number in (*each.verdict.absent, *each.verdict.elsewhere)}
    return (
        bool(better.kept)
        and not better.cut
        and not better.removed
        and abs(better.words - budget) <= max(TOLERANCE * budget, abs(draft.words - budget))
        and draft.resting <= better.resting
        and loose >= {number for each in better.kept for number in (*each.verdict.absent, *each.verdict.elsewhere)}
        and [each.sentence.text for each in better.kept] != [each.sentence.text for each in draft.kept]
    )
