"""What each application does with a request, in a thread of its own: from the request's keys to the verb's result."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any

from deepen.apps.desk import check_question
from deepen.apps.knowledge import Knowledge
from deepen.apps.summary import Settings, summarize_documents
from deepen.apps.support import Library, library_desk
from deepen.apps.tutor import Lesson, forget_learner, learner_progress
from deepen.apps.tutor.store import Store
from deepen.apps.writing import check_assignment, compose, read_facts, read_outline
from deepen.engine.request import check_request
from deepen.engine.shared import SharedEngine, Stopped
from deepen.serve.uploads import read_all, uploaded
from deepen.serve.wire import Refused

_LONGEST_HISTORY = 20
Event = tuple[str, Any]


@dataclass(frozen=True)
class House:
    """What the server has for its applications.

    Attributes:
        new_tokens: longest answer.
        parallel: conversations at once.
        library: the documents that support answers from, if there are any.
        material: the documents that the tutor makes exercises from, if there are any.
    """

    new_tokens: int
    parallel: int
    library: Library | None = None
    material: Library | None = None


class Job:
    """What one request asks of an application: the engine it may use, and where its events go.

    Args:
        house: what the server has.
        engine: the server's model, for this request alone.
        tell: takes events from any thread; None is the last one.
    """

    def __init__(self, house: House, engine: SharedEngine, tell: Callable[[Event | None], object]) -> None:
        self.house = house
        self.engine = engine
        self._tell = tell

    def text(self, text: str) -> None:
        """A piece of the text that the user reads."""
        self.engine.check()
        self._tell(("text", {"text": text}))

    def progress(self, **content: object) -> None:
        """How far the work is."""
        self.engine.check()
        self._tell(("progress", content))

    def run(self, work: Callable[[Job, Mapping[str, Any]], Mapping[str, Any]], fields: Mapping[str, Any]) -> None:
        """Do the work; its result or its error is the last event but one."""
        try:
            self._tell(("result", work(self, fields)))
        except Stopped:
            pass
        except BaseException as error:  # told to the client, and raised there
            self._tell(("error", error))
        finally:
            self._tell(None)


def _summarize(job: Job, fields: Mapping[str, Any]) -> dict[str, Any]:
    settings = Settings(**_without(fields, "documents"))
    job.progress(stage="reading")
    with uploaded(_needs(fields, "documents"), "documents") as found:
        documents, skipped = read_all(found)
    engines = [job.engine] * job.house.parallel
    summary = summarize_documents(
        engines, documents, settings, on_text=job.text, on_progress=lambda done, total: job.progress(done=done, total=total)
    )
    return asdict(summary) | {"left_out": [{"file": name, "reason": reason} for name, reason in skipped]}


def _support(job: Job, fields: Mapping[str, Any]) -> dict[str, Any]:
    if job.house.library is None:
        message = "this server has no documents (start it with deepen serve MODEL --docs FOLDER)"
        raise Refused(HTTPStatus.NOT_FOUND, message, "not_found_error")
    question = check_question(_needs(fields, "question"))
    turns = _pairs(fields.get("turns", []), "question", "answer", "turns")[-_LONGEST_HISTORY:]
    options = _without(fields, "question", "turns")
    options["max_new_tokens"] = min(options.get("max_new_tokens", 256), job.house.new_tokens)
    with library_desk(job.house.library, lambda: job.engine, **options) as desk:
        desk.turns = turns
        job.progress(stage="searching")
        return asdict(desk.ask(question, on_text=job.text))


def _tutor(job: Job, fields: Mapping[str, Any]) -> dict[str, Any]:
    learner = fields.get("learner", "me")
    if fields.get("forget"):
        return asdict(forget_learner(learner))
    if fields.get("progress"):
        return asdict(learner_progress(learner))
    sampling = {"max_new_tokens": 256, "temperature": 0.0, "seed": None, **_without(fields, *_LESSON)}
    check_request(**sampling, trim=None, engine="auto")
    sampling["max_new_tokens"] = min(sampling["max_new_tokens"], job.house.new_tokens)
    material = job.house.material
    with ExitStack() as stack:
        lesson = Lesson(
            job.engine,
            stack.enter_context(Store()),
            _needs(fields, "topic"),
            learner=learner,
            level=fields.get("level"),
            material=None if material is None else stack.enter_context(Knowledge(material.index)),
            material_name="" if material is None else material.name,
            alike=None if material is None else material.alike,
            **sampling,
        )
        answer = fields.get("answer")
        turns = lesson.start(job.text) if answer is None else lesson.answer(answer, job.text)
        return {"turns": [asdict(turn) for turn in turns]}


def _write(job: Job, fields: Mapping[str, Any]) -> dict[str, Any]:
    options = _without(fields, "kind", "about", "facts", "outline", "outline_file", "revise", "temperature", "seed")
    assignment = check_assignment(_needs(fields, "kind"), _needs(fields, "about"), **options)
    temperature, seed = fields.get("temperature", 0.0), fields.get("seed")
    check_request(max_new_tokens=1, temperature=temperature, seed=seed, trim=None, engine="auto")
    outline = fields.get("outline_file")
    with ExitStack() as stack:
        facts = None
        if fields.get("facts"):
            job.progress(stage="reading")
            facts = stack.enter_context(read_facts(stack.enter_context(uploaded(fields["facts"], "facts"))))
        return asdict(
            compose(
                job.engine,
                assignment,
                facts=facts,
                outline=None if outline is None else read_outline(Path("outline_file"), outline.encode()),
                outline_only=fields.get("outline", False),
                revise=fields.get("revise", True),
                temperature=temperature,
                seed=seed,
                on_text=job.text,
                on_step=lambda step: job.progress(stage=step),
            )
        )


def _needs(fields: Mapping[str, Any], key: str) -> Any:
    if key not in fields:
        raise Refused(HTTPStatus.BAD_REQUEST, f"{key!r} is missing")
    return fields[key]


def _without(fields: Mapping[str, Any], *keys: str) -> dict[str, Any]:
    return {key: value for key, value in fields.items() if key not in keys}


def _pairs(values: list[Any], first: str, second: str, where: str) -> list[tuple[str, str]]:
    """Two texts from each object of a list."""
    for each in values:
        if not isinstance(each, dict) or not all(isinstance(each.get(key), str) for key in (first, second)):
            raise Refused(HTTPStatus.BAD_REQUEST, f"{where!r} is a list of objects with the texts {first!r} and {second!r}")
    return [(each[first], each[second]) for each in values]


@dataclass(frozen=True)
class App:
    """An application: the keys of its requests with their types, and what it does with them."""

    keys: Mapping[str, tuple[type, ...]]
    work: Callable[[Job, Mapping[str, Any]], dict[str, Any]]


_TEXT, _NUMBER, _ANY_NUMBER, _FLAG, _LIST = (str,), (int,), (float, int), (bool,), (list,)
_LESSON = ("topic", "learner", "level", "answer", "forget", "progress")
_SAMPLING = {"temperature": _ANY_NUMBER, "seed": _NUMBER}
APPS = {
    "/v1/apps/summarize": App(
        {
            "documents": _LIST, "style": _TEXT, "length": (str, int), "focus": _TEXT, "language": _TEXT, "cite": _FLAG,
            "chunk_tokens": _NUMBER, **_SAMPLING,
        },
        _summarize,
    ),
    "/v1/apps/support": App(
        {"question": _TEXT, "turns": _LIST, "passages": _NUMBER, "handover": _TEXT, "max_new_tokens": _NUMBER, **_SAMPLING},
        _support,
    ),
    "/v1/apps/tutor": App(
        {
            "topic": _TEXT, "learner": _TEXT, "level": _TEXT, "answer": _TEXT, "forget": _FLAG, "progress": _FLAG,
            "max_new_tokens": _NUMBER, **_SAMPLING,
        },
        _tutor,
    ),
    "/v1/apps/write": App(
        {
            "kind": _TEXT, "about": _TEXT, "facts": _LIST, "words": _NUMBER, "tone": _TEXT, "audience": _TEXT,
            "language": _TEXT, "outline": _FLAG, "outline_file": _TEXT, "revise": _FLAG, **_SAMPLING,
        },
        _write,
    ),
}  # fmt: skip
"""The applications by where they are."""
