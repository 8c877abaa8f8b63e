"""Applications: summarize."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from deepen.cli import options
from deepen.cli.options import count
from deepen.cli.printing import print_json, print_text
from deepen.errors import printable

if TYPE_CHECKING:
    from deepen.apps.summary import Summary


@options.sharing(options.RUN)
def summarize(
    model: options.Model,
    files: Annotated[
        list[str],
        typer.Argument(metavar="FILE...", help="Text, Markdown, HTML, PDF, notebooks; folders; - for stdin; http://localhost."),
    ],
    length: Annotated[str, typer.Option(metavar="LENGTH", help="short, medium, long, or a number of words.")] = "medium",
    style: Annotated[str, typer.Option(metavar="STYLE", help="bullets, abstract or report.")] = "bullets",
    focus: Annotated[str, typer.Option(metavar="TEXT", help="What the reader wants to know most.")] = "",
    language: Annotated[str, typer.Option(metavar="NAME", help="Of the summary; the documents' unless given.")] = "",
    cite: Annotated[bool, typer.Option("--cite", help="Give each sentence the passage that supports it.")] = False,
    each: Annotated[bool, typer.Option("--each", help="A summary of each file, instead of one of all.")] = False,
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="Write it as Markdown as well.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file of --out if it exists.")] = False,
    parallel: Annotated[
        int | None, typer.Option(metavar="N", help="Requests at once; what cores and memory allow unless given.")
    ] = None,
    chunk_tokens: Annotated[
        int | None,
        typer.Option(parser=count, metavar="N", help="Read at most N tokens at once; all, or else 3000, unless given."),
    ] = None,
    engine: options.Engine = "auto",
    temperature: Annotated[float, typer.Option(metavar="T", help="0 takes the likeliest token; higher is more varied.")] = 0.0,
    seed: Annotated[int | None, typer.Option(metavar="N", help="Makes sampling repeatable.")] = None,
    draft: options.Draft = None,
    json: options.Json = False,
    *,
    shared: dict[str, Any],
) -> None:
    """Summarize documents of any length, with sources, and list what is not in them; a run that was killed is continued."""
    from deepen.apps.summarize import summarize_each

    def show(text: str) -> None:
        print(printable(text), end="", flush=True)

    found = summarize_each(
        model, files, together=not each, length=length, style=style, focus=focus, language=language, cite=cite, out=out,
        overwrite=overwrite, parallel=parallel, chunk_tokens=chunk_tokens, engine=engine, temperature=temperature, seed=seed,
        draft=draft, on_begin=(lambda name: print_text(f"# {name}\n")) if each and not json else None,
        on_text=None if json else show, on_end=None if json else _print_rest, **shared,
    )  # fmt: skip
    if json:
        print_json({"summaries": found} if each else found[0])


def _print_rest(summary: Summary) -> None:
    """What stands below a summary: its sources, and what the reader must know of it."""
    from deepen.apps.summarize import check_lines, source_lines

    print()
    sources, checks = source_lines(summary), check_lines(summary)
    for lines in (sources, checks):
        if lines:
            print_text("\n" + "\n".join(lines))
