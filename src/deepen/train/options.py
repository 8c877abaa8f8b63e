"""The options that the stages of training share."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict

from deepen.errors import OptionError
from deepen.train.learns import CHOICES
from deepen.train.network import PRECISIONS
from deepen.train.schedule import check_schedule


class Shared(TypedDict, total=False):
    """Options that all stages of training share, as keywords of their functions.

    train: what learns: `all` weights; `repeated`, the layers that the plan added; or `lora`, adapters that are merged into the
        weights in the end.
    lora_rank: of the adapters.
    learning_rate: the peak of the schedule.
    new_layer_learning_rate: the peak for the layers that the plan added, if it is another.
    schedule: `cosine`, `constant` or `wsd`.
    warmup: below 1 a fraction of the steps, else a number of steps, in which the rate rises.
    teacher: a model with the same tokens to learn from besides the data, such as the base that this one was made from.
    teacher_share: its part in the loss, from 0 to 1.
    base: the model that this one was made from; by default what the manifest says.
    control: train the base on the same data too, and draw both curves.
    every: steps between two measurements; there is one before the first step and one after the last.
    save_every: steps between saved states, from which an interrupted run continues.
    keep: how many saved states are kept while the run lasts.
    micro_batch: rows that go through the model at once; more needs more memory. On CPUs one is fastest.
    seed: of the data order and of everything drawn.
    precision: what matrices are multiplied in: `float32`, `bfloat16`, or `auto`, which measures and says what it chose.
        Weights and optimizer are float32 in either case; the result is written in the source's own type.
    compile: compile each layer before it runs: slower to begin with, then faster.
    activation_checkpointing: keep less of the forward pass and compute it again: less memory, a third more time.
    device: `cpu`, `cuda`, …; a GPU by default, where there is one.
    grid_factor: grams of CO2 per kilowatt-hour where the machine stands, to tell the run's.
    resume: continue what an interrupted run left; otherwise start anew.
    overwrite: replace an existing output.
    """

    train: str
    lora_rank: int
    learning_rate: float
    new_layer_learning_rate: float | None
    schedule: str
    warmup: float
    teacher: str | Path | None
    teacher_share: float
    base: str | Path | None
    control: bool
    every: int
    save_every: int
    keep: int
    micro_batch: int
    seed: int
    precision: str
    compile: bool
    activation_checkpointing: bool
    device: str | None
    grid_factor: float | None
    resume: bool
    overwrite: bool


DEFAULTS: Shared = {
    "train": "all",
    "lora_rank": 16,
    "learning_rate": 1e-4,
    "new_layer_learning_rate": None,
    "schedule": "cosine",
    "warmup": 0.1,
    "teacher": None,
    "teacher_share": 0.5,
    "base": None,
    "control": False,
    "every": 10,
    "save_every": 50,
    "keep": 1,
    "micro_batch": 1,
    "seed": 0,
    "precision": "auto",
    "compile": False,
    "activation_checkpointing": False,
    "device": None,
    "grid_factor": None,
    "resume": True,
    "overwrite": False,
}
# What does not change the result, so that an interrupted run may be continued with another value
FREE = {"save_every", "keep", "activation_checkpointing", "device", "grid_factor", "resume", "overwrite"}
_ABOVE_ZERO = ("lora_rank", "learning_rate", "every", "save_every", "keep", "micro_batch")


def settle(given: Shared, **defaults: Any) -> Shared:
    """All shared options: what is given, else the stage's own defaults, else those of all.

    Raises:
        OptionError: an unknown name, or a value out of its range.
    """
    if unknown := given.keys() - DEFAULTS.keys():
        raise OptionError(f"no option is called {sorted(unknown)[0]!r}", next=f"use {', '.join(DEFAULTS)}")
    settled: Shared = {**DEFAULTS, **defaults, **given}  # type: ignore[typeddict-item]
    check_schedule(settled["schedule"])
    check_above_zero(settled, _ABOVE_ZERO)
    if settled["precision"] not in {"auto", *PRECISIONS}:
        raise OptionError(
            f"no precision {settled['precision']!r}", where="--precision", next=f"use auto, {', '.join(PRECISIONS)}"
        )
    if settled["train"] not in CHOICES:
        raise OptionError(f"{settled['train']!r} is no choice", where="--train", next=f"use {', '.join(CHOICES)}")
    if not 0 <= settled["teacher_share"] <= 1:
        raise OptionError(f"{settled['teacher_share']} is not between 0 and 1", where="--teacher-share", next="use 0.5")
    rate = settled["new_layer_learning_rate"]
    if rate is not None and not 0 < rate < math.inf:
        raise OptionError(f"{rate} is not above zero", where="--new-layer-learning-rate", next="give a larger one")
    return settled


def check_above_zero(options: Mapping[str, Any], names: Sequence[str]) -> None:
    """Refuse numbers that are not above zero.

    Raises:
        OptionError: names the option.
    """
    for name in names:
        if options[name] is not None and not options[name] > 0:
            raise OptionError(
                f"{options[name]} is not above zero", where=f"--{name.replace('_', '-')}", next="give a larger one"
            )
