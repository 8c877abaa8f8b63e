"""Charts of values with their intervals: for a page as SVG that follows its colours and its width, and as PNG."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from deepen.report.page import Html, element, join

_COLOURS = ("#0072b2", "#c77700", "#00805e", "#b0568a", "#2f8fc4", "#bf4e00")  # as in the page's style
_INK, _GRID = "#333333", "#e4e4e4"
_LABEL, _BAR, _GAP, _AXIS = 22, 18, 14, 24  # heights in pixels
_RADIUS, _MARGIN = 130, 70  # of a radar
_LONGEST = 40  # characters of a name in a picture
_MOST_COLOURS = len(_COLOURS)


@dataclass(frozen=True)
class Bar:
    """A value of one model.

    Attributes:
        name: of the model.
        value: what is drawn.
        low: lower end of its 95 % interval, if it is known.
        high: upper end.
        text: the value as it is written.
    """

    name: str
    value: float
    low: float | None
    high: float | None
    text: str


Groups = Mapping[str, Sequence[Bar]]
"""For each task the bars of the models."""


def bars(groups: Groups, *, scale: float, unit: str, about: str) -> Html:
    """Horizontal bars with error bars, a group for each task, as wide as the page.

    Args:
        groups: what to draw; a model has the same colour in every group.
        scale: the value at the right edge.
        unit: written after the numbers of the axis, such as `%`.
        about: what the chart shows, for those who do not see it.
    """
    numbers = _numbers(groups)
    parts: list[Html] = []
    top = 0
    for label, group in groups.items():
        parts.append(element("text", label, x=0, y=top + 15))
        top += _LABEL
        for bar in group:
            parts += _bar(bar, numbers[bar.name], top, scale)
            top += _BAR
        top += _GAP
    ticks = [
        join(
            [
                element("line", x1=f"{at}%", x2=f"{at}%", y1=0, y2=top, class_="line"),
                element(
                    "text", f"{scale * at / 100:.3g}{unit}", x=f"{at}%", y=top + 16, class_="soft",
                    text_anchor={0: "start", 100: "end"}.get(at, "middle"),
                ),
            ]
        )
        for at in (0, 25, 50, 75, 100)
    ]  # fmt: skip
    drawing = element("svg", *ticks, *parts, height=top + _AXIS, width="100%", role="img", aria_label=about)
    return join([_legend(numbers), drawing])


def radar(axes: Sequence[str], models: Mapping[str, Sequence[float]], *, about: str) -> Html:
    """Values from 0 to 1 on axes around a centre, a line for each model."""
    middle = _RADIUS + _MARGIN

    def point(place: int, share: float) -> tuple[float, float]:
        angle = 2 * math.pi * place / len(axes) - math.pi / 2
        return middle + _RADIUS * share * math.cos(angle), middle + _RADIUS * share * math.sin(angle)

    def outline(shares: Sequence[float]) -> str:
        return " ".join("{:.1f},{:.1f}".format(*point(place, share)) for place, share in enumerate(shares))

    grid = [element("polygon", points=outline([share] * len(axes)), class_="line") for share in (0.25, 0.5, 0.75, 1.0)]
    labels = []
    for place, axis in enumerate(axes):
        x, y = point(place, 1.0)
        grid.append(element("line", x1=middle, y1=middle, x2=f"{x:.1f}", y2=f"{y:.1f}", class_="line"))
        x, y = point(place, 1.09)
        side = "middle" if abs(x - middle) < 1 else "start" if x > middle else "end"
        labels.append(element("text", axis, x=f"{x:.1f}", y=f"{y + 4:.1f}", text_anchor=side))
    lines = []
    numbers = {name: number % _MOST_COLOURS for number, name in enumerate(models)}
    for name, shares in models.items():
        style = {"stroke_width": 2, "class_": f"f{numbers[name]} l{numbers[name]}", "fill_opacity": 0.08}
        lines.append(element("polygon", points=outline(shares), stroke_linejoin="round", **style))
    drawing = element(
        "svg", *grid, *lines, *labels, viewBox=f"-20 20 {2 * middle + 40} {2 * middle - 40}", role="img", aria_label=about,
        style="max-width: 26rem",
    )  # fmt: skip
    return join([_legend(numbers), drawing])


def draw_bars(file: Path, groups: Groups, *, scale: float, quantity: str) -> None:
    """The same bars as a PNG.

    Args:
        file: the picture to write.
        groups: what to draw.
        scale: the value at the right edge.
        quantity: what the axis shows.
    """
    from matplotlib.figure import Figure

    numbers = _numbers(groups)
    height = 1.2 + sum(0.25 * len(group) + 0.3 for group in groups.values())
    figure = Figure(figsize=(8, height), dpi=150, layout="constrained", facecolor="white")
    axes = figure.subplots()
    top, names, places = 0.0, [], []
    for label, group in groups.items():
        names.append(_short(label))
        places.append(top + (len(group) - 1) / 2)
        for bar in group:
            if bar.low is not None and bar.high is not None:
                ends = [[max(0.0, bar.value - bar.low)], [max(0.0, bar.high - bar.value)]]
                axes.errorbar(bar.value, top, xerr=ends, color=_INK, capsize=3, linewidth=1.2)
            axes.barh(top, bar.value, color=_COLOURS[numbers[bar.name]], label=_short(bar.name) if top < len(group) else None)
            top += 1
        top += 1
    axes.set_yticks(places, names, color=_INK)
    axes.set_xlim(0, scale)
    axes.invert_yaxis()
    axes.set_xlabel(quantity, color=_INK)
    axes.grid(axis="x", color=_GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(left=False, colors=_INK)
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, frameon=False, labelcolor=_INK)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # a name in another script becomes boxes
        figure.savefig(file, format="png")


def _numbers(groups: Groups) -> dict[str, int]:
    """For each model the number of its colour."""
    names = dict.fromkeys(bar.name for group in groups.values() for bar in group)
    return {name: number % _MOST_COLOURS for number, name in enumerate(names)}


def _legend(numbers: Mapping[str, int]) -> Html:
    square = [
        element("svg", element("rect", width=10, height=10, rx=2, class_=f"f{number}"), viewBox="0 0 10 10", aria_hidden="true")
        for number in numbers.values()
    ]
    return element("ul", *(element("li", mark, name) for mark, name in zip(square, numbers, strict=True)), class_="legend")


def _bar(bar: Bar, number: int, top: int, scale: float) -> list[Html]:
    def at(value: float) -> str:
        return f"{100 * min(max(value / scale, 0.0), 1.0):.2f}%"

    middle = top + _BAR / 2 - 1
    parts = [element("rect", x=0, y=top, width=at(bar.value), height=_BAR - 4, rx=2, class_=f"f{number}")]
    end = bar.value
    if bar.low is not None and bar.high is not None:
        parts.append(element("line", x1=at(bar.low), x2=at(bar.high), y1=middle, y2=middle, class_="ink"))
        parts += [
            element("line", x1=at(edge), x2=at(edge), y1=middle - 4, y2=middle + 4, class_="ink")
            for edge in (bar.low, bar.high)
        ]
        end = max(end, bar.high)
    inside = end > 0.8 * scale  # no room to the right of it
    parts.append(
        element(
            "text", bar.text, x="100%" if inside else at(end), dx=-6 if inside else 8, y=middle + 4,
            text_anchor="end" if inside else "start", class_="halo" if inside else None,
        )
    )  # fmt: skip
    return parts


def _short(name: str) -> str:
    """A name as a picture takes it: short, no formula, and not hidden by an underscore."""
    half = _LONGEST // 2
    cut = name if len(name) <= _LONGEST else f"{name[:half]}…{name[1 - half :]}"
    return ("\u200b" if cut.startswith("_") else "") + cut.replace("$", r"\$")
