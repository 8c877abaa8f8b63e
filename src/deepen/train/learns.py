"""What learns: all weights, the layers that the plan added, or low-rank adapters that are merged back in the end."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.nn import Parameter

from deepen.errors import MissingDependencyError, OptionError
from deepen.train.loop import Learner

CHOICES = ("all", "repeated", "lora")
_ALPHA = 2  # the usual ratio of LoRA's alpha to its rank
_LAYER = re.compile(r"\.(\d+)\.")  # the first number in a name is the layer's; experts have theirs behind it


def added_layers(plan: Mapping[str, Any] | None) -> list[int]:
    """Positions of the layers that a plan added: every later occurrence of a layer of the base.

    Args:
        plan: as the manifest has it (`layers` such as `0:19,5:30`), or None.
    """
    if plan is None:
        return []
    slices = [part.split(":") for part in str(plan["layers"]).split(",")]
    layers = [layer for first, end in slices for layer in range(int(first), int(end))]
    return [position for position, layer in enumerate(layers) if layer in layers[:position]]


def check_added(plan: Mapping[str, Any] | None, *, train: str, new_rate: float | None) -> None:
    """Refuse options about the layers that a plan added where there are none.

    Raises:
        OptionError: names the option.
    """
    if not added_layers(plan) and (train == "repeated" or new_rate is not None):
        raise OptionError(
            "the model's manifest knows no layer that a plan repeats",
            where="--train repeated" if train == "repeated" else "--new-layer-learning-rate",
            next="make the model with `deepen scale`, or train all weights",
        )


def prepare(
    model: Any, train: str, plan: Mapping[str, Any] | None, *, new_factor: float, rank: int, seed: int
) -> tuple[Any, list[Learner]]:
    """Freeze what does not learn.

    Args:
        model: a transformers model; `lora` wraps it.
        train: `all`; `repeated`, the layers that the plan added, as LLaMA Pro trains its new blocks (Wu et al. 2024,
            arXiv:2401.02415); or `lora`, adapters on all linear maps of the layers (Hu et al. 2021, arXiv:2106.09685).
        plan: the layer plan of the model's manifest, if it has one.
        new_factor: on the learning rate of the layers that the plan added.
        rank: of the adapters.
        seed: of the adapters' first values.

    Returns:
        The model, and what learns in it.

    Raises:
        MissingDependencyError: adapters are wanted, and peft is not installed.
    """
    added = set(added_layers(plan))
    if train == "lora":
        model = _with_adapters(model, rank, seed)
        return model, [Learner([parameter for parameter in model.parameters() if parameter.requires_grad])]
    new, old = _split(model, added)
    if train == "repeated":
        for parameter in old:
            parameter.requires_grad_(False)
        return model, [Learner(new, new_factor)]
    return model, [learner for learner in (Learner(old), Learner(new, new_factor)) if learner.parameters]


def merge_adapters(model: Any) -> Any:
    """The plain model again, with what adapters learned in its weights; any other model as it is."""
    return model.merge_and_unload() if hasattr(model, "merge_and_unload") else model


def _split(model: Any, added: set[int]) -> tuple[list[Parameter], list[Parameter]]:
    new: list[Parameter] = []
    old: list[Parameter] = []
    for name, parameter in model.named_parameters():
        match = _LAYER.search(name)
        (new if match and int(match[1]) in added else old).append(parameter)
    return new, old


def _with_adapters(model: Any, rank: int, seed: int) -> Any:
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError as error:
        raise MissingDependencyError("--train lora needs peft", next="pip install 'deepen[train]'") from error
    torch.manual_seed(seed)
    config = LoraConfig(r=rank, lora_alpha=_ALPHA * rank, target_modules="all-linear", task_type="CAUSAL_LM")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*is_gradient_checkpointing", FutureWarning)  # peft asks by transformers' old name
        return get_peft_model(model, config)


def count(learners: Sequence[Learner]) -> int:
    """How many parameters learn, over all processes."""
    return sum(parameter.numel() for learner in learners for parameter in learner.parameters)
