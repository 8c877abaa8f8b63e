"""What a measurement gives: rows that were scored, tasks made of them, and the report of all."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Item:
    """One row of a task as one model answered it.

    Attributes:
        key: names the row, the same for every model: two models are compared on equal keys.
        score: the row's part in the task's value, which is the mean over the rows unless the task says otherwise.
        facts: what a person wants to see of it: `question`, `answer` (the model's), `target`, log-likelihoods, category.
    """

    key: str
    score: float
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class TaskResult:
    """A task's value with its uncertainty, and the rows it was made of.

    Attributes:
        name: such as `arc_challenge`.
        metric: such as `acc_norm`.
        value: of the metric, as a fraction where it is one.
        stderr: standard error over the rows; None if it cannot be known.
        low: lower end of the 95 % interval; None if it cannot be known.
        high: upper end.
        n: rows (or tokens) that were scored.
        rows: how many there are; more than `n` if a limit was set.
        shots: solved examples in each prompt.
        version: changes whenever the task's definition does.
        seconds: how long it took.
        energy_joules: None where it is not measured.
        facts: further numbers of the task, such as other metrics or values by category.
        items: the rows.
    """

    name: str
    metric: str
    value: float
    stderr: float | None
    low: float | None
    high: float | None
    n: int
    rows: int
    shots: int
    version: str
    seconds: float
    energy_joules: float | None
    facts: Mapping[str, Any] = field(default_factory=dict)
    items: tuple[Item, ...] = ()

    @property
    def is_fraction(self) -> bool:
        """Whether people read the value in per cent."""
        return 0 <= self.value <= 1 and self.metric not in _NO_FRACTIONS

    def to_dict(self) -> dict[str, Any]:
        """The task in the report's JSON: without the rows."""
        own = {name: getattr(self, name) for name in _SHOWN}
        return {**own, **self.facts}


_SHOWN = ("metric", "value", "stderr", "low", "high", "n", "rows", "shots", "version", "seconds", "energy_joules")
_NO_FRACTIONS = {
    "perplexity", "word_perplexity", "byte_perplexity", "bits_per_byte", "likelihood_diff", "amb_bias_score",
    "disamb_bias_score",
}  # fmt: skip
