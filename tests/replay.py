"""What the parity tests compare: bytes of checkpoints, logits of models, and a base replayed by hand in a plan's order."""

import json
import logging
from pathlib import Path

import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM

from deepen.architecture import find_stack
from deepen.plan import Plan

PROMPT = torch.arange(3, 83).reshape(2, 40)  # sliding windows of the tiny checkpoints are 8 wide


def tensors(folder: Path) -> dict[str, bytes]:
    found = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, "pt") as stream:
            found |= {name: stream.get_tensor(name).contiguous().view(torch.uint8).numpy().tobytes() for name in stream.keys()}  # noqa: SIM118  not a dict
    return found


def loaded(folder: Path, caplog) -> torch.nn.Module:
    with caplog.at_level(logging.WARNING):
        model, info = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True, dtype="auto")
    assert {key: value for key, value in info.items() if value} == {}
    assert [record.getMessage() for record in caplog.records] == []
    return model.eval()


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(PROMPT, use_cache=False).logits


def replayed_logits(folder: Path, plan: Plan) -> torch.Tensor:
    """The base's own layers, called by hand in the plan's order with the arguments that the base itself gave each of them."""
    base = AutoModelForCausalLM.from_pretrained(folder).eval()
    config = json.loads((folder / "config.json").read_text())
    stack = find_stack(config, list(tensors(folder)), folder)
    layers = base.get_submodule(stack.prefix.rstrip("."))
    calls: dict[int, tuple[tuple, dict]] = {}

    def remember(index):
        return lambda _module, args, kwargs: calls.setdefault(index, (args, kwargs)) and None

    hooks = [layer.register_forward_pre_hook(remember(i), with_kwargs=True) for i, layer in enumerate(layers)]
    logits(base)
    for hook in hooks:
        hook.remove()
    hidden = calls[0][0][0]
    with torch.no_grad():
        for layer in plan.layers:
            args, kwargs = calls[layer]
            output = layers[layer](hidden, *args[1:], **kwargs)
            hidden = output[0] if isinstance(output, tuple) else output
    layers[-1].register_forward_hook(
        lambda _module, _args, output: (hidden, *output[1:]) if isinstance(output, tuple) else hidden
    )
    return logits(base)
