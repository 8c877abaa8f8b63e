"""From an assignment to a text: an outline, section after section, each drafted, checked and revised."""

from __future__ import annotations

from collections.abc import Callable

from deepen.apps.writing.facts import Facts
from deepen.apps.writing.kinds import Assignment
from deepen.apps.writing.outline import Outline
from deepen.apps.writing.result import Writing
from deepen.engine import Engine
from deepen.journal import Journal


def compose(
    engine: Engine,
    assignment: Assignment,
    *,
    facts: Facts | None = None,
    outline: Outline | None = None,
    outline_only: bool = False,
    revise: bool = True,
    temperature: float = 0.0,
    seed: int | None = None,
    on_text: Callable[[str], None] | None = None,
    on_step: Callable[[str], None] | None = None,
    journal: Journal | None = None,
) -> Writing:
    """Write a text with a model that is loaded already.

    Args:
        engine: the model; not closed here.
        assignment: what shall be written.
        facts: what it may rest on, from `read_facts`.
        outline: its sections; the model plans them unless given.
        outline_only: stop after the outline.
        revise: let the model go over each section once more; without it, sentences come to `on_text` one by one.
        temperature: 0 takes the likeliest token each time, but where the model repeats itself.
        seed: makes sampling repeatable.
        on_text: called with each piece of the text as it is certain; joined they are `Writing.text`.
        on_step: called with a few words on what is being done, for people who wait.
        journal: keeps what is done, for a run that continues this one.

    Raises:
        UnsupportedModelError: nothing that the model wrote could be kept, and there are no facts.
        DataError: the assignment does not fit the model's context.
    """
    raise NotImplementedError
