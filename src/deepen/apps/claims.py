"""Numbers and names of a text, in whatever form they are written, to be looked for in another."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence
from decimal import Decimal

from deepen.apps.numbers import LARGE, spelled_numbers

ABBREVIATION = re.compile(
    r"(?:\b(?:Mr|Mrs|Ms|Dr|St|Prof|Gen|Col|Capt|Lt|Sgt|Rev|Hon|Sen|Rep|Gov|Sr|Jr|vs|cf|No|Fig|Nos|Vol|approx)|\be\.g|\bi\.e"
    r"|(?<![\w.])[A-Z]|\b[A-Z](?:\.[A-Z])+)\.\s*$"
)
"""A full stop that ends no sentence, at the end of a text."""
_ORDINALS = {
    "first": 1, "second": 2, "third": 3, "fourth": 4, "fifth": 5, "sixth": 6, "seventh": 7, "eighth": 8, "ninth": 9,
    "tenth": 10, "eleventh": 11, "twelfth": 12, "once": 1, "twice": 2, "dozen": 12, "half": 2, "double": 2, "both": 2,
    "couple": 2, "pair": 2, "triple": 3, "thrice": 3, "quarter": 4, "one": 1, **LARGE,
}  # fmt: skip
_LONG_MONTHS = re.findall(r"\w+", "january february march april may june july august september october november december")
_MONTHS = {name: number for number, month in enumerate(_LONG_MONTHS, start=1) for name in (month, month[:3])}
_SPACES = "\u00a0\u202f\u2009"
_NUMBER = re.compile(
    rf"\d{{1,3}}(?:[,{_SPACES}'\u2019]\d{{3}})+(?!\d)(?:\.\d+)?|\d{{1,3}}(?: \d{{3}})+(?![\d.,]\d|\d)|\d+(?:[.,:/\u2013-]\d+)*"
)
_SCALE = re.compile(r"[ \u00a0-]?(hundred|thousand|million|billion|trillion)\b", re.I)
_LETTER = re.compile(r"[kmb](?!\w)", re.I)
_LETTERS = {"k": 10**3, "m": 10**6, "b": 10**9}
_WORD = re.compile(r"[^\W\d_]+(?:['\u2019.-][^\W\d_]+)*")
# a heading, a bullet, a sentence, a quotation or a list begins
_BEGINS = re.compile(
    r"(?:^|[.!?…:;]['\"\u201d\u2019)\]*_]*\s+|[\"\u201c\u201e«\u2018(\[]\s*|\n\s*(?:[-*•#>]+|\d+[.)])?\s*|[-*•\u2014\u2013]\s+)[*_]*$"
)
_NO_NAMES = {"I", "I'm", "I\u2019m", "Mr", "Mrs", "Ms", "Dr"}
_NO_NUMBERS = {"one", "half", "quarter", "third", *LARGE}  # by themselves
_LOOK_BACK = 12


class Known:
    """The numbers and words of texts.

    Args:
        texts: what is looked in.
    """

    def __init__(self, texts: Sequence[str]) -> None:
        self.numbers: set[Decimal] = set()
        self.words: set[str] = set()
        for text in texts:
            for _, wholes, parts in _numbers(text):
                self.numbers |= wholes | parts
            small = _plain(text).lower()
            words = set(_WORD.findall(small))
            for known in (_ORDINALS, _MONTHS):
                self.numbers |= {Decimal(known[word]) for word in words & known.keys() - {"may"}}
            if re.search(r"\bMay\b", text):  # the month, most likely
                self.numbers.add(Decimal(5))
            self.words |= words
            for word in words:
                if not word.isalpha():
                    self.words |= {word.replace(".", ""), *re.split(r"['\u2019.-]", word)}

    def has_number(self, wholes: set[Decimal], parts: set[Decimal]) -> bool:
        """Whether a number is there, as a whole or, if it is a date, a time or a range, in its parts."""
        return bool(wholes & self.numbers) or (bool(parts) and parts <= self.numbers)

    def has_name(self, name: str) -> bool:
        """Whether a word is there, in letters of any size, in the singular or the plural."""
        word = _plain(name).lower().replace("\u2019", "'")
        base = re.sub(r"'s?$", "", word)
        forms = {word, base, base.replace(".", ""), base.removesuffix("s"), base.removesuffix("es"), f"{base}s"}
        pieces = re.split(r"['.-]", base)
        return bool(forms & self.words) or set(pieces) <= self.words or _MONTHS.get(base, -1) in self.numbers


def unsupported_numbers(text: str, known: Known) -> list[str]:
    """Numbers of a text, as they stand there, that are not known; `one` and ordinal words are none. Each once, in order."""
    return list(dict.fromkeys(shown for shown, wholes, parts in _numbers(text) if not known.has_number(wholes, parts)))


def unsupported_names(text: str, known: Known) -> list[str]:
    """Words of a text with a capital within a sentence that are not known; each once, in order.

    Headings have capitals of their own, and are not looked at.
    """
    found = []
    for line in text.split("\n"):
        if line.lstrip().startswith("#"):
            continue
        for match in _WORD.finditer(line):
            name = match[0]
            # a word that begins a sentence has a capital in any case, unless it has another one
            before = line[max(0, match.start() - _LOOK_BACK) : match.start()] if match.start() else ""
            begins = _BEGINS.search(before) and not ABBREVIATION.search(before)
            told = name[0].isupper() and (not begins or any(map(str.isupper, name[1:]))) and name not in _NO_NAMES
            if told and not known.has_name(name):
                found.append(re.sub(r"['\u2019]s?$", "", name))
    return list(dict.fromkeys(found))


def _numbers(text: str) -> Iterator[tuple[str, set[Decimal], set[Decimal]]]:
    """Numbers of a text: as they stand there, what each may be as a whole, and the parts of which it may be made."""
    for match in _NUMBER.finditer(text):
        wholes, parts = _readings(match[0])
        shown = match[0]
        if scale := _SCALE.match(text, match.end()):  # what is 1.5 million here may be 1,500,000 there
            shown, wholes, parts = shown + scale[0], {value * LARGE[scale[1].lower()] for value in wholes}, set()
        elif letter := _LETTER.match(text, match.end()):
            wholes = wholes | {value * _LETTERS[letter[0].lower()] for value in wholes}
        yield shown, wholes, parts
    yield from _spelled(text)


def _readings(number: str) -> tuple[set[Decimal], set[Decimal]]:
    if re.fullmatch(rf"\d{{1,3}}(?:[,{_SPACES} '\u2019]\d{{3}})+(?:\.\d+)?", number):
        wholes = {Decimal(re.sub(rf"[,{_SPACES} '\u2019]", "", number))}
        if re.fullmatch(r"\d{1,3},\d{3}", number):  # a comma before decimals in other languages
            wholes.add(Decimal(number.replace(",", ".")))
        return wholes, set()
    if re.fullmatch(r"\d+(?:[.,]\d+)?", number):
        wholes = {Decimal(number.replace(",", "."))}
        if re.fullmatch(r"\d{1,3}\.\d{3}", number):
            wholes.add(Decimal(number.replace(".", "")))
        return wholes, set()
    if re.fullmatch(r"\d{1,3}(?:\.\d{3}){2,}", number):
        return {Decimal(number.replace(".", ""))}, set()
    parts: set[Decimal] = set()
    for piece in re.split(r"[:/\u2013-]", number):
        one = re.fullmatch(r"\d+(?:[.,]\d+)?|\d{1,3}(?:,\d{3})+", piece)
        parts |= {max(_readings(piece)[0])} if one else set(map(Decimal, re.split(r"[.,]", piece)))
    return set(), parts


def _spelled(text: str) -> Iterator[tuple[str, set[Decimal], set[Decimal]]]:
    """Numbers in English words: `two`, `twenty-five`, `three hundred and six thousand`, `two thirds`."""
    for start, end, value in spelled_numbers(text):
        shown = text[start:end]
        if shown.lower() in _NO_NUMBERS:
            continue
        size, below = abs(value.numerator), value.denominator
        is_fraction = below > 1 and "point" not in shown.lower()
        yield shown, {Decimal(size) / below}, {Decimal(size), Decimal(below)} if is_fraction else set()


def _plain(text: str) -> str:
    """Without accents, so that a name is found however it is written."""
    if text.isascii():
        return text
    return "".join(each for each in unicodedata.normalize("NFKD", text) if not unicodedata.combining(each))
