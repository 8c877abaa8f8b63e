"""School mathematics: exercises that the program makes itself, with new numbers each time and answers that it knows."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction
from random import Random

from deepen.apps.tutor.exercise import Exercise
from deepen.apps.tutor.guard import names_answer
from deepen.apps.tutor.skills import algebra, arithmetic, measures, parts
from deepen.apps.tutor.skills.draft import Draft, Skill
from deepen.apps.tutor.turn import LEVELS, Level

__all__ = ["TOPICS", "Skill", "Subject", "example", "find_skills", "make_exercise", "skills_for"]

_TRIES = 500


@dataclass(frozen=True)
class Subject:
    """Skills that belong together.

    Attributes:
        words: beginnings of the words that a topic names it by.
        shared: more of them, which mean it only if the whole topic is mathematics: "powers of ten", not "powers of Europe".
        skills: the easiest first.
    """

    words: str
    shared: str
    skills: tuple[Skill, ...]


_FOUR = tuple(
    skill
    for group in zip(arithmetic.ADDITION, arithmetic.SUBTRACTION, arithmetic.MULTIPLICATION, arithmetic.DIVISION, strict=True)
    for skill in group
)
TOPICS: dict[str, Subject] = {
    "addition": Subject("", "add adding addition sum sums plus", arithmetic.ADDITION),
    "subtraction": Subject("subtract subtraction subtracting", "minus difference taking away", arithmetic.SUBTRACTION),
    "multiplication": Subject("multipl", "times table tables product products", arithmetic.MULTIPLICATION),
    "division": Subject("", "divid division divisions dividing quotient", arithmetic.DIVISION),
    "arithmetic": Subject("arithmetic", "math mathematic maths calculat numbers number sums", _FOUR),
    "order of operations": Subject("pemdas bodmas", "order operations operation brackets parenthes", arithmetic.OPERATIONS),
    "negative numbers": Subject("", "negative integer integers signed", arithmetic.NEGATIVE),
    "powers and roots": Subject("exponent squareroot", "power powers root roots square squares squared index indices",
        arithmetic.POWERS),
    "divisors and multiples": Subject("gcd lcm hcf divisib", "divisor divisors factor factors multiple multiples",
        arithmetic.DIVISORS),
    "fractions": Subject("fraction denominator numerator", "halves quarters", parts.FRACTIONS),
    "decimals": Subject("decimal", "point", parts.DECIMALS),
    "percentages": Subject("percent", "discount discounts", parts.PERCENTAGES),
    "ratios": Subject("proportions proportional", "ratio ratios proportion rule three", parts.RATIOS),
    "equations": Subject("algebra equation", "solving solve linear unknown", algebra.EQUATIONS),
    "quadratics": Subject("quadratic", "", algebra.QUADRATICS),
    "expressions": Subject("polynomial", "expression expressions expand expanding simplify simplifying terms brackets",
        algebra.EXPRESSIONS),
    "sequences": Subject("", "sequence sequences series pattern patterns progression progressions", algebra.SEQUENCES),
    "units": Subject("", "unit units conversion conversions convert converting measurement measurements metric",
        measures.UNITS),
    "geometry": Subject("geometr", "area areas perimeter perimeters volume volumes angle angles triangle triangles rectangle"
        " rectangles",
        measures.GEOMETRY),
    "right triangles": Subject("pythagor hypotenuse", "", measures.PYTHAGORAS),
    "speed": Subject("", "speed speeds distance distances time", measures.SPEED),
    "averages": Subject("", "average averages mean means median medians statistics", measures.AVERAGES),
    "probability": Subject("probabilit", "chance chances", measures.PROBABILITY),
    "interest": Subject("", "interest compound simple", measures.INTEREST),
}  # fmt: skip
"""Subjects by name."""

_FILLERS = frozenset(
    re.findall(
        r"\w+",
        """
    a an the of in on for to and with by my basic basics simple easy hard advanced introduction intro practice practise
    exercises exercise problems problem word school grade class level learn learning how do i beginners two one three up both
    sides different like unlike mixed ten tens long short prime primes rate rates quick mental whole real everyday life
    shopping cooking bakers
""",
    )
)


def find_skills(topic: str, *, strict: bool) -> tuple[Skill, ...]:
    """The skills that a topic names; none if it is no mathematics that the program has exercises for.

    A word such as `fractions` is enough, unless `strict`. A word that means other things too, such as `power`, counts only
    where every word of the topic belongs to mathematics or is a filler.

    Args:
        topic: in plain words.
        strict: every word must belong to mathematics.
    """
    words = re.findall(r"[a-z]+", topic.lower())
    content = [word for word in words if word not in _FILLERS]
    named = [name for name, each in TOPICS.items() if any(word.startswith(tuple(each.words.split())) for word in content)]
    known = [word for word in content if any(_means(word, each) for each in TOPICS.values())]
    whole = len(known) == len(content)
    if not content or (strict and not whole):
        return ()
    if whole and not named:
        # the word that comes first in the topic decides between subjects that both fit
        named = [name for word in content for name, each in TOPICS.items() if _means(word, each)]
        counted = {name: sum(_means(word, TOPICS[name]) for word in content) for name in named}
        named = [name for name in counted if counted[name] == max(counted.values())]
    if "quadratics" in named and "linear" not in words:
        named = [name for name in named if name != "equations"]
    return tuple(dict.fromkeys(skill for name in named for skill in TOPICS[name].skills))


def _means(word: str, subject: Subject) -> bool:
    return word.startswith(tuple(subject.words.split())) or word in subject.shared.split()


def skills_for(skills: tuple[Skill, ...], level: Level) -> tuple[Skill, ...]:
    """The skills of a level; where it has none, those of the nearest one below, or above."""
    place = LEVELS.index(level)
    for near in (*LEVELS[place::-1], *LEVELS[place + 1 :]):
        if found := tuple(skill for skill in skills if skill.level == near):
            return found
    return skills


def make_exercise(skill: Skill, random: Random) -> Exercise:
    """An exercise whose answer stands neither in its question nor in the help before the worked answer."""
    for _ in range(_TRIES):
        draft = skill.make(random)
        exercise = _exercise(skill, draft)
        helps = (draft.guide, draft.hint, draft.step)
        # as it is written, the question must not hold it either; an equal number it may, such as 6/8 for 3/4
        if not _holds((draft.question, *helps), draft.answer) and not any(names_answer(each, exercise) for each in helps):
            return exercise
    raise AssertionError(f"no exercise for {skill.name}")


def example(skill: Skill, random: Random, exercise: Exercise | None) -> str:
    """An example of a skill, worked out, that does not hold the answer of an exercise."""
    for _ in range(_TRIES):
        draft = skill.make(random)
        text = f"{draft.question} {draft.worked}"
        if exercise is None or not names_answer(text, exercise):
            return text
    return ""


def _holds(texts: tuple[str, ...], answer: str) -> bool:
    alone = re.compile(rf"(?<!\d){re.escape(answer)}(?!\d)")
    return any(alone.search(text) or (len(answer) > 1 and answer in text) for text in texts)


def _exercise(skill: Skill, draft: Draft) -> Exercise:
    worked = draft.worked
    if draft.form in {"number", "lowest"} and "/" in draft.answer and (value := Fraction(draft.answer)) > 1:
        whole = int(value)
        worked = f"{worked} As a mixed number that is {whole} {value - whole}."
    return Exercise(
        f"skill: {skill.name}", "program", skill.level, draft.question, draft.answer, draft.form, draft.guide, draft.hint,
        draft.step, worked, draft.unit,
    )  # fmt: skip
