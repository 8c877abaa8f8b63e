"""Numbers in words: "forty-two", "three quarters", "minus one half"."""

from __future__ import annotations

import re
from fractions import Fraction

_ONES: tuple[str, ...] = tuple(
    re.findall(
        r"\w+",
        "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen"
        " eighteen nineteen",
    )
)
_TENS = {"twenty": 20, "thirty": 30, "forty": 40, "fifty": 50, "sixty": 60, "seventy": 70, "eighty": 80, "ninety": 90}
_TENS |= {"fourty": 40}
_SMALL = {word: value for value, word in enumerate(_ONES)} | _TENS
LARGE = {"hundred": 100, "thousand": 1000, "million": 10**6, "billion": 10**9, "trillion": 10**12}
_ORDINALS = {
    "half": 2, "third": 3, "quarter": 4, "fourth": 4, "fifth": 5, "sixth": 6, "seventh": 7, "eighth": 8, "ninth": 9,
    "tenth": 10, "eleventh": 11, "twelfth": 12, "fifteenth": 15, "sixteenth": 16, "twentieth": 20, "hundredth": 100,
    "thousandth": 1000,
}  # fmt: skip
_PARTS = _ORDINALS | {f"{word}s": value for word, value in _ORDINALS.items()} | {"halves": 2, "halfs": 2}
_WORD = re.compile(r"[a-z]+|\d+(?:[.,]\d+)*|[^\sa-z\d-]")


def numbers_in_words(text: str) -> list[Fraction]:
    """The numbers that a text says in English words, in order; a fraction as one."""
    return [value for _, _, value in spelled_numbers(text)]


def with_digits(text: str) -> str:
    """The text with digits in the place of numbers in words."""
    pieces, place = [], 0
    for start, end, value in spelled_numbers(text):
        pieces += [text[place:start], str(value)]
        place = end
    return "".join([*pieces, text[place:]])


def spelled_numbers(text: str) -> list[tuple[int, int, Fraction]]:
    """Numbers in English words with their places, in order; a fraction is one."""
    words = [(each.start(), each.end(), each[0]) for each in _WORD.finditer(text.lower())]
    found, place = [], 0
    while place < len(words):
        end, value = _number(words, place)
        if end == place:
            place += 1
            continue
        start = words[place][0]
        if place and words[place - 1][2] in {"minus", "negative"}:
            start, value = words[place - 1][0], -value
        found.append((start, words[end - 1][1], value))
        place = end
    return found


def _number(words: list[tuple[int, int, str]], place: int) -> tuple[int, Fraction]:
    """The number that begins at a word, and the place after it; the same place if none does."""
    end, value = _whole(words, place)
    if end == place:
        # half of it, a quarter: but "the second third" begins no fraction with its first word
        alone = words[place][2] in {"half", "quarter", "third"}
        return (place + 1, Fraction(1, _PARTS[words[place][2]])) if alone else (place, Fraction(0))
    if end < len(words) and words[end][2] in _PARTS:
        return end + 1, Fraction(value, _PARTS[words[end][2]])
    if end < len(words) and words[end][2] == "over":
        last, below = _whole(words, end + 1)
        if last > end + 1 and below:
            return last, Fraction(value, below)
    if end < len(words) and words[end][2] == "point":
        digits, last = "", end + 1
        while last < len(words) and _SMALL.get(words[last][2], 10) < 10:
            digits += str(_SMALL[words[last][2]])
            last += 1
        if digits:
            return last, Fraction(f"{value}.{digits}")
    if end + 1 < len(words) and words[end][2] == "and":
        last, part = _whole(words, end + 1)
        part, last = (1, end + 2) if last == end + 1 and words[end + 1][2] == "a" else (part, last)
        if last > end + 1 and last < len(words) and words[last][2] in _PARTS:
            return last + 1, value + Fraction(part, _PARTS[words[last][2]])
    return end, Fraction(value)


def _whole(words: list[tuple[int, int, str]], place: int) -> tuple[int, int]:
    total = part = 0
    start, before = place, 100
    while place < len(words):
        word = words[place][2]
        if word in _SMALL:
            value = _SMALL[word]
            if value >= before or (before < 20):  # "five six" are two numbers
                break
            part, before = part + value, value
        elif word in LARGE:
            part = part or (0 if total else 1)  # a hundred
            if word == "hundred":
                part *= 100
            else:
                total, part = total + part * LARGE[word], 0
            before = 100
        elif word == "and" and place > start and words[place - 1][2] in LARGE and _is_small(words, place + 1):
            pass
        else:
            break
        place += 1
    return place, total + part


def _is_small(words: list[tuple[int, int, str]], place: int) -> bool:
    return place < len(words) and words[place][2] in _SMALL and (place + 1 >= len(words) or words[place + 1][2] not in _PARTS)


def in_words(value: int) -> str:
    """A whole number from 0 to 999,999 in English words."""
    if value >= 1000:
        rest = value % 1000
        return f"{in_words(value // 1000)} thousand{f' {in_words(rest)}' if rest else ''}"
    if value >= 100:
        rest = value % 100
        return f"{_ONES[value // 100]} hundred{f' and {in_words(rest)}' if rest else ''}"
    if value < 20:
        return _ONES[value]
    tens = next(word for word, number in _TENS.items() if number == value // 10 * 10)
    return f"{tens}-{_ONES[value % 10]}" if value % 10 else tens
