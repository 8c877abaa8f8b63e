"""Run: chat."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer

from deepen.cli import options
from deepen.cli.options import count
from deepen.cli.printing import print_json


def register(app: typer.Typer) -> None:
    """Add this group's command to the program."""
    app.command(rich_help_panel="Run")(chat)


@options.sharing(options.RUN)
def chat(
    model: options.Model,
    conversation: Annotated[
        int | None, typer.Argument(metavar="ID", help="With --resume: the number of a kept chat; the latest unless given.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a kept chat: --resume, or --resume ID.")] = False,
    engine: options.Engine = "auto",
    system: Annotated[str | None, typer.Option(metavar="TEXT", help="A system message before everything else.")] = None,
    max_new_tokens: Annotated[int, typer.Option(parser=count, metavar="N", help="Tokens of an answer at most.")] = 1024,
    temperature: Annotated[float, typer.Option(metavar="T", help="0 takes the likeliest token; higher is more varied.")] = 0.7,
    seed: Annotated[int | None, typer.Option(metavar="N", help="Makes sampling repeatable.")] = None,
    greedy: Annotated[bool, typer.Option("--greedy", help="The same as --temperature 0.")] = False,
    trim: options.Trim = None,
    draft: options.Draft = None,
    json: options.Json = False,
    *,
    shared: dict[str, Any],
) -> None:
    """Chat with a model in the terminal, or through a pipe: a line is a message, /help lists the commands."""
    from deepen.chat import chat as converse

    found = converse(
        model, resume=resume, conversation=conversation, engine=engine, system=system, max_new_tokens=max_new_tokens,
        temperature=temperature, seed=seed, greedy=greedy, trim=trim, draft=draft,
        answers=sys.stderr if json else None, **shared,
    )  # fmt: skip
    if json:
        print_json(found)
    if found.failures and not sys.stdin.isatty():  # at a keyboard the user has seen them and gone on
        raise typer.Exit(found.failures[0].exit_code)
