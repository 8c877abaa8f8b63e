"""What a plan costs, from headers alone: parameters, bytes on disk, KV cache, FLOPs, memory to train."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from deepen.checkpoint import Tensor
from deepen.plan.layers import Plan

LORA_RANK = 16
_KV_BYTES = 2  # a cache in float16 or bfloat16, whatever the weights are stored in

# Bytes per parameter while training, without activations:
# weights + gradients + both moments of AdamW, each in 4 bytes
FLOAT32_ADAMW = 16
# weights and gradients in 2 bytes; master weights and both moments in 4
_BFLOAT16_ADAMW = 16
# weights and gradients in 2 bytes, both moments in 1
_BFLOAT16_ADAMW_8BIT = 6
TRAIN_BYTES = {
    "float32_adamw": FLOAT32_ADAMW,
    "bfloat16_adamw": _BFLOAT16_ADAMW,
    "bfloat16_adamw_8bit": _BFLOAT16_ADAMW_8BIT,
}
_FROZEN_BFLOAT16 = 2


@dataclass(frozen=True)
class Facts:
    """What pricing needs to know of a base model, whatever its container.

    Attributes:
        layers: the tensors of each base layer.
        rest: the tensors outside the stack.
        kv_elements: keys and values that each base layer caches per token.
        active: per tensor of a layer, which share of it takes part in one token's forward pass (1, or k of n experts).
        head_parameters: size of the output head, be it a tensor of its own or the embedding.
    """

    layers: Sequence[Sequence[Tensor]]
    rest: Sequence[Tensor]
    kv_elements: Sequence[int]
    active: dict[str, float]
    head_parameters: int


def price(plan: Plan, facts: Facts, *, dtype_bytes: int | None = None, side_bytes: int = 0) -> dict[str, Any]:
    """Price a plan.

    Args:
        plan: the plan.
        facts: the base model.
        dtype_bytes: bytes per element if the output is converted; by default each tensor keeps its own type.
        side_bytes: size of the files that travel beside the weights.

    Returns:
        `parameters`, `source_parameters`, `weight_bytes`, `kv_bytes_per_token` (float16), `flops_per_token` (forward pass;
        attention over the context adds to it), `train_bytes` by precision recipe (without activations), `disk_bytes`.
    """
    planned = [tensor for layer in plan.layers for tensor in facts.layers[layer]]
    parameters = sum(tensor.parameters for tensor in [*planned, *facts.rest])
    weight_bytes = sum(
        tensor.nbytes if dtype_bytes is None else tensor.parameters * dtype_bytes for tensor in [*planned, *facts.rest]
    )
    adapters = adapter_parameters(planned, LORA_RANK)
    return {
        "parameters": parameters,
        "source_parameters": sum(tensor.parameters for layer in facts.layers for tensor in layer)
        + sum(tensor.parameters for tensor in facts.rest),
        "weight_bytes": weight_bytes,
        "kv_bytes_per_token": _KV_BYTES * sum(facts.kv_elements[layer] for layer in plan.layers),
        "flops_per_token": forward_flops(replace(facts, layers=[planned])),
        "train_bytes": {
            **{name: size * parameters for name, size in TRAIN_BYTES.items()},
            f"lora_rank_{LORA_RANK}": _FROZEN_BFLOAT16 * parameters + FLOAT32_ADAMW * adapters,
        },
        "disk_bytes": weight_bytes + side_bytes,
    }


def adapter_parameters(tensors: Iterable[Tensor], rank: int) -> int:
    """Parameters of low-rank adapters: for each matrix rank times rows + columns (Hu et al. 2021, arXiv:2106.09685, s. 4.1)."""
    return rank * sum(sum(tensor.shape) for tensor in tensors if len(tensor.shape) == 2)


def forward_flops(facts: Facts) -> int:
    """FLOPs of the weights for one token's forward pass, attention over the context not included.

    A multiplication and an addition per weight that a token meets (Kaplan et al. 2020, arXiv 2001.08361, section 2.1).
    """
    matrices = [tensor for layer in facts.layers for tensor in layer if len(tensor.shape) >= 2]
    active = sum(tensor.parameters * facts.active.get(tensor.name, 1.0) for tensor in matrices)
    return round(2 * (active + facts.head_parameters))
