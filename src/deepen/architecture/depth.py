"""The config of a deepened model: right for every field that depends on depth or on a layer's index, or refused."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from deepen.architecture.fields import Config, Json, model_type, words
from deepen.architecture.kinship import refuse_kin
from deepen.architecture.patterns import INDEX_SETS, PER_LAYER, PLACEMENTS, materialise
from deepen.architecture.stack import DEPTH_KEYS, PREDICTION_KEYS, Stack
from deepen.errors import CheckpointError, UnsupportedModelError

# Fields whose mathematics depends on absolute depth when they are set.
_BOUND = {
    "num_kv_shared_layers": "its last layers reuse the keys and values of earlier ones",
    "hidden_size_per_layer_input": "its per-layer embeddings are sized by depth",
    "scale_attn_by_inverse_layer_idx": "it divides attention by the index of the layer",
}
# Fields that only produced a pattern which now stands explicitly in one of the lists.
_SPENT = {
    "layer_types": words(
        "max_window_layers sliding_window_pattern _sliding_window_pattern full_attention_interval layer_group_size "
        "global_attn_every_n_layers prefix_dense_sliding_window_pattern no_rope_layer_interval linear_attn_config"
    ),
    "no_rope_layers": {"no_rope_layer_interval"},
    "moe_layers": {"interleave_moe_layer_step"},
    "mlp_layer_types": {"moe_layer_freq"},
    "indexer_types": {"index_topk_freq", "index_skip_topk_offset"},
    "attention_layers": {"attention_types"},
    "first_k_dense_replace": {"moe_layer_freq"},
}
_HARMLESS = words(
    """architectures auto_map id2label label2id rope_scaling rope_parameters task_specific_params bad_words_ids
    eos_token_id bos_token_id pad_token_id suppress_tokens begin_suppress_tokens time_step_limit compress_rates
    pruned_heads apply_residual_connection_post_layernorm block_multiple_of"""
)
_SPEAKS_OF_LAYERS = re.compile(
    r"(^|_)(layers?|depths?|patterns?|intervals?|periods?|idxs|layeridx|per_block|every)(_|$)|dense_replace"
)
_NORM = re.compile(r"layer_?norm|layer_?drop|rms_?norm", re.IGNORECASE)
_HAS_INDEX = re.compile(r"(?<![A-Za-z0-9_])\d+(?![A-Za-z0-9_])")


def deepen_config(config: Config, layers: Sequence[int], stack: Stack) -> dict[str, Any]:
    """The config of the model whose layer p is layer `layers[p]` of the source.

    Patterns that the source only implies by position are written out at its depth first, so that nothing is derived
    again at the new depth.

    Args:
        config: the raw `config.json` of the source; it is not changed.
        layers: source layer of each layer of the result.
        stack: the decoder stack of the source.

    Returns:
        A new dict with the same keys in the same order; keys that had to be written out come last.

    Raises:
        CheckpointError: a per-layer field has the wrong type or length.
        UnsupportedModelError: a field cannot be expressed for this plan, or is unknown and may depend on depth.
    """
    refuse_kin(config, "config.json")
    _refuse_bound(config)
    n = stack.num_hidden_layers
    source = materialise(config, n)
    deepened = {key: _deepen_field(key, value, source, layers, stack) for key, value in source.items()}
    _place(source, deepened, layers, n)
    if model_type(config) == "gpt_neo":
        deepened["attention_types"] = [[deepened["attention_layers"], 1]]
    if (deepened.get("indexer_types") or ["full"])[0] == "shared":
        _refuse(
            "the plan starts with a layer that reuses the token choice of the layer before it",
            "let the plan start with layer 0",
        )
    return deepened


def _refuse_bound(config: Config) -> None:
    for key, reason in _BOUND.items():
        if config.get(key):
            _refuse(f"field {key!r} is {config[key]!r}: {reason}", "choose another base model")


def _refuse(what: str, advice: str) -> NoReturn:
    raise UnsupportedModelError(what, where="config.json", next=advice)


def _deepen_field(key: str, value: Json, source: Config, layers: Sequence[int], stack: Stack) -> Json:
    n = stack.num_hidden_layers
    if key in DEPTH_KEYS:
        return None if value is None else len(layers)
    if key in PREDICTION_KEYS:
        return 0 if value else value
    if key in PER_LAYER and isinstance(value, list | str) and value:
        return "".join(value[i] for i in layers) if isinstance(value, str) else [value[i] for i in layers]
    if key in INDEX_SETS and value is not None:
        return [position for position, i in enumerate(layers) if i in value]
    if key == "per_layer_config" and isinstance(value, dict):
        return _remap_indexed(value, layers, n)
    if key == "linear_attn_config" and isinstance(value, dict):
        return _deepen_linear_attention(value, layers)
    if key in ("quantization_config", "compression_config") and isinstance(value, dict):
        return _rename_layers(value, layers, stack)
    if key == "scale_depth" and isinstance(value, float | int) and model_type(source) in ("minicpm", "minicpm3"):
        # Each residual branch is multiplied by scale_depth / sqrt(depth); the product must not change.
        return value * math.sqrt(len(layers) / n)
    _refuse_unknown(key, value, source, n)
    return value


def _remap_indexed(value: dict[str, Any], layers: Sequence[int], n: int) -> dict[str, Any]:
    """A dict keyed by layer index; transformers pads the index with zeros to equal width."""
    try:
        entries = {int(index): entry for index, entry in value.items()}
    except ValueError:
        raise CheckpointError(
            "field 'per_layer_config' has a key that is not a layer index", where="config.json", next="correct it"
        ) from None
    if any(not 0 <= index < n for index in entries):
        raise CheckpointError(
            f"field 'per_layer_config' names a layer outside 0 to {n - 1}", where="config.json", next="correct it"
        )
    width = len(str(len(layers) - 1))
    return {f"{position:0{width}d}": entries[i] for position, i in enumerate(layers) if i in entries}


def _deepen_linear_attention(value: dict[str, Any], layers: Sequence[int]) -> dict[str, Any]:
    """Kimi's `linear_attn_config`: two lists of layer numbers, counted from one."""
    return {
        key: [position for position, i in enumerate(layers, start=1) if i + 1 in entry]
        if key in ("full_attn_layers", "kda_layers")
        else entry
        for key, entry in value.items()
    }


