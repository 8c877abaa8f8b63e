r"""The final value of an answer, and whether two values are equal: numbers, LaTeX, tuples, intervals and words.

Values are compared exactly. Commas in numbers, `$` and units are no part of a number, but two different units make two values
different; 50% is 0.5, and also the 50 of an answer that leaves the sign out. 0.33 is not 1/3.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from fractions import Fraction

from deepen.data.algebra import NUMBER, Form, Unreadable, rational, read_form, scaled

_LONGEST, _MOST_NESTED = 400, 60
_MARKERS = re.compile(
    r"(?P<hashes>####)|(?P<boxed>\\(?:boxed|fbox)\s*(?=\{))|(?P<told>\banswer\b\s*(?:\**|_*)\s*(?:(?:is|are)\b\s*:?|[:=])\s*(?:\**|_*))",
    re.IGNORECASE,
)
_SENTENCE_END = re.compile(r"[.!?](?=\s+[A-Z]|\s*$)")
_LONE_NUMBER = re.compile(rf"(?<![\w.,])[-\u2212]?\s?[$€£]?\s?(?:{NUMBER})(?![\w.,]*\d)\s?%?")
_SPACING = re.compile(r"\\(?:[,;:!> ]|quad\b|qquad\b|left\b|right\b|displaystyle\b|limits\b)|~")
_TEXT = re.compile(r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mbox|operatorname|hbox)\s*\{([^{}]*)\}")
_DEGREES = re.compile(r"\s*(?:\^\s*\{?\s*\\circ\s*\}?|°)")
_NAMED = re.compile(r"(?:[a-zA-Z]|\\theta)\s*(?:=|\\in\b|∈)\s*(?=\S)")
_CURRENCY = re.compile(r"([-+]?)\s*([$€£¥])\s*(?=[-+.\d])")
_UNIT = re.compile(r"(?<=[\d)}\]\s])\s+([A-Za-z¢°][A-Za-z¢°./'-]*(?:\^\d)?)((?:\s+[A-Za-z][A-Za-z.,'-]*){0,11})$")
_ATTACHED = re.compile(r"(?<=\d)(km|cm|mm|kg|mg|ml|mL|lb|lbs|ft|mph|kph|am|pm|oz|min|hrs|hr|¢)$")
_NO_UNIT = frozenset({"or", "and", "to", "plus", "minus", "times", "over", "divided", "less", "below", "mod", "remainder"})
_SCALES = {"hundred": 100, "thousand": 1000, "million": 10**6, "billion": 10**9, "trillion": 10**12, "dozen": 12}
_UNITS = {
    "$": "dollar", "usd": "dollar", "€": "euro", "eur": "euro", "£": "pound", "¥": "yen", "¢": "cent", "km": "kilometer",
    "kilometre": "kilometer", "metre": "meter", "m": "meter", "centimetre": "centimeter", "cm": "centimeter",
    "millimetre": "millimeter", "mm": "millimeter", "kg": "kilogram", "g": "gram", "mg": "milligram", "l": "liter",
    "litre": "liter", "ml": "milliliter", "h": "hour", "hr": "hour", "min": "minute", "sec": "second", "lb": "pound",
    "ft": "foot", "feet": "foot", "inche": "inch", "mile": "mile", "mi": "mile", "people": "person", "°": "degree",
    "children": "child", "men": "man", "women": "woman",
}  # fmt: skip
_CHARACTERS = str.maketrans(
    {
        "\u2212": "-",
        "\u2013": "-",
        "\u00d7": "*",
        "·": "*",
        "\u22c5": "*",
        "÷": "/",
        "\u2044": "/",
        "\u00a0": " ",
        "\u202f": " ",
    }
    | {"²": "^2", "³": "^3"}
)
_COMMANDS = {
    "dfrac": r"\frac", "tfrac": r"\frac", "cfrac": r"\frac", "infty": "∞", "pi": "π", "times": "*", "cdot": "*", "div": "/",
}  # fmt: skip
_COMMAND = re.compile(r"\\(dfrac|tfrac|cfrac|infty|pi|times|cdot|div)(?![a-zA-Z])")
_DELIMITED = re.compile(r"^\$([^$]+)\$|\\[()\[\]]")  # $5$ apples
_VULGAR = re.compile("[\u00bc-\u00be\u2150-\u215e]")  # one half and the like
_OPEN, _CLOSE = "([{⟨", ")]}⟩"


@dataclass(frozen=True)
class Value:
    """What an answer says.

    Attributes:
        form: an expression; None for what is none.
        unit: of the expression: a noun in the singular, `%`, or nothing.
        brackets: of a tuple, an interval or a set; nothing for a list without.
        items: their members.
        words: anything else, as text in one spelling.
    """

    form: Form | None = None
    unit: str = ""
    brackets: str = ""
    items: tuple[Value, ...] = ()
    words: str = ""


def final_answer(text: str) -> str | None:
    r"""The value that an answer ends with, as it is written; None if it does not say one.

    It stands behind `####`, in \boxed{}, or behind "the answer is"; the last of these counts. Without any it is the only number
    of the last line, or of what stands behind its last equals sign.
    """
    text = text.strip()
    markers = list(_MARKERS.finditer(text))
    if not markers:
        return _only_number(text)
    last = markers[-1]
    behind = text[last.end() :]
    if last["boxed"]:
        return _in_braces(behind)
    line = behind.strip().split("\n", 1)[0].strip()
    if not last["hashes"] and (end := _SENTENCE_END.search(line)):
        line = line[: end.start()]
    if "=" in line and "," not in line and not is_understood(read_value(line)):  # 6 * 7 = 42
        tail = line.rpartition("=")[2].strip()
        line = tail if is_understood(read_value(tail)) else line
    return line[:_LONGEST] if line.strip(" .*_`$") else None


def same_value(first: Value, second: Value) -> bool:
    """Whether two values are equal; see the head of this module."""
    if first.form is not None and second.form is not None:
        if first.unit == second.unit:
            return first.form == second.form
        if "%" in (first.unit, second.unit):
            percent, other = (first, second) if first.unit == "%" else (second, first)
            number = rational(percent.form) if percent.form is not None else None
            bare = not other.unit and percent.form == other.form and number is not None and abs(number) > 1
            return bare or (
                not other.unit and percent.form is not None and scaled(percent.form, Fraction(1, 100)) == other.form
            )
        return not (first.unit and second.unit) and first.form == second.form
    if first.items and second.items:
        same_kind = first.brackets == second.brackets and len(first.items) == len(second.items)
        return same_kind and (_members_match(first, second))
    return bool(first.words) and first.words == second.words


def is_understood(value: Value) -> bool:
    """Whether a value is more than words."""
    return value.form is not None or (bool(value.items) and all(map(is_understood, value.items)))


def read_value(text: str) -> Value:
    """A value as it is compared."""
    text = _plain(text[:_LONGEST])
    if named := _NAMED.match(text):
        rest = text[named.end() :]
        text = rest if _is_bracketed(rest) or len(_split(rest, thousands=True)) == 1 else text
    nested = sum(map(text.count, _OPEN)) > _MOST_NESTED
    return (None if nested else _list(text)) or _single(text)


def _only_number(text: str) -> str | None:
    lines = text.splitlines()
    if not lines:
        return None
    line = lines[-1]
    if len(lines) == 1 and len(line) <= 60 and is_understood(read_value(line)):
        return line
    found = _LONE_NUMBER.findall(line.rpartition("=")[2])
    return found[0].strip() if len(found) == 1 else None


def _in_braces(text: str) -> str | None:
    depth = 0
    for place, character in enumerate(text):
        depth += (character == "{") - (character == "}")
        if depth == 0:
            return text[text.index("{") + 1 : place].strip() or None
    return None


def _plain(text: str) -> str:
    """The text in one spelling: without marks around it, LaTeX's spacing and its second names for things."""
    text = _strip(_VULGAR.sub(lambda one: f" {unicodedata.normalize('NFKC', one[0])}", text).translate(_CHARACTERS))
    if boxed := re.fullmatch(r"\\(?:boxed|fbox)\s*(\{.*\})", text, re.DOTALL):
        text = _strip(_in_braces(boxed[1]) or "")
    text = _DELIMITED.sub(r"\1", text)
    text = text.replace(r"\{", "⟨").replace(r"\}", "⟩").replace(r"\%", "%").replace(r"\$", "$").replace("{,}", ",")
    text = _TEXT.sub(r" \1 ", _DEGREES.sub(" degrees", _SPACING.sub(" ", text)))
    text = _COMMAND.sub(lambda command: _COMMANDS[command[1]], text)
    return _strip(re.sub(r"\s+(?=\^)", "", re.sub(r"\s+", " ", text)))


