"""Learners in SQLite: what each is asked, where on the ladder it stands, when it comes up again. It never leaves the disk."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, Self

from deepen.apps.tutor import spacing
from deepen.apps.tutor.exercise import Exercise
from deepen.apps.tutor.ladder import State
from deepen.apps.tutor.turn import LEVELS, RUNGS, Forgotten, Level, Progress, TopicProgress
from deepen.database import database_errors, open_own, transaction
from deepen.errors import DataError, OptionError
from deepen.output import data_folder

_VERSION = 1
_SCHEMA = """
CREATE TABLE course (
    id INTEGER PRIMARY KEY, learner TEXT NOT NULL, topic TEXT NOT NULL, material TEXT NOT NULL, level TEXT,
    changed REAL NOT NULL, UNIQUE (learner, topic, material)
);
CREATE TABLE item (
    course INTEGER NOT NULL REFERENCES course (id), key TEXT NOT NULL, box INTEGER NOT NULL, due REAL NOT NULL,
    exercise TEXT NOT NULL, PRIMARY KEY (course, key)
);
CREATE TABLE exercise (
    id INTEGER PRIMARY KEY AUTOINCREMENT, course INTEGER NOT NULL REFERENCES course (id), phase TEXT NOT NULL,
    key TEXT NOT NULL, level TEXT NOT NULL, content TEXT NOT NULL, rung TEXT NOT NULL, attempts INTEGER NOT NULL,
    near INTEGER NOT NULL, ended TEXT, help TEXT NOT NULL
);
CREATE INDEX exercise_course ON exercise (course);
CREATE TABLE attempt (
    exercise INTEGER NOT NULL REFERENCES exercise (id), text TEXT NOT NULL, event TEXT NOT NULL, rung TEXT NOT NULL,
    time REAL NOT NULL
);
CREATE INDEX attempt_exercise ON attempt (exercise);
"""

Phase = Literal["diagnosis", "practice"]


@dataclass(frozen=True)
class Open:
    """The exercise that is open.

    Attributes:
        id: its number in the store.
        phase: whether it finds the level or is practice.
        exercise: what is asked.
        state: on the ladder.
        help: texts that were given for it, the latest last.
    """

    id: int
    phase: Phase
    exercise: Exercise
    state: State
    help: tuple[str, ...]


@dataclass(frozen=True)
class Item:
    """Something to learn that was met.

    Attributes:
        key: of its exercises.
        box: Leitner's.
        due: when it comes up again, in seconds since 1970.
        exercise: the last one.
    """

    key: str
    box: int
    due: float
    exercise: Exercise


class Store:
    """The file `tutor.sqlite` in a folder, for its owner's eyes only; several programs may use it at once.

    Args:
        folder: where it is; the user's data folder unless given.

    Raises:
        OutputError: the file cannot be written, or is something else.
        StorageError: the disk is full or failing.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.file = (folder or data_folder()) / "tutor.sqlite"
        self._database = open_own(self.file, _SCHEMA, _VERSION, self._errors())
        with self._errors():
            self._database.execute("PRAGMA secure_delete = ON")  # what is forgotten is overwritten

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._database.close()

    def course(self, learner: str, topic: str, material: str) -> int:
        """The id of a learner's course, made if there is none."""
        with self._errors(), transaction(self._database):
            self._database.execute(
                "INSERT INTO course (learner, topic, material, changed) VALUES (?, ?, ?, ?)"
                " ON CONFLICT DO UPDATE SET changed = excluded.changed",
                (learner, topic, material, _now()),
            )
            found = "SELECT id FROM course WHERE learner = ? AND topic = ? AND material = ?"
            return int(self._database.execute(found, (learner, topic, material)).fetchone()[0])

    def level(self, course: int) -> Level | None:
        """The learner's level; None before it is known."""
        row = self._row("SELECT level FROM course WHERE id = ?", course)
        return next((each for each in LEVELS if row and each == row[0]), None)

    def set_level(self, course: int, level: Level) -> None:
        """Keep a level."""
        with self._errors(), transaction(self._database):
            self._database.execute("UPDATE course SET level = ? WHERE id = ?", (level, course))

    def current(self, course: int) -> Open | None:
        """The exercise that is open, if one is."""
        row = self._row(
            "SELECT id, phase, content, rung, attempts, near, help FROM exercise WHERE course = ? AND ended IS NULL"
            " ORDER BY id DESC LIMIT 1",
            course,
        )
        if row is None:
            return None
        number, phase, content, rung, attempts, near, help_ = row
        return Open(number, phase, _exercise(content), State(rung, attempts, near), tuple(json.loads(help_)))

    def open(self, course: int, phase: Phase, exercise: Exercise, level: Level) -> None:
        """Begin an exercise, for a learner who is on a level.

        Raises:
            DataError: another one was begun in the meantime.
        """
        with self._errors(), transaction(self._database):
            if self._database.execute("SELECT 1 FROM exercise WHERE course = ? AND ended IS NULL", (course,)).fetchone():
                raise _elsewhere(exercise)
            self._database.execute(
                "INSERT INTO exercise (course, phase, key, level, content, rung, attempts, near, help)"
                " VALUES (?, ?, ?, ?, ?, 'attempt', 0, 0, '[]')",
                (course, phase, exercise.key, level, json.dumps(asdict(exercise))),
            )

    def step(self, course: int, before: Open, state: State, text: str, event: str, help_: str, item: Item | None) -> None:
        """Keep what an answer led to, in one step.

        Args:
            course: its id.
            before: the exercise as it was.
            state: as it is now.
            text: what was entered.
            event: what that was on the ladder.
            help_: what was given for it; empty if nothing was.
            item: when it comes up again, if it has ended.

        Raises:
            DataError: the exercise was answered elsewhere in the meantime.
        """
        helps = json.dumps([*before.help, help_] if help_ else before.help)
        with self._errors(), transaction(self._database):
            changed = self._database.execute(
                "UPDATE exercise SET rung = ?, attempts = ?, near = ?, ended = ?, help = ?"
                " WHERE id = ? AND ended IS NULL AND rung = ? AND attempts = ?",
                (state.rung, state.attempts, state.near, state.end, helps, before.id, before.state.rung, before.state.attempts),
            )
            if not changed.rowcount:
                raise _elsewhere(before.exercise)
            self._database.execute("INSERT INTO attempt VALUES (?, ?, ?, ?, ?)", (before.id, text, event, state.rung, _now()))
            self._database.execute("UPDATE course SET changed = ? WHERE id = ?", (_now(), course))
            if item is not None:
                self._database.execute(
                    "INSERT OR REPLACE INTO item VALUES (?, ?, ?, ?, ?)",
                    (course, item.key, item.box, item.due, json.dumps(asdict(item.exercise))),
                )

    def help(self, before: Open, help_: str) -> None:
        """Keep the words of the help that stands on the rung, in the place of the last."""
        with self._errors(), transaction(self._database):
            helps = json.dumps([*before.help[:-1], help_])
            self._database.execute("UPDATE exercise SET help = ? WHERE id = ? AND ended IS NULL", (helps, before.id))

    def items(self, course: int) -> list[Item]:
        """What was met in a course, what is due first at the front."""
        rows = self._rows("SELECT key, box, due, exercise FROM item WHERE course = ? ORDER BY due, box, key", course)
        return [Item(key, box, due, _exercise(content)) for key, box, due, content in rows]

    def ends(self, course: int, phase: Phase = "practice") -> list[tuple[str, Level, State]]:
        """Exercises that have ended, in order: key, the learner's level, and how each ended."""
        rows = self._rows(
            "SELECT key, level, rung, attempts, near, ended FROM exercise WHERE course = ? AND phase = ? AND ended IS NOT NULL"
            " ORDER BY id",
            course, phase,
        )  # fmt: skip
        return [(key, level, State(*state)) for key, level, *state in rows]

    def questions(self, course: int) -> list[str]:
        """The questions of a course so far."""
        rows = self._rows("SELECT json_extract(content, '$.question') FROM exercise WHERE course = ? ORDER BY id", course)
        return [question for (question,) in rows]

    def mastery(self, course: int) -> float:
        """How much of the last exercises was done without help, from 0 to 1."""
        return spacing.mastery([spacing.credit(state) for _, _, state in self.ends(course)])

    def progress(self, learner: str) -> Progress:
        """How a learner stands.

        Raises:
            OptionError: there is no such learner.
        """
        rows = self._rows(
            "SELECT id, topic, material, level FROM course WHERE learner = ? ORDER BY changed DESC, id DESC", learner
        )
        if not rows:
            raise self._unknown(learner, "--learner")
        return Progress(learner, tuple(self._topic(*row) for row in rows))

    def forget(self, learner: str) -> Forgotten:
        """Delete all that is known of a learner.

        Raises:
            OptionError: there is no such learner.
        """
        with self._errors(), transaction(self._database):
            courses = [number for (number,) in self._database.execute("SELECT id FROM course WHERE learner = ?", (learner,))]
            if not courses:
                raise self._unknown(learner, "--forget")
            attempts = exercises = 0
            for course in courses:
                mine = "DELETE FROM attempt WHERE exercise IN (SELECT id FROM exercise WHERE course = ?)"
                attempts += self._database.execute(mine, (course,)).rowcount
                exercises += self._database.execute("DELETE FROM exercise WHERE course = ?", (course,)).rowcount
                self._database.execute("DELETE FROM item WHERE course = ?", (course,))
            self._database.execute("DELETE FROM course WHERE learner = ?", (learner,))
        with self._errors():
            self._database.execute("VACUUM")
        return Forgotten(learner, len(courses), exercises, attempts)

    def _topic(self, course: int, topic: str, material: str, level: Level | None) -> TopicProgress:
        states = [state for _, _, state in self.ends(course)]
        items = self.items(course)
        boxes = [sum(item.box == box for item in items) for box in range(1, spacing.BOXES + 1)]
        return TopicProgress(
            topic, material, level,
            mastery=spacing.mastery([spacing.credit(state) for state in states]),
            exercises=len(states),
            solved=sum(state.end == "solved" for state in states),
            attempts=sum(state.attempts for state in states),
            rungs={rung: sum(state.rung == rung for state in states) for rung in RUNGS},
            boxes=tuple(boxes),
            due=datetime.fromtimestamp(items[0].due, UTC).isoformat(timespec="seconds") if items else "",
            is_open=self.current(course) is not None,
        )  # fmt: skip

    def _unknown(self, learner: str, option: str) -> OptionError:
        known = [name for (name,) in self._rows("SELECT DISTINCT learner FROM course ORDER BY learner LIMIT 20")]
        there = f"known here: {', '.join(known)}" if known else "nobody has had a lesson here"
        return OptionError(
            f"there is no learner {learner!r}; {there}", where=option, next="name a learner who has had a lesson"
        )

    def _row(self, query: str, *values: object) -> Any:
        return next(iter(self._rows(query, *values)), None)

    def _rows(self, query: str, *values: object) -> Sequence[Any]:
        with self._errors():
            return self._database.execute(query, values).fetchall()

    def _errors(self) -> AbstractContextManager[None]:
        elsewhere = "set DEEPEN_DATA to a folder on another disk"
        return database_errors(
            self.file, "the lesson cannot be kept", full=f"free some space, or {elsewhere}", otherwise=elsewhere
        )


def _exercise(content: str) -> Exercise:
    return Exercise(**json.loads(content))


def _elsewhere(exercise: Exercise) -> DataError:
    return DataError(
        "this lesson went on elsewhere in the meantime", where=exercise.question[:60], next="start again: it continues there"
    )


def _now() -> float:
    return datetime.now(UTC).timestamp()


def due_in(box: int) -> float:
    """When something that is now put into a box comes up again, in seconds since 1970."""
    return _now() + spacing.seconds_until_due(box)
