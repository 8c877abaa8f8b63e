"""Numbers and names in a text, so that those that stand in no source can be told: decided by spelling, without a model."""

from __future__ import annotations

import re
from collections.abc import Iterator, Set
from dataclasses import dataclass
from fractions import Fraction

_SCALES = {"hundred": 100, "thousand": 1000, "million": 10**6, "billion": 10**9, "trillion": 10**12}
_FIRST = re.findall(r"\w+", "one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen")
_SPELT = {word: value for value, word in enumerate(_FIRST, start=1) if value > 1} | {
    "seventeen": 17, "eighteen": 18, "nineteen": 19, "twenty": 20, "thirty": 30, "forty": 40, "fifty": 50, "sixty": 60,
    "seventy": 70, "eighty": 80, "ninety": 90, "dozen": 12,
}  # fmt: skip
_MONTH_NAMES = "january february march april may june july august september october november december"
_MONTHS = {month: number for number, month in enumerate(re.findall(r"\w+", _MONTH_NAMES), start=1)}
_TENS = "|".join(word for word, value in _SPELT.items() if value >= 20 and value % 10 == 0)
_NUMBER = re.compile(
    rf"(?P<digits>\d+(?:[.,:'\u2019]\d+)*)|\b(?:(?P<tens>{_TENS})-(?P<unit>{'|'.join(_FIRST[:9])})"
    rf"|(?P<spelt>{'|'.join(_SPELT)}|hundred|thousand|million|billion|trillion))\b",
    re.I,
)
_SCALE = re.compile(rf"[ \u00a0-]*({'|'.join(_SCALES)})\b", re.I)
_WORD = re.compile(r"[^\W\d_][\w'\u2019.&-]*")
# after these a capital says nothing
_BEFORE_A_SENTENCE = re.compile(r"(?:^|[.!?:;\u2026\n\u201c\"(\[*_>|#\u2022\u2013\u2014]|(?:^|\n)\s*(?:[-*+]|\d{1,3}[.)]))\s*$")
_TITLE = re.compile(r"\b(?:Dr|Mr|Mrs|Ms|Prof|St)\.\s*$")
_NO_NAMES = frozenset(re.findall(r"\S+", "i i'm i'll i've i'd ok tv pdf q&a faq a.m p.m mr mrs ms dr"))
_NOUNS_HAVE_CAPITALS = 0.3  # of the words inside sentences have a capital: German, or a title; capitals tell nothing then


@dataclass(frozen=True)
class Number:
    """A number in a text.

    Attributes:
        text: as it stands there.
        values: what it may mean: `1.000` is a thousand in some languages.
    """

    text: str
    values: frozenset[Fraction | str]


def numbers(text: str) -> list[Number]:
    """The numbers of a text in digits and in words, each once; `one` and ordinals in words are none.

    `1,000` and `1000`, `5 million` and `5,000,000`, `two` and `2` are equal; signs and units do not count.
    """
    found: dict[str, Number] = {}
    place = 0
    for match in _NUMBER.finditer(text):
        if match.start() < place:
            continue
        place, values = match.end(), _values(match)
        while scale := _SCALE.match(text, place):
            place = scale.end()
            values = frozenset(each * _SCALES[scale[1].lower()] for each in values if isinstance(each, Fraction))
        told = text[match.start() : place]
        found.setdefault(told.lower(), Number(told, values))
    return list(found.values())


def months(text: str) -> frozenset[Fraction]:
    """The numbers of the months that a text names, so that `2026-11-24` may rest on `24 November 2026`."""
    return frozenset(Fraction(_MONTHS[word]) for word in re.findall(r"[a-z]+", text.lower()) if word in _MONTHS)


def values(text: str) -> frozenset[Fraction | str]:
    """All that the numbers of a text may mean, months included."""
    return frozenset().union(*(each.values for each in numbers(text)), months(text))


def unknown_numbers(text: str, source: str) -> list[Number]:
    """The numbers of a text that a source does not have."""
    known = values(source)
    return [each for each in numbers(text) if not each.values & known]


def names(text: str) -> list[str]:
    """The names of a text, each once: words with a capital that do not begin a sentence; neighbours are one name.

    None in a text that writes many words with a capital, as German does.
    """
    found: dict[str, None] = {}
    words = list(_WORD.finditer(text))
    inside = [word for word in words if _is_inside(text[max(0, word.start() - 8) : word.start()], word.start() <= 8)]
    capital = [word for word in inside if word[0][0].isupper() and _bare(word[0]) not in _NO_NAMES]
    if len(inside) >= 20 and len(capital) > _NOUNS_HAVE_CAPITALS * len(inside):
        return []
    run: list[re.Match[str]] = []
    for word in [*capital, None]:
        if run and (word is None or text[run[-1].end() : word.start()] != " "):
            found.setdefault(" ".join(each[0].strip(".'\u2019-") for each in run))
            run = []
        if word is not None:
            run.append(word)
    return list(found)


def words(text: str) -> frozenset[str]:
    """The words of a text as names are compared with: in small letters, hyphened ones in parts too, without a possessive."""
    return frozenset(part for word in _WORD.findall(text) for part in _parts(word))


def is_known(name: str, known: Set[str]) -> bool:
    """Whether each word of a name is among `words` of a source."""
    parts = [_parts(word) for word in name.split()]
    return all(each[0] in known or (len(each) > 1 and all(part in known for part in each[1:])) for each in parts)


def _is_inside(before: str, is_start: bool) -> bool:
    """Whether a word after this is not the first one of a sentence."""
    if not is_start:
        before = f"x{before}"  # the cut is no beginning of the text
    return not _BEFORE_A_SENTENCE.search(before) or _TITLE.search(before) is not None


def _parts(word: str) -> list[str]:
    """A word in small letters, and its parts where it has a hyphen."""
    bare = _bare(word)
    return [bare, *(part for part in bare.split("-") if part)] if "-" in bare else [bare]


def _bare(word: str) -> str:
    return re.sub(r"['\u2019]s?$", "", word.strip(".'\u2019-").lower().replace("\u2019", "'"))


def _values(match: re.Match[str]) -> frozenset[Fraction | str]:
    if match["tens"]:
        return frozenset({Fraction(_SPELT[match["tens"].lower()] + _FIRST.index(match["unit"].lower()) + 1)})
    if match["spelt"]:
        word = match["spelt"].lower()
        return frozenset({Fraction(_SPELT.get(word) or _SCALES[word])})
    return frozenset(_readings(match["digits"]))


def _readings(digits: str) -> Iterator[Fraction | str]:
    """What digits with separators may mean: groups of thousands, a decimal fraction; else they stand for themselves."""
    if re.fullmatch(r"\d+", digits):
        yield Fraction(digits)
        return
    grouped = False
    for group, point in ((",", "."), (".", ","), ("'", "."), ("\u2019", ".")):
        if re.fullmatch(rf"\d{{1,3}}(?:\{group}\d{{3}})+(?:\{point}\d+)?", digits):
            grouped = group != "."  # 1.000 is one or a thousand, 1,000 is a thousand
            yield Fraction(digits.replace(group, "").replace(point, "."))
    if not grouped and re.fullmatch(r"\d+[.,]\d+", digits):
        yield Fraction(digits.replace(",", "."))
    yield digits
