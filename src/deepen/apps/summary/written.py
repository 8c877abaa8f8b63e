"""The text of a summary as it is written, sentence by sentence, and the passages that support it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable

from deepen.apps.claims import Known, unsupported_numbers
from deepen.apps.documents import Passage
from deepen.apps.grounded import without_labels
from deepen.apps.stems import Stemmer
from deepen.apps.summary.chunks import Read
from deepen.apps.summary.result import Citation
from deepen.apps.summary.said import COMMON, Sentence

UNCITED = "(no source found)"
_SUPPORTED = 0.5  # of a sentence's words, by weight, stand in the passage
_FEWER = 1.2  # the fewer words there are, the more depends on each: this, divided by their number, is wanted besides
_OTHERS = 300  # passages that are thought to be there besides, so that rarity tells something among a few too


class Citer:
    """Finds the passage that supports a sentence best: one with its numbers and half of its words, rare ones counting more.

    Args:
        read: the documents and their passages.
    """

    def __init__(self, read: Read) -> None:
        self._read = read
        self._stemmer = Stemmer()
        self._places = [(number, piece) for number, pieces in enumerate(read.passages) for piece in pieces]
        self._stems = [self._telling(f"{' '.join(piece.headings)}\n{piece.text}") for _, piece in self._places]
        self._count = Counter(stem for stems in self._stems for stem in stems)
        self._known: dict[int, Known] = {}
        self._ids: dict[int, int] = {}
        self.uncited = 0
        """Sentences for which none was found."""

    def label(self, sentence: str) -> str:
        """What is put after a sentence: the number of the passage, or that there is none."""
        stems = self._telling(sentence)
        weights = {stem: math.log((len(self._places) + _OTHERS) / (self._count[stem] + 1)) for stem in stems}
        total = sum(weights.values()) or 1.0
        shares = [(sum(weights[stem] for stem in stems & own) / total, -place) for place, own in enumerate(self._stems)]
        for share, place in sorted(shares, reverse=True):
            if share < min(1.0, _SUPPORTED + _FEWER / max(len(stems), 1)):
                break
            if not unsupported_numbers(sentence, self._numbers(-place)):
                return f"[{self._ids.setdefault(-place, len(self._ids) + 1)}]"
        self.uncited += 1
        return UNCITED

    @property
    def citations(self) -> tuple[Citation, ...]:
        """The passages that were cited, in the order of their numbers."""
        found = []
        for place, number in self._ids.items():
            document, piece = self._read.documents[self._places[place][0]], self._places[place][1]
            found.append(Citation(number, document.name, document.title, piece.headings, piece.line, piece.page, piece.text))
        return tuple(found)

    def _numbers(self, place: int) -> Known:
        if place not in self._known:
            piece: Passage = self._places[place][1]
            self._known[place] = Known([piece.text, *piece.headings])
        return self._known[place]

    def _telling(self, text: str) -> frozenset[str]:
        return frozenset(stem for stem in self._stemmer.stems(text) if stem not in COMMON)


class Writer:
    """Writes sentences in a style.

    Args:
        style: `bullets`, `abstract` or `report`.
        citer: what supports a sentence; None to leave that away.
        tell: called with each piece of the text.
    """

    def __init__(self, style: str, citer: Citer | None, tell: Callable[[str], None] | None) -> None:
        self._style, self._citer, self._tell = style, citer, tell
        self._pieces: list[str] = []
        self._plain: list[str] = []
        self._heading = ""
        self._marked = False  # whether the model itself marked the bullet that is open

    @property
    def text(self) -> str:
        """All that was written."""
        return "".join(self._pieces)

    @property
    def claims(self) -> str:
        """The same without labels of passages."""
        return "\n".join(self._plain)

    def heading(self, text: str) -> None:
        """Write a heading, once there is something below it."""
        self._heading = f"## {text}"

    def write(self, sentence: Sentence) -> None:
        """Write a sentence, or a heading if it begins with `#`."""
        if sentence.text.startswith("## "):
            self._heading = sentence.text
            return
        text = without_labels(sentence.text) if self._citer else sentence.text
        self._plain.append(text)
        label = f" {self._citer.label(text)}" if self._citer else ""
        self._put(f"{self._space(sentence)}{text}{label}")

    def _space(self, sentence: Sentence) -> str:
        """What stands before a sentence."""
        first = not self._pieces
        if self._style == "bullets":
            begins = sentence.bullet or sentence.begins or not self._marked
            self._marked = sentence.bullet if begins else self._marked
            return ("" if first else "\n") + "- " if begins else " "
        if self._style == "abstract":
            return "" if first else " "
        if self._heading:
            heading, self._heading = self._heading, ""
            return ("" if first else "\n\n") + f"{heading}\n\n" + ("- " if sentence.bullet else "")
        if sentence.bullet:
            return "- " if first else "\n- "
        return "" if first else "\n\n" if sentence.begins else " "

    def _put(self, text: str) -> None:
        self._pieces.append(text)
        if self._tell is not None:
            self._tell(text)
