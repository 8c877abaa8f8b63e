"""The models between stages, looked at without loading them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from deepen import architecture
from deepen.checkpoint import open_checkpoint, resolve
from deepen.checkpoint.gguf import is_gguf, open_gguf
from deepen.checkpoint.hub import is_hub_id, open_headers


def measure(model: str) -> dict[str, Any]:
    """Layers, parameters and bytes of a model on disk."""
    path = resolve(model)
    opened = open_gguf(path) if is_gguf(path) else open_checkpoint(path)
    tensors = opened.tensors.values()
    return {
        "layers": depth_of(model),
        "parameters": sum(tensor.parameters for tensor in tensors),
        "bytes": sum(tensor.nbytes for tensor in tensors),
    }


def depth_of(model: str) -> int:
    """Layers of a model; of a Hub id only headers are read."""
    path = Path(model) if is_hub_id(model) else resolve(model)
    if not is_hub_id(model) and is_gguf(path):
        gguf = open_gguf(path)
        return int(gguf.get(f"{gguf.get('general.architecture')}.block_count", 0))
    checkpoint = open_headers(model)
    return architecture.find_stack(checkpoint.config, checkpoint.tensors, path).num_hidden_layers
