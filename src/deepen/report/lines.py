"""Curves and layer plans for a page, as SVG that follows its colours and its width."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise

from deepen.report.page import Html, element, join
from deepen.units import format_count

Points = Sequence[tuple[float, float]]
"""Tokens trained on and a value, in order."""

_HEIGHT, _AXIS, _TOP = 200, 24, 18  # pixels
_COLOURS = 6
_MOST_MARKERS = 40
_ROW, _BAR = 30, 14  # pixels
_MOST_ROWS = 64


def lines(curves: Mapping[str, Points], *, about: str, level: tuple[str, float] | None = None) -> Html:
    """Values against tokens, a line for each curve.

    Args:
        curves: for each its name and its points; at least one point in all.
        about: what the chart shows, for those who do not see it.
        level: the name and the value of a horizontal line to compare with.
    """
    points = [point for curve in curves.values() for point in curve if math.isfinite(point[1])]
    values = [value for _, value in points] + ([level[1]] if level else [])
    low, high = min(values), max(values)
    margin = (high - low) * 0.06 or abs(high) * 0.06 or 1.0
    low, high, end = low - margin, high + margin, max(tokens for tokens, _ in points) or 1.0

    def x(tokens: float) -> str:
        return f"{1 + 98 * tokens / end:.2f}%"

    def y(value: float) -> float:
        return round(_TOP + _HEIGHT * (high - value) / (high - low), 1)

    parts = [_grid(value, y(value)) for value in (low + (high - low) * share for share in (0.05, 0.35, 0.65, 0.95))]
    if level:
        at = y(level[1])
        parts.append(element("line", x1="1%", x2="99%", y1=at, y2=at, class_="ink", stroke_dasharray="6 4"))
    for number, curve in enumerate(curves.values()):
        colour = number % _COLOURS
        sound = [(tokens, value) for tokens, value in curve if math.isfinite(value)]
        drawn = " ".join(f"{10 + 980 * tokens / end:.1f},{y(value):.1f}" for tokens, value in sound)
        style = {"fill": "none", "stroke_width": 2, "vector_effect": "non-scaling-stroke", "stroke_linejoin": "round"}
        line = element("polyline", points=drawn, class_=f"l{colour}", **style)
        box = {"viewBox": f"0 0 1000 {_TOP + _HEIGHT}", "preserveAspectRatio": "none", "overflow": "visible"}
        parts.append(element("svg", line, width="100%", height=_TOP + _HEIGHT, **box))
        if len(sound) <= _MOST_MARKERS:
            parts += [
                element("circle", cx=x(tokens), cy=y(value), r=3, class_=f"f{colour}", stroke="none") for tokens, value in sound
            ]
    ends = (("1%", "start", "0"), ("50%", "middle", format_count(end / 2)), ("99%", "end", f"{format_count(end)} tokens"))
    parts += [
        element("text", text, x=place, y=_TOP + _HEIGHT + 17, text_anchor=side, class_="soft") for place, side, text in ends
    ]
    drawing = element("svg", *parts, width="100%", height=_TOP + _HEIGHT + _AXIS, role="img", aria_label=about)
    return join([_legend(list(curves), level[0] if level else None), drawing])


def layer_plan(source_layers: int, layers: Sequence[int], identity: Sequence[int] = (), *, about: str) -> Html:
    """A layer plan: a row for each run of consecutive base layers, over the base's depth from left to right.

    Args:
        source_layers: depth of the base.
        layers: base index of each layer of the deepened model.
        identity: positions that start as the identity; they are drawn lighter.
        about: what the drawing shows, for those who do not see it.
    """
    starts = [0, *(place for place in range(1, len(layers)) if layers[place] != layers[place - 1] + 1), len(layers)]
    light, parts = set(identity), []
    for row, (first, end) in enumerate(pairwise(starts[: _MOST_ROWS + 1])):
        top = row * _ROW
        seam = f", seam {layers[first - 1]} → {layers[first]}" if first else ""
        text = f"{first} to {end - 1}: base {layers[first]} to {layers[end - 1]}{seam}"
        parts += [
            element("text", text, x=0, y=top + 11, class_="soft"),
            element("rect", x=0, y=top + 15, width="100%", height=_BAR - 5, rx=2, class_="bed"),
        ]
        for place in range(first, end):
            left, width = 100 * layers[place] / source_layers, 100 / source_layers
            opacity = 0.45 if place in light else None
            parts.append(
                element("rect", x=f"{left:.2f}%", y=top + 15, width=f"{width - 0.25:.2f}%", height=_BAR - 5, class_="f0",
                        opacity=opacity)
            )  # fmt: skip
    rows = min(len(starts) - 1, _MOST_ROWS)
    return element("svg", *parts, width="100%", height=rows * _ROW, role="img", aria_label=about)


STYLE = """
svg .bed { fill: var(--card); } .legend .dash { display: inline-block; width: 1.2em; border-top: 2px dashed var(--ink);
  vertical-align: middle; margin-right: .45em; }
"""
"""Rules that a page with these drawings needs."""


def _grid(value: float, at: float) -> Html:
    text = element("text", f"{value:.4g}", x="1%", y=at - 4, class_="soft")
    return join([element("line", x1="1%", x2="99%", y1=at, y2=at, class_="line"), text])


def _legend(names: Sequence[str], level: str | None) -> Html:
    def mark(number: int) -> Html:
        square = element("rect", width=10, height=10, rx=2, class_=f"f{number % _COLOURS}")
        return element("svg", square, viewBox="0 0 10 10", aria_hidden="true")

    items = [element("li", mark(number), name) for number, name in enumerate(names)]
    if level:
        items.append(element("li", element("span", class_="dash"), level))
    return element("ul", *items, class_="legend")
