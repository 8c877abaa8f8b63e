"""A section as it was written, before its facts have numbers: plain data, so that a journal keeps it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from deepen.apps.writing.facts import Verdict
from deepen.apps.writing.prose import Sentence, count_words, joined


@dataclass(frozen=True)
class Checked:
    """A sentence of a section, and what it rests on."""

    sentence: Sentence
    verdict: Verdict


@dataclass(frozen=True)
class Part:
    """A section as it was written.

    Attributes:
        kept: its sentences.
        removed: sentences that contradict a fact.
        target_words: what was aimed at.
        revised: whether it is the revision.
        origin: who wrote it.
        passages: that the model was shown.
        tokens: that it took.
    """

    kept: tuple[Checked, ...]
    removed: tuple[Checked, ...]
    target_words: int
    revised: bool
    origin: Literal["model", "facts", "nothing"]
    passages: tuple[int, ...]
    tokens: int

    @property
    def words(self) -> int:
        """Of its sentences."""
        return sum(count_words(each.sentence.text) for each in self.kept)

    @property
    def text(self) -> str:
        """Its sentences, without labels."""
        return joined([each.sentence for each in self.kept])


def read_part(kept: dict[str, Any]) -> Part:
    """A section from what a journal kept of it."""

    def checked(each: dict[str, Any]) -> Checked:
        verdict = each["verdict"]
        resting = tuple((passage, place) for passage, place in verdict["facts"])
        return Checked(
            Sentence(**each["sentence"]),
            Verdict(resting, tuple(verdict["absent"]), tuple(verdict["elsewhere"]), verdict["contradicts"]),
        )

    lists = {name: tuple(map(checked, kept[name])) for name in ("kept", "removed")}
    return Part(**(kept | lists | {"passages": tuple(kept["passages"])}))
