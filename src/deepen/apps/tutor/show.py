"""Texts that the tutor always says in the same way."""

from __future__ import annotations

from deepen.apps.tutor.turn import Progress
from deepen.errors import printable

HELPED = {"question": "Think about it", "hint": "Hint", "step": "First step", "worked": "Worked answer"}
"""What help on a rung begins with."""

HELP = (
    "Write your answer, or:\n"
    "/hint      help, one rung more\n"
    "/skip      leave this exercise; it comes again\n"
    "/explain   explain the topic\n"
    "/progress  how you stand\n"
    "/quit      leave; the lesson goes on here next time"
)


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
