"""The one stack of decoder layers in a checkpoint: found among the tensor names, checked against the config."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from deepen.architecture.fields import Config, integer
from deepen.architecture.kinship import refuse_kin
from deepen.architecture.patterns import layer_kinds
from deepen.errors import CheckpointError, UnsupportedModelError

DEPTH_KEYS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
# Config fields that count the layers of a multi-token-prediction head.
PREDICTION_KEYS = ("num_nextn_predict_layers", "mtp_num_hidden_layers", "num_mtp_layers", "mtp_num_layers")
MOST_LAYERS = 10_000
_NAME = re.compile(r"^((?:[^.\d][^.]*\.)*)(\d+)\.(.+)$")
_PREDICTION = re.compile(r"^(model\.|language_model\.)*(mtp|nextn)")
_COMPLETE = "take the checkpoint from its publisher again, or correct config.json"


@dataclass(frozen=True)
class Stack:
    """Where the decoder layers of a checkpoint are.

    Attributes:
        prefix: what precedes the layer index in a tensor name, for example `model.layers.`.
        num_hidden_layers: how many layers there are.
        depth_key: the config field that says so.
    """

    prefix: str
    num_hidden_layers: int
    depth_key: str


def find_stack(config: Config, names: Collection[str], where: str | Path) -> Stack:
    """Find the decoder stack and make sure that config and tensors agree about it.

    Args:
        config: the raw `config.json`.
        names: the names of all tensors.
        where: the checkpoint, for messages.

    Raises:
        CheckpointError: the depth is missing or absurd, or config and tensors disagree.
        UnsupportedModelError: not a decoder-only text model with a single stack.
    """
    refuse_kin(config, where)
    depth_key, n = _depth(config, where)
    stacks: dict[str, dict[int, set[str]]] = defaultdict(lambda: defaultdict(set))
    for name in names:
        match = _NAME.match(name)
        if match and not _PREDICTION.match(name):
            stacks[match[1]][int(match[2])].add(match[3])
    prefix = _only_prefix(stacks, where)
    layers = stacks[prefix]
    stack = Stack(prefix, n, depth_key)
    _check_count(stack, config, layers, where)
    _check_peers(stack, config, layers, where)
    return stack


def split_name(stack: Stack, name: str) -> tuple[int, str] | None:
    """Layer index and the rest of a tensor name; None for a tensor outside the stack.

    Only the anchored index counts: `model.layers.3.mlp.experts.2.w1.weight` belongs to layer 3.
    """
    match = _NAME.match(name)
    if match is None or match[1] != stack.prefix or int(match[2]) >= stack.num_hidden_layers:
        return None
    return int(match[2]), match[3]


def join_name(stack: Stack, index: int, rest: str) -> str:
    """The tensor name that `split_name` takes apart."""
    return f"{stack.prefix}{index}.{rest}"


def extra_layers(config: Config, stack: Stack, names: Collection[str]) -> tuple[str, ...]:
    """Names of tensors that scaling drops: the multi-token-prediction head, trained for the old depth."""
    if not _predicts(config):
        return tuple(sorted(name for name in names if _PREDICTION.match(name)))
    return tuple(sorted(name for name in names if _PREDICTION.match(name) or _beyond(stack, name)))


def warnings_for(config: Config, stack: Stack, names: Collection[str], layers: Sequence[int]) -> tuple[str, ...]:
    """What the user should know about a deepened model, one sentence each."""
    dropped = extra_layers(config, stack, names)
    if not dropped:
        return ()
    return (
        f"the multi-token-prediction layers ({len(dropped)} tensors, {dropped[0]} …) were trained for "
        f"{stack.num_hidden_layers} layers and are left out of the model of {len(layers)}",
    )


def _depth(config: Config, where: str | Path) -> tuple[str, int]:
    present = [key for key in DEPTH_KEYS if config.get(key) is not None]
    if not present:
        raise CheckpointError(
            "config.json does not say how many layers the model has (num_hidden_layers)", where=where, next=_COMPLETE
        )
    depths = {key: integer(config, key, 0, where=where, minimum=1, maximum=MOST_LAYERS) for key in present}
    if len(set(depths.values())) > 1:
        raise CheckpointError(f"config.json gives several depths: {depths}", where=where, next=_COMPLETE)
    return present[0], depths[present[0]]


def _only_prefix(stacks: dict[str, dict[int, set[str]]], where: str | Path) -> str:
    if not stacks:
        raise CheckpointError(
            "no tensor belongs to a numbered layer (such as model.layers.0.…)",
            where=where,
            next="give a decoder-only checkpoint in Hugging Face layout",
        )
    if len(stacks) > 1:
        raise UnsupportedModelError(
            f"the tensors form {len(stacks)} stacks ({', '.join(sorted(stacks))}), so it is not clear which to deepen",
            where=where,
            next="extract the language model into a checkpoint of its own",
        )
    return next(iter(stacks))


def _predicts(config: Config) -> int:
    return max(integer(config, key, 0, maximum=MOST_LAYERS) for key in PREDICTION_KEYS)


def _beyond(stack: Stack, name: str) -> bool:
    match = _NAME.match(name)
    return match is not None and match[1] == stack.prefix and int(match[2]) >= stack.num_hidden_layers


def _check_count(stack: Stack, config: Config, layers: dict[int, set[str]], where: str | Path) -> None:
    n = stack.num_hidden_layers
    missing = [i for i in range(n) if i not in layers]
    if missing:
        some = ", ".join(f"{stack.prefix}{i}" for i in missing[:5])
        raise CheckpointError(
            f"config.json says {n} layers, but the tensors lack {len(missing)} of them ({some})",
            where=where,
            next=_COMPLETE,
        )
    extra = [i for i in layers if i >= n + _predicts(config)]
    if extra:
        raise CheckpointError(
            f"config.json says {n} layers, but the tensors hold {max(extra) + 1} ({stack.prefix}{max(extra)})",
            where=where,
            next=_COMPLETE,
        )


def _check_peers(stack: Stack, config: Config, layers: dict[int, set[str]], where: str | Path) -> None:
    kinds = layer_kinds(config, stack.num_hidden_layers)
    # A quantiser may leave single modules alone, so there only the modules can be compared, not their tensors.
    quantised = config.get("quantization_config") is not None
    held = {i: {rest.rpartition(".")[0] if quantised else rest for rest in layers[i]} for i in range(len(kinds))}
    expected: dict[tuple[object, ...], set[str]] = defaultdict(set)
    for i, kind in enumerate(kinds):
        expected[kind] |= held[i]
    for i, kind in enumerate(kinds):
        lacking = sorted(expected[kind] - held[i])
        if lacking:
            some = ", ".join(join_name(stack, i, rest) for rest in lacking[:3])
            raise CheckpointError(
                f"layer {i} lacks {len(lacking)} tensors that layers of its kind have ({some})",
                where=where,
                next=_COMPLETE,
            )
