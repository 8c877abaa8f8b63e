"""Pictures of a search for layer plans, drawn without a display."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deepen.report.differences import TICKS, colour, difference, paler, place
from deepen.units import format_count

_BLUE, _ORANGE, _GREEN, _PINK, _SKY, _RED = COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00")
_INK, _GREY, _GRID, _EMPTY = "#333333", "#8a8a8a", "#e4e4e4", "#f1f1f1"


@dataclass(frozen=True)
class Block:
    """A contiguous repeat: layers `first` to `end - 1` run twice.

    Attributes:
        first: the first layer.
        end: the layer after the last.
        difference: nats per token above the base.
        exact: whether it was scored; else it was predicted.
    """

    first: int
    end: int
    difference: float
    exact: bool


BASE = "base"


@dataclass(frozen=True)
class Point:
    """A plan among others.

    Attributes:
        name: as `--layers` takes it, or `BASE`.
        cost: compute per token, by the base's.
        difference: nats per token above the base.
        low: lower end of its interval.
        high: upper end.
        deepest: whether no plan that is as deep or deeper harms less.
    """

    name: str
    cost: float
    difference: float
    low: float
    high: float
    deepest: bool


def heatmap(
    file: Path,
    cells: Sequence[Block],
    layers: int,
    *,
    best: tuple[int, int] | None,
    solar: tuple[int, int] | None,
    name: str = "",
) -> None:
    """Draw what repeating each block of layers does to the loss.

    Args:
        file: the PNG to write.
        cells: the blocks that were scored or predicted; those that were only predicted are pale and hatched.
        layers: of the base.
        best: start and end of the best plan, if that repeats one block.
        solar: of the plan of `--drop` that it is compared with.
        name: of the model.
    """
    from matplotlib.collections import PatchCollection
    from matplotlib.patches import Rectangle

    with _figure(file, (8.6, 7.2)) as figure:
        axes, bar = figure.subplots(1, 2, width_ratios=(40, 1))
        scored = [cell for cell in cells if cell.exact]
        others = [cell for cell in cells if not cell.exact]
        empty = [Rectangle((end - 0.5, start - 0.5), 1, 1) for start in range(layers) for end in range(start + 1, layers + 1)]
        axes.add_collection(PatchCollection(empty, facecolor=_EMPTY, edgecolor="white", linewidth=0.6))
        for some, hatch in ((scored, None), (others, "/////")):
            squares = [Rectangle((cell.end - 0.5, cell.first - 0.5), 1, 1) for cell in some]
            fills = [_fill(cell) for cell in some]
            width = 0.6 if hatch is None else 0.0
            axes.add_collection(PatchCollection(squares, facecolor=fills, hatch=hatch, edgecolor="white", linewidth=width))
        marks = [(solar, "D", f"SOLAR's own plan: --drop {solar[0]}" if solar else ""), (best, "*", "the best plan")]
        for where, marker, label in marks:
            if where is not None:
                text = label if marker == "D" else f"{label}: --repeat {where[0]}:{where[1]}"
                size = 260 if marker == "*" else 70
                axes.scatter(
                    [where[1]], [where[0]], s=size, marker=marker, facecolor="white", edgecolor="black", linewidth=1.3,
                    zorder=4, label=text,
                )  # fmt: skip
        if others:
            axes.add_patch(
                Rectangle((-9, -9), 1, 1, facecolor=paler("#e69f00"), hatch="/////", edgecolor="white", label="predicted")
            )
        if len(empty) > len(cells):
            axes.add_patch(Rectangle((-9, -9), 1, 1, facecolor=_EMPTY, edgecolor="white", label="not part of the search"))
        axes.set_xlim(0.5, layers + 0.5)
        axes.set_ylim(layers - 0.5, -0.5)
        axes.set_aspect("equal")
        axes.set_xlabel("the block ends before layer", color=_INK)
        axes.set_ylabel("the block begins with layer", color=_INK)
        if name:
            axes.set_title(f"{_short(name)}: layers that run twice", loc="left", color=_INK, fontsize=12)
        axes.grid(False)
        axes.spines[:].set_visible(False)
        axes.tick_params(length=0)
        handles, labels = axes.get_legend_handles_labels()
        axes.legend(
            handles, labels, loc="lower left", bbox_to_anchor=(0.02, 0.04), frameon=False, labelcolor=_INK, labelspacing=0.9
        )
        _colour_bar(bar, [cell.difference for cell in cells])


def influence_curve(
    file: Path, influence: Sequence[float], norm_ratios: Sequence[float], *, repeated: Sequence[int] = ()
) -> None:
    """Draw how much each layer changes what runs through it.

    Args:
        file: the PNG to write.
        influence: of each layer 1 - cosine of its input and its output (Men et al. 2024, arXiv:2403.03853, section 3).
        norm_ratios: of each layer the length of its output by that of its input.
        repeated: the layers that the best plan repeats, which are shaded.
    """
    with _figure(file, (8.6, 5.4)) as figure:
        above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
        places = range(len(influence))
        shown = [max(value, 1e-4) for value in influence]
        colours = [_ORANGE if layer in set(repeated) else _BLUE for layer in places]
        above.bar(places, shown, color=colours, width=0.8)
        above.set_yscale("log")
        above.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        above.set_ylabel("block influence: 1 - cosine", color=_INK)
        below.plot(places, norm_ratios, color=_GREEN, marker="o", markersize=4, linewidth=1.6)
        below.axhline(1, color=_GREY, linewidth=1, linestyle="--")
        below.set_ylabel("length out / in", color=_INK)
        below.set_yscale("log")
        below.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        below.yaxis.set_minor_formatter(lambda value, _: f"{value:g}" if max(norm_ratios) < 5 * min(norm_ratios) else "")
        below.set_xlabel("layer of the base", color=_INK)
        below.set_xlim(-0.8, len(influence) - 0.2)
        if repeated:
            from matplotlib.patches import Patch

            handles = [Patch(color=_ORANGE, label="repeated by the best plan"), Patch(color=_BLUE, label="other layers")]
            above.legend(handles=handles, loc="lower left", bbox_to_anchor=(0, 1), ncols=2, frameon=False, labelcolor=_INK)


def front_picture(file: Path, points: Sequence[Point], healed: Mapping[str, Sequence[tuple[float, float]]]) -> None:
    """Draw what depth costs and what it harms: the best plan of each size.

    Args:
        file: the PNG to write.
        points: the base, and the best plan of each number of added layers.
        healed: for each start (`copies`, `identity`) cost and difference to the control after healing trials.
    """
    with _figure(file, (8.6, 5.0)) as figure:
        axes = figure.subplots()
        ordered = sorted(points, key=lambda point: point.cost)
        costs = [point.cost for point in ordered]
        values = [point.difference for point in ordered]
        spread = [[point.difference - point.low for point in ordered], [point.high - point.difference for point in ordered]]
        axes.axhline(0, color=_GREY, linewidth=1, linestyle="--", zorder=1)
        axes.scatter([1], [0], s=46, color=_GREY, zorder=3, label="the base")
        axes.errorbar(costs, values, yerr=spread, color=_BLUE, linewidth=1.2, elinewidth=1, capsize=2.5, alpha=0.6, zorder=2)
        for deepest, face, label in (
            (True, _BLUE, "no plan that adds as much or more harms less"),
            (False, "white", "a deeper plan harms less"),
        ):
            some = [point for point in ordered if point.deepest == deepest and point.name != BASE]
            if some:
                axes.scatter(
                    [point.cost for point in some], [point.difference for point in some], s=46, facecolor=face,
                    edgecolor=_BLUE, linewidth=1.4, zorder=3, label=label,
                )  # fmt: skip
        for (start, ends), tone, marker in zip(healed.items(), (_ORANGE, _GREEN), ("s", "^"), strict=False):
            label = f"after healing, from {'plain copies' if start == 'copies' else 'an identity start'}"
            axes.scatter(*zip(*ends, strict=True), s=46, color=tone, marker=marker, zorder=4, label=label)
        _warped(axes, [*values, *(value for ends in healed.values() for _, value in ends)])
        axes.set_xlabel("compute per token, by the base's", color=_INK)
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:.2f}x")
        axes.set_ylabel("nats per token above the base", color=_INK)
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, frameon=False, labelcolor=_INK)


@dataclass(frozen=True)
class Curve:
    """A healing trial.

    Attributes:
        name: of the plan.
        start: `copies` or `identity`.
        points: tokens trained on, and nats per token above the control after as many.
    """

    name: str
    start: str
    points: Sequence[tuple[float, float]]


def healing_curves(file: Path, curves: Sequence[Curve]) -> None:
    """Draw healing trials against the control, which is the line at zero: a colour for each plan.

    Args:
        file: the PNG to write.
        curves: the best first.
    """
    with _figure(file, (8.6, 5.4)) as figure:
        axes = figure.subplots()
        names = list(dict.fromkeys(curve.name for curve in curves))
        axes.axhline(0, color=_INK, linestyle="--", linewidth=1.4, label="the base on the same tokens", zorder=2)
        for curve in curves:
            number = names.index(curve.name)
            tone = COLOURS[number] if number < len(COLOURS) else "#c8c8c8"
            words, style, face = ("plain copies", "-", tone) if curve.start == "copies" else ("identity start", ":", "white")
            axes.plot(
                *zip(*curve.points, strict=True), color=tone, linestyle=style, linewidth=2, marker="o", markersize=5,
                markerfacecolor=face, zorder=3, label=f"{_short(curve.name)}, {words}   {curve.points[-1][1]:+.3f}",
            )  # fmt: skip
        _warped(axes, [value for curve in curves for _, value in curve.points])
        axes.set_xlabel("tokens trained on", color=_INK)
        axes.xaxis.set_major_formatter(lambda value, _: format_count(value))
        axes.set_ylabel("nats per token above the control", color=_INK)
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, frameon=False, labelcolor=_INK, fontsize=9)


@contextmanager
def _figure(file: Path, size: tuple[float, float]) -> Iterator[Any]:
    import warnings

    from matplotlib.figure import Figure

    figure = Figure(figsize=size, dpi=150, layout="constrained", facecolor="white")
    yield figure
    for axes in figure.axes:
        axes.set_axisbelow(True)
        axes.tick_params(colors=_INK)
        if axes.get_lines() or axes.containers:
            axes.grid(color=_GRID, linewidth=0.8, axis="y")
            axes.spines[["top", "right"]].set_visible(False)
            axes.spines[["left", "bottom"]].set_color("#999999")
    figure.align_ylabels()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # a name in another script becomes boxes
        figure.savefig(file, format="png")


def _fill(cell: Block) -> str:
    return colour(cell.difference) if cell.exact else paler(colour(cell.difference))


def _colour_bar(axes: Any, values: Sequence[float]) -> None:
    """The scale as far as it is used: nats on one side, what the perplexity is multiplied by on the other."""
    low, high = min(0.0, *map(place, values)) if values else 0.0, max(0.2, *map(place, values)) if values else 1.0
    steps = 200
    for number in range(steps):
        begin = low + (high - low) * number / steps
        axes.axhspan(begin, begin + (high - low) / steps, facecolor=colour(difference(begin)), linewidth=0)
    ticks = [tick for tick in TICKS if low - 1e-9 <= place(tick) <= high + 1e-9]
    axes.set_ylim(low, high)
    axes.set_xticks([])
    axes.yaxis.tick_right()
    axes.set_yticks(
        [place(tick) for tick in ticks], [f"{tick:+g}  (x {math.exp(tick):.3g})" if tick else "0  the base" for tick in ticks]
    )
    axes.set_title("nats per token\n(perplexity)", fontsize=9, color=_INK, loc="left")
    axes.spines[:].set_visible(False)


def _warped(axes: Any, values: Sequence[float]) -> None:
    """The axis of the colour scale, where differences lie far apart."""
    if max(values) - min(values) < 1:
        return
    import numpy as np

    axes.set_yscale("function", functions=(np.vectorize(place), np.vectorize(difference)))
    ticks = [tick for tick in TICKS if min(values) - 0.05 <= tick <= max(values) * 1.05]
    axes.set_yticks(ticks, [f"{tick:+g}" if tick else "0" for tick in ticks])


def _short(name: str) -> str:
    """A name as matplotlib takes it: short and no formula."""
    return (name if len(name) <= 48 else f"{name[:24]}…{name[-23:]}").replace("$", r"\$")
