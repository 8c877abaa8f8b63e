"""Applications: summarize, support, tutor, write."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from deepen.cli import options, tutor
from deepen.cli.options import count
from deepen.cli.printing import plain, print_json, print_table
from deepen.cli.summarize import summarize
from deepen.cli.write import write
from deepen.errors import DataError, OptionError, printable

if TYPE_CHECKING:
    from deepen.apps.desk import Answer, Desk

_PANEL = "Applications"


def register(app: typer.Typer) -> None:
    """Add this group's commands to the program."""
    app.command(rich_help_panel=_PANEL)(summarize)
    app.command(rich_help_panel=_PANEL)(support)
    tutor.register(app)
    app.command(rich_help_panel=_PANEL)(write)


@options.sharing(options.RUN)
def support(
    model: options.Model,
    docs: Annotated[list[Path], typer.Option(metavar="PATH", help="A folder or a file of documents; may be given again.")],
    question: Annotated[
        str | None, typer.Argument(metavar="QUESTION", help="What is asked; questions one by one from stdin unless given.")
    ] = None,
    index: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Keep the index in this SQLite file; in the cache unless given.")
    ] = None,
    passages: Annotated[int, typer.Option(metavar="N", help="Passages that the model is given.")] = 4,
    explain: Annotated[bool, typer.Option("--explain", help="Show the passages that were found, and their scores.")] = False,
    handover: Annotated[
        str, typer.Option(metavar="TEXT", help='Said after "I do not know".')
    ] = "Shall I pass the question on to a person?",
    log: Annotated[
        Path | None, typer.Option(metavar="FILE.csv", help="Add each question that is not answered to this file.")
    ] = None,
    engine: options.Engine = "auto",
    max_new_tokens: Annotated[int, typer.Option(parser=count, metavar="N", help="Tokens of an answer at most.")] = 256,
    temperature: Annotated[float, typer.Option(metavar="T", help="0 takes the likeliest token; higher is more varied.")] = 0.0,
    seed: Annotated[int | None, typer.Option(metavar="N", help="Makes sampling repeatable.")] = None,
    draft: options.Draft = None,
    json: options.Json = False,
    *,
    shared: dict[str, Any],
) -> None:
    """Answer questions from documents alone, with citations, or say that they do not answer them."""
    from deepen.apps.desk import check_question
    from deepen.apps.support import open_desk

    if question is not None:
        check_question(question)
    if question is None and Path("-") in docs:
        raise OptionError(
            "stdin gives a document or questions, not both", where="--docs", next="write the question on the command line"
        )
    if question is None and sys.stdin is None:
        raise OptionError("there is nothing to read questions from", where="stdin", next="write the question")
    settings: dict[str, Any] = {
        "docs": docs, "index": index, "passages": passages, "handover": handover, "log": log, "engine": engine,
        "max_new_tokens": max_new_tokens, "temperature": temperature, "seed": seed, "draft": draft,
    }  # fmt: skip
    with open_desk(model, **settings, **shared) as desk:
        if question is not None:
            answer = _ask(desk, question, json=json, explain=explain)
            if json:
                print_json(answer)
            return
        answers = _converse(desk, json=json, explain=explain)
        if json:
            print_json({"answers": answers})


def _ask(desk: Desk, question: str, *, json: bool, explain: bool) -> Answer:
    def show(text: str) -> None:
        print(printable(text), end="", flush=True)

    answer = desk.ask(question, on_text=None if json else show)
    if json:
        return answer
    print()
    for each in answer.passages:
        if each.cited:
            page = f"page {each.page} of " if each.page else ""
            print(printable(f"  [{each.id}] {page}{each.file}{'' if each.page else f':{each.line}'}  {each.title}"))
    if explain:
        _explain(answer)
    return answer


def _explain(answer: Answer) -> None:
    print(printable(f"\n{answer.status}: an answer needs a weight of {answer.needed:.2f}; found in"
                    f" {1000 * answer.search_seconds:.0f} ms"))  # fmt: skip
    rows = [
        (each.id, f"{each.weight:.2f}", f"{each.coverage:.2f}", f"{each.score:.1f}", f"{each.file}:{each.line}",
         " > ".join(each.headings)[:60])
        for each in answer.passages
    ]  # fmt: skip
    print_table(rows, ("id", "weight", "coverage", "bm25", "place", "headings"))
    for each in answer.passages:
        print(printable(f"\n[{each.id}] {each.title}\n{each.text}"))


def _converse(desk: Desk, *, json: bool, explain: bool) -> list[Any]:
    """Answer a question a line until stdin ends; the answers, if they are wanted as JSON."""
    if terminal := sys.stdin.isatty():
        import readline  # noqa: F401  # lines can be edited

        print("Ask; Ctrl-D leaves.", file=sys.stderr)
    answers: list[Any] = []
    while True:
        try:
            line = input("> ") if terminal else next(sys.stdin)
        except (EOFError, StopIteration):
            return answers
        if not line.strip():
            continue
        try:
            answer = _ask(desk, line, json=json, explain=explain)
        except DataError as error:
            if not terminal:
                raise
            print(f"error: {error}", file=sys.stderr)
            continue
        if json:
            answers.append(plain(answer))
        else:
            print()
