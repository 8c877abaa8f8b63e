"""Mistral as Llama: the same mathematics without the sliding window, as SOLAR 10.7B did it."""

from __future__ import annotations

from typing import Any, NoReturn

from deepen.architecture.fields import Config, model_type
from deepen.errors import OptionError, UnsupportedModelError

# What a Mistral config that leaves a field out means, where Llama's default is another.
_MISTRAL_DEFAULTS = {"intermediate_size": 14336, "num_key_value_heads": 8}

_ATTENTION = ("full_attention", "sliding_attention")


def as_llama(config: Config, max_position_embeddings: int = 4096) -> dict[str, Any]:
    """The config of a Mistral checkpoint as a Llama one; tensors have the same names in both.

    The sliding window goes, and with it the reach beyond it: SOLAR set 4096 positions, the width of Mistral's window.

    Args:
        config: the raw `config.json` of a Mistral model, or of a Llama model, which is returned as it is.
        max_position_embeddings: positions of the result.

    Raises:
        OptionError: `max_position_embeddings` is not a positive number.
        UnsupportedModelError: another family, or something that Llama cannot express.
    """
    if max_position_embeddings < 1:
        raise OptionError(f"max_position_embeddings is {max_position_embeddings}", next="give a positive number of positions")
    family = model_type(config)
    if family == "llama":
        return dict(config)
    if family != "mistral":
        _refuse(f"{family or 'this model'} is not Mistral: Llama would compute something else with its weights")
    if config.get("auto_map"):
        _refuse("the checkpoint brings its own model code (auto_map), which Llama does not run")
    types = config.get("layer_types") or ["full_attention"]
    if not isinstance(types, list) or any(kind != types[0] for kind in types) or types[0] not in _ATTENTION:
        _refuse(f"its layers differ in attention (layer_types is {types!r}), Llama's do not")
    for key in ("attention_bias", "mlp_bias"):
        if config.get(key):
            _refuse(f"field {key!r} is set: Mistral ignores it, but Llama would expect biases")
    rope = config.get("rope_parameters") or config.get("rope_scaling")
    if isinstance(rope, dict) and any(isinstance(value, dict) for value in rope.values()):
        _refuse("its rotary embedding differs by layer type, Llama's does not")
    llama = {key: value for key, value in config.items() if key not in ("sliding_window", "layer_types")}
    llama |= {key: value for key, value in _MISTRAL_DEFAULTS.items() if config.get(key) is None}
    return llama | {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "max_position_embeddings": max_position_embeddings,
    }


def _refuse(reason: str) -> NoReturn:
    raise UnsupportedModelError(
        f"the model cannot become a Llama: {reason}", where="config.json", next="scale it without --as llama"
    )
