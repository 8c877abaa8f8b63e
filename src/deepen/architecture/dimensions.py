"""The sizes of a model that pricing needs, read from its config and checked."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from deepen.architecture.fields import Config, first_integer, integer
from deepen.architecture.patterns import FULL, materialise
from deepen.architecture.stack import DEPTH_KEYS, MOST_LAYERS
from deepen.errors import CheckpointError

_CACHELESS = frozenset({"linear_attention", "conv", "mamba", "mlp", "moe", "recurrent"})
_EXPERT = re.compile(r"(^|\.)experts\.")


@dataclass(frozen=True)
class Dimensions:
    """Sizes of a decoder-only model.

    Attributes:
        kv_elements: numbers that the KV cache holds per token, for each layer; 0 for layers with a fixed state.
        num_experts: routed experts of a mixture-of-experts layer; 0 for a dense model.
        num_experts_per_tok: how many of them a token runs through.
    """

    num_hidden_layers: int
    hidden_size: int
    intermediate_size: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    vocab_size: int
    max_position_embeddings: int
    tie_word_embeddings: bool
    kv_elements: tuple[int, ...]
    num_experts: int
    num_experts_per_tok: int

    def active_share(self, rest: str) -> float:
        """The share of a layer's tensor that one token is multiplied with: below 1 only for routed experts."""
        return self.num_experts_per_tok / self.num_experts if self.num_experts and _EXPERT.search(rest) else 1.0


def dimensions(config: Config, where: str | Path) -> Dimensions:
    """Read the sizes of a model from its raw `config.json`.

    Multi-head latent attention (DeepSeek) caches one compressed latent and one rotary key for all heads, as transformers
    5.23 and llama.cpp do.

    Raises:
        CheckpointError: a size is missing, of the wrong type or absurd.
    """
    hidden = _size(config, ("hidden_size", "n_embd", "d_model"), where)
    heads = _size(config, ("num_attention_heads", "n_head", "n_heads", "num_heads"), where)
    n = first_integer(config, DEPTH_KEYS, 0, where=where, minimum=1)
    if not 0 < n <= MOST_LAYERS:
        raise CheckpointError(f"config.json gives {n} layers", where=where, next="correct num_hidden_layers in config.json")
    head_dim = first_integer(config, ("head_dim", "kv_channels"), hidden // heads, where=where, minimum=1)
    kv_heads = min(_key_value_heads(config, heads, where), heads)
    latent = integer(config, "kv_lora_rank", 0, where=where)
    per_layer = latent + integer(config, "qk_rope_head_dim", 0, where=where) if latent else 2 * kv_heads * head_dim
    types = materialise(config, n).get("layer_types") or [FULL] * n
    return Dimensions(
        num_hidden_layers=n,
        hidden_size=hidden,
        intermediate_size=_intermediate(config, hidden, where),
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=head_dim,
        vocab_size=_size(config, ("vocab_size", "padded_vocab_size"), where),
        max_position_embeddings=first_integer(
            config, ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length"), 0, where=where
        ),
        tie_word_embeddings=config.get("tie_word_embeddings") is True,
        kv_elements=tuple(0 if kind in _CACHELESS else per_layer for kind in types),
        num_experts=first_integer(
            config, ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts"), 0, where=where
        ),
        num_experts_per_tok=first_integer(config, ("num_experts_per_tok", "moe_k", "moe_topk"), 1, where=where),
    )


def check_sizes(sizes: Dimensions, shapes: Collection[tuple[int, ...]], where: str | Path) -> None:
    """Make sure that the tensors outside the stack (embedding, final norm, head) have the sizes that the config claims.

    Raises:
        CheckpointError: no tensor has a dimension of that size.
    """
    found = {size for shape in shapes for size in shape}
    for field, size in (("hidden_size", sizes.hidden_size), ("vocab_size", sizes.vocab_size)):
        if size not in found:
            raise CheckpointError(
                f"config.json says {field} {size}, but no embedding, norm or head has that size",
                where=where,
                next="take the checkpoint from its publisher again, or correct config.json",
            )


def _size(config: Config, keys: tuple[str, ...], where: str | Path) -> int:
    value = first_integer(config, keys, 0, where=where, minimum=1)
    if value == 0:
        raise CheckpointError(f"config.json does not say {keys[0]}", where=where, next=f"add {keys[0]!r} to config.json")
    return value


def _key_value_heads(config: Config, heads: int, where: str | Path) -> int:
    if config.get("multi_query") is True and config.get("new_decoder_architecture") is not True:
        return 1  # Falcon, GPT-BigCode
    keys = ("num_key_value_heads", "num_kv_heads", "n_head_kv", "multi_query_group_num")
    return first_integer(config, keys, heads, where=where, minimum=1)


def _intermediate(config: Config, hidden: int, where: str | Path) -> int:
    if isinstance(config.get("intermediate_size"), list):
        return max(
            integer({"intermediate_size": size}, "intermediate_size", 0, where=where) for size in config["intermediate_size"]
        )
    return first_integer(config, ("intermediate_size", "n_inner", "ffn_dim", "ffn_hidden_size"), 4 * hidden, where=where)
