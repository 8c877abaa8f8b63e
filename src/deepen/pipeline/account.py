"""What the finished stages of a run tell: read from their records, manifests and metrics, without loading a model."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deepen.checkpoint.manifest import MANIFEST_FILE, read_manifest
from deepen.errors import CheckpointError
from deepen.pipeline.record import read_record
from deepen.pipeline.steps import Step

_METRICS = "metrics.jsonl"


@dataclass(frozen=True)
class Told:
    """A finished stage.

    Attributes:
        step: the stage with its places.
        record: what the pipeline noted of it.
        manifest: what it wrote beside its model; empty if it made none.
        model: layers, parameters and bytes of the model it made or judged.
    """

    step: Step
    record: Mapping[str, Any]
    manifest: Mapping[str, Any]
    model: Mapping[str, Any]

    @property
    def name(self) -> str:
        """The stage's name."""
        return self.step.stage.name

    @property
    def verb(self) -> str:
        """The stage's verb."""
        return self.step.stage.stage

    @property
    def result(self) -> Mapping[str, Any]:
        """What was found, where the stage makes no model."""
        return self.record.get("result") or {}

    @property
    def joules(self) -> float | None:
        """The energy that was measured."""
        found: float | None = self.manifest.get("energy_joules", self.result.get("energy_joules"))
        return found

    def rows(self, run: str | None = None) -> list[dict[str, Any]]:
        """The rows that a training logged; of its control, if that is asked for."""
        return [row for row in _rows(self.step.out / _METRICS) if row.get("run") == run]

    def curve(self, key: str, run: str | None = None) -> list[tuple[float, float]]:
        """Tokens and a logged value."""
        return [(row["tokens"], row[key]) for row in self.rows(run) if isinstance(row.get(key), int | float)]


def tell(steps: Sequence[Step], models: Sequence[Mapping[str, Any]]) -> list[Told]:
    """What all stages of a run tell, and the models that each made or judged."""
    return [Told(step, read_record(step), _manifest(step), model) for step, model in zip(steps, models, strict=True)]


def names_of(base: str, steps: Sequence[Step]) -> dict[str, str]:
    """What people call each model: the stage that made it, or the base."""
    return {base: "base"} | {step.model: step.stage.name for step in steps if step.stage.makes_model}


def _manifest(step: Step) -> dict[str, Any]:
    if not step.stage.makes_model:
        return {}
    file = step.out / MANIFEST_FILE if step.out.is_dir() else step.out.with_name(f"{step.out.name}.deepen.json")
    try:
        return read_manifest(file)
    except CheckpointError:  # edited and adopted; `deepen verify` says what is wrong with it
        return {}


def _rows(file: Path) -> Iterator[dict[str, Any]]:
    if file.is_file():
        for line in file.read_text(encoding="utf-8").splitlines():
            yield json.loads(line)
