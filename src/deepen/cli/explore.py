"""Build: explore."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from deepen.cli import options
from deepen.cli.options import count, size
from deepen.cli.printing import print_json, print_table, print_text
from deepen.units import format_bytes

_PLANS, _SCORE, _RUN = "Which plans", "How they are judged", "The run itself"
_SHOWN = 10


def register(app: typer.Typer) -> None:
    """Add this command to the program."""
    # what follows `--data FILE` without an option of its own is more data
    app.command(rich_help_panel="Build", context_settings={"allow_extra_args": True})(explore)


def names(text: Any) -> tuple[str, ...]:
    """A parser of names with commas between them."""
    return tuple(text) if isinstance(text, tuple) else tuple(each.strip() for each in str(text).split(","))


def explore(
    context: typer.Context,
    model: options.Model,
    data: Annotated[
        list[Path], typer.Option(metavar="PATH", help="Text, chats, or questions with choices; several may follow.")
    ],
    out: Annotated[Path, typer.Option(metavar="DIR", help="The new folder; it appears when it is complete.")],
    add: Annotated[
        int | None, typer.Option(metavar="K", help="How many layers the plans add.", rich_help_panel=_PLANS)
    ] = None,
    budget: Annotated[
        str | None,
        typer.Option(
            metavar="FACTOR",
            help="The most compute per token, by the base's, such as 1.3x; 1.5x without --add.",
            rich_help_panel=_PLANS,
        ),
    ] = None,
    kinds: Annotated[
        Any,
        typer.Option(
            parser=names, metavar="NAME,NAME", show_default=False, rich_help_panel=_PLANS,
            help="repeat (a block twice), drop, double (each layer of a block twice), times (a block three times or more),"
            " union (two blocks); all unless given.",
        ),
    ] = ("repeat", "drop", "double", "times", "union"),
    tokens: Annotated[
        int, typer.Option(parser=count, metavar="N", help="Search on N tokens of the data.", rich_help_panel=_SCORE)
    ] = 8000,
    held_out: Annotated[
        Path | None,
        typer.Option(metavar="PATH", help="Other data for the scores that are reported; the data's next tokens unless given.",
                     rich_help_panel=_SCORE),
    ] = None,
    held_out_tokens: Annotated[
        int | None, typer.Option(parser=count, metavar="N", help="How many of it; as --tokens unless given.",
                                 rich_help_panel=_SCORE),
    ] = None,
    template: Annotated[
        str, typer.Option(metavar="NAME", help="Of chats: model, solar, chatml or a file.", rich_help_panel=_SCORE)
    ] = "model",
    objective: Annotated[
        str, typer.Option(metavar="NAME", help="perplexity, choices or mixture.", rich_help_panel=_SCORE)
    ] = "perplexity",
    guard: Annotated[
        Path | None,
        typer.Option(metavar="PATH", help="Data on which a plan must not be worse than the base.", rich_help_panel=_SCORE),
    ] = None,
    heal: Annotated[
        int | None,
        typer.Option(
            parser=count, metavar="N", rich_help_panel=_SCORE,
            help="Train the best plans and the base for N steps, and rank by where they end.",
        ),
    ] = None,
    window: Annotated[
        int, typer.Option(parser=count, metavar="N", help="Tokens that the model sees at once.", rich_help_panel=_SCORE)
    ] = 256,
    keep: Annotated[
        int, typer.Option(metavar="N", help="Report N plans, besides the best of each size.", rich_help_panel=_RUN)
    ] = 10,
    exhaustive: Annotated[
        bool, typer.Option("--exhaustive", help="Score every plan on everything.", rich_help_panel=_RUN)
    ] = False,
    stream: Annotated[
        bool, typer.Option("--stream", help="Hold one layer at a time, for a model larger than memory.", rich_help_panel=_RUN)
    ] = False,
    recompute: Annotated[
        bool, typer.Option("--recompute", help="Compute hidden states again instead of keeping them.", rich_help_panel=_RUN)
    ] = False,
    memory: Annotated[
        int | None,
        typer.Option(parser=size, metavar="SIZE", help="Use at most this much; most of what is free unless given.",
                     rich_help_panel=_RUN),
    ] = None,
    seed: Annotated[
        int, typer.Option(metavar="N", help="Of what is drawn, and of the order of healing.", rich_help_panel=_RUN)
    ] = 0,
    device: Annotated[str | None, typer.Option(metavar="NAME", help="cpu, cuda, …; the CPU unless given.")] = None,
    dtype: options.Dtype = None,
    overwrite: options.Overwrite = False,
    json: options.Json = False,
) -> None:  # fmt: skip
    """Search which layers to repeat: every plan by its loss on your text, with intervals."""
    from deepen.explore import explore as search

    found = search(
        model, data=[*data, *map(Path, context.args)], out=out, add=add, budget=budget, kinds=kinds, tokens=tokens,
        held_out=held_out, held_out_tokens=held_out_tokens, template=template, objective=objective, guard=guard, heal=heal,
        window=window, keep=keep, exhaustive=exhaustive, stream=stream, recompute=recompute, memory=memory, seed=seed,
        device=device, dtype=dtype, overwrite=overwrite,
    )  # fmt: skip
    from deepen.explore.report import describe

    document = describe(found)
    if json:
        print_json({"out": out, **document})
    else:
        _tell(document, out)


def _tell(document: Mapping[str, Any], out: Path) -> None:
    """The best plans with their intervals, and what to type next."""
    from deepen.report.plans_words import command, signed, span, words

    plans = document["plans"]
    if not plans:
        print_text("No plan passed the guard.")
        return
    healed = any(plan["healed"] for plan in plans)
    header = ["rank", "plan", "layers", "to the base", "95 % interval", "held out", "compute", "KV per token"]
    rows = []
    for plan in plans[:_SHOWN]:
        tied = sum(other["rank"] == plan["rank"] for other in plans) > 1
        row = [
            f"{plan['rank']} tied" if tied else f"{plan['rank']}",
            words(plan["options"]),
            f"{document['depth'] + plan['added']}",
            signed(plan["difference"]["value"]),
            span(plan["difference"], signed),
            "" if plan["held_out"] is None else f"{plan['held_out']:.3f}",
            f"x {plan['cost']['flops_ratio']:.2f}",
            format_bytes(plan["cost"]["kv_bytes_per_token"]),
        ]
        if healed:
            ends = {end["start"]: f"{end['value']:.3f}" for end in plan["healed"]}
            row += [ends.get(start, "") for start in ("copies", "identity")]
        rows.append(row)
    print_table(rows, header + ["healed copies", "healed identity"] * healed)
    base = document["base"]
    print_text(f"\nNats per token; the base has {base['score']:.3f}, and {base['held_out']:.3f} on held-out text.")
    if len(plans) > _SHOWN:
        print_text(f"{len(plans) - _SHOWN} more plans are in {out / 'plans.json'}.")
    for note in document["notes"]:
        print_text(f"note: {note}")
    print_text(f"\nLook at {out / 'report.html'}\nNext: {command(document['model'], {'plan': out / 'best.yaml'})}")
