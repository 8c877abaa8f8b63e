"""Where exercises come from: the program's own makers for school mathematics, else the material, else the model."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
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


@dataclass(frozen=True)
class Met:
    """What a learner has met of a topic.

    Attributes:
        items: what is to be learnt, what is due first at the front.
        last: the key of the last exercise; empty before the first.
        questions: all so far.
        now: seconds since 1970.
    """

    items: tuple[Item, ...]
    last: str
    questions: tuple[str, ...]
    now: float

    def due(self, among: Collection[str] | None = None) -> Item | None:
        """What is due, but not what came last."""
        found = (each for each in self._among(among) if each.due <= self.now and each.key != self.last)
        return next(found, None)

    def earliest(self, among: Collection[str] | None = None) -> Item | None:
        """What is due next; what came last only if there is nothing else."""
        found = self._among(among)
        return next((each for each in found if each.key != self.last), found[0] if found else None)

    def _among(self, keys: Collection[str] | None) -> list[Item]:
        return [each for each in self.items if keys is None or each.key in keys]


class Source(Protocol):
    """Makes exercises on a topic."""

    def diagnosis(self, level: Level, random: Random, known: Sequence[str]) -> Exercise:
        """A question that tells whether a learner is on a level."""
        ...

    def next(self, level: Level, met: Met, random: Random) -> tuple[Exercise, bool]:
        """The next exercise, and whether it is of something new.

        What is due comes first, then what is new, then what is due next; never one twice in a row if there is another.

        Args:
            level: the learner's.
            met: what came before.
            random: chooses numbers.
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


class _Skills:
    def __init__(self, skills: tuple[Skill, ...]) -> None:
        self._skills = skills
        self._named = {f"skill: {skill.name}": skill for skill in skills}

    def diagnosis(self, level: Level, random: Random, known: Sequence[str]) -> Exercise:  # noqa: ARG002
        return make_from_skill(random.choice(skills_for(self._skills, level)), random)

    def next(self, level: Level, met: Met, random: Random) -> tuple[Exercise, bool]:
        own = skills_for(self._skills, level)
        keys = {item.key for item in met.items}
        if (due := met.due(self._named)) is not None:
            return self._made(self._named[due.key], met, random), False
        for skill in own:
            if f"skill: {skill.name}" not in keys:
                return self._made(skill, met, random), True
        item = met.earliest([f"skill: {skill.name}" for skill in own])
        return self._made(own[0] if item is None else self._named[item.key], met, random), False

    def rule(self, exercise: Exercise, random: Random) -> str:
        skill = self._named.get(exercise.key)
        if skill is None:
            return ""
        rule = skill.rule if not names_answer(skill.rule, exercise) else ""
        shown = example(skill, random, exercise)
        told = f"{skill.name[:1].upper()}{skill.name[1:]}. {rule}"
        return f"{told}\nExample: {shown}" if shown else told

    def _made(self, skill: Skill, met: Met, random: Random) -> Exercise:
        exercise = make_from_skill(skill, random)
        for _ in range(20):  # other numbers than the last times
            if exercise.question not in met.questions[-20:]:
                break
            exercise = make_from_skill(skill, random)
        return exercise


class _Gaps:
    def __init__(self, material: Knowledge, topic: str) -> None:
        self._gaps = {gap.key: gap for gap in find_gaps(material, topic)}

    def diagnosis(self, level: Level, random: Random, known: Sequence[str]) -> Exercise:  # noqa: ARG002
        made = [make_exercise(gap, level) for gap in list(self._gaps.values())[:12]]
        asked = {old.rpartition("\n")[2] for old in known}
        fresh = [each for each in made if each.question.rpartition("\n")[2] not in asked]
        return (fresh or made)[0]

    def next(self, level: Level, met: Met, random: Random) -> tuple[Exercise, bool]:  # noqa: ARG002
        item = met.due()
        if item is None:
            keys = {each.key for each in met.items}
            asked = {old.rpartition("\n")[2] for old in met.questions}
            for gap in self._gaps.values():
                exercise = make_exercise(gap, level)
                if gap.key not in keys and exercise.question.rpartition("\n")[2] not in asked:
                    return exercise, True
            item = met.earliest()
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

    def next(self, level: Level, met: Met, random: Random) -> tuple[Exercise, bool]:  # noqa: ARG002
        if (due := met.due()) is not None:
            return due.exercise, False
        made = speech.propose(self._engine, self._sampling, self._topic, level, met.questions)
        if made is not None:
            return made, True
        if (item := met.earliest()) is not None:
            return item.exercise, False
        raise UnsupportedModelError(
            f"the model writes no exercise about {self._topic!r} that can be used", where="--topic",
            next="give documents about it with --material, name a topic of school mathematics, or use a larger model",
        )  # fmt: skip

    def rule(self, exercise: Exercise, random: Random) -> str:  # noqa: ARG002
        return ""
