"""An exercise with its known answer, and whether what a learner wrote is that answer. No model is asked."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass, replace
from difflib import SequenceMatcher
from fractions import Fraction
from math import gcd
from typing import Literal

from deepen.apps.alike import Alike
from deepen.apps.numbers import with_digits
from deepen.apps.tutor.turn import Level, Origin
from deepen.data.algebra import rational, scaled
from deepen.data.values import Value, final_answer, read_value, same_value

Form = Literal["number", "lowest", "fraction", "decimal", "percent", "expression", "words", "open"]
"""What an answer must be: a number in any form, a fraction in lowest terms, a fraction, a decimal, a percentage, an expression
with letters, a few words; `open` is a sentence that no code can judge."""

Verdict = Literal["right", "near", "wrong", "stuck", "open"]

LONGEST_ANSWER = 2000
_STUCK = re.compile(
    r"(?:i(?:'m| am)? )?(?:(?:really |honestly )?(?:do not|don't|dont) (?:know|understand|get it)|(?:have )?no (?:idea|clue)"
    r"|not sure|cannot|can't|give up|pass|idk|help(?: me)?|stuck|hint)(?: (?:this|it|that|please|the answer|how|what to do))*"
    r"|\?+|[^\w]+"
)
_LITERAL = re.compile(
    r"[-+]?\s?[$€£]?\s?[-+]?(?:(?:\d+\s+)?(?P<above>\d+)\s*/\s*(?P<below>\d+)"
    r"|\d*\\[dt]?frac\s?(?:(?P<first>\d)(?P<second>\d)|\{(?P<top>\d+)\}\{(?P<bottom>\d+)\})"
    r"|(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?|\.\d+)"
    r"\s*(?:%|°?[A-Za-z][A-Za-z .\\]*(?:\^?[23])?(?:/\s?[A-Za-z]+)?)?"
)
_COMMA = re.compile(r"(?<![\d.,])(\d+),(\d{1,2}|\d{4,})(?![\d.,])")  # 0,5 as much of the world writes it
_CHARACTERS = str.maketrans({"\u2212": "-", "\u2013": "-", "\u2044": "/", "\u00a0": " ", "\u202f": " ", "\u2009": " "})
_SMALL = frozenset(["a", "an", "the", "of", "in", "on", "at", "to", "and", "or", "is", "are", "it", "its", "this", "that"])


@dataclass(frozen=True)
class Exercise:
    """Something to do, with all that the program can say about it without a model.

    Attributes:
        key: what comes up again: a skill, whose numbers are new each time, or one question.
        origin: who made it.
        level: for whom.
        question: what is asked.
        answer: the right one, as it is shown.
        form: what an answer must be.
        unit: of the answer, as it is shown; empty if it has none.
        guide: a guiding question.
        hint: a narrower hint.
        step: the first step.
        worked: all steps, with the answer.
        place: file and line of the material; empty without.
        about: the passage that it was made from, as data for a model; empty without.
    """

    key: str
    origin: Origin
    level: Level
    question: str
    answer: str
    form: Form
    guide: str
    hint: str
    step: str
    worked: str
    unit: str = ""
    place: str = ""
    about: str = ""

    @property
    def is_number(self) -> bool:
        """Whether the answer is a number or an expression."""
        return self.form not in {"words", "open"}


def judge(exercise: Exercise, text: str, alike: Alike | None = None) -> Verdict:
    """Whether an answer is right.

    Args:
        exercise: with the answer that is known.
        text: what the learner wrote, a word or a sentence that says the answer.
        alike: words that mean nearly the same, if they are known.

    Returns: `near` for a word that is spelt or means nearly the same, or the right value in another form than was asked for;
        `stuck` for one that is no try; `open` if code cannot tell.
    """
    text = unicodedata.normalize("NFKC", text.replace("½", " 1/2").replace("¼", " 1/4").replace("¾", " 3/4"))
    text = text.translate(_CHARACTERS).strip()
    if _STUCK.fullmatch(text.casefold().rstrip(" .!?") or "?"):
        return "stuck"
    if exercise.is_number:
        return _judge_number(exercise, text)
    return _judge_words(exercise, text, alike)


def _judge_number(exercise: Exercise, text: str) -> Verdict:
    if exercise.form != "expression":
        text = _spelt_out(text)
    if re.search(r"\bnot\b|n't\b", re.sub(r"\bnot (?:quite )?(?:sure|certain)\b", "", text), re.I):
        return "wrong"
    wanted = read_value(f"{exercise.answer} {exercise.unit}".strip())
    found = final_answer(text) or (text if len(text) < 100 else "")
    for written in dict.fromkeys((found, _COMMA.sub(r"\1.\2", found))):
        if same_value(wanted, _bare_percent(wanted, read_value(written))):
            return "right" if exercise.form == "expression" else _judge_form(exercise, wanted, written)
    return "wrong"


def _spelt_out(text: str) -> str:
    """The text with digits for numbers in words, spaces before units, and no reasons."""
    text = with_digits(re.split(r",?\s+(?:because|since)\b", text, maxsplit=1, flags=re.I)[0])
    text = re.sub(r"(?<=\d) (?=\d{3}(?![\d/]))", "", text)
    text = re.sub(r"(?<=\d)(?=(?!e\d)[A-Za-z°])", " ", text)
    text = re.sub(r"\b(?:km?ph|kmh)\b", "km/h", text)
    return re.sub(r"\b([cmk]?m|ft|in)([23])\b", r"\1^\2", text)


def _bare_percent(wanted: Value, value: Value) -> Value:
    """50% is not 50, unless percent is what was asked for."""
    if value.unit == "%" and not wanted.unit and value.form is not None:
        return replace(value, form=scaled(value.form, Fraction(1, 100)), unit="")
    return value


def _judge_form(exercise: Exercise, wanted: Value, written: str) -> Verdict:
    """The value is right; whether it is written as a result, and in the form that was asked for."""
    body = re.sub(r"^[^\W\d]\s*=\s*", "", written.strip().strip("$*`_ .?!").removeprefix(r"\(").removesuffix(r"\)").strip())
    found = _LITERAL.fullmatch(body)
    if found is None:
        return "wrong"  # 6*7 is the question
    below = int(found["below"] or found["second"] or found["bottom"] or 0)
    above = int(found["above"] or found["first"] or found["top"] or 0)
    value = rational(wanted.form) if wanted.form is not None else None
    whole = value is not None and value.denominator == 1
    if below and whole and exercise.form != "fraction":
        return "near"  # 12/4 is no result
    fits = {
        "lowest": whole or (below and gcd(above, below) == 1),
        "fraction": below or whole,
        "decimal": not below and "%" not in written,
        "percent": not below,
    }
    return "right" if fits.get(exercise.form, True) else "near"


def _judge_words(exercise: Exercise, text: str, alike: Alike | None) -> Verdict:
    wanted, found = plain_words(exercise.answer), plain_words(_said(text))
    if found and found == wanted:
        return "right"
    as_number = read_value(exercise.answer)
    if as_number.form is not None and same_value(as_number, read_value(final_answer(text) or text)):
        return "right"
    if exercise.form == "open":
        return "open"
    if not found or len(found) > len(wanted) + 12:
        return "wrong"
    if _stems(found) == _stems(wanted):
        return "right"
    if len(found) == len(wanted) and all(map(_misspelt, wanted, found)):
        return "near"
    if alike is not None and len(wanted) == len(found) == 1 and found[0] in alike.near(wanted[0]):
        return "near"
    return "wrong"


def _said(text: str) -> str:
    """The answer in a sentence such as "I think it is the account key"."""
    told = re.search(r"\b(?:answer|word|it|number)\b\s*(?:is|must be|might be|could be|was|=|:)+\s*(.+)$", text, re.I)
    return told[1] if told else text


def plain_words(text: str) -> list[str]:
    """The words of a text in small letters, without accents and small words."""
    folded = unicodedata.normalize("NFKD", text.casefold())
    bare = "".join(each for each in folded if not unicodedata.combining(each))
    found = re.findall(r"\w+(?:[.,]\d+)*", bare.replace("'", "").replace("\u2019", ""))
    return [each for each in found if each not in _SMALL] or found


def _stems(words: list[str]) -> list[str]:
    return [each[:-1] if len(each) > 3 and each.endswith("s") and not each.endswith("ss") else each for each in words]


def _misspelt(wanted: str, found: str) -> bool:
    if wanted == found:
        return True
    if any(each.isdigit() for each in wanted + found) or min(len(wanted), len(found)) < 4:
        return False
    return SequenceMatcher(None, wanted, found, autojunk=False).ratio() >= 0.8
