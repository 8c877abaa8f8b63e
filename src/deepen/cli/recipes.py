"""All of it: run, check, recipes."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from deepen.cli import options
from deepen.cli.printing import print_json, print_table, print_text
from deepen.errors import printable
from deepen.units import format_bytes, format_count, format_energy, format_seconds

Announce = Callable[[int, int, dict[str, Any]], None]
Recipe = Annotated[str, typer.Argument(metavar="RECIPE", help="A recipe file, or the name of one of `deepen recipes`.")]
Set = Annotated[
    list[str], typer.Option("--set", metavar="STAGE.KEY=VALUE", help="Change an option of a stage; may be given again.")
]


def register(app: typer.Typer) -> None:
    """Add this group's commands to the program."""
    app.command(rich_help_panel="All of it")(run)
    app.command(rich_help_panel="All of it")(check)
    app.command(rich_help_panel="All of it")(recipes)


def run(
    recipe: Recipe,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show the commands and what is done already.")] = False,
    until: Annotated[str | None, typer.Option(metavar="STAGE", help="Stop after this stage.")] = None,
    set: Set = [],  # noqa: A002, B006
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Where it all lies; runs/NAME unless given.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Make stages again whose options or input changed.")] = False,
    adopt: Annotated[bool, typer.Option("--adopt", help="Go on with outputs edited by hand, on record.")] = False,
    grid_factor: Annotated[
        float, typer.Option(metavar="G", help="Grams of CO2 per kWh where the machine stands, for the report.")
    ] = 480.0,
    json: options.Json = False,
) -> None:
    """Run the stages of a recipe; those that are done are skipped."""
    from deepen.pipeline import run as run_recipe
    from deepen.pipeline.together import is_first

    def announce(number: int, total: int, stage: dict[str, Any]) -> None:
        done = " (done already)" if stage["status"] == "done" else ""
        print(printable(f"[{number}/{total}] {stage['name']}{done}: {stage['command']}"), file=sys.stderr)

    with _shown(announce, live=not dry_run and sys.stderr.isatty() and is_first()) as on_stage:
        report = run_recipe(
            recipe, dry_run=dry_run, until=until, set=set, out=out, overwrite=overwrite, adopt=adopt, grid_factor=grid_factor,
            on_stage=None if dry_run else on_stage,
        )  # fmt: skip
    if not is_first():
        return
    if json:
        print_json(report)
    elif dry_run:
        _print_dry_run(report)
    else:
        _print_report(report)


@contextmanager
def _shown(announce: Announce, *, live: bool) -> Iterator[Announce]:
    """Stages drawn on a terminal, else a line for each."""
    if not live:
        yield announce
        return
    from deepen.cli.live import live_view

    with live_view() as on_stage:
        yield on_stage


def _print_dry_run(report: dict[str, Any]) -> None:
    """What would be done, skipped and needed."""
    rows = []
    for stage in report["stages"]:
        cost = stage["cost"] or {}
        rows.append(
            (
                stage["name"],
                stage["status"],
                *(format_bytes(cost[key]) if cost.get(key) else "" for key in ("memory_bytes", "disk_bytes")),
                format_seconds(cost["seconds"]) if cost.get("seconds") else "",
                stage["command"],
            )
        )
    print_table(rows, ("stage", "", "memory", "disk", "training", "command"))
    waiting = [stage["cost"] for stage in report["stages"] if stage["cost"] and stage["status"] != "done"]
    trained = [cost for cost in waiting if cost["seconds"]]
    done = sum(stage["status"] == "done" for stage in report["stages"])
    print_text(f"\n{done} of {len(report['stages'])} stages are done and would be skipped")
    if trained:
        seconds, joules = (sum(cost[key] for cost in trained) for key in ("seconds", "energy_joules"))
        print_text(f"pretraining on {report['machine']}: about {format_seconds(seconds)}, {format_energy(joules)}")
    for kind in ("problem", "warning"):
        for text in report[f"{kind}s"]:
            print_text(f"{kind}: {text}")


def _print_report(report: dict[str, Any]) -> None:
    rows = []
    for stage in report["stages"]:
        model, task = stage["model"], (stage["result"] or {}).get("tasks", {}).get("perplexity")
        error = f" ± {task['stderr']:.2f}" if task and task["stderr"] is not None else ""
        rows.append(
            (
                stage["name"],
                str(model["layers"]),
                format_count(model["parameters"]),
                format_bytes(model["bytes"]),
                f"{task['value']:.2f}{error}" if task else "",
                format_seconds(stage["seconds"]),
                stage["output"],
            )
        )
    print_table(rows, ("stage", "layers", "parameters", "size", "perplexity", "time", "output"))
    for stage in report["stages"]:
        for line in _judgement(stage["result"] or {}):
            print_text(f"\n{stage['name']}: {line}")
        if "text" in (stage["result"] or {}):
            print_text(f"\n{stage['name']}: {stage['prompt']}\n  {stage['result']['text'].strip()}")
    files = [f"{kind}: {file}" for kind in ("picture", "report") for file in report[f"{kind}s"]]
    print_text("\n" + "\n".join(files))
    if all(stage["status"] == "done" for stage in report["stages"]):
        print_text(f"\nnothing to do: all {len(report['stages'])} stages were done already")


def _judgement(result: dict[str, Any]) -> Iterator[str]:
    """Values of benchmarks, and what a comparison says."""
    for name, task in result.get("tasks", {}).items():
        if name != "perplexity":
            yield f"{name} {task['value']:.4f}" + ("" if task["low"] is None else f" ({task['low']:.4f} to {task['high']:.4f})")
    for other, tasks in result.get("comparisons", {}).items():
        for name, each in tasks.items():
            ends = "" if each["low"] is None else f" ({each['low']:+.4f} to {each['high']:+.4f})"
            yield f"{each['verdict']} on {name} against {other}: {each['difference']:+.4f} {each['unit']}{ends}"


def check(recipe: Recipe, set: Set = [], json: options.Json = False) -> None:  # noqa: A002, B006
    """Check a recipe: its words, its files, and whether its plans fit the base."""
    from deepen.pipeline import check as check_recipe

    found = check_recipe(recipe, set=set)
    if json:
        print_json(found)
        return
    print_table([(stage["name"], stage["command"]) for stage in found["stages"]], ("stage", "command"))
    for warning in found["warnings"]:
        print_text(f"warning: {warning}")
    print_text(f"\n{found['recipe']}: {len(found['stages'])} stages, no problems")


def recipes(
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="Print this recipe.")] = None,
    json: options.Json = False,
) -> None:
    """List the recipes that come with deepen with what they need, or print one."""
    from deepen.pipeline import recipes as list_recipes

    found = list_recipes()
    if name is not None:
        from deepen.pipeline import find_recipe

        text = find_recipe(name).read_text(encoding="utf-8")
        if json:
            print_json({"name": name, "text": text})
        else:
            print_text(text.rstrip("\n"))
    elif json:
        print_json({"recipes": found})
    else:
        for each in found:
            print_text(f"{each['name']}: {each['about']}")
            for need in each["needs"]:
                hours = f", {need['gpu_hours']} GPU hours" if need["gpu_hours"] != "0" else ""
                print_text(
                    f"    {need['on']}: {need['memory']} of memory, {need['disk']} of disk, {need['tokens']} tokens,"
                    f" {need['time']}{hours}, {need['energy']}"
                )
            print_text(f"    {each['path']}\n")
