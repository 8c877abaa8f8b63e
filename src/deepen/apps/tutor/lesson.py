"""A lesson: what the tutor says, one turn after the other. All of its state is in the store."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import takewhile
from random import Random

from deepen.apps.alike import Alike
from deepen.apps.knowledge import Knowledge
from deepen.apps.tutor import spacing, speech
from deepen.apps.tutor.entry import HELP, check_learner, check_level, check_topic, command
from deepen.apps.tutor.exercise import LONGEST_ANSWER, Exercise, judge
from deepen.apps.tutor.ladder import Action, Event, State, climb
from deepen.apps.tutor.show import HELPED, near_text, progress_text
from deepen.apps.tutor.source import ASSESSMENT, Met, Source, open_source, self_assessment
from deepen.apps.tutor.speech import Sampling
from deepen.apps.tutor.store import Item, Open, Phase, Store, due_in
from deepen.apps.tutor.turn import LEVELS, Kind, Level, Turn
from deepen.engine import Engine
from deepen.errors import DataError, DeepenError

Tell = Callable[[str], None]

_UNCHECKED = "From the model, not checked: "
_KINDS: dict[Action, Kind] = {
    "praise": "right", "leave": "skipped", "encourage": "near", "worked": "worked",
}  # fmt: skip


class Lesson:
    """Teaches a learner a topic, over an engine that is open already. Not for several threads at once.

    Everything that the next answer depends on is in the store when a method returns, so that another `Lesson` with the same
    learner, topic and material, in this process or a later one, goes on where this one was.

    Args:
        engine: explains, and words hints; what it says is filtered, and it decides nothing that code can decide.
        store: where learners are kept.
        topic: what is taught, in plain words.
        learner: a name.
        level: the learner's level; found by a question or two unless given.
        material: documents that exercises are made from, if they are no arithmetic.
        material_name: what the material is called in the store, so that a lesson from it is told from others on the topic.
        alike: words that mean nearly the same, if they are known.
        exercises: the lesson ends after so many; never unless given.
        max_new_tokens: of an explanation.
        temperature: 0 takes the likeliest token each time.
        seed: makes exercises and sampling repeatable.

    Raises:
        DataError: the topic is empty or too long; nothing in the material is about it.
        OptionError: there is no such level, or the learner's name is none.
    """

    def __init__(
        self,
        engine: Engine,
        store: Store,
        topic: str,
        *,
        learner: str = "me",
        level: Level | None = None,
        material: Knowledge | None = None,
        material_name: str = "",
        alike: Alike | None = None,
        exercises: int | None = None,
        max_new_tokens: int = 256,
        temperature: float = 0.0,
        seed: int | None = None,
    ) -> None:
        self.topic, self.learner = check_topic(topic), check_learner(learner)
        level = check_level(level)
        self.done = self.solved = 0
        """Exercises that ended while this object was used, and those of them that the learner solved."""
        self._engine, self._store, self._alike = engine, store, alike
        self._sampling = Sampling(max_new_tokens, temperature, seed)
        self._source: Source = open_source(self.topic, material, engine, self._sampling)
        self._course = store.course(self.learner, " ".join(self.topic.casefold().split()), material_name)
        self._fixed, self._most = level is not None, exercises
        if level is not None:
            store.set_level(self._course, level)

    @property
    def level(self) -> Level | None:
        """The learner's level; None before it is known."""
        return self._store.level(self._course)

    @property
    def mastery(self) -> float:
        """Of the topic, from 0 to 1."""
        return self._store.mastery(self._course)

    def start(self, on_text: Tell | None = None) -> tuple[Turn, ...]:
        """Begin, or go on with what was open: the open exercise with the help that it had last.

        Args:
            on_text: called with each piece of what the learner reads as it is certain; together they are the texts of the
                turns with an empty line between them.

        Raises:
            NetworkError: the engine broke off where nothing could be said without it; what was open stays open.
        """
        return tuple(self._start(_Teller(on_text)))

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
        text = text.strip()
        if len(text) > LONGEST_ANSWER:
            raise DataError(f"an answer has at most {LONGEST_ANSWER} characters", where="answer", next="say it in fewer words")
        return tuple(self._answer(text, _Teller(on_text)))

    # --- turns

    def _start(self, tell: _Teller) -> Iterator[Turn]:
        current = self._store.current(self._course)
        if current is not None and self._fixed and current.phase == "diagnosis":
            self._leave(current)
            current = None
        if current is None:
            yield from self._next(tell, explain=True)
            return
        kind: Kind = "diagnosis" if current.phase == "diagnosis" else "exercise"
        yield self._turn(tell, kind, f"We go on where you were.\n\n{current.exercise.question}", current)
        if current.help:
            yield self._turn(tell, "hint", current.help[-1], current)

    def _answer(self, text: str, tell: _Teller) -> Iterator[Turn]:
        current, word = self._store.current(self._course), command(text)
        if word == "/quit":
            yield self._turn(tell, "end", "Until next time. The lesson goes on here.", current)
        elif word == "/progress":
            yield self._turn(tell, "progress", progress_text(self._store.progress(self.learner)), current)
        elif current is None:
            yield from self._next(tell, explain=True)
        elif word == "/explain":
            yield from self._explain(tell, self.level or "beginner", current)
            kind: Kind = "exercise" if current.phase == "practice" else "diagnosis"
            yield self._turn(tell, kind, current.exercise.question, current)
        elif word in {"/hint", "/skip"} or (text and not word):
            yield from (self._diagnose if current.phase == "diagnosis" else self._practise)(tell, current, text, word)
        else:
            unknown = f"There is no command {word}.\n" if word and word != "/help" else ""
            yield self._turn(tell, "help", f"{unknown}{HELP}", current)

    def _practise(self, tell: _Teller, current: Open, text: str, word: str) -> Iterator[Turn]:
        exercise = current.exercise
        event, judged = self._event(exercise, text, word)
        state, action = climb(current.state, event)
        own = self._own_words(exercise, action)
        # what is certain is kept before the model is asked for its words
        item = self._item(exercise, state) if state.end is not None else None
        self._store.step(self._course, current, state, text, event, own, item)
        after = Open(current.id, current.phase, exercise, state, (*current.help, own) if own else current.help)
        origin, trouble = (exercise.origin if action == "worked" else "program"), ""
        if action in {"question", "hint"}:
            try:
                if said := speech.hint(self._engine, self._sampling, action, exercise, text, current.help):
                    own, origin = f"{HELPED[action]} (from the model): {said}", "model"
                    self._store.help(after, own)
            except DeepenError as error:
                trouble = error.what
        sure = judged == "program"
        texts: dict[Action, str] = {
            "praise": f"{'Right.' if sure else 'Right, as far as the model can tell; this is not checked.'} {exercise.worked}",
            "leave": "Left for now; it will come again.",
            "encourage": near_text(exercise, text),
            "again": "There is no more help before a try of your own: any answer brings you on.",
        }
        correct = {"right": True, "wrong": False, "near": False}.get(event)
        not_yet = "" if correct is None else "Not yet. " if sure else "Not yet, as far as the model can tell. "
        yield self._turn(
            tell, _KINDS.get(action, "hint"), texts.get(action, not_yet + own), after, correct=correct, judged=judged,
            origin=origin, trouble=trouble,
        )  # fmt: skip
        if state.end is not None:
            yield from self._ended(tell, state)

    def _ended(self, tell: _Teller, state: State) -> Iterator[Turn]:
        self.done += 1
        self.solved += state.end == "solved"
        yield from self._move_level(tell)
        if self._most is not None and self.done >= self._most:
            told = f"That was the lesson: you solved {self.solved} of {self.done}. It goes on here next time."
            yield self._turn(tell, "end", told, None)
        else:
            yield from self._next(tell, explain=False)

    def _diagnose(self, tell: _Teller, current: Open, text: str, word: str) -> Iterator[Turn]:
        if current.exercise.key == ASSESSMENT:
            chosen = self_assessment(text)
            if chosen is None and not word:
                yield self._turn(tell, "diagnosis", current.exercise.question, current)
                return
            self._leave(current, text)
            yield from self._found(tell, chosen or "beginner", None)
            return
        event, _ = self._event(current.exercise, text, word)
        right = event in {"right", "near"}
        self._store.step(self._course, current, State("attempt", 1, 0, "solved" if right else "skipped"), text, event, "", None)
        yield from self._next(tell, explain=True, correct=True if right else False if event == "wrong" else None)

    def _found(self, tell: _Teller, level: Level, correct: bool | None) -> Iterator[Turn]:
        self._store.set_level(self._course, level)
        opening = {True: "Right. ", False: "Not this time, and that is fine. ", None: ""}[correct]
        yield self._turn(tell, "level", f"{opening}We begin on the level {level}.", None, correct=correct)
        yield from self._next(tell, explain=True)

    def _next(self, tell: _Teller, *, explain: bool, correct: bool | None = None) -> Iterator[Turn]:
        """The next exercise, or the next question that finds the level."""
        level = self.level
        if level is None:
            yield from self._find_level(tell, correct)
            return
        exercise, is_new = self._source.next(level, self._met(), self._random())
        self._store.open(self._course, "practice", exercise, level)
        current = self._store.current(self._course)
        if explain and current is not None:
            yield from self._explain(tell, level, current)
        elif is_new and exercise.origin == "program" and (rule := self._source.rule(exercise, self._random())):
            yield self._turn(tell, "explanation", rule, current)
        yield self._turn(tell, "exercise", exercise.question, current)

    def _find_level(self, tell: _Teller, correct: bool | None) -> Iterator[Turn]:
        """A question of the middle level first, then one of the highest; the level, once that is clear."""
        asked = [(level, state.end == "solved") for _, level, state in self._store.ends(self._course, "diagnosis")]
        if asked and (not asked[-1][1] or asked[-1][0] == "advanced"):
            level: Level = "beginner" if asked[-1] == ("intermediate", False) else "intermediate"
            yield from self._found(tell, "advanced" if asked[-1][1] else level, correct)
            return
        exercise = self._source.diagnosis("advanced" if asked else "intermediate", self._random(), self._known())
        self._store.open(self._course, "diagnosis", exercise, "advanced" if asked else "intermediate")
        first = "First a question, to see where you are. A guess is fine, and so is “I don't know”."
        opening = "" if exercise.key == ASSESSMENT else f"{'Right. One more.' if asked else first}\n\n"
        current = self._store.current(self._course)
        yield self._turn(tell, "diagnosis", f"{opening}{exercise.question}", current, correct=correct)

    def _explain(self, tell: _Teller, level: Level, current: Open) -> Iterator[Turn]:
        """What the program knows about it, and what the model adds: two turns, so that the one is told from the other."""
        exercise, trouble = current.exercise, ""
        if rule := self._source.rule(exercise, self._random()):
            yield self._turn(tell, "explanation", rule, current, origin=exercise.origin)
        pieces: list[str] = []
        try:
            for sentence in speech.explain(self._engine, self._sampling, self.topic, level, exercise.about, exercise):
                if not pieces:
                    tell.begin(_UNCHECKED)
                tell.say(sentence)
                pieces.append(sentence)
        except DeepenError as error:
            trouble = error.what
        if pieces:
            text = f"{_UNCHECKED}{''.join(pieces)}"
            yield self._turn(None, "explanation", text, current, origin="model", trouble=trouble)
        elif trouble:
            told = "The model does not answer; the lesson goes on without its words."
            yield self._turn(tell, "explanation", told, current, trouble=trouble)

    # --- what turns are made of

    def _event(self, exercise: Exercise, text: str, word: str) -> tuple[Event, str]:
        """What an entry is on the ladder, and who judged it."""
        if word:
            return ("hint" if word == "/hint" else "skip"), "program"
        found = judge(exercise, text, self._alike)
        if found != "open":
            return found, "program"
        return ("right" if speech.verdict(self._engine, self._sampling, exercise, text) else "wrong"), "model"

    def _own_words(self, exercise: Exercise, action: Action) -> str:
        """The program's own help for a rung, which is always true and never the answer before its time."""
        words = {"question": exercise.guide, "hint": exercise.hint, "step": exercise.step, "worked": exercise.worked}
        return f"{HELPED[action]}: {words[action]}" if action in words else ""

    def _item(self, exercise: Exercise, state: State) -> Item:
        before = next((item.box for item in self._store.items(self._course) if item.key == exercise.key), 1)
        box = spacing.next_box(before, state)
        return Item(exercise.key, box, due_in(box), exercise)

    def _move_level(self, tell: _Teller) -> Iterator[Turn]:
        level = self.level
        if level is None or self._fixed:
            return
        run = takewhile(lambda end: end[1] == level, reversed(self._store.ends(self._course)))
        new = spacing.next_level(level, [spacing.credit(state) for _, _, state in run][::-1])
        if new != level:
            self._store.set_level(self._course, new)
            way = "up" if LEVELS.index(new) > LEVELS.index(level) else "down"
            yield self._turn(tell, "level", f"We go {way} to the level {new}.", None)

    def _leave(self, current: Open, text: str = "") -> None:
        self._store.step(self._course, current, State("attempt", 0, 0, "skipped"), text, "skip", "", None)

    def _random(self) -> Random:
        """Numbers that differ from exercise to exercise, and are the same again for the same seed."""
        if self._sampling.seed is None:
            return Random()
        return Random(f"{self._sampling.seed}/{self._course}/{len(self._known())}")

    def _met(self) -> Met:
        ends = self._store.ends(self._course)
        last = ends[-1][0] if ends else ""
        return Met(tuple(self._store.items(self._course)), last, tuple(self._known()), due_in(1))

    def _known(self) -> list[str]:
        return self._store.questions(self._course)

    def _turn(
        self, tell: _Teller | None, kind: Kind, text: str, at: Open | None, *, correct: bool | None = None,
        judged: str = "", origin: str | None = None, trouble: str = "",
    ) -> Turn:  # fmt: skip
        if tell is not None:
            tell.begin(text)
        is_open = at is not None and at.state.end is None
        phase: Phase | None = at.phase if at is not None else None
        boxes = {item.key: item.box for item in self._store.items(self._course)} if at is not None else {}
        own = at.exercise.origin if at is not None and kind in {"exercise", "diagnosis", "worked"} else "program"
        return Turn(
            kind=kind,
            text=text,
            origin=origin or own,  # type: ignore[arg-type]
            exercise=at.exercise.question if at is not None and is_open else "",
            rung=at.state.rung if at is not None and phase == "practice" else None,
            correct=correct,
            judge=None if correct is None else "model" if judged == "model" else "program",
            place=at.exercise.place if at is not None else "",
            level=self.level,
            mastery=self.mastery,
            box=boxes.get(at.exercise.key, 1) if at is not None and phase == "practice" else None,
            trouble=trouble,
        )


class _Teller:
    """Passes texts on as they are certain, with an empty line between two turns."""

    def __init__(self, on_text: Tell | None) -> None:
        self._on_text, self._begun = on_text, False

    def begin(self, text: str) -> None:
        """Begin a turn with a text."""
        self.say(f"\n\n{text}" if self._begun else text)
        self._begun = True

    def say(self, text: str) -> None:
        """Go on with a turn."""
        if self._on_text is not None:
            self._on_text(text)
