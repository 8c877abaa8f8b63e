"""What a training takes on given accelerators: time, memory of each, energy, money. The formulas stand in docs/estimates.md."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from deepen.architecture import Dimensions
from deepen.errors import OptionError, ResourceError
from deepen.plan import read_planned
from deepen.plan.accelerators import ACCELERATORS, Accelerator, find_accelerator
from deepen.plan.layers import Plan
from deepen.plan.memory import Setup, peak_bytes
from deepen.plan.price import LORA_RANK, TRAIN_BYTES, Facts, forward_flops
from deepen.units import format_bytes

NODE = 8  # accelerators of a node; a copy of the model is sharded within it (train/ranks.py)
BETWEEN_NODES = 0.97  # torchtitan, Llama 3.1 8B: 5,605 tokens/s per GPU on 128 of them, 5,762 on 8 (docs/estimates.md)
_LENGTH = 4096
_RESERVED = 2 * 10**9  # of a GPU's memory: its driver's context, the buffers of communication
_STATE = "weights, gradients, optimizer"


@dataclass(frozen=True)
class Estimate:
    """What a training takes.

    Attributes:
        gpu, gpus: the accelerators.
        tokens: how many are read.
        sequence_length: tokens of a row.
        train: which weights learn.
        train_flops_per_token: of the model, without what is computed again.
        mfu: the share of the peak that all computing reaches, between nodes included.
        tokens_per_second: of all accelerators.
        seconds: of the steps; loading, measuring and saving add to it.
        gpu_hours, energy_joules, cost_usd: of all accelerators; boards at full load, hosts and cooling not counted.
        usd_per_gpu_hour: the price that was taken.
        memory_per_gpu_bytes: peak of each accelerator (of the whole process on a CPU) by precision recipe; deepen trains by
            `float32_adamw` or LoRA.
        memory_parts_bytes: what the first is made of.
        gpu_memory_bytes: what each has; None for a CPU.
        activation_checkpointing: whether it must be on, or was asked for.
        replicas: copies of the model, each sharded over `gpus / replicas`.
        decode_tokens_per_second: the most that one conversation gets on one accelerator, where weights are read in bfloat16.
    """

    gpu: str
    gpus: int
    tokens: int
    sequence_length: int
    train: str
    train_flops_per_token: int
    mfu: float
    tokens_per_second: float
    seconds: float
    gpu_hours: float
    energy_joules: float
    cost_usd: float
    usd_per_gpu_hour: float
    memory_per_gpu_bytes: dict[str, int]
    memory_parts_bytes: dict[str, int]
    gpu_memory_bytes: int | None
    activation_checkpointing: bool
    replicas: int
    decode_tokens_per_second: float

    def to_dict(self) -> dict[str, Any]:
        """As plain data."""
        return asdict(self)


def estimate_training(model: str | Path, *, plan: dict[str, Any] | None = None, **run: Any) -> Estimate:
    """What it takes to train a model, or the model that a plan makes of it.

    Args:
        model: a checkpoint folder, a `.gguf` file or a Hub id; only headers are read.
        plan: options of a layer plan, such as `{"drop": 8}`; none for the model itself.
        **run: as for `estimate`.

    Raises:
        DeepenError: as `read_planned` and `estimate`.
    """
    return estimate(*planned(*read_planned(model, **plan or {})), **run)


def planned(plan: Plan, facts: Facts, sizes: Dimensions) -> tuple[Facts, Dimensions]:
    """The facts and sizes of the model that a plan makes, from those of its base."""
    kv_elements = tuple(facts.kv_elements[layer] for layer in plan.layers)
    made = replace(facts, layers=[facts.layers[layer] for layer in plan.layers], kv_elements=kv_elements)
    return made, replace(sizes, num_hidden_layers=plan.num_hidden_layers, kv_elements=kv_elements)


def estimate(
    facts: Facts,
    sizes: Dimensions,
    *,
    gpu: str,
    gpus: int = 1,
    tokens: int = 10**9,
    sequence_length: int | None = None,
    train: str = "all",
    repeated: tuple[int, ...] = (),
    activation_checkpointing: bool | None = None,
    mfu: float | None = None,
    price: float | None = None,
    micro_batch: int = 1,
) -> Estimate:
    """What it takes to train a model, from its facts and sizes.

    Args:
        facts: of the model that is trained.
        sizes: of the same.
        gpu: the kind of accelerator; `cpu` is a core.
        gpus: how many of them.
        tokens: how many are read.
        sequence_length: tokens of a row; 4,096, or the model's context if that is shorter.
        train: `all`, `repeated` or `lora`.
        repeated: the positions of the layers that `repeated` trains.
        activation_checkpointing: None turns it on if memory demands it.
        mfu: the share of the peak that is reached, instead of the accelerator's own figure.
        price: US dollars for an hour of one.
        micro_batch: rows that go through the model at once.

    Raises:
        OptionError: an unknown accelerator, or a number out of its range.
        ResourceError: the training does not fit into the memory; says how many accelerators would do.
    """
    kind = find_accelerator(gpu)
    _check(gpus=gpus, tokens=tokens, mfu=mfu, price=price, sequence_length=sequence_length)
    length = sequence_length or min(_LENGTH, sizes.max_position_embeddings or _LENGTH)
    setup = Setup(
        sequence_length=length, micro_batch=micro_batch, train=train, repeated=repeated,
        precision="float32" if kind.is_cpu else "bfloat16",
    )  # fmt: skip
    setup, replicas, parts = _fit(facts, sizes, setup, kind, gpu, gpus, activation_checkpointing)
    flops, again = training_flops(facts, sizes, length, train=train, repeated=repeated)
    share = (kind.mfu if mfu is None else mfu) * (BETWEEN_NODES if replicas > 1 else 1.0)
    computed = flops + (again if setup.activation_checkpointing else 0)
    rate = gpus * kind.flops * share / computed
    seconds, dollars = tokens / rate, kind.dollars if price is None else price
    hours = gpus * seconds / 3600
    return Estimate(
        gpu=gpu,
        gpus=gpus,
        tokens=tokens,
        sequence_length=length,
        train=train,
        train_flops_per_token=flops,
        mfu=round(share, 4),
        tokens_per_second=rate,
        seconds=seconds,
        gpu_hours=hours,
        energy_joules=hours * 3600 * kind.watts,
        cost_usd=hours * dollars,
        usd_per_gpu_hour=dollars,
        memory_per_gpu_bytes=_by_recipe(facts, sizes, setup, parts, kind),
        memory_parts_bytes=parts,
        gpu_memory_bytes=kind.memory_bytes,
        activation_checkpointing=setup.activation_checkpointing,
        replicas=replicas,
        decode_tokens_per_second=kind.bandwidth / forward_flops(facts),  # two FLOPs and two bytes per weight
    )


def training_flops(
    facts: Facts, sizes: Dimensions, sequence_length: int, *, train: str = "all", repeated: tuple[int, ...] = ()
) -> tuple[int, int]:
    """FLOPs per token of a training step, and those of computing its layers once again.

    6 per weight that a token meets and 12 x layers x width of the queries x length for attention, as in appendix B of Chowdhery
    et al. 2022 (arXiv:2204.02311): a third each for the forward pass, the gradients of what goes in, and those of the weights.
    Weights that do not learn save the last; layers below the first that learns, the second too.
    """
    matrices = forward_flops(facts)
    layers = [forward_flops(replace(facts, layers=[layer], head_parameters=0)) for layer in facts.layers]
    attention = [4 * sizes.num_attention_heads * sizes.head_dim * sequence_length * (kv > 0) for kv in facts.kv_elements]
    forward = matrices + sum(attention)
    again = sum(layers) + sum(attention)
    if train == "lora":
        return 2 * matrices + 3 * sum(attention), again
    if train == "repeated":
        first = min(repeated, default=0)
        below = sum(layers[:first])
        learned = sum(layers[place] for place in repeated)
        return forward + matrices - below + 2 * sum(attention[first:]) + learned, again
    return 3 * forward, again


def _check(**numbers: float | None) -> None:
    for name, value in numbers.items():
        option = f"--{name.replace('_', '-')}"
        if value is not None and not (value > 0 and math.isfinite(value)):
            raise OptionError(f"{value:g} is not above zero", where=option, next="give a larger number")
    if (mfu := numbers["mfu"]) is not None and mfu > 1:
        raise OptionError(f"{mfu:g} is more than the whole", where="--mfu", next="give a share such as 0.4")


def _fit(
    facts: Facts, sizes: Dimensions, setup: Setup, kind: Accelerator, gpu: str, gpus: int, checkpointing: bool | None
) -> tuple[Setup, int, dict[str, int]]:
    """The setup that fits, how many copies of the model there are, and what each accelerator holds."""
    if kind.is_cpu:  # one process with all cores
        setup = replace(setup, activation_checkpointing=bool(checkpointing))
        return setup, 1, peak_bytes(facts, sizes, setup, "cpu")
    nodes = -(-gpus // NODE)
    choices = [False, True] if checkpointing is None else [checkpointing]
    for choice in choices:
        chosen = replace(setup, activation_checkpointing=choice, ranks=gpus // nodes)
        parts = peak_bytes(facts, sizes, chosen, "cuda")
        if _holds(kind, parts):
            return chosen, 1 if setup.train == "lora" and nodes == 1 else nodes, parts
    raise ResourceError(
        f"training needs about {format_bytes(sum(parts.values()))} on each {gpu}, which has"
        f" {format_bytes(kind.memory_bytes or 0)}, {format_bytes(_RESERVED)} of it for the driver",
        where=f"{gpus} {gpu}",
        next=_would_fit(facts, sizes, replace(setup, activation_checkpointing=choices[-1]), kind, gpu),
    )


def _holds(kind: Accelerator, parts: dict[str, int]) -> bool:
    return kind.memory_bytes is not None and sum(parts.values()) <= kind.memory_bytes - _RESERVED


def _would_fit(facts: Facts, sizes: Dimensions, setup: Setup, kind: Accelerator, gpu: str) -> str:
    """How many of the same would do, else which others."""

    def enough(kind: Accelerator) -> int | None:
        counts = range(1, NODE + 1)
        return next((n for n in counts if _holds(kind, peak_bytes(facts, sizes, replace(setup, ranks=n), "cuda"))), None)

    if count := enough(kind):
        return f"{count} of them in a node would do: --gpus {count}"
    others = sorted((n, name) for name, other in ACCELERATORS.items() if name != gpu and (n := enough(other)))
    named = ", or ".join(f"{n} {name}" for n, name in others[:3])
    advice = f"{named} would do" if named else "shorter rows (--sequence-length) may do"
    return f"no number of them would do, since a copy is sharded over the {NODE} of a node; {advice}"


def _by_recipe(facts: Facts, sizes: Dimensions, setup: Setup, parts: dict[str, int], kind: Accelerator) -> dict[str, int]:
    device = "cpu" if kind.is_cpu else "cuda"
    whole = parts if setup.train == "all" else peak_bytes(facts, sizes, replace(setup, train="all"), device)
    parameters = sum(tensor.parameters for layer in [*facts.layers, facts.rest] for tensor in layer)
    besides = sum(whole.values()) - whole[_STATE]
    lora = peak_bytes(facts, sizes, replace(setup, train="lora"), device)
    return {
        **{name: besides + size * parameters // setup.ranks for name, size in TRAIN_BYTES.items()},
        f"lora_rank_{LORA_RANK}": sum(lora.values()),
    }
