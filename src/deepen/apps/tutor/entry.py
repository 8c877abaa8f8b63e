"""What people enter: topics, names, levels and commands."""

from __future__ import annotations

from difflib import get_close_matches

from deepen.apps.tutor.turn import LEVELS, Level
from deepen.errors import DataError, OptionError

_LEAVE = {"/quit", "/exit", "/bye"}
_LONGEST_TOPIC, _LONGEST_NAME = 200, 60

HELP = (
    "Write your answer, or:\n"
    "/hint      help, one rung more\n"
    "/skip      leave this exercise; it comes again\n"
    "/explain   explain the topic\n"
    "/progress  how you stand\n"
    "/quit      leave; the lesson goes on here next time"
)


def command(text: str) -> str:
    """The command that an entry is, in small letters; empty if it is an answer. /2 and the like are answers."""
    word = text.split(maxsplit=1)[0].lower() if text.startswith("/") and text[1:2].isalpha() else ""
    return "/quit" if word in _LEAVE else word


def check_topic(topic: str) -> str:
    """The topic without space around it.

    Raises:
        DataError: it is empty or too long.
    """
    topic = " ".join(topic.split())
    if not any(character.isalnum() for character in topic):
        raise DataError("the topic is empty", where="--topic", next='name one, such as --topic "adding fractions"')
    if len(topic) > _LONGEST_TOPIC:
        raise DataError(f"a topic has at most {_LONGEST_TOPIC} characters", where="--topic", next="name it in a few words")
    return topic


def check_learner(learner: str) -> str:
    """The name without space around it.

    Raises:
        OptionError: it is empty or too long.
    """
    learner = " ".join(learner.split())
    if not any(character.isalnum() for character in learner) or len(learner) > _LONGEST_NAME:
        raise OptionError(
            f"{learner[:_LONGEST_NAME]!r} is not a learner's name", where="--learner", next=f"use up to {_LONGEST_NAME} letters"
        )
    return learner


def check_level(level: str | None) -> Level | None:
    """A level by its name.

    Raises:
        OptionError: there is no such level.
    """
    if level is None:
        return None
    for each in LEVELS:
        if each == level.strip().lower():
            return each
    near = get_close_matches(level.lower(), LEVELS, 1, 0.5)
    advice = f"did you mean {near[0]}? " if near else ""
    raise OptionError(f"there is no level {level!r}", where="--level", next=f"{advice}use {', '.join(LEVELS)}")
