"""A model larger than memory: its layers are read from the checkpoint when they are needed, and forgotten afterwards."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from deepen.architecture import Stack, split_name
from deepen.checkpoint import Checkpoint, Tensor
from deepen.errors import UnsupportedModelError
from deepen.explore.network import Network, find_layers
from deepen.model import hollow


def streamed(checkpoint: Checkpoint, stack: Stack, *, dtype: str, device: torch.device) -> Network:
    """A network that holds one layer at a time.

    Raises:
        UnsupportedModelError: transformers computes with other tensors than it stores, or keeps its layers elsewhere.
    """
    model = hollow(checkpoint.path, dtype=dtype)
    layers = find_layers(model, stack)
    for module in [model, *model.modules()]:  # but for the layers, which have no weights to move
        if not any(parameter.is_meta for parameter in module.parameters()):
            module.to(device)
    stored: list[dict[str, Tensor]] = [{} for _ in layers]
    for name, tensor in checkpoint.tensors.items():
        place = split_name(stack, name)
        if place is not None and not place[1].endswith("rotary_emb.inv_freq"):
            stored[place[0]][place[1]] = tensor
    for index, layer in enumerate(layers):
        if stored[index].keys() != layer.state_dict().keys() or len(layer.state_dict()) != _tensors(layer):
            raise UnsupportedModelError(
                f"the family {model.config.model_type} computes with other tensors than its checkpoints store",
                where=checkpoint.path,
                next="leave out --stream; it needs a machine that holds the model",
            )

    @contextmanager
    def open_layer(index: int) -> Iterator[torch.nn.Module]:
        layer = layers[index]
        layer.load_state_dict(_read(stored[index], getattr(torch, dtype), device), assign=True)
        try:
            yield layer
        finally:
            layer.to("meta")

    return Network(model, layers, open_layer)


def _tensors(layer: torch.nn.Module) -> int:
    return sum(1 for _ in layer.parameters()) + sum(1 for _ in layer.buffers())


def _read(tensors: dict[str, Tensor], dtype: torch.dtype, device: torch.device) -> dict[str, torch.Tensor]:
    from safetensors import safe_open

    found = {}
    for file in {tensor.file for tensor in tensors.values()}:
        with safe_open(file, framework="pt") as opened:
            for rest, tensor in tensors.items():
                if tensor.file == file:
                    found[rest] = opened.get_tensor(tensor.name).to(device, dtype)
    return found
