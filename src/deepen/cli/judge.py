"""Judge: evaluate."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from deepen.cli import options
from deepen.cli.options import count
from deepen.cli.printing import print_json, print_table
from deepen.units import format_seconds


def register(app: typer.Typer) -> None:
    """Add this group's commands to the program."""
    # what follows `--data FILE` without an option of its own is more data
    app.command(rich_help_panel="Judge", context_settings={"allow_extra_args": True})(evaluate)


@options.sharing(options.PLACE)
def evaluate(
    context: typer.Context,
    model: options.Model,
    data: options.Data,
    suite: Annotated[str, typer.Option(metavar="NAME", help="What to measure: perplexity.")] = "perplexity",
    window: Annotated[int, typer.Option(parser=count, metavar="N", help="Tokens that the model sees at once.")] = 512,
    stride: Annotated[
        int | None,
        typer.Option(parser=count, metavar="N", help="Tokens from one window to the next; the window unless given."),
    ] = None,
    tokens: Annotated[
        int | None, typer.Option(parser=count, metavar="N", help="Only the first N tokens of the data, such as 100k.")
    ] = None,
    limit: Annotated[int | None, typer.Option(parser=count, metavar="N", help="Only the first N windows.")] = None,
    json: options.Json = False,
    *,
    shared: dict[str, Any],
) -> None:
    """Measure a model: the perplexity of a text, with its standard error."""
    from deepen.evaluate import evaluate as measure

    report = measure(
        model, data=[*data, *map(Path, context.args)], suite=suite, window=window, stride=stride, tokens=tokens,
        limit=limit, **shared,
    )  # fmt: skip
    if json:
        print_json(report)
        return
    rows = []
    for name, task in report.tasks.items():
        error = "" if task["stderr"] is None else f"{task['stderr']:.3f}"
        rows.append((name, f"{task['value']:.3f}", error, f"{task['n']:,}", format_seconds(report.seconds)))
    print_table(rows, ("task", "value", "± error", "scored", "time"))
