"""Small charts as SVG for a page: they take the page's colours and sizes, light and dark, and need no style of their own."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from deepen.report.page import Html, element, figure, join

_WIDTH, _HEIGHT = 720, 340
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 16, 12, 46


@dataclass(frozen=True)
class Axis:
    """From values to places.

    Attributes:
        name: what the values are.
        low: the value at the beginning.
        high: the value at the end.
        ticks: values with their labels.
        warp: bends the scale; increasing.
    """

    name: str
    low: float
    high: float
    ticks: Sequence[tuple[float, str]]
    warp: Callable[[float], float] = field(default=float)

    def place(self, value: float) -> float:
        """Between 0 and 1."""
        low, high = self.warp(self.low), self.warp(self.high)
        return (self.warp(value) - low) / (high - low)


@dataclass(frozen=True)
class Series:
    """Points of one kind.

    Attributes:
        name: for the legend.
        points: (x, y), in order.
        colour: 0 to 5, of the page's colours.
        line: `solid`, `dotted` or `none`.
        mark: `dot`, `ring` or `none`.
        labels: what is said of each point when it is pointed at; empty for nothing.
        spans: the interval of each point; empty for none.
    """

    name: str
    points: Sequence[tuple[float, float]]
    colour: int = 0
    line: str = "solid"
    mark: str = "dot"
    labels: Sequence[str] = ()
    spans: Sequence[tuple[float, float]] = ()


def line_chart(series: Sequence[Series], x: Axis, y: Axis, about: str) -> Html:
    """A chart with a legend above it.

    Args:
        series: what is drawn, the last on top.
        x: the horizontal axis.
        y: the vertical one.
        about: what is seen.
    """
    drawn = []
    for each in series:
        places = [_spot(x, y, *point) for point in each.points]
        spans = [
            element(
                "path", d=f"M{across:.1f} {_spot(x, y, x.low, high)[1]:.1f}V{_spot(x, y, x.low, low)[1]:.1f}", class_="span"
            )
            for (across, _), (low, high) in zip(places, each.spans, strict=False)
        ]
        path = "M" + "L".join(f"{across:.1f} {down:.1f}" for across, down in places)
        marks = [
            _mark(each, across, down, each.labels[number] if each.labels else None)
            for number, (across, down) in enumerate(places)
            if each.mark != "none"
        ]
        line = element("path", d=path, class_="curve") if each.line != "none" else None
        drawn.append(element("g", *spans, line, *marks, class_=f"l{each.colour} {each.line}"))
    return join([_legend(series), _chart([_frame(x, y), *drawn], about)])


def bar_chart(values: Sequence[float], marked: Sequence[bool], y: Axis, name: str, about: str) -> Html:
    """Bars from the left to the right, numbered from 0; those that are marked have another colour."""
    step = max(1, math.ceil(len(values) / 60) * 5 if len(values) > 12 else 1)
    x = Axis(name, -0.7, len(values) - 0.3, [(place, str(place)) for place in range(0, len(values), step)])
    bars = []
    for number, (value, special) in enumerate(zip(values, marked, strict=True)):
        (left, top), (right, bottom) = _spot(x, y, number - 0.4, max(value, y.low)), _spot(x, y, number + 0.4, y.low)
        title = element("title", f"{number}: {value:.3g}")
        size = {"width": f"{right - left:.1f}", "height": f"{bottom - top:.1f}"}
        bars.append(element("rect", title, x=f"{left:.1f}", y=f"{top:.1f}", **size, class_=f"f{int(special)}"))
    return _chart([_frame(x, y), *bars], about)


def even_ticks(low: float, high: float, form: Callable[[float], str], count: int = 6) -> list[tuple[float, str]]:
    """Round values between two others, at even distances, with their labels."""
    rough = max(high - low, 1e-9) / count
    unit = 10 ** math.floor(math.log10(rough))
    step = next(unit * factor for factor in (1, 2, 5, 10) if unit * factor >= rough)
    first = math.ceil(low / step - 1e-9)
    values = [number * step for number in range(first, math.floor(high / step + 1e-9) + 1)]
    return [(value, form(value)) for value in values]


def _spot(x: Axis, y: Axis, across: float, up: float) -> tuple[float, float]:
    return (
        _LEFT + x.place(across) * (_WIDTH - _LEFT - _RIGHT),
        _TOP + (1 - y.place(up)) * (_HEIGHT - _TOP - _BOTTOM),
    )


def _frame(x: Axis, y: Axis) -> Html:
    parts = []
    for value, label in y.ticks:
        _, down = _spot(x, y, x.low, value)
        parts.append(element("path", d=f"M{_LEFT} {down:.1f}H{_WIDTH - _RIGHT}", class_="line"))
        parts.append(_text(label, _LEFT - 8, down + 4.5, "end"))
    for value, label in x.ticks:
        parts.append(_text(label, _spot(x, y, value, y.low)[0], _HEIGHT - _BOTTOM + 19))
    middle = (_TOP + _HEIGHT - _BOTTOM) / 2
    parts.append(_text(x.name, (_LEFT + _WIDTH) / 2, _HEIGHT - 5))
    parts.append(_text(y.name, 14, middle, transform=f"rotate(-90 14 {middle})"))
    return element("g", *parts)


def _text(text: str, x: float, y: float, anchor: str = "middle", **more: str) -> Html:
    return element("text", text, x=f"{x:.1f}", y=f"{y:.1f}", text_anchor=anchor, class_="soft", **more)


def _mark(each: Series, x: float, y: float, label: str | None = None) -> Html:
    title = None if label is None else element("title", label)
    kind = f"f{each.colour}" if each.mark == "dot" else f"hollow l{each.colour}"
    return element("circle", title, cx=f"{x:.1f}", cy=f"{y:.1f}", r=4.5, class_=kind)


def _legend(series: Sequence[Series]) -> Html:
    entries = []
    for each in series:
        if each.name:
            line = element("path", d="M1 6H27", class_="curve") if each.line != "none" else None
            mark = _mark(each, 14, 6) if each.mark != "none" else None
            sample = element(
                "svg", line, mark, viewBox="0 0 28 12", class_=f"sample l{each.colour} {each.line}", aria_hidden="true"
            )
            entries.append(element("li", sample, each.name))
    return element("ul", *entries, class_="legend")


def _chart(parts: Sequence[Html], about: str) -> Html:
    picture = element("svg", *parts, viewBox=f"0 0 {_WIDTH} {_HEIGHT}", class_="chart", role="img", aria_label=about)
    return figure(element("div", picture, class_="scroll"), about)
