"""When something comes up again, how much of a topic is mastered, and when the level changes: pure functions.

Leitner's boxes (Sebastian Leitner, "So lernt man lernen", 1972): what was solved without help moves to the next box, what had
to be shown moves back to the first one, and each box is opened half as often as the one before it.
"""

from __future__ import annotations

from collections.abc import Sequence

from deepen.apps.tutor.ladder import State
from deepen.apps.tutor.turn import LEVELS, RUNGS, Level

BOXES = 5
RECENT = 10
"""Exercises that mastery is measured over."""

_DAY = 86_400.0
_UP, _DOWN = (5, 0.9), (3, 0.25)  # so many exercises in a row with at least, or at most, so much credit each on average


def next_box(box: int, end: State) -> int:
    """The box after an exercise: one on if it was solved without help, the first if it was shown or skipped, else the same."""
    if end.end != "solved":
        return 1
    return min(box + 1, BOXES) if end.rung == "attempt" else box


def seconds_until_due(box: int) -> float:
    """How long something in a box rests: the first not at all, the second a day, then 2, 4 and 8 days."""
    return 0.0 if box == 1 else _DAY * 2 ** (box - 2)


def credit(end: State) -> float:
    """How much of an exercise was done without help: 1 without any, a quarter less for each rung, nothing if it was left."""
    return 0.0 if end.end != "solved" else 1 - RUNGS.index(end.rung) / (len(RUNGS) - 1)


def mastery(earned: Sequence[float]) -> float:
    """The mean credit of the last ten exercises; those that are still missing count as nothing."""
    return sum(earned[-RECENT:]) / RECENT


def next_level(level: Level, earned: Sequence[float]) -> Level:
    """The level after exercises on this level, the latest one last: up after five good ones, down after three bad ones."""
    place = LEVELS.index(level)
    if len(earned) >= _UP[0] and sum(earned[-_UP[0] :]) >= _UP[0] * _UP[1]:
        return LEVELS[min(place + 1, len(LEVELS) - 1)]
    if len(earned) >= _DOWN[0] and sum(earned[-_DOWN[0] :]) <= _DOWN[0] * _DOWN[1]:
        return LEVELS[max(place - 1, 0)]
    return level
