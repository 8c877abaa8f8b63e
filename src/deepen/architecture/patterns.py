"""What a layer is because of where it stands: patterns that a config only implies.

`transformers` derives lists such as `layer_types` from the position of a layer when the config carries none, and some
model code places mixtures of experts by index. Both must be known at the source's depth before layers move.
The rules restate `transformers/models/*/configuration_*.py` and `modeling_*.py` of release 5.23.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from deepen.architecture.fields import Config, Json, integer, model_type, words
from deepen.errors import CheckpointError

Rule = Callable[[Config, int], Any]
Kinds = Callable[[Config, int], list[Any]]
FULL, SLIDING, LINEAR = "full_attention", "sliding_attention", "linear_attention"

# Fields that hold one entry per layer (a list, or a string of one letter per layer).
PER_LAYER = words(
    """layer_types mlp_layer_types no_rope_layers indexer_types layer_rope_theta layers_block_type attention_layers
    moe_layer_freq num_attention_heads_per_layer num_experts moe_topk num_shared_expert intermediate_size block_configs
    block_types hybrid_override_pattern index_topk_pattern"""
)
# Of these, the ones that may also be one number for all layers, and the ones spelled as text.
_ONE_FOR_ALL = words("moe_layer_freq num_experts moe_topk num_shared_expert intermediate_size")
_TEXT = words("hybrid_override_pattern index_topk_pattern")
# Fields that hold the indices of some layers.
INDEX_SETS = frozenset({"mlp_only_layers", "moe_layers", "full_attn_idxs", "attn_layer_indices", "local_layer_ids"})


def _last_of(period: int, last: str = FULL, rest: str = SLIDING) -> Kinds:
    """Layers period-1, 2·period-1, … are `last`."""
    return lambda _config, n: [rest if (i + 1) % period else last for i in range(n)]


def _last_of_field(key: str, default: int, last: str = FULL, rest: str = SLIDING) -> Kinds:
    return lambda config, n: _last_of(integer(config, key, default, minimum=1), last, rest)(config, n)


def _first_of_four(_config: Config, n: int) -> list[str]:
    return [SLIDING if i % 4 else FULL for i in range(n)]


def _late_sliding(config: Config, n: int) -> list[str]:
    """Qwen2, Qwen3: windows from layer `max_window_layers` on, where they are switched on."""
    slides = bool(config.get("use_sliding_window")) and integer(config, "sliding_window", 4096) > 0
    start = integer(config, "max_window_layers", 28) if slides else n
    return [SLIDING if i >= start else FULL for i in range(n)]


def _late_sliding_dots(config: Config, n: int) -> list[str]:
    slides = "sliding_window" not in config or config["sliding_window"] is not None
    start = integer(config, "max_window_layers", 62) if slides else n
    return [SLIDING if i >= start else FULL for i in range(n)]


def _early_sliding(config: Config, n: int) -> list[str]:
    """Qwen2-MoE: every other layer below `max_window_layers`."""
    stop = integer(config, "max_window_layers", 28) if config.get("use_sliding_window") else 0
    return [SLIDING if (i + 1) % 2 and i < stop else FULL for i in range(n)]


def _exaone(config: Config, n: int) -> list[str]:
    if "sliding_window" in config and config["sliding_window"] is None:
        return [FULL] * n
    return _last_of_field("sliding_window_pattern", 4)(config, n)


def _cohere2_moe(config: Config, n: int) -> list[str]:
    dense = min(integer(config, "first_k_dense_replace", 0), n)
    prefix = _last_of_field("prefix_dense_sliding_window_pattern", 1)(config, dense)
    return prefix + _last_of_field("sliding_window_pattern", 4)(config, n - dense)


def _no_rope(config: Config, n: int) -> list[int]:
    interval = integer(config, "no_rope_layer_interval", 4, minimum=1)
    return [int((i + 1) % interval != 0) for i in range(n)]


def _smollm3(config: Config, n: int) -> list[str]:
    slides = bool(config.get("use_sliding_window")) and config.get("sliding_window") is not None
    return [SLIDING if slides and not rope else FULL for rope in config["no_rope_layers"][:n]]


def _llama4(config: Config, n: int) -> list[str]:
    return ["chunked_attention" if rope else FULL for rope in config["no_rope_layers"][:n]]


def _llama4_experts(config: Config, n: int) -> list[int]:
    step = integer(config, "interleave_moe_layer_step", 1, minimum=1)
    return list(range(step - 1, n, step))


def _olmo_hybrid(_config: Config, n: int) -> list[str]:
    types = [FULL if i % 4 == 3 else LINEAR for i in range(n)]
    return types if FULL in types else [*types[:-1], FULL]


def _flint(_config: Config, n: int) -> list[str]:
    return [FULL if i < 2 or i % 4 == 1 or i == n - 1 else SLIDING for i in range(n)]


def _mimo(_config: Config, n: int) -> list[str]:
    return [FULL if i == 0 or not (i + 1) % 6 else SLIDING for i in range(n)]


def _lfm3(_config: Config, n: int) -> list[str]:
    return [FULL if i % 4 == 2 else SLIDING if i % 4 == 0 and i else "conv" for i in range(n)]


def _lfm2(config: Config, n: int) -> list[str]:
    full = config.get("full_attn_idxs")
    return [FULL if full is None or i in full else "conv" for i in range(n)]


def _tiled_blocks(config: Config, n: int) -> list[str]:
    blocks = list(config.get("block_types") or ("recurrent", "recurrent", "attention"))
    return [blocks[i % len(blocks)] for i in range(n)]


def _kimi(config: Config, n: int) -> list[str]:
    linear = config.get("linear_attn_config")
    if isinstance(linear, dict) and "full_attn_layers" in linear:  # counted from one
        return [FULL if i + 1 in linear["full_attn_layers"] else LINEAR for i in range(n)]
    return [FULL if i and i % 4 == 0 else LINEAR for i in range(n)]


def _gpt_neo(config: Config, n: int) -> list[str]:
    groups = config.get("attention_types") or [[["global", "local"], n // 2]]
    try:
        return [kind for kinds, times in groups for _ in range(times) for kind in kinds]
    except (TypeError, ValueError):
        _wrong("attention_types", f"{groups!r}, not a list of [kinds, times]")


def _indexers(config: Config, n: int) -> list[str]:
    pattern = config.get("index_topk_pattern")
    if pattern is not None:
        return [{"F": "full", "S": "shared"}.get(letter, letter) for letter in pattern]
    period = integer(config, "index_topk_freq", 1) or 1
    offset = integer(config, "index_skip_topk_offset", 2)
    return ["shared" if max(i - offset + 1, 0) % period else "full" for i in range(n)]


def _hunyuan_indexers(_config: Config, n: int) -> list[str]:
    return ["full" if i == 0 or (i - 1) % 4 == 0 else "shared" for i in range(n)]


def _dense_prefix(default: int, sparse: str = "sparse") -> Kinds:
    def kinds(config: Config, n: int) -> list[str]:
        dense = integer(config, "first_k_dense_replace", default)
        every = config.get("moe_layer_freq")
        if isinstance(every, list):
            return [sparse if i >= dense and every[i] else "dense" for i in range(n)]
        period = integer(config, "moe_layer_freq", 1, minimum=1)
        return [sparse if i >= dense and i % period == 0 else "dense" for i in range(n)]

    return kinds


def _always(value: Json) -> Rule:
    """The default of a class, for a config that leaves the field out."""
    return lambda _config, _n: value


def _one_dense(_config: Config, n: int) -> list[str]:
    return ["dense"] + ["sparse"] * (n - 1)


_QWEN_NEXT: dict[str, Rule] = {"layer_types": _last_of_field("full_attention_interval", 4, FULL, LINEAR)}
IMPLIED: dict[str, dict[str, Rule]] = {
    "afmoe": {"layer_types": _last_of_field("global_attn_every_n_layers", 4), "num_dense_layers": _always(1)},
    "axk1": {"mlp_layer_types": _dense_prefix(1)},
    "axk2": {"mlp_layer_types": _dense_prefix(1)},
    "bailing_hybrid": {
        "layer_types": _last_of_field("layer_group_size", 6, FULL, LINEAR),
        "mlp_layer_types": _dense_prefix(2),
    },
    "cohere2": {"layer_types": _last_of_field("sliding_window_pattern", 4)},
    "cohere2_moe": {"layer_types": _cohere2_moe, "mlp_layer_types": _dense_prefix(0)},
    "cwm": {"layer_types": _first_of_four},
    "deepseek_v3": {"first_k_dense_replace": _always(3)},
    "deepseek_v32": {"mlp_layer_types": _dense_prefix(3)},
    "dots1": {"layer_types": _late_sliding_dots},
    "ernie4_5_moe": {"moe_layer_start_index": _always(1)},
    "exaone4": {"layer_types": _exaone},
    "exaone_moe": {"layer_types": _exaone, "mlp_layer_types": _dense_prefix(1)},
    "flint": {"layer_types": _flint, "mlp_only_layers": _always([0, 1])},
    "gemma2": {"layer_types": _last_of(2)},
    "gemma3_text": {"layer_types": _last_of_field("sliding_window_pattern", 6)},
    "glm4_moe": {"first_k_dense_replace": _always(1)},
    "glm4_moe_lite": {"mlp_layer_types": _one_dense},
    "glm_moe_dsa": {"indexer_types": _indexers, "mlp_layer_types": _dense_prefix(3)},
    "gpt_neo": {"attention_layers": _gpt_neo},
    "gpt_oss": {"layer_types": _last_of(2)},
    "granite_swa": {"layer_types": _first_of_four},
    "granitemoe_swa": {"layer_types": _first_of_four},
    "hy_v3": {"mlp_layer_types": _one_dense},
    "hy_v4": {"mlp_layer_types": _one_dense, "indexer_types": _hunyuan_indexers},
    "jamba": {"attn_layer_period": _always(8), "expert_layer_period": _always(2)},
    "kimi_linear": {"layer_types": _kimi, "mlp_layer_types": _dense_prefix(1)},
    "kolibri1": {"layer_types": _last_of(5)},
    "laguna": {"mlp_layer_types": _one_dense},
    "lfm2": {"layer_types": _lfm2},
    "lfm2_moe": {"num_dense_layers": _always(2)},
    "lfm3": {"layer_types": _lfm3},
    "llama4_text": {"no_rope_layers": _no_rope, "moe_layers": _llama4_experts, "layer_types": _llama4},
    "mimo_v2_flash": {"layer_types": _mimo, "mlp_layer_types": _one_dense},
    "olmo3": {"layer_types": _last_of(4)},
    "olmo_hybrid": {"layer_types": _olmo_hybrid},
    "qwen2": {"layer_types": _late_sliding},
    "qwen2_moe": {"layer_types": _early_sliding},
    "qwen3": {"layer_types": _late_sliding},
    "qwen3_5_moe_text": _QWEN_NEXT,
    "qwen3_5_text": _QWEN_NEXT,
    "qwen3_next": _QWEN_NEXT,
    "smollm3": {"no_rope_layers": _no_rope, "layer_types": _smollm3},
    "vaultgemma": {"layer_types": _last_of(2)},
}


def materialise(config: Config, n: int) -> dict[str, Any]:
    """The config with every pattern that its family implies by position written out for `n` layers.

    Raises:
        CheckpointError: a per-layer field that is there already has the wrong type or length.
    """
    spelled = dict(config)
    _check_shapes(config, n)
    for key, rule in IMPLIED.get(model_type(config), {}).items():
        # Llama 4 also derives the list when it is empty.
        if spelled.get(key) is None or (key == "no_rope_layers" and not spelled[key]):
            spelled[key] = rule(spelled, n)
    if model_type(config) == "recurrent_gemma":
        spelled["block_types"] = _tiled_blocks(config, n)
    return spelled


def _check_shapes(config: Config, n: int) -> None:
    for key in sorted(PER_LAYER & config.keys()):
        value = config[key]
        if value is None or (key in _ONE_FOR_ALL and type(value) is int) or (key == "no_rope_layers" and value == []):
            continue
        if not isinstance(value, list | str) or (isinstance(value, str) and key not in _TEXT):
            _wrong(key, f"{value!r}, not one entry per layer")
        if key == "block_types" and model_type(config) == "recurrent_gemma" and value:
            continue  # repeated as often as needed
        if len(value) != n:
            _wrong(key, f"a list of {len(value)} entries for {n} layers")
    for key in sorted(INDEX_SETS & config.keys()):
        _check_indices(key, config[key])
    linear = config.get("linear_attn_config")
    if isinstance(linear, dict):
        for key in ("full_attn_layers", "kda_layers"):
            _check_indices(f"linear_attn_config.{key}", linear.get(key))


def _check_indices(key: str, value: Json) -> None:
    if value is not None and not (isinstance(value, list) and all(type(i) is int and i >= 0 for i in value)):
        _wrong(key, f"{value!r}, not a list of layer indices")


def _wrong(key: str, what: str) -> NoReturn:
    raise CheckpointError(
        f"field {key!r} is {what}",
        where="config.json",
        next=f"correct {key!r} in config.json, or take the checkpoint from its publisher again",
    )


@dataclass(frozen=True)
class Placement:
    """Fields from which model code computes the kind of a layer by its index.

    Attributes:
        keys: the fields; the rule applies to a config that has one of them.
        kinds: the kind of each of the first n layers.
        express: the values of the fields that come nearest to given kinds; `kinds` decides whether they are right.
    """

    keys: tuple[str, ...]
    kinds: Kinds
    express: Callable[[Sequence[Any]], dict[str, Any]]

    def applies(self, config: Config) -> bool:
        """Whether the config places its layers by these fields."""
        return any(config.get(key) is not None for key in self.keys)


def _by_step(config: Config, n: int) -> list[str]:
    step = integer(config, "decoder_sparse_step", 1, minimum=1)
    dense: Collection[int] = config.get("mlp_only_layers") or ()
    return ["dense" if i in dense or (i + 1) % step else "sparse" for i in range(n)]


def _express_step(kinds: Sequence[str]) -> dict[str, Any]:
    return {"decoder_sparse_step": 1, "mlp_only_layers": [i for i, kind in enumerate(kinds) if kind == "dense"]}


def _leading_dense(kinds: Sequence[str]) -> int:
    return next((i for i, kind in enumerate(kinds) if kind != "dense"), len(kinds))


def _ernie(config: Config, n: int) -> list[str]:
    start = integer(config, "moe_layer_start_index", 1)
    end = integer(config, "moe_layer_end_index", -1, minimum=-1)
    interval = integer(config, "moe_layer_interval", 1, minimum=1)
    last = n - 1 if end == -1 else end
    return ["sparse" if start <= i <= last and (i + 1) % interval == 0 else "dense" for i in range(n)]


def _express_ernie(kinds: Sequence[str]) -> dict[str, Any]:
    sparse = [i for i, kind in enumerate(kinds) if kind == "sparse"] or [len(kinds)]
    return {"moe_layer_start_index": sparse[0], "moe_layer_end_index": sparse[-1]}


def _periodic(name: str, period: int, offset: int) -> Placement:
    keys = (f"{name}_period", f"{name}_offset")
    return Placement(
        keys,
        lambda config, n: [
            i % integer(config, keys[0], period, minimum=1) == integer(config, keys[1], offset) for i in range(n)
        ],
        lambda _kinds: {},
    )


PLACEMENTS = (
    Placement(("decoder_sparse_step", "mlp_only_layers"), _by_step, _express_step),
    Placement(("first_k_dense_replace",), _dense_prefix(0), lambda kinds: {"first_k_dense_replace": _leading_dense(kinds)}),
    Placement(
        ("num_dense_layers",),
        lambda config, n: ["dense" if i < integer(config, "num_dense_layers", 0) else "sparse" for i in range(n)],
        lambda kinds: {"num_dense_layers": _leading_dense(kinds)},
    ),
    Placement(("moe_layer_start_index", "moe_layer_end_index", "moe_layer_interval"), _ernie, _express_ernie),
    _periodic("expert_layer", 2, 1),
    _periodic("attn_layer", 8, 4),
)


def layer_kinds(config: Config, n: int) -> list[tuple[Any, ...]]:
    """What each layer of a config is, as far as the config says: layers with equal tuples hold equal tensors."""
    spelled = materialise(config, n)
    lists = [spelled[key] for key in sorted(PER_LAYER) if isinstance(spelled.get(key), list | str)]
    columns: list[Sequence[Any]] = [values for values in lists if len(values) == n]
    columns += [[i in spelled[key] for i in range(n)] for key in sorted(INDEX_SETS) if spelled.get(key) is not None]
    columns += [placement.kinds(spelled, n) for placement in PLACEMENTS if placement.applies(spelled)]
    return [tuple(repr(column[i]) for column in columns) for i in range(n)]
