"""The processes that train one model together, started by `torchrun` or `accelerate launch`; one alone is a group of one."""

from __future__ import annotations

import atexit
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from deepen.output import new_folder, partial_path

_Each = TypeVar("_Each")


def rank() -> int:
    """The number of this process, from 0."""
    return int(os.environ.get("RANK", 0))


def world_size() -> int:
    """How many processes train together."""
    return int(os.environ.get("WORLD_SIZE", 1))


def local_rank() -> int:
    """The number of this process on its node, from 0; also of its GPU."""
    return int(os.environ.get("LOCAL_RANK", 0))


def local_world_size() -> int:
    """How many of the processes are on this node."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", world_size()))


def replicas() -> int:
    """How many copies of the model there are: one per node, each sharded over the node's processes, or one over all.

    Within a node links are fast, so parameters travel there; between nodes only gradients do (HSDP).
    """
    local = local_world_size()
    return world_size() // local if local > 1 else 1


def device_of_rank(wanted: str | None) -> str:
    """Where this process computes: what the user wants, else a GPU if there is one; each process of a node has its own."""
    device = wanted or ("cuda" if torch.cuda.is_available() else "cpu")
    return f"cuda:{local_rank()}" if device == "cuda" and world_size() > 1 else device


def join(device: str) -> None:
    """Join the other processes, once for all that this one does."""
    if world_size() > 1 and not dist.is_initialized():
        if device.startswith("cuda"):
            torch.cuda.set_device(device)
        dist.init_process_group("nccl" if device.startswith("cuda") else "gloo")
        atexit.register(dist.destroy_process_group)


def wait() -> None:
    """Go on when all processes are here."""
    if world_size() > 1:
        dist.barrier()


def first(make: Callable[[], _Each]) -> _Each:
    """What the first process makes, in all of them; the others wait."""
    if world_size() == 1:
        return make()
    made: list[Any] = [make() if rank() == 0 else None]
    dist.broadcast_object_list(made, src=0)
    return made[0]  # type: ignore[no-any-return]


def totals(*values: float, device: torch.device) -> list[float]:
    """Each value summed over all processes, in float64 where the device has it."""
    if world_size() == 1:
        return list(values)
    sums = torch.tensor(values, dtype=torch.float64, device=device)
    dist.all_reduce(sums)
    return [float(value) for value in sums]


def share(items: Sequence[_Each], empty: Callable[[_Each], _Each]) -> list[_Each]:
    """This process's part of the items: every world-size-th one, from its rank on.

    All processes get as many, since each forward pass of a sharded model needs all of them: where items are missing, `empty`
    makes one without a say out of another.
    """
    mine = list(items[rank() :: world_size()])
    missing = -(-len(items) // world_size()) - len(mine)
    return mine + [empty(items[0])] * missing


def average_plain_gradients(parameters: Sequence[Tensor]) -> None:
    """Average the gradients of parameters that every process holds whole; those of sharded ones are averaged already."""
    if world_size() > 1:
        for parameter in parameters:
            if parameter.grad is not None and not hasattr(parameter, "full_tensor"):
                dist.all_reduce(parameter.grad)
                parameter.grad /= world_size()


@contextmanager
def output_folder(out: Path, *, overwrite: bool) -> Iterator[Path]:
    """`new_folder` for all processes: the first one makes and publishes it, the others work in it."""
    if rank() == 0:
        with new_folder(out, overwrite=overwrite, resume=True) as folder:
            wait()
            yield folder
            wait()
    else:
        wait()
        yield partial_path(out)
        wait()
    wait()
