"""Texts that the tutor always says in the same way."""

from __future__ import annotations

from deepen.apps.tutor.exercise import Exercise
from deepen.apps.tutor.turn import Progress
from deepen.errors import printable

HELPED = {"question": "Think about it", "hint": "Hint", "step": "First step", "worked": "Worked answer"}
"""What help on a rung begins with."""

_FORMS = {
    "lowest": "in lowest terms", "fraction": "as a fraction", "decimal": "as a decimal number", "percent": "as a percentage"
}  # fmt: skip


def near_text(exercise: Exercise, text: str) -> str:
    """What is said to an answer that is nearly right."""
    if exercise.is_number:
        return f"The value is right; write it {_FORMS.get(exercise.form, 'as one number, worked out')}."
    return f"Close: “{' '.join(text.split())[:60]}” is near to it in spelling or meaning, but it is another word."


def progress_text(progress: Progress) -> str:
    """How a learner stands, for people."""
    lines = [f"{progress.learner}:"]
    for each in progress.topics:
        of = f" ({each.material})" if each.material else ""
        boxes = " ".join(map(str, each.boxes))
        lines.append(
            f"{each.topic}{of}: level {each.level or 'not known yet'}, mastery {each.mastery:.0%},"
            f" {each.solved} of {each.exercises} exercises solved with {each.attempts} answers; boxes {boxes}"
            + (f"; next on {each.due[:10]}" if each.due else "")
        )
    return printable("\n".join(lines))
