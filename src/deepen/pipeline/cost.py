"""What the stages of a recipe would cost on this machine: estimates, made without reading a weight."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from deepen.doctor import doctor
from deepen.errors import DeepenError
from deepen.pipeline.sizes import Need, slices
from deepen.plan.accelerators import ACCELERATORS
from deepen.plan.estimate import Estimate, estimate_training
from deepen.recipe import Recipe, TrainStage

_LENGTHS = {"pretrain": 512, "instruct": 1024, "align": 1024}  # the stages' own, where a recipe gives none


def costs(words: Recipe, found: Sequence[Need]) -> dict[str, dict[str, Any]]:
    """For each stage `memory_bytes` and `disk_bytes`, and for a pretraining `tokens`, `seconds` and `energy_joules`.

    How many tokens the other stages of training read is known when their data are; the least of their memory is told.
    """
    kind, count = _machine() if any(isinstance(need.step.stage, TrainStage) for need in found) else (None, 0)
    return {need.step.stage.name: _cost(words, need, kind, count) for need in found}


def machine_name() -> str:
    """What the estimates are for, in words."""
    kind, count = _machine()
    if kind is None:
        return "GPUs of which no speed is known"
    return f"{count} {'CPU core' if kind == 'cpu' else kind}{'s' if count > 1 and kind == 'cpu' else ''}"


def _cost(words: Recipe, need: Need, kind: str | None, count: int) -> dict[str, Any]:
    known: dict[str, Any] = {
        "memory_bytes": need.memory_bytes,
        "disk_bytes": need.output_bytes + need.working_bytes,
        "tokens": need.step.options.get("tokens") if need.step.stage.stage == "pretrain" else None,
        "seconds": None,
        "energy_joules": None,
    }
    if known["tokens"] is None or kind is None:
        return known
    runs = [_estimate(words, need, slices(need.made_from.layers), kind, count)]
    if need.step.options.get("control"):
        runs.append(_estimate(words, need, f"0:{need.made_from.source_layers}", kind, count))
    if done := [run for run in runs if run is not None]:
        known["memory_bytes"] = max(sum(run.memory_parts_bytes.values()) * (1 if kind == "cpu" else run.gpus) for run in done)
        known["seconds"] = sum(run.seconds for run in done)
        known["energy_joules"] = sum(run.energy_joules for run in done)
    return known


def _estimate(words: Recipe, need: Need, layers: str, kind: str, count: int) -> Estimate | None:
    """None where it does not fit, which is told elsewhere."""
    options: Mapping[str, Any] = need.step.options
    added, seen = [], set[int]()
    for position, layer in enumerate(need.made_from.layers):
        if layer in seen:
            added.append(position)
        seen.add(layer)
    train = options.get("train") or "all"
    try:
        return estimate_training(
            words.base,
            plan={"layers": layers},
            gpu=kind,
            gpus=count,
            tokens=options["tokens"],
            sequence_length=options.get("sequence_length") or _LENGTHS[need.step.stage.stage],
            train=train,
            repeated=tuple(added) if train == "repeated" else (),
            micro_batch=options.get("micro_batch") or 1,
        )
    except DeepenError:
        return None


def _machine() -> tuple[str | None, int]:
    """The kind of accelerator as the estimates know it, and how many there are."""
    found = doctor()
    if not found["gpus"]:
        return "cpu", found["cpu"]["cores"]
    name = re.sub(r"[^a-z0-9]", "", found["gpus"][0]["name"].lower())
    known = [kind for kind in ACCELERATORS if kind.replace("-", "") in name and kind != "cpu"]
    return max(known, key=len, default=None), len(found["gpus"])
