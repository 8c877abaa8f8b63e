"""Judge: evaluate."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from deepen.cli import options
from deepen.cli.options import count
from deepen.cli.printing import print_json, print_table, print_text

_SEVERAL = ("--data", "--compare", "--tasks", "--benchmarks")
_MATCHES = 20  # on the terminal; the report has more


class _Judging(TyperCommand):
    """A command in which several values may follow an option; the first word that is no option's value is the model."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Repeat the option before each of its values."""
        flags = {name for each in self.params if getattr(each, "is_flag", False) for name in (*each.opts, *each.secondary_opts)}
        spread: list[str] = []
        option, expects, has_model = "", False, False
        for word in args:
            if word.startswith("-") and word != "-" and not expects:
                option, _, value = word.partition("=")
                expects = not value and option not in flags and option not in ctx.help_option_names
            elif expects:
                expects = False
            elif not has_model:
                has_model = True
            elif option in _SEVERAL:
                spread.append(option)
            spread.append(word)
        return super().parse_args(ctx, spread)


def register(app: typer.Typer) -> None:
    """Add this group's commands to the program."""
    app.command(rich_help_panel="Judge", cls=_Judging)(evaluate)


@options.sharing(options.PLACE)
def evaluate(
    model: options.Model,
    suite: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="perplexity (unless tasks are given), h6 or h4 (the Open LLM Leaderboard of 2023), bias or contamination.",
        ),
    ] = None,
    tasks: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Only these, or any of lm-eval's; several may follow, or commas.")
    ] = None,
    data: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="PATH",
            help="Texts for a perplexity; a folder of benchmarks (the Hub unless given); training files for contamination.",
        ),
    ] = None,
    limit: Annotated[
        int | None, typer.Option(parser=count, metavar="N", help="Only N rows of each task, or windows, evenly spaced.")
    ] = None,
    compare: Annotated[
        list[str],
        typer.Option(metavar="MODEL", help="Other models on the same rows, without the layer plan; several may follow."),
    ] = [],  # noqa: B006
    reference: Annotated[
        str | None, typer.Option(metavar="solar", help="Put the published rows of SOLAR's Table 2 below.")
    ] = None,
    window: Annotated[
        int | None,
        typer.Option(parser=count, metavar="N", help="Perplexity: tokens that the model sees at once; 512 unless given."),
    ] = None,
    stride: Annotated[
        int | None,
        typer.Option(
            parser=count, metavar="N", help="Perplexity: tokens from one window to the next; the window unless given."
        ),
    ] = None,
    tokens: Annotated[
        int | None,
        typer.Option(parser=count, metavar="N", help="Perplexity: only the first N tokens of the data, such as 100k."),
    ] = None,
    benchmarks: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME|DIR", help="Contamination: what to look for: gsm8k, h6, a folder; several may follow."),
    ] = None,
    reference_model: Annotated[
        str | None, typer.Option(metavar="MODEL", help="Contamination: measure Min-K% probability beside this model.")
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(metavar="N", help="Sequences at once; scores move with it, so it is fixed: 8 unless given.")
    ] = None,
    reduce_shots: Annotated[
        bool, typer.Option("--reduce-shots", help="Give fewer solved examples where they do not fit the model's window.")
    ] = False,
    engine: options.Engine = "auto",
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="A new folder for the report: a page, Markdown, JSON, every answer.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace that folder if it exists.")] = False,
    update_card: Annotated[
        bool, typer.Option("--update-card", help="Write the results into MODEL/README.md, as the Hub's model-index.")
    ] = False,
    json: options.Json = False,
    *,
    shared: dict[str, Any],
) -> None:
    """Measure a model: benchmarks, perplexity, bias or contamination, with 95 % intervals and a fair comparison."""
    from deepen.evaluate import evaluate as measure
    from deepen.evaluate import words

    named = None if tasks is None else [name for word in tasks for name in word.split(",") if name]
    report = measure(
        model, data=data, suite=suite, tasks=named, limit=limit, compare=compare, reference=reference, window=window,
        stride=stride, tokens=tokens, benchmarks=None if benchmarks is None else list(benchmarks),
        reference_model=reference_model, batch_size=batch_size, reduce_shots=reduce_shots, engine=engine, out=out,
        overwrite=overwrite, update_card=update_card, **shared,
    )  # fmt: skip
    if json:
        print_json(report)
        return
    shown = words.results_table(report)
    print_table(shown.rows, shown.header)
    tables = [words.comparison_table(report, other) for other in report.comparisons]
    tables += words.match_tables(report, _MATCHES)
    tables += [words.reference_table(report)] if report.reference is not None else []
    for each in tables:
        print_text(f"\n{each.about}")
        print_table(each.rows, each.header)
    if notes := words.notes(report):
        print_text("\n" + "\n".join(notes))
    if out is not None:
        print_text(f"\nreport: {out / 'report.html'}")
