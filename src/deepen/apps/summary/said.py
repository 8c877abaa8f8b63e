"""What is kept of an answer: sentences, once each, up to a length; and what a text itself says where nothing is left."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from deepen.apps.claims import ABBREVIATION
from deepen.apps.grounded import is_bullet, sentences

_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]|[^\W_\u3040-\u30ff\u3400-\u9fff]+")  # some scripts have no spaces
_BULLET = re.compile(r"^\s*(?:[-*•\u2013]|\d{1,2}[.)])\s+")
_PREAMBLE = re.compile(
    r"^\W*(?:(?:sure|certainly|of course|okay|ok)\b.{0,80}|(?:here (?:is|are)|here's|below (?:is|are)|the following is)\b"
    r".{0,120}:"
    r"|(?:a |the |brief |short )*(?:summary|abstract|report|overview|bullet points?|key points?)(?: of .{0,80})?:?)\W*$",
    re.I | re.S,
)
_REPEATED = 2  # sentences said before, after which the model is not listened to any longer
_ALIKE = 0.85  # of the words of two sentences, from which on they are the same
_STALE = 0.6  # of a sentence's rows of words, said before or in the same sentence, from which on it says nothing new
_ROW, _TWICE = 4, 6  # words in a row; so many twice in one sentence are a stutter
_LOOP, _LOOP_WORDS = 0.3, 24  # different words of all, in a sentence of so many, from which on the model is in a loop
_TOO_LONG = 1.2  # of the words that were asked for
_LONGEST = 900  # characters of a sentence
_FEW = 3  # words: less is no summary
_MOST_SENTENCES = 2000  # that are weighed to find the central ones
_END = re.compile(r"(?<=[.!?])[\"'\u201d\u2019)\]]*\s+|(?<=[\u3002\uff01\uff1f])|\n\s*\n|\n(?=\s*(?:[-*•#|]|\d{1,2}[.)]\s))")
_STOPS = ".!?\u3002\uff01\uff1f\"'\u201d\u2019)"
_ENDED = re.compile(r"[.!?:\u3002\uff01\uff1f][\"'\u201d\u2019)\]*]*\s*$")
COMMON = frozenset(
    re.findall(
        r"\w+",
        """
        a an and are as at be been but by can could did do does for from had has have he her him his how i if in into is it
        its me my no nor not of on one or our out over she should so some such than that the their them then there these
        they this those to up upon was we were what when where which who will with would you your
