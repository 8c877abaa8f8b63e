"""What a maker of exercises returns, and how it writes numbers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from random import Random

from deepen.apps.tutor.exercise import Form
from deepen.apps.tutor.turn import Level


@dataclass(frozen=True)
class Draft:
    """An exercise with numbers of its own; the fields are those of `Exercise`."""

    question: str
    answer: str
    guide: str
    hint: str
    step: str
    worked: str
    form: Form = "number"
    unit: str = ""


@dataclass(frozen=True)
class Skill:
    """Something that can be practised with new numbers each time.

    Attributes:
        name: what it is called.
        level: for whom.
        rule: how it is done, in a sentence or two without numbers that could be an answer.
        make: makes an exercise from random numbers.
    """

    name: str
    level: Level
    rule: str
    make: Callable[[Random], Draft]


def decimal(value: Fraction | int) -> str:
    """A number as a decimal, which must end."""
    value = Fraction(value)
    digits = next(places for places in range(30) if (value * 10**places).denominator == 1)
    text = f"{abs(int(value * 10**digits)):0{digits + 1}d}"
    whole = f"{text[: len(text) - digits]}.{text[len(text) - digits :]}" if digits else text
    return f"-{whole}" if value < 0 else whole


def signed(value: int) -> str:
    """A number to stand behind an operator: in brackets if it is negative."""
    return f"({value})" if value < 0 else str(value)


def plus(value: int) -> str:
    """A number as a term that is added: ` + 3` or ` - 3`."""
    return f" {'+' if value >= 0 else '-'} {abs(value)}"
