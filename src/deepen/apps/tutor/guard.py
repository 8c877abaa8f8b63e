"""What a model may say before the worked answer: nothing that gives the answer away, and nothing that is no help.

For an exercise with a number the rule is strict: a number that is not in the question is not let through, in whatever way it is
written. So the answer cannot come through as a number, in words, as a fraction, as a sum, or digit by digit.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Collection
from fractions import Fraction
from itertools import pairwise

from deepen.apps.documents import neutral
from deepen.apps.numbers import in_words, numbers_in_words
from deepen.apps.tutor.exercise import Exercise, plain_words
from deepen.data.algebra import rational
from deepen.data.values import read_value

_LONGEST, _SHORTEST = 60, 4  # words of a hint
_DIGITS = re.compile(r"\d+(?:[.,]\d+)*")
_OVER = re.compile(r"(\d+)\s*(?:/|\\over)\s*(\d+)|\\[dt]?frac\s*\{?\s*(\d+?)\s*\}?\s*\{?\s*(\d+)\s*\}?")
_ROMAN = re.compile(r"\b(?=[IVXLCDM]{2})M*(?:C[MD]|D?C{0,3})(?:X[CL]|L?X{0,3})(?:I[XV]|V?I{0,3})\b")
_LETTERS = re.compile(r"(?:(?<!\w)\w(?:[^\w]{1,3})){3,}")  # f-o-r-t-y
_HARMLESS = frozenset({Fraction(1), Fraction(2), Fraction(3), Fraction(1, 2), Fraction(1, 3), Fraction(1, 4)})
_ADMITS = re.compile(
    r"\b(?:as an ai|language model|i(?:'m| am) sorry|cannot help|the (?:correct |right |final )?answer is)\b", re.I
)


def gives_away(text: str, exercise: Exercise, *, strict: bool = True) -> bool:
    """Whether a text holds the answer of an exercise, or may hold it.

    Args:
        text: of a model.
        exercise: the open one.
        strict: if the answer is a number, no other number is let through either, unless the question has it.
    """
    text = _folded(text)
    question = _folded(exercise.question)
    if any(not each.isascii() and each not in question for each in text if each.isalnum()):
        return True  # letters that only look like others, digits of other scripts
    if exercise.is_number or (rational_of(exercise.answer) is not None and len(plain_words(exercise.answer)) == 1):
        return _tells_number(text, question, exercise.answer, strict)
    return _tells_words(text, question, exercise.answer)


def names_answer(text: str, exercise: Exercise) -> bool:
    """Whether a text of the program's own names the answer: as a number in any form, or as words, wherever it stands."""
    text = _folded(text)
    value = rational_of(exercise.answer)
    if value is not None and value in _numbers(text) | set(numbers_in_words(text)):
        return True
    if value is not None and re.search(r"(?<!\d)" + re.escape(exercise.answer) + r"(?!\d)", text):
        return True
    if exercise.answer.replace(" ", "") in text.replace(" ", ""):
        return value is None
    return value is None and not exercise.is_number and _tells_words(text, "", exercise.answer)


def rational_of(answer: str) -> Fraction | None:
    """The number that an answer is, if it is one."""
    value = read_value(answer)
    return None if value.form is None else rational(value.form)


def _tells_number(text: str, question: str, answer: str, strict: bool) -> bool:
    known, value = _numbers(question), rational_of(answer)
    said = Counter(_numbers(text))
    if strict and any(each not in known for each in said):
        return True
    words = set(numbers_in_words(text))
    if value is not None and value in (words | set(said)):
        return True
    if strict and (any(each not in known and each not in _HARMLESS for each in words) or _ROMAN.search(text)):
        return True
    if _LETTERS.search(text):
        return True
    letters, digits = re.sub(r"[\W_]", "", text), re.sub(r"\D", "", text)
    bare = re.sub(r"[\W_]", "", _folded(answer))
    if (len(bare) > 1 or not bare.isdigit()) and bare and (bare in letters or (bare.isdigit() and bare in digits)):
        return bare not in re.sub(r"[\W_]", "", question)
    if value is None:
        return False
    spelt = [in_words(each) for each in (abs(value.numerator), value.denominator) if 2 <= each < 10**6]
    return any(len(name := re.sub(r"\W", "", each)) > 4 and name in letters.lower() for each in spelt)


