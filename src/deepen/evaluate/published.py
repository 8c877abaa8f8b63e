"""Rows of a published table, to stand beside one's own. They are quoted, not measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from deepen.errors import OptionError

TASKS = ("arc_challenge", "hellaswag", "mmlu", "truthfulqa_mc2", "winogrande", "gsm8k")
"""The columns, as deepen calls them."""

_TABLE_2 = "Kim et al. 2023, SOLAR 10.7B, arXiv:2312.15166, Table 2"
_HARNESS = "lm-evaluation-harness, commit b281b0921b636bc36ad05c0b0b0763bd6dd43463 (Open LLM Leaderboard v1)"


@dataclass(frozen=True)
class Published:
    """A row of the table; values are per cent.

    Attributes:
        model: as the table calls it.
        size: parameters, as the table says.
        kind: what was done to it: pretrained, instruction-tuned or aligned.
        average: H6.
        values: in the order of `TASKS`.
        source: where it was published.
        harness: what it was measured with.
    """

    model: str
    size: str
    kind: str
    average: float
    values: tuple[float, ...]
    source: str = _TABLE_2
    harness: str = _HARNESS

    def to_dict(self) -> dict[str, Any]:
        """The row in the report's JSON: fractions, as one's own values."""
        tasks = {name: round(value / 100, 6) for name, value in zip(TASKS, self.values, strict=True)}
        return {
            "model": self.model,
            "size": self.size,
            "kind": self.kind,
            "average": round(self.average / 100, 6),
            "tasks": tasks,
            "source": self.source,
            "harness": self.harness,
        }


REFERENCES: Mapping[str, Sequence[Published]] = {
    "solar": (
        Published("SOLAR 10.7B-Instruct", "~11B", "aligned", 74.20, (71.08, 88.16, 66.21, 71.43, 83.58, 64.75)),
        Published("Qwen 72B", "~72B", "pretrained", 73.60, (65.19, 85.94, 77.37, 60.19, 82.48, 70.43)),
        Published("Mixtral 8x7B-Instruct-v0.1", "~47B", "instructed", 72.62, (70.22, 87.63, 71.16, 64.58, 81.37, 60.73)),
        Published("Yi 34B-200K", "~34B", "pretrained", 70.81, (65.36, 85.58, 76.06, 53.64, 82.56, 61.64)),
        Published("Yi 34B", "~34B", "pretrained", 69.42, (64.59, 85.69, 76.35, 56.23, 83.03, 50.64)),
        Published("Mixtral 8x7B-v0.1", "~47B", "pretrained", 68.42, (66.04, 86.49, 71.82, 46.78, 81.93, 57.47)),
        Published("Llama 2 70B", "~70B", "pretrained", 67.87, (67.32, 87.33, 69.83, 44.92, 83.74, 54.06)),
        Published("Falcon 180B", "~180B", "pretrained", 67.85, (69.45, 88.86, 70.50, 45.47, 86.90, 45.94)),
        Published("SOLAR 10.7B", "~11B", "pretrained", 66.04, (61.95, 84.60, 65.48, 45.04, 83.66, 55.50)),
        Published("Qwen 14B", "~14B", "pretrained", 65.86, (58.28, 83.99, 67.70, 49.43, 76.80, 58.98)),
        Published("Mistral 7B-Instruct-v0.2", "~7B", "instructed", 65.71, (63.14, 84.88, 60.78, 68.26, 77.19, 40.03)),
        Published("Yi 34B-Chat", "~34B", "instructed", 65.32, (65.44, 84.16, 74.90, 55.37, 80.11, 31.92)),
        Published("Mistral 7B", "~7B", "pretrained", 60.97, (59.98, 83.31, 64.16, 42.15, 78.37, 37.83)),
    )
}

LABEL = "published elsewhere, measured with another version of the harness: an orientation, not a comparison"


def published(name: str) -> Sequence[Published]:
    """The rows of a table.

    Raises:
        OptionError: there is no table of that name.
    """
    if name not in REFERENCES:
        raise OptionError(f"no reference is called {name!r}", where="--reference", next=f"use {', '.join(REFERENCES)}")
    return REFERENCES[name]