def _strip(text: str) -> str:
    before = None
    while text != before:
        before = text
        text = text.strip().strip("*`_").strip().rstrip(".,;:!").strip()
        for begin, end in (("$$", "$$"), ("$", "$"), (r"\(", r"\)"), (r"\[", r"\]")):
            if len(text) > len(begin + end) and text.startswith(begin) and text.endswith(end):
                text = text[len(begin) : -len(end)]
    return text


def _list(text: str) -> Value | None:
    """A tuple, interval, set or list with commas, if the text is one."""
    opened = _is_bracketed(text)
    inner = text[1:-1] if opened else text
    parts = _split(inner, thousands=not opened)
    if len(parts) < 2 or not all(part.strip() for part in parts):
        return None
    items = tuple(_list(part.strip()) or _single(part.strip()) for part in parts)
    return Value(brackets=text[0] + text[-1] if opened else "", items=items)


def _is_bracketed(text: str) -> bool:
    depth = 0
    for place, character in enumerate(text):
        depth += (character in _OPEN) - (character in _CLOSE)
        if depth == 0:
            return place == len(text) - 1 and character in _CLOSE
    return False


def _split(text: str, *, thousands: bool) -> list[str]:
    """The parts between commas that stand in no bracket; a comma in a number like 1,234 parts nothing."""
    parts, depth, begin = [], 0, 0
    inside = {place for found in re.finditer(r"(?<![\d.])\d{1,3}(?:,\d{3})+(?![\d,])", text) for place in range(*found.span())}
    for place, character in enumerate(text):
        depth += (character in _OPEN) - (character in _CLOSE)
        if character == "," and depth == 0 and not (thousands and place in inside):
            parts.append(text[begin:place])
            begin = place + 1
    return [*parts, text[begin:]]


