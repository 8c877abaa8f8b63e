"""Whether a training run fits into memory: estimated from a checkpoint's headers, before anything is loaded."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch

from deepen.checkpoint import Checkpoint
from deepen.errors import ResourceError
from deepen.host import host_memory
from deepen.plan.memory import Setup, training_bytes
from deepen.units import format_bytes

_MOST_RANKS = 4096


def free_bytes(device: str) -> int:
    """What a device has free: a GPU of its own memory, else main memory as far as other programs and the container allow."""
    if device.partition(":")[0] == "cuda":
        return int(torch.cuda.mem_get_info(torch.device(device))[0])
    return host_memory().available


def check_memory(source: Checkpoint, setup: Setup, *, device: str, free: int | None = None) -> None:
    """Refuse a run that would not fit into memory, and name the nearest settings that do.

    Args:
        source: what is trained.
        setup: how.
        device: where, such as `cpu` or `cuda:0`.
        free: bytes; what the device has free unless given.

    Raises:
        ResourceError: with what is needed and free.
        CheckpointError, UnsupportedModelError: as `training_bytes`.
    """
    free = free_bytes(device) if free is None else free
    needed = sum(training_bytes(source, setup, device).values())
    if needed <= free:
        return
    fitting: list[str] = []
    kinds = set()
    for other in _smaller(setup):
        kind = (other.train, other.ranks, other.activation_checkpointing or other.micro_batch < setup.micro_batch)
        size = sum(training_bytes(source, other, device).values())
        if size <= free and kind not in kinds:
            kinds.add(kind)
            fitting.append(f"{_words(setup, other)} ({format_bytes(size)})")
    raise ResourceError(
        f"training needs about {format_bytes(needed)} of memory, and {format_bytes(free)} are free on {device}",
        where=source.path,
        next=", or ".join(fitting[:3]) or "take a smaller model, or a machine with more memory",
    )


def _smaller(setup: Setup) -> Iterator[Setup]:
    """Settings that take less memory, the nearest first."""
    sparing = replace(setup, activation_checkpointing=True)
    rows = [setup.micro_batch >> halvings for halvings in range(1, setup.micro_batch.bit_length())]
    yield sparing
    yield from (replace(each, micro_batch=count, accumulates=True) for each in (setup, sparing) for count in rows)
    least = replace(sparing, micro_batch=1, accumulates=True) if rows else sparing
    for train in ("repeated", "lora"):
        if setup.train != train and (train != "repeated" or setup.repeated):
            yield from (replace(each, train=train) for each in (setup, sparing, least))
    ranks = _MOST_RANKS if setup.train == "lora" else setup.ranks
    while (ranks := 2 * ranks) <= _MOST_RANKS:
        yield from (replace(each, ranks=ranks) for each in (setup, least))


def _words(setup: Setup, other: Setup) -> str:
    """What to change to come from one setup to another."""
    options = []
    if other.train != setup.train:
        options.append(f"--train {other.train}")
    if other.activation_checkpointing != setup.activation_checkpointing:
        options.append("--activation-checkpointing")
    if other.micro_batch != setup.micro_batch:
        options.append(f"--micro-batch {other.micro_batch}")
    if other.ranks != setup.ranks:
        options.append(f"{other.ranks} processes (torchrun) with as much memory each")
    return ", ".join([*options[:-2], " and ".join(options[-2:])])
