"""Facts from documents: which of them a section is shown, and which of them a sentence rests on. Decided without a model."""

from __future__ import annotations

import re
import tempfile
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Self

from deepen.apps.claims import Known, unsupported_names, unsupported_numbers
from deepen.apps.documents import Found, neutral
from deepen.apps.evidence import question_parts
from deepen.apps.grounded import sentences
from deepen.apps.knowledge import Hit, readable
from deepen.apps.support import open_knowledge

_SUPPORTED = 0.5  # of a sentence's words, by weight, stand in a fact
_OWN = 2  # of the words and numbers must be its own, not those of its headings
_CANDIDATES = 200  # passages that are looked at for a section, of many
_MISFITS = 5  # passages that have no room, after which no shorter one is looked for
_FEWEST_WORDS = 3  # of a clause that is checked by itself
_CLAUSE = re.compile(r"[,;:\u2013\u2014]\s+|\s+(?:and|but|while|whereas|though|although)\s+", re.I)
_POINTS_BACK = re.compile(r"\W*(?:it|its|this|that|these|those|they|their|he|she|his|her|both)\b", re.I)
_NOTHING = Known([])
_LETTERS = re.compile(r"[^\W\d_]+")
_MARKUP = re.compile(r"^\s*(?:[-*+\u2022]\s|>\s|\d{1,3}[.)]\s|\|)\s*|[*`|]|(?<!\w)_|_(?!\w)")
_STARTS = re.compile(r"\s*(?:$|#{1,6}\s|[-*+\u2022]\s|\d{1,3}[.)]\s|\||```|~~~)")
_SAYS_NOTHING = re.compile(r"\s*(?:#{1,6}\s|```|~~~|[-=|:*_ ]*$)")


Number = tuple[int, int]
"""Of a fact: its passage, and its place in it, from 0."""


@dataclass(frozen=True)
class Fact:
    """A sentence or a line of a document.

    Attributes:
        number: the passage that it stands in, and its place there.
        hit: the passage that it stands in.
        text: what it says.
        line: the line on which it begins, from 1.
        stems: of its words and of its headings.
        own: of these, the ones that its headings do not have.
        known: the numbers and words of the same.
        has_numbers: whether it says a number.
    """

    number: Number
    hit: Hit
    text: str
    line: int
    stems: frozenset[str]
    own: frozenset[str]
    known: Known
    has_numbers: bool


@dataclass(frozen=True)
class Verdict:
    """What a sentence rests on.

    Attributes:
        facts: that support it; none if it has a number that they do not have.
        absent: numbers that stand in no fact.
        elsewhere: numbers that stand in facts, but in none that supports the sentence.
        contradicts: whether a fact says the same with another number.
    """

    facts: tuple[Number, ...] = ()
    absent: tuple[str, ...] = ()
    elsewhere: tuple[str, ...] = ()
    contradicts: bool = False