def _members_match(first: Value, second: Value) -> bool:
    if first.brackets not in {"", "⟨⟩"}:
        return all(map(same_value, first.items, second.items))
    left = list(second.items)
    for item in first.items:
        place = next((number for number, other in enumerate(left) if same_value(item, other)), None)
        if place is None:
            return False
        del left[place]
    return True


def _single(text: str) -> Value:
    words = Value(words=" ".join(re.findall(r"[^\s.,;:!?]+", text.casefold())))
    body, unit, factor = text, "", Fraction(1)
    if found := _CURRENCY.match(body):
        body, unit = found[1] + body[found.end() :], _UNITS[found[2]]
    body = re.sub(r"\s*\bper\s?cent\b", "%", body)
    if body.endswith("%"):
        body, unit = body[:-1], "%"
    elif found := _ATTACHED.search(body):
        body, unit = body[: found.start()], _unit(found[1])
    elif found := _UNIT.search(body):
        body, names = body[: found.start()], [found[1], *found[2].split()]
        if names[0].lower() in _SCALES:
            factor = Fraction(_SCALES[names.pop(0).lower()])
        if names and (names[0].lower() in _NO_UNIT or (len(names[0]) == 1 and _unit(names[0]) == names[0].lower())):
            return words
        if names and not unit:
            unit = _unit(names[0])
        elif names and _unit(names[0]) not in {unit, "per", "in", "for", "a", "an", "each", "of"}:
            return words
    try:
        return Value(form=scaled(read_form(body), factor), unit=unit)
    except Unreadable:
        return words


def _unit(name: str) -> str:
    name = name.strip(".,").casefold()
    singular = name[:-1] if len(name) > 2 and name.endswith("s") and not name.endswith("ss") else name
    return _UNITS.get(name) or _UNITS.get(singular) or singular
