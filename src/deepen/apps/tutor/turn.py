"""What a tutor says: turns, and the record of a lesson."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

Level = Literal["beginner", "intermediate", "advanced"]
LEVELS: tuple[Level, ...] = get_args(Level)

Rung = Literal["attempt", "question", "hint", "step", "worked"]
RUNGS: tuple[Rung, ...] = get_args(Rung)
"""The ladder of help: a try of one's own, a guiding question, a narrower hint, the first step, the worked answer."""

Origin = Literal["program", "material", "model"]
"""Who wrote a text: this program, the documents of the lesson, or the model, whose words are not checked."""

Kind = Literal[
    "diagnosis", "level", "explanation", "exercise", "hint", "near", "right", "worked", "skipped", "progress", "help", "end"
]


@dataclass(frozen=True)
class Turn:
    """Something that the tutor says.

    Attributes:
        kind: `diagnosis` is a question that finds the learner's level, and `level` tells it; `explanation`; `exercise` asks;
            `hint` is help on a rung of the ladder; `near` is an answer that is close and does not count as wrong; `right`,
            `worked` and `skipped` end an exercise; `progress` and `help` answer commands; `end` is the end of the lesson.
        text: what the learner reads.
        origin: who wrote it.
        exercise: the question that is open after this turn; empty if none is.
        rung: of the open exercise, or of the one that this turn ends; None in a diagnosis and without an exercise.
        correct: whether the answer before this turn was right; None if there was none.
        judge: who judged it: `program`, or `model` where only the model could.
        place: file and line of the material that it is about; empty if there is none.
        level: the learner's level; None before it is known.
        mastery: of the topic, from 0 to 1: how much of the last ten exercises was done without help.
        box: Leitner's box of the exercise, from 1 to 5; None without an exercise.
        trouble: why the model's words are missing, if its engine failed.
    """

    kind: Kind
    text: str
    origin: Origin = "program"
    exercise: str = ""
    rung: Rung | None = None
    correct: bool | None = None
    judge: Literal["program", "model"] | None = None
    place: str = ""
    level: Level | None = None
    mastery: float = 0.0
    box: int | None = None
    trouble: str = ""


@dataclass(frozen=True)
class Exchange:
    """What a learner entered, and what the tutor said to it.

    Attributes:
        entry: an answer or a command; None at the beginning of a lesson.
        turns: of the tutor.
    """

    entry: str | None
    turns: tuple[Turn, ...]


@dataclass(frozen=True)
class Record:
    """A lesson.

    Attributes:
        learner: whose.
        topic: of it.
        level: at its end; None if the diagnosis was not finished.
        mastery: at its end, from 0 to 1.
        exercises: ended in this lesson.
        solved: of these, the ones that the learner solved.
        events: all of it, in order.
        engine: the one that spoke.
    """

    learner: str
    topic: str
    level: Level | None
    mastery: float
    exercises: int
    solved: int
    events: tuple[Exchange, ...]
    engine: str


@dataclass(frozen=True)
class TopicProgress:
    """How a learner stands in a topic.

    Attributes:
        topic: its name.
        material: the documents that its exercises were made from; empty without.
        level: the learner's; None before it is known.
        mastery: from 0 to 1: how much of the last ten exercises was done without help.
        exercises: ended so far.
        solved: of these, the ones that the learner solved.
        attempts: answers to them.
        rungs: how many exercises ended on each rung.
        boxes: how many things to learn lie in each of Leitner's boxes, the first one first.
        due: when one comes up again next, UTC; empty if none is there.
        is_open: whether an exercise is open.
    """

    topic: str
    material: str
    level: Level | None
    mastery: float
    exercises: int
    solved: int
    attempts: int
    rungs: dict[str, int]
    boxes: tuple[int, ...]
    due: str
    is_open: bool


@dataclass(frozen=True)
class Progress:
    """How a learner stands.

    Attributes:
        learner: whose.
        topics: the one of the latest lesson first.
    """

    learner: str
    topics: tuple[TopicProgress, ...]


@dataclass(frozen=True)
class Forgotten:
    """What was deleted of a learner.

    Attributes:
        learner: whose.
        topics: lessons of so many topics.
        exercises: so many, with their questions.
        attempts: so many answers.
    """

    learner: str
    topics: int
    exercises: int
    attempts: int