def _tells_words(text: str, question: str, answer: str) -> bool:
    letters = re.sub(r"[\W_]", "", text.casefold())
    whole = re.sub(r"[\W_]", "", answer.casefold())
    if len(whole) > 3 and (whole in letters or whole[::-1] in letters):
        return True
    known, said = set(plain_words(question)), plain_words(text)
    secret = [each for each in plain_words(answer) if each not in known]
    if any(_alike(each, other) for each in secret for other in said):
        return True
    return any(len(each) > 3 and (each in letters or each[::-1] in letters) for each in secret) or bool(_LETTERS.search(text))


def _alike(secret: str, said: str) -> bool:
    """Whether two words are one, or one with another ending or a slip of the pen."""
    if secret == said:
        return True
    stem = secret[: max(4, 3 * len(secret) // 5)]
    return len(secret) > 4 and (said.startswith(stem) or _one_slip(secret, said))


def _one_slip(one: str, other: str) -> bool:
    if abs(len(one) - len(other)) > 1:
        return False
    start = next((place for place, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
    return one[start + 1 :] == other[start + 1 :] or one[start:] == other[start + 1 :] or one[start + 1 :] == other[start:]


def _folded(text: str) -> str:
    """The text without accents, invisible characters and characters in other widths."""
    text = unicodedata.normalize("NFKD", text.translate({0x2044: "/", 0x2212: "-"}))
    return "".join(each for each in text if unicodedata.category(each) not in {"Mn", "Cf", "Cc"} or each in "\n\t")


def _numbers(text: str) -> set[Fraction]:
    """Numbers in digits; of a fraction also its parts."""
    found: set[Fraction] = set()
    for each in _DIGITS.findall(text):
        bare = each.replace(",", "")
        found.add(Fraction(bare) if bare.count(".") < 2 else Fraction(-1, 10**9))
        if "," in each:
            found.update(Fraction(part) for part in re.findall(r"\d+", each))
    for over in _OVER.finditer(text):
        above, below = (over[1] or over[3]), (over[2] or over[4])
        if int(below):
            found.add(Fraction(int(above), int(below)))
    return found


def usable(text: str, exercise: Exercise, before: Collection[str], *, question: bool) -> str | None:
    """A hint of a model, cut to whole sentences; None if it gives the answer away, is no help, or was given before.

    Args:
        text: as the model wrote it.
        exercise: the open one.
        before: hints that were given for it.
        question: it must be a question.
    """
    if neutral(text) != text or _ADMITS.search(text):
        return None
    text = " ".join(
        re.sub(r"[*_`#]+", "", re.sub(r"^\s*(?:hint|tutor|answer|question)\s*:", "", text.strip(), flags=re.I)).split()
    )
    cut = _whole_sentences(text)
    if cut is None or gives_away(text, exercise):
        return None
    words = plain_words(cut)
    if len(words) < _SHORTEST or (question and not cut.endswith("?")):
        return None
    common = set(words) & set(plain_words(f"{exercise.question} {exercise.guide} {exercise.hint}"))
    trigrams = Counter(zip(words, words[1:], words[2:], strict=False))
    repeats = any(count > 1 for count in trigrams.values()) or any(one == other for one, other in pairwise(words))
    known = {" ".join(plain_words(each)) for each in (*before, exercise.question)}
    return None if not common or repeats or " ".join(words) in known else cut


def _whole_sentences(text: str) -> str | None:
    ends = [each.end() for each in re.finditer(r"[.!?](?=\s|$)", text)]
    kept = [end for end in ends if len(text[:end].split()) <= _LONGEST]
    return text[: kept[-1]] if kept else None
