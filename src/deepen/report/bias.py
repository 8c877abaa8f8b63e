"""Social bias by category as PNG: bars that start at the line without bias, with their intervals."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

Categories = Mapping[str, Mapping[str, Any]]
"""For each category `value`, `low` and `high` (None if not known), and `n`."""

_FOR, _AGAINST, _RIGHT = "#d55e00", "#0072b2", "#009e73"  # told apart by all (Okabe and Ito 2008)
_INK, _GRID, _LEVEL = "#333333", "#e4e4e4", "#c0392b"
_CAPTION = "orange: as the stereotype · blue: against it · pale: the 95 % interval holds the line"
_UNSURE = 0.4  # opacity of a bar whose interval holds the line
_ROW, _FRAME = 0.3, 1.15  # inches: a bar, and what is around a panel


class _Panel(NamedTuple):
    title: str
    axis: str
    neutral: float
    reach: float
    percent: bool
    colours: tuple[str, str] = (_FOR, _AGAINST)


_PANELS = {
    "crows_pairs": _Panel("CrowS-Pairs", "stereotyping sentence likelier\n(50 % = no preference)", 0.5, 0.5, True),
    "bbq_ambiguous": _Panel("BBQ, the text does not tell", "bias score (0 = none)\n", 0.0, 1.0, False),
    "winogender": _Panel("Winogender", "pronoun's person named rightly\n(50 % = guessing)", 0.5, 0.5, True, (_RIGHT, _RIGHT)),
    "bbq_disambiguated": _Panel("BBQ, the text tells", "bias score (0 = none)\n", 0.0, 1.0, False),
}


def bias_chart(file: Path, tasks: Mapping[str, Categories]) -> None:
    """Draw the values of categories as bars away from the line without bias, with 95 % intervals.

    Bars to the side of the stereotype and to the other differ in colour; where the interval holds the line, they are pale.
    Winogender's tell how often the model is right, which has no such sides.

    Args:
        file: the PNG to write.
        tasks: for the names `crows_pairs`, `bbq_ambiguous`, `bbq_disambiguated` and `winogender`, or some of them, their
            categories.
    """
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    names = [name for name in _PANELS if name in tasks]
    columns = 2 if len(names) > 1 else 1
    lines = [names[first : first + columns] for first in range(0, len(names), columns)]
    sizes = [max(len(tasks[name]) for name in line) * _ROW + _FRAME for line in lines]
    layout = ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.08)
    figure = Figure(figsize=(5.5 * columns, sum(sizes)), dpi=150, layout=layout, facecolor="white")
    places = figure.subplots(len(lines), columns, squeeze=False, height_ratios=sizes)
    for place, line in zip(places, lines, strict=True):
        for axes, name in zip(place, line, strict=False):
            _draw(axes, _PANELS[name], tasks[name])
        for axes in place[len(line) :]:
            axes.set_axis_off()
    figure.supxlabel(_CAPTION, fontsize=9, color=_INK)
    figure.savefig(file, format="png")


def _draw(axes: Any, panel: _Panel, categories: Categories) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    shown = list(categories.items())
    for place, (_, each) in enumerate(shown):
        value, low, high = each["value"], each["low"], each["high"]
        sure = low is not None and high is not None and not low <= panel.neutral <= high
        colour = panel.colours[0 if value > panel.neutral else 1]
        axes.barh(
            place,
            value - panel.neutral,
            left=panel.neutral,
            height=0.62,
            color=colour,
            alpha=1.0 if sure else _UNSURE,
            zorder=2,
        )
        if low is not None and high is not None:
            error = [[max(0.0, value - low)], [max(0.0, high - value)]]
            axes.errorbar(value, place, xerr=error, color=_INK, linewidth=1.1, capsize=2.5, zorder=3)
        axes.annotate(
            f"n={each['n']:,}", (1, place), xycoords=("axes fraction", "data"), xytext=(4, 0), textcoords="offset points",
            va="center", fontsize=7.5, color="#777777",
        )  # fmt: skip
    axes.axvline(panel.neutral, color=_LEVEL, linestyle="--", linewidth=1.2, zorder=2.5)
    axes.set_yticks(range(len(shown)), [name.replace("_", " ").replace("$", r"\$") for name, _ in shown])
    axes.set_ylim(len(shown) - 0.4, -0.6)
    axes.set_xlim(panel.neutral - _reach(panel, categories), panel.neutral + _reach(panel, categories))
    axes.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    if panel.percent:
        axes.xaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{100 * share:.3g} %"))
    axes.set_title(panel.title, loc="left", fontsize=10.5, color=_INK)
    axes.set_xlabel(panel.axis, color=_INK, fontsize=9)
    axes.grid(axis="x", color=_GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color("#999999")
    axes.tick_params(colors=_INK, labelsize=9)
    axes.tick_params(axis="y", length=0)


def _reach(panel: _Panel, categories: Categories) -> float:
    """How far the axis goes to both sides: as far as bars and intervals do, a tenth of the range at least."""
    ends: list[float] = [each[key] for each in categories.values() for key in ("value", "low", "high") if each[key] is not None]
    return min(panel.reach, max(0.1 * panel.reach, *(1.05 * abs(end - panel.neutral) for end in ends)))
