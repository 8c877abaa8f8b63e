"""Texts written by a model section by section, of which code says what they rest on and how long they are."""

from deepen.apps.writing.compose import compose
from deepen.apps.writing.facts import Facts, read_facts
from deepen.apps.writing.kinds import FEWEST, KINDS, MOST, Assignment, Planned, check_assignment
from deepen.apps.writing.outline import Outline, read_outline
from deepen.apps.writing.result import Citation, Section, Unsupported, Writing

__all__ = [
    "FEWEST",
    "KINDS",
    "MOST",
    "Assignment",
    "Citation",
    "Facts",
    "Outline",
    "Planned",
    "Section",
    "Unsupported",
    "Writing",
    "check_assignment",
    "compose",
    "read_facts",
    "read_outline",
]
