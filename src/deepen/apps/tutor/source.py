"""Where exercises come from: the program's own makers for school mathematics, else the material, else the model."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import Protocol

from deepen.apps.knowledge import Knowledge
from deepen.apps.tutor import speech
from deepen.apps.tutor.exercise import Exercise, plain_words
from deepen.apps.tutor.guard import names_answer
from deepen.apps.tutor.material import find_gaps, make_exercise, sentences
from deepen.apps.tutor.skills import Skill, example, find_skills, skills_for
from deepen.apps.tutor.skills import make_exercise as make_from_skill
from deepen.apps.tutor.speech import Sampling
from deepen.apps.tutor.store import Item
from deepen.apps.tutor.turn import LEVELS, Level
from deepen.engine import Engine
from deepen.errors import UnsupportedModelError

ASSESSMENT = "self-assessment"
_QUOTED = 3  # sentences of the material in an explanation


class Source(Protocol):
    """Makes exercises on a topic."""

    def diagnosis(self, level: Level, random: Random, known: Sequence[str]) -> Exercise:
        """A question that tells whether a learner is on a level."""
        ...

    def next(
        self, level: Level, items: Sequence[Item], done: Sequence[str], known: Sequence[str], random: Random, now: float
    ) -> tuple[Exercise, bool]:
        """The next exercise, and whether it is of something new.

        What is due comes first, then what is new, then what is due next; never the same thing twice in a row if there is another.

        Args:
            level: the learner's.
            items: what was met, what is due first at the front.
            done: keys of the exercises so far.
            known: questions so far.
            random: chooses numbers.
            now: seconds since 1970.
        """
        ...

    def rule(self, exercise: Exercise, random: Random) -> str:
        """What the program itself can say about an exercise beforehand, without its answer; empty if nothing."""
        ...


def open_source(topic: str, material: Knowledge | None, engine: Engine, sampling: Sampling) -> Source:
    """The source for a topic.

    Raises:
        DataError: nothing in the material is about the topic.
    """
    if skills := find_skills(topic, strict=material is not None):
        return _Skills(skills)
    if material is not None:
        return _Gaps(material, topic)
    return _Proposals(engine, sampling, topic)


def self_assessment(text: str) -> Level | None:
    """The level that a learner names, by its number, its name or the words of the question."""
    said = plain_words(text)
    for place, level in enumerate(LEVELS, start=1):
        if said and (str(place) in said or level in said):
            return level
    for word, level in (("new", "beginner"), ("little", "beginner"), ("basics", "intermediate"), ("well", "advanced")):
        if word in said:
            return next(each for each in LEVELS if each == level)
    return None


def _due(items: Sequence[Item], done: Sequence[str], now: float) -> Item | None:
    return next((item for item in items if item.due <= now and item.key not in done[-1:]), None)


def _earliest(items: Sequence[Item], done: Sequence[str]) -> Item | None:
    return next((item for item in items if item.key not in done[-1:]), items[0] if items else None)


class _Skills:
    def __init__(self, skills: tuple[Skill, ...]) -> None:
        self._skills = skills
        self._named = {f"skill: {skill.name}": skill for skill in skills}

    def diagnosis(self, level: Level, random: Random, known: Sequence[str]) -> Exercise:  # noqa: ARG002
        return make_from_skill(random.choice(skills_for(self._skills, level)), random)

    def next(
        self, level: Level, items: Sequence[Item], done: Sequence[str], known: Sequence[str], random: Random, now: float
    ) -> tuple[Exercise, bool]:
        own = skills_for(self._skills, level)
        mine = [item for item in items if item.key in self._named]
        met = {item.key for item in mine}
        fresh = [skill for skill in own if f"skill: {skill.name}" not in met]
        if (due := _due(mine, done, now)) is not None:
            return self._made(self._named[due.key], known, random), False
        if fresh:
            return self._made(fresh[0], known, random), True
        level_items = [item for item in mine if self._named[item.key] in own]
        item = _earliest(level_items, done)
        skill = own[0] if item is None else self._named[item.key]
        return self._made(skill, known, random), False

    def rule(self, exercise: Exercise, random: Random) -> str:
        skill = self._named.get(exercise.key)
        if skill is None:
            return ""
        rule = skill.rule if not names_answer(skill.rule, exercise) else ""
        shown = example(skill, random, exercise)
        told = f"{skill.name[:1].upper()}{skill.name[1:]}. {rule}"
        return f"{told}\nExample: {shown}" if shown else told

    def _made(self, skill: Skill, known: Sequence[str], random: Random) -> Exercise:
        exercise = make_from_skill(skill, random)
        for _ in range(20):  # other numbers than the last times
            if exercise.question not in known[-20:]:
                break
            exercise = make_from_skill(skill, random)
        return exercise


class _Gaps:
    def __init__(self, material: Knowledge, topic: str) -> None:
        self._gaps = {gap.key: gap for gap in find_gaps(material, topic)}

    def diagnosis(self, level: Level, random: Random, known: Sequence[str]) -> Exercise:  # noqa: ARG002
        made = [make_exercise(gap, level) for gap in list(self._gaps.values())[:12]]
        fresh = [each for each in made if each.question.split("\n")[-1] not in {old.split("\n")[-1] for old in known}]
        return (fresh or made)[0]

    def next(
        self,
        level: Level,
        items: Sequence[Item],
        done: Sequence[str],
        known: Sequence[str],
        random: Random,
        now: float,  # noqa: ARG002
    ) -> tuple[Exercise, bool]:
        item = _due(items, done, now)
        if item is None:
            met, asked = {each.key for each in items}, {old.split("\n")[-1] for old in known}
            for gap in self._gaps.values():
                exercise = make_exercise(gap, level)
                if gap.key not in met and exercise.question.split("\n")[-1] not in asked:
                    return exercise, True
            item = _earliest(items, done)
        if item is None:  # the only gaps were asked for in the diagnosis
            return make_exercise(next(iter(self._gaps.values())), level), True
        kept = self._gaps.get(item.key)
        return (make_exercise(kept, level) if kept is not None else item.exercise), False

    def rule(self, exercise: Exercise, random: Random) -> str:  # noqa: ARG002
        asked = exercise.question.rpartition("\n")[2]
        told = [each for each in sentences(exercise.about) if not names_answer(each, exercise) and each not in asked]
        return f"{' '.join(told[:_QUOTED])} ({exercise.place})" if told else f"Read {exercise.place}."


class _Proposals:
    def __init__(self, engine: Engine, sampling: Sampling, topic: str) -> None:
        self._engine, self._sampling, self._topic = engine, sampling, topic

    def diagnosis(self, level: Level, random: Random, known: Sequence[str]) -> Exercise:  # noqa: ARG002
        question = f"How well do you know “{self._topic}”?\n1  it is new to me\n2  I know the basics\n3  I know it well"
        return Exercise(ASSESSMENT, "program", "beginner", question, "1", "words", "", "", "", "")

    def next(
        self,
        level: Level,
        items: Sequence[Item],
        done: Sequence[str],
        known: Sequence[str],
        random: Random,
        now: float,  # noqa: ARG002
    ) -> tuple[Exercise, bool]:
        if (due := _due(items, done, now)) is not None:
            return due.exercise, False
        made = speech.propose(self._engine, self._sampling, self._topic, level, known)
        if made is not None:
            return made, True
        if (item := _earliest(items, done)) is not None:
            return item.exercise, False
        raise UnsupportedModelError(
            f"the model writes no exercise about {self._topic!r} that can be used", where="--topic",
            next="give documents about it with --material, name a topic of school mathematics, or use a larger model",
        )  # fmt: skip

    def rule(self, exercise: Exercise, random: Random) -> str:  # noqa: ARG002
        return ""
