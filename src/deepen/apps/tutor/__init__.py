"""A tutor: diagnosis, explanations, exercises with known answers, and a ladder of hints that the program keeps."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

from deepen.apps.alike import open_alike
from deepen.apps.documents import find_documents
from deepen.apps.support import open_knowledge
from deepen.apps.tutor.entry import check_learner, check_level, check_topic
from deepen.apps.tutor.lesson import Lesson
from deepen.apps.tutor.store import Store
from deepen.apps.tutor.turn import Exchange, Forgotten, Progress, Record, TopicProgress, Turn
from deepen.checkpoint import resolve
from deepen.engine.request import check_request
from deepen.errors import DataError, OptionError
from deepen.output import cache_folder
from deepen.prepare import given, open_engine

__all__ = [
    "Exchange", "Forgotten", "Lesson", "Progress", "Record", "Store", "TopicProgress", "Turn", "check_level", "forget_learner",
    "learner_progress", "open_lesson", "record", "tutor",
]  # fmt: skip


def tutor(
    model: str | Path,
    *,
    topic: str,
    answers: Iterable[str],
    level: str | None = None,
    material: Sequence[str | Path] | str | Path | None = None,
    learner: str = "me",
    exercises: int | None = None,
    engine: str = "auto",
    max_new_tokens: int = 256,
    temperature: float = 0.0,
    seed: int | None = None,
    on_text: Callable[[str], None] | None = None,
    context: int | None = None,
    quantize: str | None = None,
    device: str | None = None,
    dtype: str | None = None,
    draft: str | Path | None = None,
    drop: int | None = None,
    layers: str | None = None,
    repeat: str | None = None,
    expand: int | None = None,
    plan: str | Path | None = None,
    identity_init: bool = False,
) -> Record:
    """Give a lesson: find the learner's level, explain, set exercises, and answer attempts with a ladder of hints.

    The ladder, what is right, and what comes next are the program's; the model explains and words hints, and what it says is
    filtered, so that the worked answer never comes early. Exercises in school mathematics are made by the program, others from
    the material, or else by the model. Progress is kept in `tutor.sqlite` in `$DEEPEN_DATA` (or the user's data
    folder), so that the next lesson on the topic goes on where this one ends.

    Args:
        model: a checkpoint folder, a Hub id or a GGUF file; a model's name there if `engine` is a URL.
        topic: what is taught, in plain words.
        answers: what the learner enters, one after the other: answers, and commands such as `/hint`; the lesson ends with them.
        level: `beginner`, `intermediate` or `advanced`; found by a question or two unless given.
        material: folders and files that exercises are made from, if the topic is not school mathematics.
        learner: a name.
        exercises: the lesson ends after so many.
        engine: `llamacpp`, `transformers`, the URL of a server of OpenAI's protocol, or `auto` to choose.
        max_new_tokens: of an explanation.
        temperature: 0 takes the likeliest token each time; higher is more varied.
        seed: makes exercises and sampling repeatable.
        on_text: called with each piece of what the tutor says as it is certain.
        context: hold at most so many tokens of prompt and answer (engine llamacpp; what fits, at most 8192, unless given).
        quantize: the format in which the engine llamacpp runs a checkpoint, such as `Q4_K_M`.
        device: where the engine transformers puts the model, such as `cpu` or `cuda:0`.
        dtype: the dtype that the engine transformers computes in, such as `float32`.
        draft: guesses the next tokens: a smaller model of the same vocabulary, or `ngram` for the text so far.
        drop: layer plan, as in `scale`: the deepened model runs without being written (llamacpp: once, into the cache). So do
            the next five.
        layers: slices of layers.
        repeat: a range of layers to run again.
        expand: a number of new blocks.
        plan: a plan file.
        identity_init: repeated layers start as the identity.

    Raises:
        OptionError: an option is out of range or does not fit the others.
        DataError: the topic is empty, or the material has nothing about it.
        CheckpointError: the model is missing or broken.
        UnsupportedModelError: the model makes no exercise that can be used, and there is no material.
        NetworkError: the engine broke off where the lesson needs it; the next lesson goes on there.
    """
    with open_lesson(
        model, topic=topic, level=level, material=material, learner=learner, exercises=exercises, engine=engine,
        max_new_tokens=max_new_tokens, temperature=temperature, seed=seed, context=context, quantize=quantize, device=device,
        dtype=dtype, draft=draft, drop=drop, layers=layers, repeat=repeat, expand=expand, plan=plan,
        identity_init=identity_init,
    ) as (lesson, name):  # fmt: skip
        events = [Exchange(None, lesson.start(on_text))]
        for entry in answers:
            if events[-1].turns[-1:] and events[-1].turns[-1].kind == "end":
                break
            if on_text is not None:
                on_text("\n\n")
            events.append(Exchange(entry, lesson.answer(entry, on_text)))
        return record(lesson, events, name)


@contextmanager
def open_lesson(
    model: str | Path,
    *,
    topic: str,
    level: str | None = None,
    material: Sequence[str | Path] | str | Path | None = None,
    learner: str = "me",
    exercises: int | None = None,
    engine: str = "auto",
    max_new_tokens: int = 256,
    temperature: float = 0.0,
    seed: int | None = None,
    context: int | None = None,
    quantize: str | None = None,
    device: str | None = None,
    dtype: str | None = None,
    draft: str | Path | None = None,
    **plan: Any,
) -> Iterator[tuple[Lesson, str]]:
    """A lesson and the name of its engine; the arguments and errors are those of `tutor`.

    Everything that can be refused is refused before the model is loaded.
    """
    check_request(max_new_tokens=max_new_tokens, temperature=temperature, seed=seed, trim=None, engine=engine)
    topic, learner, chosen = check_topic(topic), check_learner(learner), check_level(level)
    if exercises is not None and exercises < 1:
        raise OptionError(f"a lesson of {exercises} exercises is none", where="--exercises", next="use 1 or more")
    places = [material] if isinstance(material, str | Path) else list(material or ())
    if Path("-") in map(Path, places):
        raise OptionError("stdin gives the learner's answers", where="--material", next="name files or folders")
    with ExitStack() as stack:
        knowledge = alike = None
        name = "\n".join(sorted(str(Path(place).resolve()) for place in places))
        if places:
            digest = hashlib.sha256(name.encode(errors="surrogateescape")).hexdigest()[:16]
            index = cache_folder() / "support" / f"{digest}.sqlite"
            try:
                knowledge = stack.enter_context(open_knowledge(find_documents(places), index))
            except DataError as error:
                raise DataError(error.what, where=error.where.replace("--docs", "--material") if error.where else None,
                                next=error.next) from error  # fmt: skip
            alike = None if "://" in engine else open_alike(resolve(model))
        store = stack.enter_context(Store())
        opened = stack.enter_context(
            closing(
                open_engine(
                    model,
                    engine=engine,
                    plan=given(**plan),
                    device=device,
                    dtype=dtype,
                    context=context,
                    quantize=quantize,
                    draft=draft,
                )
            )
        )
        yield (
            Lesson(
                opened,
                store,
                topic,
                learner=learner,
                level=chosen,
                material=knowledge,
                material_name=name,
                alike=alike,
                exercises=exercises,
                max_new_tokens=max_new_tokens,
                temperature=temperature,
                seed=seed,
            ),
            opened.name,
        )


def record(lesson: Lesson, events: Sequence[Exchange], engine: str) -> Record:
    """A lesson as it went."""
    return Record(lesson.learner, lesson.topic, lesson.level, lesson.mastery, lesson.done, lesson.solved, tuple(events), engine)


def learner_progress(learner: str = "me") -> Progress:
    """How a learner stands in all topics.

    Raises:
        OptionError: there is no such learner.
    """
    with Store() as store:
        return store.progress(check_learner(learner))


def forget_learner(learner: str) -> Forgotten:
    """Delete all that is kept of a learner, and say how much that was.

    Raises:
        OptionError: there is no such learner.
    """
    with Store() as store:
        return store.forget(check_learner(learner))
