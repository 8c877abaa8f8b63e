"""What the stages of a recipe take of memory and disk, from the headers of the base alone."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from deepen.doctor import doctor
from deepen.errors import DeepenError
from deepen.output import partial_path
from deepen.pipeline.models import depth_of
from deepen.pipeline.steps import Step
from deepen.plan import describe, parse_plan
from deepen.plan.price import FLOAT32_ADAMW, LORA_RANK
from deepen.recipe import PlannedStage, Recipe, TrainStage
from deepen.units import format_bytes

_FLOAT32 = 4
_STATE = 12  # bytes per parameter of a saved state: the weights and both moments of AdamW in float32
_DTYPES = {"float32": 4, "bfloat16": 2, "float16": 2}
# bytes per parameter of a GGUF, measured on llama.cpp's files of SOLAR 10.7B
_QUANTIZED = {
    "F32": 4.0, "F16": 2.0, "BF16": 2.0, "Q8_0": 1.063, "Q6_K": 0.82, "Q5_K_M": 0.708, "Q4_K_M": 0.602, "Q4_0": 0.566,
}  # fmt: skip


@dataclass(frozen=True)
class Size:
    """A model that is not made yet.

    Attributes:
        layers: base layers that it is made of.
        source_layers: how many the base has.
        parameters: in all.
        nbytes: on disk, with what lies beside the weights.
        flops_per_token: of a forward pass.
        adapter_parameters: of low-rank adapters of rank 1 on all matrices of the layers.
    """

    layers: tuple[int, ...]
    source_layers: int
    parameters: int
    nbytes: int
    flops_per_token: int
    adapter_parameters: int


@dataclass(frozen=True)
class Need:
    """What a stage takes.

    Attributes:
        step: the stage.
        made_from: the model that goes in.
        output_bytes: what it leaves on the disk.
        working_bytes: what it takes there besides while it is at work.
        memory_bytes: what it cannot do without: for training weights, gradients and optimizer; else None.
    """

    step: Step
    made_from: Size
    output_bytes: int
    working_bytes: int = 0
    memory_bytes: int | None = None


def needs(words: Recipe, steps: Sequence[Step]) -> list[Need]:
    """What each stage takes; none for stages whose model is not known yet, such as what a search will find.

    Raises:
        DeepenError: the headers of the base cannot be read.
    """
    base = _size(describe(words.base, layers=f"0:{depth_of(words.base)}"))
    sizes: dict[str, Size] = {words.base: base}
    found = []
    for step in steps:
        size = sizes.get(step.source)
        if size is None:
            continue
        made = _made(words.base, step, size)
        if step.stage.makes_model and made is not None:
            sizes[step.model] = made
        if made is not None:
            found.append(_need(step, size, made))
    return found


def size_problems(found: Sequence[Need]) -> Iterator[str]:
    """Stages that cannot fit into this machine's memory, or onto the disk with what is made before them."""
    training = [need for need in found if need.memory_bytes is not None and not need.step.out.exists()]
    machine = doctor() if training else {}
    for need in training:
        yield from _memory_problem(need, machine)
    yield from _disk_problem(found)


def _made(base: str, step: Step, size: Size) -> Size | None:
    """The model that a stage makes, or judges under a plan of its own."""
    if not isinstance(step.stage, PlannedStage):
        return size
    keys = (*PlannedStage.plans, "identity_init")
    chosen = {key: value for key, value in step.options.items() if key in keys and value is not None}
    try:
        layers = size.layers
        if chosen:
            layers = tuple(size.layers[layer] for layer in parse_plan(len(size.layers), **chosen).layers)
        made = _size(describe(base, layers=slices(layers)))
    except DeepenError:
        return None  # told elsewhere, or a plan that is still to be found
    per_parameter = size.nbytes / size.parameters
    dtype = step.options.get("dtype", "keep")
    if step.stage.stage == "scale" and step.options.get("to") == "hf":
        per_parameter = _DTYPES.get(dtype, _FLOAT32)
    elif step.stage.stage == "scale" and dtype in _DTYPES:
        per_parameter = _DTYPES[dtype]
    return replace(made, nbytes=round(per_parameter * made.parameters))


