"""What is told of a finished run of training, in the model card, the manifest and a picture."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deepen.report.curves import recovery_curve
from deepen.train.recovery import recovery

Rows = Sequence[Mapping[str, Any]]
"""Rows of `metrics.jsonl`."""


@dataclass(frozen=True)
class Account:
    """What is told.

    Attributes:
        text: for the model card, Markdown.
        results: for the manifest.
        draw: writes the picture.
    """

    text: str
    results: Mapping[str, Any]
    draw: Callable[[Path], None]


def perplexity_account(name: str, subject: str, rows: Rows, control: Rows, level: float | None) -> Account:
    """The perplexity on held-out data, before and after.

    Args:
        name: of the model that was trained.
        subject: what was measured, a few words.
        rows: what was logged.
        control: what was logged of the control, if there was one.
        level: the base's loss, if it is known.
    """
    points, beside = _points(rows), _points(control)
    base = None if level is None else perplexity(level)
    back = None if level is None else recovery([(row["tokens"], row["validation_loss"]) for row in _measured(rows)], level)
    curves = {name: points} | ({"control: the base on the same data": beside} if beside else {})
    sentence = f"Perplexity on {subject}: {points[0][1]:.2f} before, {points[-1][1]:.2f} after {points[-1][0]:,} tokens"
    against = "" if base is None else f"; the base has {base:.2f}"
    against += f", and {beside[-1][1]:.2f} after the same training" if beside else ""
    return Account(
        f"{sentence}{against}." + (f" {back}" if back else ""),
        {
            "validation_perplexity_before": points[0][1],
            "validation_perplexity": points[-1][1],
            "base_validation_perplexity": base,
            "control_validation_perplexity": beside[-1][1] if beside else None,
            "recovery": back.results() if back else None,
        },
        lambda file: recovery_curve(
            file,
            curves,
            baseline=base,
            recovered_at=back.tokens if back else None,
            forecast=back.forecast() if back else (),
            more_tokens=back.more if back else None,
        ),
    )


def loss_and_perplexity(loss: float) -> dict[str, float]:
    """What is logged of a mean loss in nats per token."""
    return {"validation_loss": loss, "validation_perplexity": perplexity(loss)}


def perplexity(loss: float) -> float:
    """exp(loss), or infinity."""
    return math.exp(loss) if loss < 700 else math.inf


def _points(rows: Rows) -> list[tuple[int, float]]:
    return [(row["tokens"], row["validation_perplexity"]) for row in _measured(rows)]


def _measured(rows: Rows) -> list[Mapping[str, Any]]:
    return [row for row in rows if "validation_perplexity" in row]
