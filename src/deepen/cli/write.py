"""Applications: write."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from deepen.cli import options
from deepen.cli.options import count
from deepen.cli.printing import print_json
from deepen.errors import printable
from deepen.progress import say
from deepen.units import format_seconds


@options.sharing(options.RUN)
def write(
    model: options.Model,
    kind: Annotated[str, typer.Option(metavar="NAME", help="article, report, story, email or product.")],
    about: Annotated[str, typer.Option(metavar="TEXT", help="What it is about, in plain words.")],
    facts: Annotated[
        list[Path], typer.Option(metavar="FILE", help="A document or a folder that it rests on; may be given again.")
    ] = [],  # noqa: B006
    outline: Annotated[bool, typer.Option("--outline", help="Stop after the outline and print it.")] = False,
    outline_file: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write from this outline: # title, ## headings, - points.")
    ] = None,
    words: Annotated[
        int | None, typer.Option(parser=count, metavar="N", help="How long it shall be; as the kind has it unless given.")
    ] = None,
    tone: Annotated[str | None, typer.Option(metavar="TEXT", help="Such as friendly.")] = None,
    audience: Annotated[str | None, typer.Option(metavar="TEXT", help="Who will read it.")] = None,
    language: Annotated[str | None, typer.Option(metavar="NAME", help="Its name in English, such as German.")] = None,
    revise: Annotated[bool, typer.Option("--revise/--no-revise", help="Let the model go over each section once more.")] = True,
    out: Annotated[Path | None, typer.Option(metavar="FILE.md", help="Also write it, with its sources, to this file.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file of --out if it exists.")] = False,
    engine: options.Engine = "auto",
    temperature: Annotated[float, typer.Option(metavar="T", help="0 takes the likeliest token; higher is more varied.")] = 0.0,
    seed: Annotated[int | None, typer.Option(metavar="N", help="Makes sampling repeatable.")] = None,
    draft: options.Draft = None,
    json: options.Json = False,
    *,
    shared: dict[str, Any],
) -> None:
    """Write an article, a report, a story, an e-mail or a product description, with its facts marked."""
    from deepen.apps.write import notes_of
    from deepen.apps.write import write as compose

    started = ended = False  # whether there is text already, and whether its line was ended for a message

    def show(text: str) -> None:
        nonlocal started, ended
        print(printable(text.removeprefix("\n") if ended else text), end="", flush=True)
        started, ended = True, False

    def show_step(text: str) -> None:
        nonlocal ended
        if started and not ended:  # the next section begins with an empty line in any case
            print(flush=True)
            ended = True
        say(text)

    writing = compose(
        model, kind=kind, about=about, facts=facts, outline=outline, outline_file=outline_file, words=words, tone=tone,
        audience=audience, language=language, revise=revise, out=out, overwrite=overwrite, engine=engine,
        temperature=temperature, seed=seed, draft=draft, on_text=None if json else show, on_step=show_step,
        **shared,
    )  # fmt: skip
    if json:
        print_json(writing)
        return
    if outline:
        return
    notes = notes_of(writing)
    print(printable(f"\n\n---\n\n{notes}".rstrip() if notes else ""))
    fits = "within" if writing.within_target else "not within"
    print(
        f"Words: {writing.words} of {writing.target_words} asked for ({fits} 15 %); {writing.tokens} tokens in"
        f" {format_seconds(writing.seconds)}",
        file=sys.stderr,
    )