""",
    )
)
"""Words that say nothing by themselves."""


@dataclass(frozen=True)
class Sentence:
    """A sentence that is kept.

    Attributes:
        text: without the mark of a bullet, and without space around it; a heading begins with `#`.
        bullet: whether it began with the mark of one.
        begins: whether it begins a line.
    """

    text: str
    bullet: bool
    begins: bool


class Listener:
    """Takes sentences one by one, and tells which of them to keep and when to stop.

    Args:
        words: how many were asked for; not many more are kept.
        asked: the instructions, which a model may echo.
        headings: whether headings are kept.
    """

    def __init__(self, words: int, asked: str, *, headings: bool = False) -> None:
        self._most = _TOO_LONG * words
        self._asked = " ".join(words_of(asked))
        self._headings = headings
        self._said: list[frozenset[str]] = []
        self._rows: set[tuple[str, ...]] = set()
        self._repeated = 0
        self._begins = True
        self.words = 0
        """How many are kept."""
        self.done = False
        """Whether the model need not go on."""

    def take(self, sentence: str) -> Sentence | None:
        """The sentence as it is kept; None if it is not."""
        begins, self._begins = self._begins, sentence.rstrip(" ").endswith("\n")
        bullet = is_bullet(sentence) or _BULLET.match(sentence) is not None
        text = " ".join(_BULLET.sub("", sentence).split())
        heading = re.match(r"#{1,6}\s+(?=\S)", text) or re.fullmatch(r"\*\*[^*]{1,80}:?\*\*:?", text)
        words = words_of(text)
        if not words or _PREAMBLE.match(text):
            return None
        if heading:
            return Sentence("## " + text.strip("#* ").rstrip(":"), False, True) if self._headings else None
        distinct = frozenset(words)
        if len(words) >= _LOOP_WORDS and len(distinct) < _LOOP * len(words):
            self.done = True
            return None
        if " ".join(words) in self._asked and len(words) > _FEW:
            return None
        rows = [tuple(words[place : place + _ROW]) for place in range(len(words) - _ROW + 1)]
        new = set(rows) - self._rows
        stale = bool(rows) and (len(new) <= (1 - _STALE) * len(rows) or _stutters(words))
        if stale or any(len(distinct & other) >= _ALIKE * len(distinct | other) for other in self._said):
            self._repeated += 1
            self.done = self.done or self._repeated >= _REPEATED
            return None
        if self.words and self.words + len(words) > self._most:
            self.done = True
            return None
        self._said.append(distinct)
        self._rows |= new
        self.words += len(words)
        return Sentence(text, bullet, begins)

    @property
    def enough(self) -> bool:
        """Whether what is kept is a summary at all."""
        return self.words >= _FEW


def kept(pieces: Iterator[str], listener: Listener, is_cut: Callable[[], bool]) -> Iterator[Sentence]:
    """Sentences of an answer that comes in pieces, as soon as each is complete; ends early where the rest is of no use.

    Args:
        pieces: of the answer.
        listener: chooses.
        is_cut: asked at the end: whether a limit cut the answer off, so that its last sentence may be half of one.
    """
    held: str | None = None
    for sentence in sentences(pieces):
        if held is not None and _continues(held, sentence):
            held = f"{held.rstrip()} {sentence.lstrip()}"
            continue
        if held is not None and (found := listener.take(held)):
            yield found
        held = sentence
        if listener.done:
            return
    if held is not None and (_ENDED.search(held) or not is_cut() or not listener.enough) and (found := listener.take(held)):
        yield found


def _continues(sentence: str, more: str) -> bool:
    """Whether it is the rest of the same sentence, after a number or an abbreviation or where a model breaks lines."""
    if re.fullmatch(r"\s*\d{1,2}[.)]\s*", sentence):  # the number of a list's entry
        return True
    if len(sentence) > _LONGEST or sentence.lstrip().startswith("#") or is_bullet(more):
        return False
    return ABBREVIATION.search(sentence) is not None or (more[:1].islower() and not _ENDED.search(sentence))


def _stutters(words: Sequence[str]) -> bool:
    rows = [tuple(words[place : place + _TWICE]) for place in range(len(words) - _TWICE + 1)]
    return len(set(rows)) < len(rows)


def words_of(text: str) -> list[str]:
    """The words of a text in small letters; each character of Chinese and Japanese is one."""
    return [word.lower() for word in _WORD.findall(text)]


def central(text: str, words: int) -> list[Sentence]:
    """The sentences of a text that have most of its usual words, in their order: about `words` words, at least one sentence."""
    lines = re.sub(r"^```.*?^```[^\n]*$", "", text, flags=re.M | re.S)
    lines = re.sub(r"^[ \t]*(?:#{1,6}[ \t]|Document: |```|\|)[^\n]*$", "", lines, flags=re.M)
    found = [" ".join(_BULLET.sub("", each).split()) for each in _END.split(lines)[:_MOST_SENTENCES]]
    told = [(each, words_of(each)) for each in found if each]
    long = (
        [pair for pair in told if len(pair[1]) >= _FEW and pair[0][-1] in _STOPS]
        or told
        or [(" ".join(text.split()), words_of(text))]
    )
    count = Counter(word for _, each in long for word in set(each) - COMMON)

    def worth(place: int) -> float:
        own = set(long[place][1]) - COMMON
        return sum(count[word] - 1 for word in own) / (len(long[place][1]) + 8)

    chosen: list[int] = []
    said: set[frozenset[str]] = set()
    size = 0
    for place in sorted(range(len(long)), key=lambda place: (-worth(place), place)):
        own = frozenset(long[place][1])
        if own in said or (chosen and size + len(long[place][1]) > words):
            continue
        said.add(own)
        chosen.append(place)
        size += len(long[place][1])
    return [Sentence(_shortened(long[place][0], words), False, True) for place in sorted(chosen)]


def _shortened(sentence: str, words: int) -> str:
    """A sentence of no more than about so many words."""
    found = list(_WORD.finditer(sentence))
    return sentence if len(found) <= 2 * words else f"{sentence[: found[words].start()].rstrip()} …"
