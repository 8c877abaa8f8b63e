"""A checkpoint as a plain transformers model; with a plan, a deeper one over the same weights."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deepen import architecture
from deepen.checkpoint import open_checkpoint, resolve
from deepen.errors import CheckpointError, MissingDependencyError, OptionError, ResourceError, UnsupportedModelError
from deepen.host import host_memory
from deepen.plan import Plan, parse_plan, read_architecture
from deepen.units import format_bytes

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

BITS = ("4bit", "8bit")
"""Formats of weights that bitsandbytes holds."""

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json", "tiktoken.model")


def load(
    model: str | Path,
    plan: Plan | Mapping[str, Any] | str | None = None,
    *,
    dtype: str | None = None,
    device: str | None = None,
    quantize: str | None = None,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase | None]:
    """Load a model and its tokenizer; with a plan, run the deepened model over one set of weights.

    The deepened model is an ordinary transformers model of the base's own class: its decoder layers are thin shells with their
    own `layer_idx` and cache slot, and every shell of a base layer holds the same parameters. Layers that start as the identity
    share one set of constant output projections.

    Args:
        model: a checkpoint folder, a Hub id or a `.gguf` file.
        plan: a Plan, plan options such as `{"drop": 8}`, or slices such as `"0:24,8:32"`.
        dtype: `"float32"`, `"bfloat16"`, `"float16"`; by default the checkpoint's own.
        device: `"cpu"`, `"cuda"`, …; the CPU by default. `"auto"` spreads the layers over the GPUs and, where they are full,
            the main memory; never over disks.
        quantize: `"4bit"` (NF4) or `"8bit"`: the weights of linear layers as bitsandbytes holds them.

    Returns:
        The model in evaluation mode, and its tokenizer (None if the checkpoint has none).

    Raises:
        CheckpointError, UnsupportedModelError, PlanError: as `deepen scale`.
        ResourceError: the model does not fit where `"auto"` may put it.
        MissingDependencyError: transformers, or bitsandbytes for `quantize`, is not installed.
    """
    try:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer
        from transformers.utils.logging import disable_progress_bar
    except ImportError as error:
        raise MissingDependencyError(
            "loading a model needs torch and transformers", next="pip install 'deepen[run]'"
        ) from error
    path = resolve(model)
    if path.is_file():
        return _load_gguf(path, plan, dtype, device, quantize)
    read_architecture(open_checkpoint(path))
    if dtype is not None and not isinstance(getattr(torch, dtype, None), torch.dtype):
        raise OptionError(f"dtype {dtype!r} is unknown", next="choose float32, bfloat16 or float16")
    options: dict[str, Any] = {"dtype": dtype or "auto", "local_files_only": True}
    if quantize is not None:
        if plan is not None:
            raise OptionError(
                f"a layer plan does not run over weights in {quantize}",
                where="--quantize",
                next="write the deepened model with `deepen scale`, and load that",
            )
        options["quantization_config"] = _quantization(quantize)
    if device == "auto":
        options["device_map"] = _device_map(path, options, one_device=plan is not None)
    elif quantize is not None:
        options["device_map"] = {"": device or "cpu"}
    disable_progress_bar()  # "Loading weights", of a second or two
    try:
        base = AutoModelForCausalLM.from_pretrained(path, **options)
        has_tokenizer = any((path / name).is_file() for name in _TOKENIZER_FILES)
        tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True) if has_tokenizer else None
    except (ValueError, KeyError, TypeError, OSError, RuntimeError) as error:
        raise CheckpointError(
            f"transformers cannot load it: {_first_line(error)}",
            where=path,
            next="check it with `deepen plan`, or update transformers",
        ) from error
    base = base.eval() if "device_map" in options else base.to(device or "cpu").eval()
    return base if plan is None else deepened(base, path, plan), tokenizer


def deepened(base: PreTrainedModel, folder: Path, plan: Plan | Mapping[str, Any] | str) -> PreTrainedModel:
    """The deepened model over the weights of a loaded base, which stays what it is.

    Args:
        base: the model.
        folder: the checkpoint that it was loaded from.
        plan: as in `load`.
    """
    checkpoint = open_checkpoint(folder)
    stack, _ = read_architecture(checkpoint)
    model: PreTrainedModel = _virtual(base, checkpoint.config, stack, _plan(plan, stack.num_hidden_layers), folder)
    return model


def _load_gguf(
    path: Path,
    plan: Plan | Mapping[str, Any] | str | None,
    dtype: str | None,
    device: str | None,
    quantize: str | None,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase | None]:
    from deepen.scale.decode import decode_gguf

    with tempfile.TemporaryDirectory(prefix="deepen-") as folder:
        decode_gguf(path, Path(folder), dtype=dtype or "keep")
        return load(folder, plan, dtype=dtype, device=device, quantize=quantize)


def _quantization(quantize: str) -> Any:
    from transformers import BitsAndBytesConfig

    if quantize not in BITS:
        raise OptionError(f"{quantize!r} is no format of the engine transformers", where="--quantize", next="use 4bit or 8bit")
    if find_spec("bitsandbytes") is None:
        raise MissingDependencyError(
            f"weights in {quantize} need the package bitsandbytes", where="--quantize", next="pip install 'deepen[quantize]'"
        )
    if quantize == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")


def _device_map(path: Path, options: Mapping[str, Any], *, one_device: bool) -> dict[str, Any]:
    """Which part of a model goes where: GPUs first, then main memory.

    Raises:
        ResourceError: it does not fit, or not onto one device where that is needed.
    """
    from accelerate import infer_auto_device_map, init_empty_weights
    from accelerate.utils import compute_module_sizes
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(path, local_files_only=True)
    dtype = config.dtype if options["dtype"] == "auto" else options["dtype"]
    with init_empty_weights():
        empty = AutoModelForCausalLM.from_config(config, dtype=dtype)
    empty.tie_weights()
    room = _room()
    if "quantization_config" in options:  # which are half as large or less: a little too careful
        room = {place: 2 * free for place, free in room.items()}
    where = infer_auto_device_map(empty, max_memory=dict(room), no_split_module_classes=list(empty._no_split_modules or ()))
    needed, places = compute_module_sizes(empty)[""], set(where.values())
    if "disk" in places or (one_device and len(places) > 1):
        free = ", ".join(f"{format_bytes(each)} {'CPU' if place == 'cpu' else f'GPU {place}'}" for place, each in room.items())
        raise ResourceError(
            f"the weights take {format_bytes(needed)}, but there is room for {free}" + " on one device" * one_device,
            where=path,
            next="use --quantize 4bit, or --engine llamacpp --quantize Q4_K_M",
        )
    return dict(where)


def _room() -> dict[int | str, int]:
    """Free bytes of each GPU and of main memory, less a tenth for what is computed."""
    import torch

    room: dict[int | str, int] = {place: torch.cuda.mem_get_info(place)[0] for place in range(torch.cuda.device_count())}
    room["cpu"] = host_memory().available
    return {place: free * 9 // 10 for place, free in room.items()}


def _plan(plan: Plan | Mapping[str, Any] | str, source_layers: int) -> Plan:
    if isinstance(plan, Plan):
        return parse_plan(source_layers, plan=plan)
    if isinstance(plan, str):
        plan = {"layers": plan} if re.fullmatch(r"[\d:,\s]+", plan) else {"plan": plan}
    return parse_plan(source_layers, **plan)


def hollow(folder: Path, *, dtype: str) -> PreTrainedModel:
    """A model whose decoder layers have no weights (they are on the device `meta`); everything around them is loaded.

    Args:
        folder: a checkpoint folder.
        dtype: as in `load`.

    Raises:
        CheckpointError, UnsupportedModelError: as `load`.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.utils import logging

    checkpoint = open_checkpoint(folder)
    stack, _ = read_architecture(checkpoint)
    config = AutoConfig.from_pretrained(folder, local_files_only=True)
    # a layer of each type, as what lies around them (such as rotary embeddings) may be made for the types that there are
    types = getattr(config, "layer_types", None) or ["one"]
    some = sorted({kind: types.index(kind) for kind in types}.values())
    shallow = type(config).from_dict(architecture.deepen_config(checkpoint.config, some, stack))
    logging.disable_progress_bar()
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # or it lists the weights of all other layers
    try:
        few = AutoModelForCausalLM.from_pretrained(
            folder, config=shallow, dtype=getattr(torch, dtype), local_files_only=True
        ).eval()
    except (ValueError, KeyError, TypeError, OSError, RuntimeError) as error:
        raise CheckpointError(
            f"transformers cannot load it: {_first_line(error)}", where=folder, next="check it with `deepen plan`"
        ) from error
    finally:
        logging.set_verbosity(verbosity)
    everything = Plan(stack.num_hidden_layers, tuple(range(stack.num_hidden_layers)))
    model, _, _ = _around(few, checkpoint.config, stack, everything, folder)
    result: PreTrainedModel = model.eval()
    return result


