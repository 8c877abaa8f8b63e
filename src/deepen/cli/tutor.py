"""Applications: tutor."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from deepen.cli import options
from deepen.cli.options import count
from deepen.cli.printing import print_json, print_text
from deepen.errors import DataError, MachineError, OptionError, printable

if TYPE_CHECKING:
    from deepen.apps.tutor import Exchange, Lesson, Turn


def register(app: typer.Typer) -> None:
    """Add this command to the program."""
    app.command(rich_help_panel="Applications")(tutor)


@options.sharing(options.RUN)
def tutor(
    model: Annotated[
        str | None,
        typer.Argument(metavar="MODEL", help="A checkpoint folder, a .gguf file, or a Hub id org/name.", show_default=False),
    ] = None,
    topic: Annotated[str | None, typer.Option(metavar="TEXT", help='What is taught, such as "adding fractions".')] = None,
    level: Annotated[
        str | None,
        typer.Option(metavar="LEVEL", help="beginner, intermediate or advanced; found by a question or two unless given."),
    ] = None,
    material: Annotated[
        list[Path] | None,
        typer.Option(metavar="PATH", help="A folder or a file that exercises are made from; may be given again."),
    ] = None,
    learner: Annotated[str, typer.Option(metavar="NAME", help="Whose progress is kept.")] = "me",
    exercises: Annotated[int | None, typer.Option(parser=count, metavar="N", help="End the lesson after N exercises.")] = None,
    progress: Annotated[bool, typer.Option("--progress", help="Show how the learner stands, and leave.")] = False,
    forget: Annotated[
        str | None, typer.Option(metavar="NAME", help="Delete all that is kept of this learner, and leave.")
    ] = None,
    engine: options.Engine = "auto",
    max_new_tokens: Annotated[int, typer.Option(parser=count, metavar="N", help="Tokens of an explanation at most.")] = 256,
    temperature: Annotated[float, typer.Option(metavar="T", help="0 takes the likeliest token; higher is more varied.")] = 0.0,
    seed: Annotated[int | None, typer.Option(metavar="N", help="Makes exercises and sampling repeatable.")] = None,
    draft: options.Draft = None,
    json: options.Json = False,
    *,
    shared: dict[str, Any],
) -> None:
    """Learn: a question finds the level, then exercises with hints that climb step by step; the answers come from stdin."""
    from deepen.apps.tutor import forget_learner, learner_progress, open_lesson, record
    from deepen.apps.tutor.show import progress_text

    if forget is not None:
        gone = forget_learner(forget)
        if json:
            print_json(gone)
        else:
            print_text(
                f"Forgotten: {gone.learner}, with {gone.topics} topics, {gone.exercises} exercises and {gone.attempts} answers"
            )
        return
    if progress:
        found = learner_progress(learner)
        if json:
            print_json(found)
        else:
            print_text(progress_text(found))
        return
    if model is None or topic is None:
        missing = "MODEL" if model is None else "--topic"
        raise OptionError(
            f"a lesson needs {missing}", where="deepen tutor", next='write deepen tutor MODEL --topic "adding fractions"'
        )
    if sys.stdin is None:
        raise OptionError("there is nothing to read answers from", where="stdin", next="run it in a terminal or a pipe")
    settings: dict[str, Any] = {
        "topic": topic, "level": level, "material": material, "learner": learner, "exercises": exercises, "engine": engine,
        "max_new_tokens": max_new_tokens, "temperature": temperature, "seed": seed, "draft": draft,
    }  # fmt: skip
    with open_lesson(model, **settings, **shared) as (lesson, name):
        talk = _Talk(lesson, quiet=json)
        failed = talk.go_on()
        if json:
            print_json(record(lesson, talk.events, name))
    if failed is not None:
        raise failed
    if talk.trouble and not sys.stdin.isatty():  # at a keyboard the learner has seen it and gone on
        raise typer.Exit(MachineError.exit_code)


class _Talk:
    """A lesson in the terminal, or through a pipe: an answer a line."""

    def __init__(self, lesson: Lesson, *, quiet: bool) -> None:
        self.events: list[Exchange] = []
        self.trouble = False
        self._lesson, self._quiet = lesson, quiet
        self._terminal = sys.stdin.isatty()

    def go_on(self) -> Exception | None:
        """Teach until the lesson or stdin ends; the error that ended it, after which the next lesson goes on."""
        from deepen.apps.tutor import Exchange

        if self._terminal:
            import readline  # noqa: F401  # lines can be edited

            print("Write your answers; /help lists the commands, Ctrl-D leaves.\n", file=sys.stderr)
        entry: str | None = None
        entries = self._entries()
        while True:
            try:
                turns = self._lesson.start(self._tell) if entry is None else self._lesson.answer(entry, self._tell)
            except DataError as error:
                if not self._terminal:
                    return error
                print(f"error: {error}", file=sys.stderr)
                turns = ()
            except MachineError as error:
                return error
            self.events.append(Exchange(entry, turns))
            self._note(turns)
            if turns and turns[-1].kind == "end":
                return None
            entry = next(entries, None)
            if entry is None:
                return None

    def _note(self, turns: tuple[Turn, ...]) -> None:
        if not self._quiet:
            print("\n")
        for turn in turns:
            if turn.trouble:
                self.trouble = True
                advice = "the lesson goes on without the model's words"
                print(printable(f"error: {turn.trouble}\n  Next: {advice}; start it again to have them"), file=sys.stderr)

    def _tell(self, text: str) -> None:
        if not self._quiet:
            print(printable(text), end="", flush=True)

    def _entries(self) -> Iterator[str]:
        while True:
            try:
                yield input("> ") if self._terminal else next(sys.stdin).rstrip("\n")
            except (EOFError, StopIteration):
                return
