"""How a layer plan is put in words: for people, and for a shell."""

from __future__ import annotations

import math
import shlex
from collections.abc import Callable, Mapping
from typing import Any

from deepen.report.page import Html, element


def words(options: Mapping[str, Any]) -> str:
    """A plan's options as words for a shell, such as `--repeat 5:19`."""
    flags = (
        (f"--{key.replace('_', '-')}", value) for key, value in options.items() if value is not None and value is not False
    )
    return " ".join(flag if value is True else f"{flag} {shlex.quote(str(value))}" for flag, value in flags)


def command(model: str, options: Mapping[str, Any]) -> str:
    """The command that makes the deeper model."""
    model = f"./{model}" if model.startswith("-") else model
    return f"deepen scale {shlex.quote(model)} deeper {words(options)}"


def about_cell(cell: Mapping[str, Any], layers: int) -> str:
    """A cell of the map: a block that may run twice."""
    said = f"--repeat {cell['first']}:{cell['end']}: {layers} + {cell['end'] - cell['first']} layers; "
    if not cell["exact"]:
        return said + f"not scored, predicted {signed(cell['difference'])} nats per token to the base"
    return said + f"{_times(cell['difference'])} on {cell['tokens']:,} tokens"


def about_plan(plan: Mapping[str, Any], layers: int) -> str:
    """A plan of the table."""
    said = [
        f"{words(plan['options'])}: {layers} + {plan['added']} layers",
        f"{_times(plan['difference']['value'])} ({span(plan['difference'], signed)}) on {plan['tokens']:,} tokens",
    ]
    if plan["held_out"] is not None:
        said.append(f"held out {plan['held_out']:.3f} nats")
    return "; ".join([*said, f"rank {plan['rank']}", f"compute x {plan['cost']['flops_ratio']:.2f}"])


def signed(value: float) -> str:
    """A difference in nats."""
    return f"{value:+.3f}"


def span(interval: Mapping[str, Any], form: Callable[[float], str] = "{:.3f}".format) -> str:
    """From where to where something may lie; one window of text says nothing about that."""
    if interval["low"] is None:
        return "not known"
    return f"{form(interval['low'])} to {form(interval['high'])}"


def ends(each: Mapping[str, Any]) -> tuple[float, float]:
    """The interval of a difference; none where it is not known."""
    return (each["difference"], each["difference"]) if each["low"] is None else (each["low"], each["high"])


def data(name: str, text: str) -> Html:
    """A command that can be copied."""
    code = element("code", text, id=name, tabindex=0, aria_label="Command")
    return element("div", code, element("button", "Copy", type="button", data_copy=name), class_="command")


def _times(difference: float) -> str:
    return f"{signed(difference)} nats per token to the base, perplexity x {math.exp(min(difference, 50.0)):.3g}"