def _virtual(base: Any, config: dict[str, Any], stack: architecture.Stack, plan: Plan, where: Path) -> Any:

    deep, source, target = _around(base, config, stack, plan, where)
    constants: dict[Any, torch.nn.Parameter] = {}
    for position, layer in enumerate(plan.layers):
        _share(target[position], source[layer])
        if position in plan.identity:
            _write_nothing(target[position], config, where, constants)
    deep.generation_config = base.generation_config
    return deep.eval()


def _around(base: Any, config: dict[str, Any], stack: architecture.Stack, plan: Plan, where: Path) -> tuple[Any, Any, Any]:
    """A model of the plan's depth that has all of the base but its layers; the base's layers; its own, without weights."""
    import torch

    deep_config = type(base.config).from_dict(architecture.deepen_config(config, plan.layers, stack))
    with torch.device("meta"):
        deep = type(base)._from_config(deep_config, attn_implementation=base.config._attn_implementation, dtype=base.dtype)
    path = stack.prefix.rstrip(".").split(".")
    source, target = base, deep
    if not hasattr(base, path[0]):  # GPT-2 and its like save their layers without the name of the model around them
        path.insert(0, base.base_model_prefix)
    for name in path:
        if not hasattr(target, name):
            raise UnsupportedModelError(
                f"transformers keeps the layers elsewhere than the checkpoint ({stack.prefix}*)",
                where=where,
                next="use `deepen scale`",
            )
        _share_all_but(target, source, name)
        source, target = getattr(source, name), getattr(target, name)
    return deep, source, target