def _need(step: Step, size: Size, made: Size) -> Need:
    match step.stage:
        case TrainStage():
            states = 1 + (step.stage.keep or 1)
            return Need(step, size, size.nbytes, states * _STATE * size.parameters, _training_bytes(step, size))
        case _ if step.stage.stage == "export":
            return Need(step, size, round(_QUANTIZED[step.options.get("quantize", "Q8_0")] * size.parameters))
        case _:
            return Need(step, size, made.nbytes if step.stage.makes_model else 0)


def _training_bytes(step: Step, size: Size) -> int:
    """Weights, gradients and optimizer, without activations: the least that training takes."""
    whole = size.parameters
    match step.options.get("train", "all"):
        case "lora":
            rank: int = step.options.get("lora_rank", LORA_RANK)
            return _FLOAT32 * whole + FLOAT32_ADAMW * rank * size.adapter_parameters
        case "repeated":
            added = len(size.layers) - len(set(size.layers))
            learned = round(whole * added / len(size.layers))
            return _FLOAT32 * (whole - learned) + FLOAT32_ADAMW * learned
        case _:
            return FLOAT32_ADAMW * whole


def _memory_problem(need: Need, machine: Mapping[str, Any]) -> Iterator[str]:
    processes = int(os.environ.get("WORLD_SIZE", 1))
    local = int(os.environ.get("LOCAL_WORLD_SIZE", processes))
    gpus = [gpu["memory_bytes"] for gpu in machine["gpus"] if gpu["memory_bytes"]]
    on_gpu = bool(gpus) and need.step.options.get("device") != "cpu"
    limit = min(gpus) if on_gpu else machine["memory"]["total_bytes"] // local
    sharded = need.step.options.get("train") != "lora"
    needed = (need.memory_bytes or 0) // (processes if sharded else 1)
    if needed <= limit:
        return
    place = f"{'a GPU' if on_gpu else 'this machine'} has {format_bytes(limit)}"
    adapters = _FLOAT32 * need.made_from.parameters
    many = -(-needed // limit) * processes
    ways = [f"{many} {'GPUs as large' if on_gpu else 'such machines'}, one process on each (torchrun)"] if sharded else []
    if sharded and 1.1 * adapters < limit:
        ways.insert(0, f"train: lora ({format_bytes(1.1 * adapters)})")
    yield (
        f"{need.step.stage.place} ({need.step.stage.name}): training takes {format_bytes(needed)} of memory for weights,"
        f" gradients and optimizer alone, and {place}: {', or '.join(ways) or 'take a smaller base'}"
    )


def _disk_problem(found: Sequence[Need]) -> Iterator[str]:
    if not found:
        return
    folder = found[0].step.out.absolute().parent
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    used = 0
    for need in found:
        if need.step.out.exists():
            continue
        begun = _bytes_in(partial_path(need.step.out))
        peak = used + max(0, need.output_bytes + need.working_bytes - begun)
        if peak > free:
            yield (
                f"{need.step.stage.place} ({need.step.stage.name}): with what is made before it, it takes {format_bytes(peak)}"
                f" of disk, and {format_bytes(free)} are free at {folder}: free some space, or pass --out for another disk"
            )
            return
        used += max(0, need.output_bytes - begun)


def _bytes_in(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) if folder.is_dir() else 0


def _size(described: Mapping[str, Any]) -> Size:
    return Size(
        tuple(described["layers"]),
        described["source_layers"],
        described["parameters"],
        described["disk_bytes"],
        described["flops_per_token"],
        (described["train_bytes"][f"lora_rank_{LORA_RANK}"] - 2 * described["parameters"]) // (FLOAT32_ADAMW * LORA_RANK),
    )


def slices(layers: Sequence[int]) -> str:
    """Layers as slices, such as `0:24,8:32`."""
    starts = [0, *(place for place, (one, other) in enumerate(pairwise(layers), start=1) if other != one + 1), len(layers)]
    return ",".join(f"{layers[first]}:{layers[end - 1] + 1}" for first, end in pairwise(starts))
