"""The ladder of help as a pure function: a state and what happens give the next state and what the tutor does.

attempt → guiding question → narrower hint → first step → worked answer. It is climbed one rung at a time and never down; the
worked answer comes only after one more answer on the rung of the first step, never for the asking.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from deepen.apps.tutor.turn import RUNGS, Rung

Event = Literal["right", "wrong", "near", "stuck", "hint", "skip"]
"""An answer that is right, wrong, or nearly right; one that is no try, such as "I don't know"; a wish for help; leaving it."""

Action = Literal["praise", "encourage", "question", "hint", "step", "again", "worked", "leave", "nothing"]
"""`again` gives the same help as before; `nothing` is for what comes after the end."""

_HELP: dict[Rung, Action] = {"question": "question", "hint": "hint", "step": "step", "worked": "worked"}


@dataclass(frozen=True)
class State:
    """Where a learner stands in an exercise.

    Attributes:
        rung: of the ladder.
        attempts: answers so far.
        near: of these, the ones that were close and did not count as wrong.
        end: how it ended; None while it is open.
    """

    rung: Rung = "attempt"
    attempts: int = 0
    near: int = 0
    end: Literal["solved", "worked", "skipped"] | None = None


def climb(state: State, event: Event) -> tuple[State, Action]:
    """What becomes of a state, and what the tutor does.

    A second answer that is only near counts as wrong. Wishing for help climbs as a wrong answer does, but never to the worked
    answer.
    """
    if state.end is not None:
        return state, "nothing"
    if event == "skip":
        return replace(state, end="skipped"), "leave"
    tried = state if event == "hint" else replace(state, attempts=state.attempts + 1)
    if event == "right":
        return replace(tried, end="solved"), "praise"
    if event == "near" and not state.near:
        return replace(tried, near=1), "encourage"
    if event == "hint" and state.rung == "step":
        return state, "again"
    rung = RUNGS[RUNGS.index(state.rung) + 1]
    return replace(tried, rung=rung, end="worked" if rung == "worked" else None), _HELP[rung]