class Facts:
    """The facts of documents; a context manager, since it keeps an index of their words in a temporary file.

    Args:
        found: the documents.

    Raises:
        DataError: none of them can be read.
    """

    def __init__(self, found: Found) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="deepen-facts-")
        try:
            self._knowledge = open_knowledge(found, Path(self._folder.name) / "facts.sqlite", option="--facts")
            self._hits = self._knowledge.all()
        except BaseException:
            self._folder.cleanup()
            raise
        self._made: dict[int, list[Fact]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Forget the index."""
        self._knowledge.close()
        self._folder.cleanup()

    @property
    def passages(self) -> int:
        """How many passages they have."""
        return len(self._hits)

    @cached_property
    def known(self) -> Known:
        """Every number and every word of them."""
        return Known([f"{hit.heading}\n{hit.text}" for hit in self._hits])

    @cached_property
    def _names(self) -> frozenset[str]:
        """Words that are a name somewhere in them."""
        return frozenset(name.lower() for hit in self._hits for name in unsupported_names(hit.text, _NOTHING))

    @cached_property
    def _capitals(self) -> frozenset[str]:
        """Words that are written with a capital wherever they stand, at the beginning of a sentence too: they may be names."""
        spelt = frozenset(word for hit in self._hits for word in _LETTERS.findall(hit.text))
        return frozenset(word.lower() for word in spelt if word[0].isupper() and word.lower() not in spelt)

    def choose(self, topic: str, fits: Callable[[str], bool]) -> tuple[str, tuple[int, ...]]:
        """Facts as a prompt shows them, and the numbers of their passages: all if they fit, else the best for a topic, by BM25.

        Args:
            topic: what is to be written about.
            fits: whether there is room for a text.
        """
        everything = tuple(range(len(self._hits)))
        if sum(len(hit.text) for hit in self._hits) < 200_000 and fits(shown := self._show(everything)):
            return shown, everything
        places = {(hit.file, hit.line, hit.text): place for place, hit in enumerate(self._hits)}
        parts = question_parts(self._knowledge, topic, None)
        found = self._knowledge.search([part.word for part in parts], _CANDIDATES)
        chosen: list[int] = []
        shown, misfits = "", 0
        # where nothing speaks of the topic, the documents' beginning
        for place in [places[hit.file, hit.line, hit.text] for hit in found] or everything[:_CANDIDATES]:
            more = self._show(sorted([*chosen, place]))
            if fits(more):
                chosen, shown = sorted([*chosen, place]), more
            elif (misfits := misfits + 1) == _MISFITS:
                break
        return shown, tuple(chosen)

    def of(self, passages: Sequence[int]) -> list[Fact]:
        """The facts of some passages."""
        for place in passages:
            if place not in self._made:
                self._made[place] = self._make(place)
        return [fact for place in passages for fact in self._made[place]]

    def check(self, sentence: str, passages: Sequence[int], brief: str) -> Verdict:
        """What a sentence rests on, as a whole or clause by clause.

        A fact supports it if it has half of its words by weight, all of its numbers that are not in the brief, and none but
        the same names.

        Args:
            sentence: without labels.
            passages: whose facts may support it.
            brief: what the user said.
        """
        facts = self.of(passages)
        whole = self._check(sentence, facts, brief)
        clauses = [clause for clause in _CLAUSE.split(sentence) if clause and len(clause.split()) >= _FEWEST_WORDS]
        if whole.facts or len(clauses) < 2:
            return whole
        parts = [self._check(clause, facts, brief) for clause in clauses]
        resting = tuple(dict.fromkeys(number for part in parts for number in part.facts))
        lacking = whole.absent + whole.elsewhere
        has_number = [bool(unsupported_numbers(clause, Known([brief]))) for clause in clauses]
        if lacking and all(part.facts for part, number in zip(parts, has_number, strict=True) if number):
            return Verdict(resting)
        if not lacking and sum(len(c.split()) for c, part in zip(clauses, parts, strict=True) if part.facts) * 2 >= len(
            sentence.split()
        ):
            return Verdict(resting)
        if any(part.contradicts for part in parts):
            return Verdict((), whole.absent, whole.elsewhere, True)
        return whole

    def best(self, topic: str, passages: Sequence[int]) -> list[Fact]:
        """Facts that say something of a topic, the best first."""
        weights = {part.stem: part.weight for part in question_parts(self._knowledge, topic, None)}
        facts = self.of(passages)
        worth = {fact.number: sum(weights.get(stem, 0.0) for stem in fact.stems) for fact in facts}
        telling = [fact for fact in facts if len(fact.text.split()) > 3 and worth[fact.number]]
        return sorted(telling, key=lambda fact: -worth[fact.number])

    def _check(self, sentence: str, facts: Sequence[Fact], brief: str) -> Verdict:
        given = Known([brief])
        told = unsupported_numbers(sentence, given)
        digits = {stem for number in unsupported_numbers(sentence, _NOTHING) for stem in self._knowledge.stems(number)}
        weights = {
            part.stem: part.weight for part in question_parts(self._knowledge, sentence, None) if part.stem not in digits
        }
        words = Known([sentence]).words
        named = words & (self._names | self._capitals if told else self._names)
        supporting: list[tuple[float, Number]] = []
        contradicts = False
        for fact in facts:
            missing, other = named - fact.known.words, (self._names & fact.known.words) - words
            if len(weights) < 2 or missing - given.words or (missing and other):
                continue
            # what all of a document is about is no evidence for one of its sentences
            if len(weights.keys() & fact.own) + len(told) < min(_OWN, len(fact.own)):
                continue
            share = sum(weight for stem, weight in weights.items() if stem in fact.stems) / (sum(weights.values()) or 1.0)
            if share < _SUPPORTED:
                continue
            if not _lacking(told, fact.known):
                supporting.append((share, fact.number))
            elif fact.has_numbers:
                contradicts = True
        if supporting:
            return Verdict((max(supporting, key=lambda each: each[0])[1],))
        absent = _lacking(told, self.known)
        elsewhere = tuple(number for number in told if number not in absent)
        return Verdict((), absent, elsewhere, contradicts)

    def _make(self, place: int) -> list[Fact]:
        hit, made = self._hits[place], []
        before = ""
        for number, (line, text) in enumerate(_lines(hit)):
            about = f"{hit.heading}\n{before if _POINTS_BACK.match(text) else ''}\n{text}"
            stems = frozenset(self._knowledge.stems(about))
            own = self._telling(text) - frozenset(self._knowledge.stems(hit.heading))
            has_numbers = bool(unsupported_numbers(text, _NOTHING))
            made.append(Fact((place, number), hit, text, line, stems, own, Known([about]), has_numbers))
            before = text
        return made

    def _telling(self, text: str) -> frozenset[str]:
        """The stems of words that say something."""
        return frozenset(part.stem for part in question_parts(self._knowledge, text, None))

    def _show(self, passages: Sequence[int]) -> str:
        shown, heading = [], ""
        for place in passages:
            hit = self._hits[place]
            if hit.heading != heading:
                heading = hit.heading
                shown.append(f"({neutral(heading)})")
            shown += [f"- {neutral(text)}" for _, text in _lines(hit)]
        return "\n".join(shown)


def _lines(hit: Hit) -> Iterator[tuple[int, str]]:
    """The sentences of a passage and the lines on which they begin; headings are none, an entry of a list is one at least."""
    block: list[tuple[int, str]] = []
    for number, line in enumerate(hit.text.split("\n"), start=hit.line):
        if _STARTS.match(line):
            yield from _sentences(block)
            block = []
        if not _SAYS_NOTHING.match(line):
            block.append((number, " ".join(_MARKUP.sub("", readable(line)).split())))
    yield from _sentences(block)


def _sentences(block: Sequence[tuple[int, str]]) -> Iterator[tuple[int, str]]:
    """The sentences of lines that belong together."""
    starts, place = [], 0
    for _, text in block:
        starts.append(place)
        place += len(text) + 1
    place = 0
    for sentence in sentences(iter([" ".join(text for _, text in block)])):
        if re.search(r"\w", sentence):
            yield block[bisect_right(starts, place) - 1][0], sentence.strip()
        place += len(sentence)


def _lacking(numbers: Sequence[str], known: Known) -> tuple[str, ...]:
    """Those of some numbers that are not known."""
    return tuple(number for number in numbers if unsupported_numbers(number, known))


def read_facts(found: Found) -> Facts:
    """Read documents as facts; says on stderr which of them were left out.

    Raises:
        DataError: none of them can be read.
    """
    return Facts(found)
