"""The layer plan of a deepened model: made, explained and priced before the first byte is read."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from deepen import architecture
from deepen.checkpoint import Checkpoint, Tensor, open_headers
from deepen.checkpoint.gguf import Gguf, open_gguf
from deepen.checkpoint.hub import is_hub_id
from deepen.errors import CheckpointError, OptionError
from deepen.plan.layers import Plan, Seam, parse_plan
from deepen.plan.price import Facts, price

__all__ = ["Plan", "Seam", "describe", "parse_plan", "plan", "read_architecture"]

_DTYPE_BYTES = {"keep": None, "float32": 4, "bfloat16": 2, "float16": 2}
Options = dict[str, Any]


def plan(model: str | Path, **options: Any) -> Plan:
    """The layer plan for a model, from its config and tensor headers only.

    Args:
        model: a checkpoint folder, a `.gguf` file or a Hub id (of which no weights are downloaded).
        **options: one of `drop`, `layers`, `repeat`, `expand`, `plan`, and `identity_init`; see `parse_plan`.

    Raises:
        PlanError: the plan is malformed or does not fit the model.
        CheckpointError, UnsupportedModelError: the model cannot be read or deepened.
    """
    return _read(model, options)[0]


def describe(
    model: str | Path, *, as_: str | None = None, dtype: str = "keep", run: Mapping[str, Any] | None = None, **options: Any
) -> dict[str, Any]:
    """Everything that `deepen plan --json` says: the plan, its seams, and what it costs.

    Args:
        model: as for `plan`.
        as_: `"llama"` also checks that the model can be written as Llama.
        dtype: the type that `deepen scale --dtype` would write.
        run: a training to be estimated, as the keywords of `estimate.estimate`; without a plan it is that of the model itself.
        **options: as for `plan`.

    Raises:
        OptionError: `as_` or `dtype` is unknown.
        ResourceError: the training does not fit into the accelerators' memory.
    """
    if dtype.lower() not in _DTYPE_BYTES:
        raise OptionError(f"--dtype {dtype!r} is unknown", next=f"choose one of {', '.join(_DTYPE_BYTES)}")
    if as_ not in {None, "llama"}:
        raise OptionError(f"--as {as_!r} is unknown", next="choose llama")
    result, facts, sizes, base, warnings = _read(model, options, default="" if run is None else "0:{}")
    if as_ is not None:
        if isinstance(base, Gguf):
            raise OptionError("--as is for checkpoint folders", where=model, next="leave it out")
        architecture.as_llama(base.config)
    side_bytes = 0 if isinstance(base, Gguf) else sum((base.path / file).stat().st_size for file in base.side_files)
    if result.unused:
        warnings = (*warnings, f"base layers left out: {', '.join(map(str, result.unused))}")
    return {
        "model": str(model),
        "source_layers": result.source_layers,
        "layers": list(result.layers),
        "num_hidden_layers": result.num_hidden_layers,
        "seams": [
            {"position": seam.position, "from": seam.source, "to": seam.target, "distance": seam.distance}
            for seam in result.seams
        ],
        "identity": list(result.identity),
        **price(result, facts, dtype_bytes=_DTYPE_BYTES[dtype.lower()], side_bytes=side_bytes),
        "warnings": list(warnings),
        **({} if run is None else {"estimate": _estimate(result, facts, sizes, run)}),
    }


def _estimate(result: Plan, facts: Facts, sizes: architecture.Dimensions, run: Mapping[str, Any]) -> dict[str, Any]:
    from deepen.plan.estimate import estimate, planned

    return estimate(*planned(result, facts, sizes), **run).to_dict()


def read_planned(model: str | Path, **options: Any) -> tuple[Plan, Facts, architecture.Dimensions]:
    """The plan for a model, with the base's facts and sizes; without a plan option, that of the model itself.

    Raises:
        PlanError, CheckpointError, UnsupportedModelError: as `plan`.
    """
    return _read(model, options, default="0:{}")[:3]


def _read(
    model: str | Path, options: Options, *, default: str = ""
) -> tuple[Plan, Facts, architecture.Dimensions, Checkpoint | Gguf, tuple[str, ...]]:
    path = Path(model)
    if path.is_file() and not is_hub_id(model):
        gguf = open_gguf(path)
        facts, sizes = _gguf_facts(gguf)
        return parse_plan(len(facts.layers), **_or_default(options, default, len(facts.layers))), facts, sizes, gguf, ()
    checkpoint = open_headers(model)
    config, names = checkpoint.config, checkpoint.tensors
    stack, sizes = read_architecture(checkpoint)
    result = parse_plan(stack.num_hidden_layers, **_or_default(options, default, stack.num_hidden_layers))
    architecture.deepen_config(config, result.layers, stack)  # a model that cannot be deepened so is refused here already
    warnings = architecture.warnings_for(config, stack, names, result.layers)
    return result, _facts(checkpoint, stack, sizes), sizes, checkpoint, warnings


def _or_default(options: Options, default: str, layers: int) -> Options:
    chosen = any(options.get(key) is not None for key in ("drop", "layers", "repeat", "expand", "plan"))
    return options if chosen or not default else {**options, "layers": default.format(layers)}


def read_architecture(checkpoint: Checkpoint) -> tuple[architecture.Stack, architecture.Dimensions]:
    """The decoder stack and the sizes of a checkpoint, after checking that its config and its tensors agree.

    Raises:
        CheckpointError: they do not.
        UnsupportedModelError: not a decoder-only model with a single stack.
    """
    stack = architecture.find_stack(checkpoint.config, checkpoint.tensors, checkpoint.path)
    sizes = architecture.dimensions(checkpoint.config, checkpoint.path)
    outside = [t.shape for name, t in checkpoint.tensors.items() if architecture.split_name(stack, name) is None]
    architecture.check_sizes(sizes, outside, checkpoint.path)
    return stack, sizes


def read_facts(checkpoint: Checkpoint) -> tuple[Facts, architecture.Dimensions]:
    """What pricing needs to know of a checkpoint, and its sizes.

    Raises:
        CheckpointError, UnsupportedModelError: as `read_architecture`.
    """
    stack, sizes = read_architecture(checkpoint)
    return _facts(checkpoint, stack, sizes), sizes


def _facts(checkpoint: Checkpoint, stack: architecture.Stack, sizes: architecture.Dimensions) -> Facts:
    extra = set(architecture.extra_layers(checkpoint.config, stack, checkpoint.tensors))
    layers: list[list[Tensor]] = [[] for _ in range(stack.num_hidden_layers)]
    rest, active, head = [], {}, 0
    for name, tensor in checkpoint.tensors.items():
        if name in extra or tensor.dtype == "BOOL" or name.endswith("rotary_emb.inv_freq"):
            continue  # buffers that old versions of transformers saved are no parameters
        place = architecture.split_name(stack, name)
        if place is None:
            rest.append(tensor)
            if len(tensor.shape) == 2 and tensor.shape[0] >= sizes.vocab_size:
                head = tensor.parameters
        else:
            layers[place[0]].append(tensor)
            active[name] = sizes.active_share(place[1])
    return Facts(layers, rest, sizes.kv_elements, active, head)


def _gguf_facts(gguf: Gguf) -> tuple[Facts, architecture.Dimensions]:
    name = str(gguf.get("general.architecture"))

    def per_layer(key: str, default: int) -> list[int]:
        value = gguf.get(f"{name}.{key}", default)
        values = value if isinstance(value, list) else [value] * n
        if len(values) != n or not all(type(item) is int and item >= 0 for item in values):
            raise CheckpointError(f"{name}.{key} has no sane value", where=gguf.path, next="convert the model again")
        return values

    n = gguf.get(f"{name}.block_count", 0)
    if type(n) is not int or n < 1:
        raise CheckpointError(f"{name}.block_count is missing", where=gguf.path, next="give the GGUF of a language model")
    width = per_layer("embedding_length", 0)[0]
    heads = per_layer("attention.head_count", 1)
    kv_heads = per_layer("attention.head_count_kv", heads[0])
    head_dim = width // max(heads[0], 1)
    keys, values = per_layer("attention.key_length", head_dim), per_layer("attention.value_length", head_dim)
    experts, used = per_layer("expert_count", 0)[0], per_layer("expert_used_count", 0)
    layers: list[list[Tensor]] = [[] for _ in range(n)]
    rest, active, head = [], {}, 0
    for tensor in gguf.tensors.values():
        parts = tensor.name.split(".", 2)
        if parts[0] == "blk" and len(parts) == 3 and parts[1].isdecimal() and int(parts[1]) < n:
            layers[int(parts[1])].append(tensor)
            if experts and "_exps" in parts[2]:
                active[tensor.name] = used[int(parts[1])] / experts
        else:
            rest.append(tensor)
            if tensor.name in {"token_embd.weight", "output.weight"}:
                head = tensor.parameters
    kv_elements = [heads_ * (key + value) for heads_, key, value in zip(kv_heads, keys, values, strict=True)]
    return Facts(layers, rest, kv_elements, active, head), architecture.Dimensions(
        num_hidden_layers=n,
        hidden_size=width,
        intermediate_size=max(per_layer("feed_forward_length", 4 * width)),
        num_attention_heads=heads[0],
        num_key_value_heads=kv_heads[0],
        head_dim=keys[0],
        vocab_size=head // max(width, 1),
        max_position_embeddings=per_layer("context_length", 2048)[0],
        tie_word_embeddings="output.weight" not in gguf.tensors,
        kv_elements=tuple(kv_elements),
        num_experts=experts,
        num_experts_per_tok=used[0],
    )
