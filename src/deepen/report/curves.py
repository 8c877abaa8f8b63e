"""Curves as PNG, drawn without a display."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from deepen.units import format_count


def recovery_curve(file: Path, curves: Mapping[str, Sequence[tuple[int, float]]], *, baseline: float | None = None) -> None:
    """Draw validation perplexity against trained tokens, with the base's level as a line to come back to.

    Args:
        file: the PNG to write.
        curves: for each run its name and its points (tokens, perplexity), in order.
        baseline: the perplexity of the base on the same text, if known.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    figure = Figure(figsize=(8, 4.5), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    for name, points in curves.items():
        tokens, values = zip(*points, strict=True)
        (line,) = axes.plot(tokens, values, marker="o", markersize=4, label=name)
        for place, above in {0: True, len(points) - 1: values[-1] > values[0]}.items():
            axes.annotate(
                f"{values[place]:.2f}",
                points[place],
                xytext=(0, 7 if above else -15),
                textcoords="offset points",
                ha="center",
                color=line.get_color(),
            )
    if baseline is not None:
        axes.axhline(baseline, color="tab:red", linestyle="--", label=f"base: {baseline:.2f}")
    axes.set_xlabel("tokens trained on")
    axes.set_ylabel("validation perplexity (lower is better)")
    axes.xaxis.set_major_locator(MaxNLocator(8, steps=[1, 2, 5, 10]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda tokens, _: format_count(tokens)))
    axes.margins(x=0.06, y=0.15)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(file, format="png")


def training_curves(file: Path, panels: Mapping[str, Mapping[str, Sequence[tuple[int, float]]]]) -> None:
    """Draw quantities against trained tokens, each in a panel of its own, one above the other.

    Args:
        file: the PNG to write.
        panels: for the name of each quantity its curves: for each a name and its points (tokens, value), in order.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    figure = Figure(figsize=(8, 3 * len(panels)), dpi=150, layout="constrained")
    for axes, (quantity, curves) in zip(
        figure.subplots(len(panels), sharex=True, squeeze=False)[:, 0], panels.items(), strict=True
    ):
        for name, points in curves.items():
            tokens, values = zip(*points, strict=True)
            axes.plot(tokens, values, marker="o", markersize=3, label=name)
        axes.set_ylabel(quantity)
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False)
    axes.set_xlabel("tokens trained on")
    axes.xaxis.set_major_locator(MaxNLocator(8, steps=[1, 2, 5, 10]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda tokens, _: format_count(tokens)))
    figure.savefig(file, format="png")