def _share_all_but(target: torch.nn.Module, source: torch.nn.Module, name: str) -> None:
    target._parameters, target._buffers = dict(source._parameters), dict(source._buffers)
    for child_name, child in source.named_children():
        if child_name != name:
            setattr(target, child_name, child)


def _share(target: torch.nn.Module, source: torch.nn.Module) -> None:
    # the modules stay the target's own, with their layer_idx; parameters and buffers become the source's
    originals = dict(source.named_modules())
    for name, module in target.named_modules():
        module._parameters, module._buffers = dict(originals[name]._parameters), dict(originals[name]._buffers)


def _write_nothing(
    layer: torch.nn.Module, config: dict[str, Any], where: Path, constants: dict[Any, torch.nn.Parameter]
) -> None:
    import torch

    names = [name for name, _ in layer.named_parameters()]
    for name, value in architecture.residual_writers(config, names, where).items():
        owner_name, _, leaf = name.rpartition(".")
        owner = layer.get_submodule(owner_name)
        like = owner._parameters[leaf]
        assert like is not None
        key = (like.shape, value)  # every layer of a model has one type and device
        if key not in constants:
            constants[key] = torch.nn.Parameter(torch.full_like(like, value), requires_grad=False)
        owner._parameters[leaf] = constants[key]


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
