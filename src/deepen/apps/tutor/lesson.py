"""A lesson: what the tutor says, one turn after the other. All of its state is in the store."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from deepen.apps.alike import Alike
from deepen.apps.knowledge import Knowledge
from deepen.apps.tutor.turn import Level, Turn
from deepen.engine import Engine

Tell = Callable[[str], None]


class Lesson:
    """Teaches a learner a topic, over an engine that is open already. Not for several threads at once.

    Everything that the next answer depends on is in the store when a method returns, so that another `Lesson` with the same
    learner and topic, in this process or a later one, goes on where this one was.

    Args:
        engine: explains, and words hints; what it says is filtered, and it decides nothing that code can decide.
        store: where learners are kept, a `deepen.apps.tutor.store.Store`.
        topic: what is taught, in plain words.
        learner: a name.
        level: the learner's level; found by a question or two unless given.
        material: documents that exercises are made from, if they are no arithmetic.
        alike: words that mean nearly the same, if they are known.
        exercises: the lesson ends after so many; never unless given.
        max_new_tokens: of an explanation.
        temperature: 0 takes the likeliest token each time.
        seed: makes exercises and sampling repeatable.

    Raises:
        DataError: the topic is empty or too long; nothing in the material is about it.
        OptionError: there is no such level.
    """

    def __init__(
        self,
        engine: Engine,
        store: Any,
        topic: str,
        *,
        learner: str = "me",
        level: Level | None = None,
        material: Knowledge | None = None,
        alike: Alike | None = None,
        exercises: int | None = None,
        max_new_tokens: int = 256,
        temperature: float = 0.0,
        seed: int | None = None,
    ) -> None:
        raise NotImplementedError

    def start(self, on_text: Tell | None = None) -> tuple[Turn, ...]:
        """Begin, or go on with what was open: the open exercise with the help that it had last.

        Args:
            on_text: called with each piece of what the learner reads as it is certain; together they are the texts of the
                turns with an empty line between them.

        Raises:
            NetworkError: the engine broke off where nothing could be said without it; what was open stays open.
        """
        raise NotImplementedError

    def answer(self, text: str, on_text: Tell | None = None) -> tuple[Turn, ...]:
        """Take an answer, or a command: /hint, /skip, /explain, /progress, /help, /quit.

        Args:
            text: what the learner entered.
            on_text: as in `start`.

        Returns: turns; the last one is of the kind `end` where the lesson is over.

        Raises:
            DataError: the answer is longer than 2,000 characters, or the exercise was answered elsewhere in the meantime.
            NetworkError: the engine broke off where nothing could be said without it; what was open stays open.
        """
        raise NotImplementedError
