"""Scale a safetensors checkpoint folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from deepen import architecture
from deepen.checkpoint import Checkpoint, open_checkpoint
from deepen.checkpoint.convert import FLOATS, with_dtype
from deepen.checkpoint.copy import hash_file
from deepen.checkpoint.folder import source_facts, write_folder
from deepen.checkpoint.reader import DTYPE_BITS
from deepen.checkpoint.writer import Output
from deepen.errors import UnsupportedModelError
from deepen.plan import Plan, parse_plan, read_architecture


def scale_folder(
    path: Path,
    out: Path,
    plan_options: dict[str, Any],
    facts: dict[str, Any],
    start: float,
    *,
    as_llama: bool,
    max_position_embeddings: int | None,
    dtype: str | None,
    shard_bytes: int,
    overwrite: bool,
    decoded_from: Path | None = None,
) -> Path:
    """Scale the checkpoint folder `path` into the folder `out`; see `deepen.scale.scale`."""
    checkpoint = open_checkpoint(path)
    stack, _ = read_architecture(checkpoint)
    plan = parse_plan(stack.num_hidden_layers, **plan_options)
    config = architecture.deepen_config(checkpoint.config, plan.layers, stack)
    if as_llama:
        config = architecture.as_llama(config, max_position_embeddings or 4096)
    outputs = planned_outputs(checkpoint, stack, plan, dtype)
    if dtype is not None:
        config = with_dtype(config, dtype)
    extra = architecture.extra_layers(checkpoint.config, stack, checkpoint.tensors)
    content = {
        "verb": "scale",
        "options": facts["options"],
        "source": _source(path, facts["model"], decoded_from),
        "plan": plan.to_dict(),
        "dropped": [name for name in checkpoint.tensors if name in extra],
    }
    text = json.dumps(config, indent=2, ensure_ascii=False) + "\n"
    return write_folder(out, [checkpoint], outputs, text, content, start, shard_bytes=shard_bytes, overwrite=overwrite)


def planned_outputs(checkpoint: Checkpoint, stack: architecture.Stack, plan: Plan, dtype: str | None) -> list[Output]:
    """Every tensor of the deepened checkpoint with where it comes from, before anything is read.

    Args:
        checkpoint: the base.
        stack: its decoder stack.
        plan: the plan.
        dtype: the type to convert floats to, or None to keep the bytes.

    Raises:
        UnsupportedModelError: a projection to be zeroed is quantised, or a quantised model is to be converted.
    """
    if dtype is not None and checkpoint.config.get("quantization_config"):
        raise UnsupportedModelError(
            "the weights are quantised and cannot be converted", where=checkpoint.path, next="leave out --dtype"
        )
    extra = set(architecture.extra_layers(checkpoint.config, stack, checkpoint.tensors))
    by_layer: dict[int, dict[str, str]] = {}
    outputs = []
    for name, tensor in checkpoint.tensors.items():
        if (place := architecture.split_name(stack, name)) is not None and name not in extra:
            by_layer.setdefault(place[0], {})[place[1]] = name
        elif name not in extra:
            outputs.append(Output(name, tensor, _target_dtype(tensor.dtype, dtype)))
    for position, layer in enumerate(plan.layers):
        rests = by_layer[layer]
        fills = architecture.residual_writers(checkpoint.config, rests, checkpoint.path) if position in plan.identity else {}
        for rest, source in rests.items():
            tensor, fill = checkpoint.tensors[source], fills.get(rest)
            if fill is not None and tensor.dtype not in FLOATS:
                raise UnsupportedModelError(
                    f"{source} is quantised ({tensor.dtype}), so it cannot be made to write nothing",
                    where=checkpoint.path,
                    next="deepen the unquantised model, or leave out --identity-init",
                )
            name = architecture.join_name(stack, position, rest)
            outputs.append(Output(name, tensor, _target_dtype(tensor.dtype, dtype), fill))
    return outputs


def _target_dtype(source: str, wanted: str | None) -> str:
    # integers and booleans (masks, positions) have no other type; only floats are converted
    is_float = source in FLOATS or (source.startswith("F") and DTYPE_BITS[source] <= 8)
    return wanted if wanted is not None and is_float else source


def _source(path: Path, model: str, decoded_from: Path | None) -> dict[str, Any]:
    if decoded_from is not None:
        return {"model": model, "format": "gguf", "sha256": hash_file(decoded_from)}
    return source_facts(path, model)
