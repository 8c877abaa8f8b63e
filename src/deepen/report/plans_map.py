"""The map of all blocks that may run twice, to be pointed at, with what is said of a cell beside it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from deepen.report.differences import TICKS, colour, difference, paler, place
from deepen.report.page import Html, element, section
from deepen.report.plans_words import about_cell, about_plan, command, data

_LEFT, _TOP = 50, 4
_SMALLEST, _LARGEST, _WIDTH = 20, 48, 600  # of a cell, and of all of them together if there is room
_DIAMOND = "0 -7 7 0 0 7 -7 0"
_STAR = " ".join(
    f"{radius * math.sin(math.pi * number / 5):.1f} {-radius * math.cos(math.pi * number / 5):.1f}"
    for number, radius in enumerate((9, 4) * 5)
)


def plans_map(document: Mapping[str, Any]) -> Html | None:
    """The map; None where no block was scored or predicted.

    Args:
        document: what `plans.json` holds.
    """
    layers, grid, model = document["depth"], document["grid"], document["model"]
    if not grid:
        return None
    best, solar = document["marks"]["best"], document["marks"]["solar"]
    size = max(_SMALLEST, min(_LARGEST, _WIDTH // layers))
    finalists = {str(plan["options"].get("repeat")): plan for plan in document["plans"]}
    cells, hatches = [], []
    for number, cell in enumerate(grid):
        x, y = _corner(cell["first"], cell["end"], size)
        block = f"{cell['first']}:{cell['end']}"
        told = about_plan(finalists[block], layers) if block in finalists else about_cell(cell, layers)
        cells.append(
            element(
                "rect", x=x + 0.5, y=y + 0.5, width=size - 1, height=size - 1, rx=2, fill=_fill(cell), role="button",
                tabindex=0 if number == 0 else -1, aria_label=told, data_i=cell["first"], data_j=cell["end"],
                data_command=command(model, {"repeat": block}),
            )
        )  # fmt: skip
        if not cell["exact"]:
            hatches.append(element("rect", x=x, y=y, width=size, height=size, class_="over"))
    marks = [_mark(form, where, size) for form, where in ((_DIAMOND, solar), (_STAR, best)) if where is not None]
    width, height = _LEFT + size * layers + 4, _TOP + size * layers + 40
    pattern = element(
        "pattern", element("path", d="M0 0V5", class_="hatch"), id="hatch", width=5, height=5, patternUnits="userSpaceOnUse",
        patternTransform="rotate(45)",
    )  # fmt: skip
    picture = element(
        "svg",
        element("defs", pattern),
        _frame(layers, size),
        element("g", *cells, id="cells", role="group", aria_label="Blocks of layers; arrow keys move, Enter chooses"),
        *hatches,
        *marks,
        element("rect", id="ring", class_="ring", width=size + 2, height=size + 2, rx=3, visibility="hidden"),
        viewBox=f"0 0 {width} {height}",
        class_="map",
        style=f"max-width: {width / 14:.0f}rem",
    )
    beside = element(
        "div", _scale(grid), _key(best, solar, hatched=bool(hatches)),
        element("p", "Point at a cell, or move with the arrow keys; click, or press Enter, for its command.", id="told",
                aria_live="polite"),
        data("chosen", ""), class_="aside",
    )  # fmt: skip
    return section(
        "Every block that may run twice", element("div", element("div", picture, class_="scroll"), beside, class_="beside")
    )


def _corner(start: int, end: int, size: int) -> tuple[int, int]:
    return _LEFT + size * (end - 1), _TOP + size * start


def _fill(cell: Mapping[str, Any]) -> str:
    return colour(cell["difference"]) if cell["exact"] else paler(colour(cell["difference"]), 0.35)


def _frame(layers: int, size: int) -> Html:
    step = 1 if layers <= 12 else 5 if layers <= 60 else 10
    bottom, middle = _TOP + size * layers, _TOP + size * layers / 2
    texts = [
        _text("the block ends before layer", _LEFT + size * layers / 2, bottom + 36, "middle"),
        _text("the block begins with layer", 14, middle, "middle", transform=f"rotate(-90 14 {middle})"),
    ]
    for layer in range(0, layers + 1, step):
        x, y = _corner(layer, layer, size)
        if layer > 0:
            texts.append(_text(str(layer), x + size / 2, bottom + 16, "middle"))
        if layer < layers:
            texts.append(_text(str(layer), _LEFT - 7, y + size / 2 + 5, "end"))
    return element("g", *texts, aria_hidden="true")


def _text(text: str, x: float, y: float, anchor: str, **more: str) -> Html:
    return element("text", text, x=f"{x:g}", y=f"{y:g}", text_anchor=anchor, class_="soft", **more)


def _mark(form: str, where: Sequence[int], size: int) -> Html:
    x, y = _corner(where[0], where[1], size)
    return element("polygon", points=form, transform=f"translate({x + size / 2:g} {y + size / 2:g})", class_="mark")


def _key(best: Sequence[int] | None, solar: Sequence[int] | None, *, hatched: bool) -> Html:
    entries = []
    if best is not None:
        entries.append(([element("polygon", points=_STAR, class_="mark")], f"the best plan, --repeat {best[0]}:{best[1]}"))
    if solar is not None:
        entries.append(([element("polygon", points=_DIAMOND, class_="mark")], f"SOLAR's own plan, --drop {solar[0]}"))
    if hatched:
        square = {"x": -9, "y": -9, "width": 18, "height": 18}
        forms = [element("rect", **square, fill="#f3c978"), element("rect", **square, class_="over")]
        entries.append((forms, "not scored: the colour is a prediction"))
    items = (
        element("li", element("svg", *forms, viewBox="-11 -11 22 22", aria_hidden="true"), text) for forms, text in entries
    )
    return element("ul", *items, class_="key")


def _scale(grid: Sequence[Mapping[str, Any]]) -> Html:
    """The colours as far as they are used."""
    values = [place(cell["difference"]) for cell in grid]
    low, high = min([0.0, *values]), max([0.2, *values])
    steps, width = 100, 270
    bars = [
        element(
            "rect", x=f"{10 + width * number / steps:.2f}", y=16, width=f"{width / steps + 0.4:.2f}", height=14,
            fill=colour(difference(low + (high - low) * (number + 0.5) / steps)),
        )
        for number in range(steps)
    ]  # fmt: skip
    ticks = [
        _text(f"{tick:+g}" if tick else "0", 10 + width * (place(tick) - low) / (high - low), 45, "middle")
        for tick in TICKS
        if low <= place(tick) <= high
    ]
    title = _text("nats per token above the base", 10, 11, "start")
    return element("svg", title, *bars, *ticks, viewBox="0 0 300 50", class_="scale", role="img", aria_label="The colours")
