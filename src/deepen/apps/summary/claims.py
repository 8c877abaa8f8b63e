"""Numbers and names of a text, in whatever form they are written, to be looked for in another."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence
from decimal import Decimal

from deepen.apps.summary.said import ABBREVIATION

_UNITS = re.findall(
    r"\w+",
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen"
    " nineteen",
)
_TENS = re.findall(r"\w+", "twenty thirty forty fifty sixty seventy eighty ninety")
_SCALES = {"hundred": 100, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
_ORDINALS = {
    "first": 1, "second": 2, "third": 3, "fourth": 4, "fifth": 5, "sixth": 6, "seventh": 7, "eighth": 8, "ninth": 9,
    "tenth": 10, "eleventh": 11, "twelfth": 12, "once": 1, "twice": 2, "dozen": 12, "half": 2, "double": 2, "both": 2,
    "couple": 2, "pair": 2, "triple": 3, "thrice": 3, "quarter": 4, "one": 1, **_SCALES,
}  # fmt: skip
_WORDS = {word: value for value, word in enumerate(_UNITS)} | {word: 10 * value for value, word in enumerate(_TENS, start=2)}
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
            shown, wholes, parts = shown + scale[0], {value * _SCALES[scale[1].lower()] for value in wholes}, set()
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
    """Numbers in English words: `two`, `twenty-five`, `three hundred and six thousand`."""
    shown: list[str] = []
    begun = 0
    total = held = 0
    last = 0
    matches = [*re.finditer(r"[A-Za-z]+", text)]
    for place, match in enumerate([*matches, None]):
        word = match[0].lower() if match else ""
        near = match is not None and (not shown or re.fullmatch(r"[ \u00a0\n-]+", text[last : match.start()]) is not None)
        follows = matches[place + 1][0].lower() if place + 1 < len(matches) else ""
        if match and near and word in _WORDS and _fits(held, _WORDS[word]):
            held += _WORDS[word]
        elif match and near and shown and word in _SCALES:
            held *= _SCALES[word]
            if word != "hundred":
                total, held = total + held, 0
        elif match and near and shown and word == "and" and held % 100 == 0 and held and follows in _WORDS:
            last = match.end()
            continue
        else:
            if " ".join(shown).lower() not in {"", "one"}:
                yield text[begun:last], {Decimal(total + held)}, set()
            shown, total, held = [], 0, 0
            if match and word in _WORDS:
                shown, held, begun, last = [match[0]], _WORDS[word], match.start(), match.end()
            continue
        assert match is not None
        begun = begun if shown else match.start()
        shown.append(match[0])
        last = match.end()


def _fits(held: int, value: int) -> bool:
    """Whether a number may follow in the same number: `twenty` `five`, `hundred` `twelve`."""
    return held == 0 or (held % 100 == 0 and value < 100) or (held % 10 == 0 and held % 100 >= 20 and 0 < value < 10)


def _plain(text: str) -> str:
    """Without accents, so that a name is found however it is written."""
    if text.isascii():
        return text
    return "".join(each for each in unicodedata.normalize("NFKD", text) if not unicodedata.combining(each))
