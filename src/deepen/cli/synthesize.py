"""Train: synthesize."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from deepen.cli import options
from deepen.cli.options import count
from deepen.cli.printing import print_json, print_path, print_table
from deepen.cli.train import ExcludeBenchmarks
from deepen.units import format_seconds


def register(app: typer.Typer) -> None:
    """Add this command to the program."""
    app.command(rich_help_panel="Train")(synthesize)


def synthesize(
    out: Annotated[Path, typer.Argument(metavar="OUT.jsonl", help="The rows; the file appears when it is complete.")],
    seeds: Annotated[str, typer.Option(metavar="FILE", help="Problems with answers: .json, .jsonl or .parquet.")],
    endpoint: Annotated[str, typer.Option(metavar="URL", help="A server of OpenAI's protocol.")],
    model: Annotated[
        str | None, typer.Option(metavar="NAME", help="The model's name there; the first that it lists unless given.")
    ] = None,
    kinds: Annotated[
        str, typer.Option(metavar="NAME,…", help="What is made of each problem.")
    ] = "rephrase,answer,self-verification,backward",
    samples: Annotated[int, typer.Option(metavar="N", help="Drafts of each kind for each problem.")] = 1,
    pairs: Annotated[
        Path | None, typer.Option(metavar="FILE.jsonl", help="Also write preferences, new answer over old, for align.")
    ] = None,
    limit: Annotated[int | None, typer.Option(parser=count, metavar="N", help="Only the first N problems.")] = None,
    skip_unanswered: Annotated[
        bool, typer.Option("--skip-unanswered", help="Leave out problems without an answer instead of refusing them.")
    ] = False,
    exclude_benchmarks: ExcludeBenchmarks = None,
    similarity: Annotated[
        float, typer.Option(metavar="S", help="From which overlap on a question repeats another, up to 1.")
    ] = 0.8,
    parallel: Annotated[int, typer.Option(metavar="N", help="The most requests that are open at once.")] = 8,
    max_new_tokens: Annotated[
        int, typer.Option(parser=count, metavar="N", help="Longest answer; one that is cut off is refused.")
    ] = 1024,
    temperature: Annotated[float, typer.Option(metavar="T", help="0 takes the likeliest token; higher is more varied.")] = 0.7,
    seed: Annotated[int, typer.Option(metavar="N", help="Of the sampling; another one asks for other answers.")] = 0,
    timeout: Annotated[
        float, typer.Option(metavar="S", help="Give a request up after so many seconds without a byte.")
    ] = 600.0,
    retries: Annotated[int, typer.Option(metavar="N", help="How often a request that failed is sent again.")] = 5,
    skip_failed: Annotated[
        bool, typer.Option("--skip-failed", help="Go without drafts whose requests got no usable answer.")
    ] = False,
    price: Annotated[
        Any, typer.Option(parser=options.numbers, metavar="IN,OUT", help="Per million tokens, to tell the cost.")
    ] = None,
    api_key_file: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The endpoint's key; OPENAI_API_KEY unless given.")
    ] = None,
    cache: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Where answers are kept and looked up; beside OUT unless given.")
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace OUT and its report; answers that are paid for are used again.")
    ] = False,
    json: options.Json = False,
) -> None:
    """Make maths problems with checked answers from others; a run that was killed is continued."""
    from deepen.synthesize import synthesize as make

    found = make(
        out, seeds=seeds, endpoint=endpoint, model=model, kinds=kinds, samples=samples, pairs=pairs, limit=limit,
        skip_unanswered=skip_unanswered, exclude_benchmarks=exclude_benchmarks, similarity=similarity, parallel=parallel,
        max_new_tokens=max_new_tokens, temperature=temperature, seed=seed, timeout=timeout, retries=retries,
        skip_failed=skip_failed, price=price, api_key_file=api_key_file, cache=cache, overwrite=overwrite,
    )  # fmt: skip
    report = found.report
    if json:
        print_json(found)
    else:
        rows = [
            (kind, f"{counts['drafts']:,}", f"{counts['kept']:,}", f"{counts['acceptance_rate']:.1%}")
            for kind, counts in report["kinds"].items()
        ]
        print_table(rows, ("kind", "drafts", "kept", "acceptance"))
        print_path(out, json=False)
    cost = "" if report["cost"] is None else f", cost {report['cost']:.4f}"
    print(
        f"{report['kept']:,} of {report['drafts']:,} drafts are kept; {found.asked:,} requests, {found.retried:,} sent again;"
        f" {report['prompt_tokens']:,} + {report['completion_tokens']:,} tokens{cost}, {format_seconds(found.seconds)}",
        file=sys.stderr,
    )
    if not report["kept"]:
        print(f"error: nothing was kept\n  Next: read why in {out.with_name(f'{out.stem}.report.md')}", file=sys.stderr)
        raise typer.Exit(1)
