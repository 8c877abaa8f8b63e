"""Sentences as a model writes them, and which of them are kept: none that repeats, echoes the instruction or talks about it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from deepen.apps.grounded import is_bullet

_STUCK = 3  # sentences in a row that were said before or echo: the model goes round in circles
_ALIKE = 0.75  # of the shorter sentence's runs of three words stand in the other one: it says the same again
_ECHO = 0.7  # of a sentence's runs of three words stand in the instruction
_LONG = 6  # words, from which on a sentence has runs enough to be compared by them
_VARIED = 0.4  # of a long sentence's words are different ones, else it is a loop
_IDEOGRAMS = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_WORD = re.compile(rf"[{_IDEOGRAMS}]|(?:(?![{_IDEOGRAMS}])\S)+")
_LABEL = re.compile(r"[ \t]*\[\s*[A-Z]?\d{1,3}(?:\s*[,;]\s*[A-Z]?\d{1,3})*\s*\]")
_HEADING = re.compile(r"\s*(?:#{1,6}\s+(?P<marked>.+)|\*\*(?P<bold>[^*]+)\*\*:?|__(?P<under>[^_]+)__:?)\s*$")
_RULE = re.compile(r"\s*(?:[-*_=~`]{3,}\w*|[-*\u2022])\s*$")
_BULLET = re.compile(r"^(?:[-*\u2022]|\d{1,2}[.)])\s+")
_NUMERAL = re.compile(r"\s*\d{1,2}[.)]\s*$")
_REMARK = re.compile(
    r"\W*(?:sure|certainly|of course|okay|absolutely|here(?:'s|\u2019s| is| are)|below is|the following (?:is|are)|as an ai"
    r"|(?:i'm|i\u2019m|i am) (?:ready|here|happy|glad) to (?:help|assist)|(?:how|what) (?:can|may) i (?:do|help|assist)"
    r"|i hope (?:this|that)|let me know|note:|word count|title:|subject:|section \d|(?:in )?about \d+ words|end of the facts"
    r"|(?:facts|brief|outline|headings|about|audience|tone|language):|(?:in )?(?:this|the|my|our) (?:following |next )?"
    r"(?:article|report|story|e-?mail|description|section|part|paragraph|text|draft|essay|post)\b[^.!?]{0,12} (?:is|was|has"
    r"|will|should|would|can|continues?|explores?|discuss(?:es)?|describes?|aims?|covers?|explains?|provides?|focus(?:es)?|begins?|ends?"
    r"|looks?|we|i)\b)",
    re.I,
)
_PLACEHOLDER = re.compile(r"\[[^\]\n]{1,60}\]|<[A-Za-z][^<>\n]{0,40}>|\bX{3,}\b")
_GREETING = re.compile(r"\W*(?:dear|hi|hello|good (?:morning|day|afternoon))\b[^.!?]{0,60}[,:!.]?\s*$", re.I)
_FAREWELL = re.compile(
    r"\W*(?:(?:with )?(?:best|kind|warm(?:est)?) (?:regards|wishes)|regards|sincerely|yours (?:sincerely|truly|faithfully)"
    r"|best|cheers|thanks|thank you)\s*[,.!]?\s*$",
    re.I,
)


@dataclass(frozen=True)
class Sentence:
    """A sentence that is kept.

    Attributes:
        lead: what stands between it and the one before: a space, a new line in a list, or a new paragraph.
        text: without labels of facts.
    """

    lead: str
    text: str


def count_words(text: str) -> int:
    """Words as people count them: what spaces part, and each character of scripts without spaces; marks alone are none."""
    return sum(1 for word in _WORD.findall(text) if any(map(str.isalnum, word)))


class Sieve:
    """Keeps the sentences of one section that may stand in the text.

    Args:
        instruction: what the model was told, without its subject and its facts.
        headings: of all sections; one that is not `own` ends the section.
        own: the section's own heading.
        said: sentences that stand in the text already.
        letter: whether greetings and farewells are no part of it.
        fewest: words of a sentence.
    """

    def __init__(
        self, *, instruction: str, headings: Iterable[str], own: str, said: Iterable[str], letter: bool = False, fewest: int = 1
    ) -> None:
        self._instruction = _runs(_words(instruction))
        self._headings = {_key(heading) for heading in headings}
        self._own = _key(own)
        self._said = [_words(sentence) for sentence in said]
        self._keys = {" ".join(words) for words in self._said}
        self._letter, self._fewest = letter, fewest
        self._gap, self._bullet, self._in_list = "", False, False
        self._opener: Sentence | None = None
        self._circles, self._begun = 0, False
        self.ended = False
        """Whether the model went on to another section or said goodbye: the rest is not of this one."""

    @property
    def stuck(self) -> bool:
        """Whether the model goes round in circles."""
        return self._circles >= _STUCK

    def begin(self) -> None:
        """The model is asked anew."""
        self._circles, self.ended, self._bullet, self._opener = 0, False, False, None

    def take(self, piece: str) -> Sentence | None:
        """A sentence as it may stand in the text, or None.

        Args:
            piece: a sentence or a line, with the white space after it.
        """
        gap, self._gap = self._gap, "\n\n" if re.search(r"\n\s*\n\s*$", piece) else "\n" if "\n" in piece else ""
        if _NUMERAL.match(piece):
            self._bullet, self._gap = True, gap
            return None
        numbered, self._bullet = self._bullet, False
        text = " ".join(_LABEL.sub("", piece).split())
        if not re.search(r"\w", text) or _RULE.match(text):
            self._gap = max(gap, self._gap, key=len)
            return None
        if heading := _HEADING.match(text):
            self.ended = self._is_other(heading["marked"] or heading["bold"] or heading["under"])
            self._gap = "\n\n"
            return None
        if _key(text) in self._headings or _key(text.partition(": ")[0]) in self._headings:
            self.ended = self._is_other(text)
            self._gap = "\n\n"
            return None
        if _is_title(text):
            self._gap = "\n\n"
            return None
        if self._letter and _FAREWELL.match(text):
            self.ended = True
            return None
        if _REMARK.match(text) or _PLACEHOLDER.search(text) or (self._letter and _GREETING.match(text)):
            self._gap = max(gap, self._gap, key=len)
            return None
        listed = numbered or is_bullet(text)
        text = _BULLET.sub("", text) if listed else text
        words = _words(text)
        if len(words) < self._fewest:
            self._gap = max(gap, self._gap, key=len)
            return None
        if self._is_known(words):
            self._circles += 1
            self._gap = max(gap, self._gap, key=len)
            return None
        self._circles, self._begun = 0, True
        self._said.append(words)
        self._keys.add(" ".join(words))
        # a single new line is a space in Markdown
        lead = ("\n" if self._in_list else "\n\n") if listed else "\n\n" if self._in_list or gap == "\n\n" else " "
        opener, self._opener = self._opener, None
        if listed:
            text, self._in_list = f"- {text}", True
            # what announces a list stands with its first entry, or not at all
            return Sentence(opener.lead, f"{opener.text}\n\n{text}") if opener else Sentence(lead, text)
        self._in_list = False
        sentence = Sentence(lead, text)
        if text.endswith(":"):
            self._opener = sentence
            return None
        return sentence

    def _is_other(self, heading: str) -> bool:
        """Whether a heading begins another section; before the first sentence it is only an echo of the outline."""
        key = _key(heading)
        return self._begun and key != self._own and key in self._headings

    def _is_known(self, words: Sequence[str]) -> bool:
        """Whether it was said before, echoes the instruction or is a loop of its own."""
        if " ".join(words) in self._keys:
            return True
        if len(words) < _LONG:
            return False
        runs = _runs(words)
        if len(words) > 2 * _LONG and len(set(words)) < _VARIED * len(words):
            return True
        if len(runs & self._instruction) >= _ECHO * len(runs):
            return True
        return any(
            len(runs & other) >= _ALIKE * min(len(runs), len(other))
            for other in (_runs(said) for said in self._said if len(said) >= _LONG)
        )


def _is_title(text: str) -> bool:
    """Whether a line is written as a title: no end, and a capital on all words but the short ones."""
    long = [word for word in re.findall(r"[^\W\d_]+", text) if len(word) > 3]
    return 1 < len(long) <= 10 and text[-1] not in ".!,;:\u2026" and all(word[0].isupper() for word in long)


def is_whole(text: str) -> bool:
    """Whether a sentence has an end, so that nothing is lacking."""
    return re.search(r"[.!?\u2026:;\u3002\uff01\uff1f][\"'\u201d\u2019)\]*_]*\s*$", text) is not None


def joined(sentences: Sequence[Sentence]) -> str:
    """A section's text; what leads to its first sentence is left out."""
    return "".join(each.lead + each.text for each in sentences).lstrip()


def tail(text: str, words: int) -> str:
    """The last words of a text."""
    starts = [match.start() for match in re.finditer(r"\S+", text)]
    return text if len(starts) <= words else text[starts[-words] :]


def _key(heading: str) -> str:
    return " ".join(re.findall(r"\w+", re.sub(r"^\W*(?:section\s+)?\d{1,2}\s*[.):]", "", heading.lower())))


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def _runs(words: Sequence[str]) -> frozenset[tuple[str, ...]]:
    return frozenset(tuple(words[place : place + 3]) for place in range(len(words) - 2))
