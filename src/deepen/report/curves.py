"""Curves as PNG, drawn without a display."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from deepen.units import format_count

Points = Sequence[tuple[float, float]]
"""Tokens trained on and a value, in order."""

# told apart by those who see red and green alike (Okabe and Ito 2008, jfly.uni-koeln.de/color)
_COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00")
_LEVEL, _INK, _GRID = "#c0392b", "#333333", "#e4e4e4"
_MOST_MARKERS = 40  # more points than that are drawn as a thin line
_LONG = 52  # characters, of which two columns of a legend are as wide as the picture
_LONGEST = 48  # characters of a name
_WIDE = 4.0  # a ratio of values that a linear axis cannot show well


def recovery_curve(
    file: Path,
    curves: Mapping[str, Points],
    *,
    baseline: float | None = None,
    recovered_at: int | None = None,
    forecast: Points = (),
    more_tokens: int | None = None,
) -> None:
    """Draw validation perplexity against trained tokens, with the base's level as a line to come back to.

    Args:
        file: the PNG to write, 1200 by 675 pixels.
        curves: for each run its name and its points (tokens, perplexity), in order; the first is the one that recovers.
        baseline: the perplexity of the base on the same text, if known.
        recovered_at: the tokens after which the first curve was back at that level, which are marked.
        forecast: where it will go (tokens, perplexity), dotted.
        more_tokens: how many more tokens it needs, written at the end of the forecast.
    """
    with _figure(file, ["validation perplexity (lower is better)"], height=4.5) as (axes,):
        lines = [_draw(axes, points, colour) for points, colour in zip(curves.values(), _colours(len(curves)), strict=True)]
        labels = [f"{_name(name)}   {points[0][1]:.2f} → {points[-1][1]:.2f}" for name, points in curves.items()]
        if baseline is not None:
            lines.append(axes.axhline(baseline, color=_LEVEL, linestyle="--", linewidth=1.3, zorder=1.5))
            labels.append(f"the base   {baseline:.2f}")
        if forecast:
            lines += axes.plot(*zip(*forecast, strict=True), color=_COLOURS[0], linestyle=":", linewidth=1.8)
            labels.append("fit" if more_tokens is None else f"fit: about {format_count(more_tokens)} more tokens")
        if recovered_at is not None and baseline is not None:
            _mark(axes, recovered_at, baseline)
        _fit_scale(axes, [value for points in (*curves.values(), forecast) for _, value in points], baseline)
        _legend(axes, dict(zip(labels, lines, strict=True)))


def training_curves(file: Path, panels: Mapping[str, Mapping[str, Points]]) -> None:
    """Draw quantities against trained tokens, each in a panel of its own, one above the other.

    Args:
        file: the PNG to write.
        panels: for the name of each quantity its curves: for each a name and its points (tokens, value), in order. A name has
            the same colour in every panel.
    """
    names = list(dict.fromkeys(name for curves in panels.values() for name in curves))
    colours = dict(zip(names, _colours(len(names)), strict=True))
    with _figure(file, list(panels), height=3.0 * len(panels)) as places:
        drawn: dict[str, Any] = {}
        for axes, curves in zip(places, panels.values(), strict=True):
            for name, points in curves.items():
                drawn[_name(name)] = _draw(axes, points, colours[name])
        _legend(places[0], drawn)


@contextmanager
def _figure(file: Path, quantities: Sequence[str], *, height: float) -> Iterator[list[Any]]:
    """Empty panels, one per quantity, over one axis of tokens; written when the block ends."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    figure = Figure(figsize=(8, height), dpi=150, layout="constrained", facecolor="white")
    places = list(figure.subplots(len(quantities), sharex=True, squeeze=False)[:, 0])
    for axes, quantity in zip(places, quantities, strict=True):
        axes.set_ylabel(quantity, color=_INK)
        axes.margins(x=0.03, y=0.08)
        axes.grid(color=_GRID, linewidth=0.8)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color("#999999")
        axes.tick_params(colors=_INK)
    yield places
    axes.set_xlabel("tokens trained on", color=_INK)
    axes.xaxis.set_major_locator(MaxNLocator(8, steps=[1, 2, 5, 10], integer=True))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda tokens, _: format_count(tokens)))
    figure.align_ylabels()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # a name in another script becomes boxes
        figure.savefig(file, format="png")


def _legend(axes: Any, lines: Mapping[str, Any]) -> None:
    """Above the panel, where no curve is."""
    columns = 2 if max(map(len, lines)) <= _LONG else 1
    axes.legend(lines.values(), lines, loc="lower left", bbox_to_anchor=(0, 1), ncols=columns, frameon=False, labelcolor=_INK)


def _name(name: str) -> str:
    """A name as a legend takes it: short, no formula, and not hidden by an underscore."""
    half = _LONGEST // 2
    short = name if len(name) <= _LONGEST else f"{name[:half]}…{name[1 - half :]}"
    return ("\u200b" if short.startswith("_") else "") + short.replace("$", r"\$")


def _colours(count: int) -> list[str]:
    return [_COLOURS[place % len(_COLOURS)] for place in range(count)]


def _draw(axes: Any, points: Points, colour: str) -> Any:
    tokens, values = zip(*points, strict=True)
    dense = len(points) > _MOST_MARKERS
    style = {"linewidth": 1.0, "alpha": 0.5} if dense else {"linewidth": 2.0, "marker": "o", "markersize": 4.5}
    return axes.plot(tokens, values, color=colour, **style)[0]


def _mark(axes: Any, tokens: int, level: float) -> None:
    from matplotlib.patheffects import withStroke

    axes.plot([tokens], [level], marker="o", markersize=9, markerfacecolor="white", markeredgecolor=_LEVEL, markeredgewidth=1.8)
    right = tokens > sum(axes.get_xlim()) / 2
    axes.annotate(
        f"back after {format_count(tokens)} tokens",
        (tokens, level),
        xytext=(-9, -18) if right else (9, 9),  # a falling curve leaves these corners free
        ha="right" if right else "left",
        textcoords="offset points",
        color=_LEVEL,
        path_effects=[withStroke(linewidth=3, foreground="white")],
    )


def _fit_scale(axes: Any, values: Sequence[float], baseline: float | None) -> None:
    """A logarithmic axis where the values lie far apart."""
    from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter

    lowest, highest = min(values), max(values)
    if baseline is not None:
        lowest, highest = min(lowest, baseline), max(highest, baseline)
    if highest > _WIDE * lowest:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7)))
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.yaxis.set_minor_locator(NullLocator())