def _rename_layers(value: Json, layers: Sequence[int], stack: Stack) -> Json:
    """A quantiser's settings with every module name that carries a layer index moved by the plan."""
    rename = _renamer(layers, stack)
    if isinstance(value, dict):
        return {name: _rename_layers(entry, layers, stack) for key, entry in value.items() for name in rename(str(key))}
    if isinstance(value, list):
        strings = [rename(entry) if isinstance(entry, str) else [_rename_layers(entry, layers, stack)] for entry in value]
        return [name for names in strings for name in names]
    return value


def _renamer(layers: Sequence[int], stack: Stack) -> Callable[[str], list[str]]:
    anchored = re.compile(rf"^{re.escape(stack.prefix)}(\d+)(\..*)?$")
    # Patterns such as `model.layers.1*` would catch other layers than they did.
    special = re.compile(r"[*?\[\]^$|\\+(){}]|^re:")

    def rename(name: str) -> list[str]:
        match = anchored.match(name)
        if match and not special.search(name):
            positions = [position for position, i in enumerate(layers) if i == int(match[1])]
            return [f"{stack.prefix}{position}{match[2] or ''}" for position in positions]
        if _HAS_INDEX.search(name) and re.search(r"[A-Za-z]", name):
            _refuse(
                f"the quantiser's setting {name!r} names a layer in a way that cannot be moved safely",
                f"write it as {stack.prefix}INDEX.… or use an unquantised checkpoint",
            )
        return [name]

    return rename


def _place(source: Config, deepened: dict[str, Any], layers: Sequence[int], n: int) -> None:
    """Re-express what model code computes from a layer's index, or refuse."""
    for placement in PLACEMENTS:
        if not placement.applies(source):
            continue
        kinds = placement.kinds(source, n)
        wanted = [kinds[i] for i in layers]
        if placement.kinds(deepened, len(layers)) != wanted:
            deepened.update(placement.express(wanted))
        if placement.kinds(deepened, len(layers)) != wanted:
            keys = ", ".join(f"{key}={source[key]!r}" for key in placement.keys if key in source)
            _refuse(
                f"this family places its kinds of layers by index ({keys}), "
                "and no setting of these fields gives the order that the plan asks for",
                "choose a plan that keeps the pattern, for example one that repeats whole periods "
                "or keeps the dense layers in front",
            )


def _refuse_unknown(key: str, value: Json, source: Config, n: int) -> None:
    """Refuse a field that may describe layers and that no rule covers."""
    if not value or key in _HARMLESS or key.startswith("mtp_"):
        return
    if any(key in spent and source.get(listed) is not None for listed, spent in _SPENT.items()):
        return
    if key == "max_window_layers" and (not source.get("use_sliding_window") or model_type(source) == "qwen3_moe"):
        return  # Qwen3-MoE slides in every layer or in none
    if any(key in placement.keys for placement in PLACEMENTS):
        return
    if _speaks(key):
        _refuse(
            f"field {key!r} ({_short(value)}) speaks of layers, and it is not known how it depends on depth",
            f"if it does not matter for this model, remove {key!r} from a copy of config.json",
        )
    if isinstance(value, list | dict) and len(value) == n:
        _refuse(
            f"field {key!r} ({_short(value)}) has one entry per layer, or so it seems, and it is not known what it means",
            f"if it does not matter for this model, remove {key!r} from a copy of config.json",
        )
    if isinstance(value, dict):
        for inner, entry in value.items():
            _refuse_unknown(inner, entry, source, n)


def _speaks(key: str) -> bool:
    return _SPEAKS_OF_LAYERS.search(_NORM.sub("", key)) is not None


def _short(value: Json) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
