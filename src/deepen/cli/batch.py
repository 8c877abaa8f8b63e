"""Run: batch."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from deepen.cli import options
from deepen.cli.options import count
from deepen.cli.printing import print_json, print_path
from deepen.units import format_energy, format_seconds


@options.sharing(options.RUN)
def batch(
    model: options.Model,
    requests: Annotated[Path, typer.Argument(metavar="IN.jsonl", help="Requests in OpenAI's batch form, one a line.")],
    out: Annotated[Path, typer.Argument(metavar="OUT.jsonl", help="The answers; the file appears when it is complete.")],
    engine: options.Engine = "auto",
    parallel: Annotated[
        int | None, typer.Option(metavar="N", help="Lines at work at once; as many as there are cores unless given.")
    ] = None,
    system: Annotated[str | None, typer.Option(metavar="TEXT", help="A system message for lines that have none.")] = None,
    max_new_tokens: Annotated[int, typer.Option(parser=count, metavar="N", help="Longest answer, unless a line says.")] = 256,
    temperature: Annotated[float, typer.Option(metavar="T", help="Of lines that set none; 0 takes the likeliest token.")] = 0.7,
    seed: Annotated[int, typer.Option(metavar="N", help="Lines that set no seed get one made from this.")] = 0,
    greedy: Annotated[bool, typer.Option("--greedy", help="The same as --temperature 0.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace OUT if it exists, and start anew.")] = False,
    json: options.Json = False,
    *,
    shared: dict[str, Any],
) -> None:
    """Answer a file of requests in OpenAI's batch form; a run that was killed is continued."""
    from deepen.batch import batch as answer

    found = answer(
        model, requests, out, engine=engine, parallel=parallel, system=system, max_new_tokens=max_new_tokens,
        temperature=temperature, seed=seed, greedy=greedy, overwrite=overwrite, **shared,
    )  # fmt: skip
    if json:
        print_json(found)
    else:
        print_path(out, json=False)
    energy = "" if found.energy_joules is None else f", {format_energy(found.energy_joules)}"
    print(
        f"{found.succeeded} of {found.lines} lines answered, {found.failed} failed; {found.completion_tokens} tokens,"
        f" {found.tokens_per_second:.1f} tokens/s in {format_seconds(found.seconds)}{energy}",
        file=sys.stderr,
    )
    if found.failed:
        raise typer.Exit(1)
