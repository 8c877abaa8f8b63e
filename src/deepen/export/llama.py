"""The Llama graph in GGUF: its keys, the names and shapes of its tensors, and the order of the rotary rows.

Keys and names are those that llama.cpp reads (`src/llama-arch.cpp`); Mistral is the same graph where its window does not bind.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from gguf import GGUFWriter, RopeScalingType

from deepen.checkpoint import Checkpoint, Tensor
from deepen.errors import CheckpointError, UnsupportedModelError
from deepen.export.quantize import Policy, Quantization
from deepen.export.rows import Floats, read_rows, row_blocks

ARCHITECTURE = "llama"
_FAMILIES = ("llama", "mistral")
_CONVERTER = "convert it with llama.cpp's convert_hf_to_gguf.py"


@dataclass(frozen=True)
class Shape:
    """What the keys and tensors follow from: the sizes in a Llama config, checked."""

    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head: int
    vocabulary: int
    context: int
    norm_epsilon: float
    rope_theta: float
    rope: dict[str, Any]
    tied: bool
    attention_bias: bool
    mlp_bias: bool


@dataclass(frozen=True)
class Part:
    """One tensor of the output.

    Attributes:
        name: its name in the GGUF.
        shape: its shape, outermost dimension first.
        source: where its bytes lie, or its values where they are computed.
        rotary_head: rows per head where rows must be re-ordered for llama.cpp's rotary embedding, else 0.
    """

    name: str
    shape: tuple[int, ...]
    source: Tensor | Floats
    rotary_head: int = 0


def read_shape(checkpoint: Checkpoint) -> Shape:
    """Check that a checkpoint is a Llama graph that llama.cpp computes in the same way, and read its sizes.

    Raises:
        UnsupportedModelError: another family, or a feature that llama.cpp's Llama graph does not have.
        CheckpointError: a field of the config is missing or of the wrong type.
    """
    config, where = checkpoint.config, checkpoint.path / "config.json"
    family = config.get("model_type")
    if family not in _FAMILIES:
        raise UnsupportedModelError(
            f"the family {family!r} is not exported here (only {' and '.join(_FAMILIES)})", where=where, next=_CONVERTER
        )
    if config.get("quantization_config") is not None:
        raise UnsupportedModelError("the checkpoint is quantised", where=where, next="export its unquantised source")
    hidden, heads = _integer(checkpoint, "hidden_size"), _integer(checkpoint, "num_attention_heads")
    kv_heads = _integer(checkpoint, "num_key_value_heads", heads if family == "llama" else 8)
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if not isinstance(rope, dict):
        raise CheckpointError("the rope settings are not an object", where=where, next="download config.json again")
    shape = Shape(
        layers=_integer(checkpoint, "num_hidden_layers"),
        hidden=hidden,
        intermediate=_integer(checkpoint, "intermediate_size"),
        heads=heads,
        kv_heads=kv_heads,
        head=_integer(checkpoint, "head_dim", hidden // heads),
        vocabulary=_integer(checkpoint, "vocab_size"),
        context=_integer(checkpoint, "max_position_embeddings"),
        norm_epsilon=_number(checkpoint, config, "rms_norm_eps", 1e-6),
        rope_theta=_number(checkpoint, {**config, **rope}, "rope_theta", 10_000.0),
        rope=rope,
        tied=bool(config.get("tie_word_embeddings", False)),
        attention_bias=bool(config.get("attention_bias", False)),
        mlp_bias=bool(config.get("mlp_bias", False)),
    )
    window = config.get("sliding_window")
    refusals = {
        f"an attention window of {window} tokens in a context of {shape.context}": window is not None
        and window < shape.context,
        f"activation {config.get('hidden_act')!r}": config.get("hidden_act", "silu") != "silu",
        "rotary embedding of only a part of each head": {**config, **rope}.get("partial_rotary_factor", 1.0) != 1.0,
        f"rope type {rope_type(shape)!r}": rope_type(shape) not in {"default", "linear", "yarn", "llama3"},
        f"odd head size ({shape.head})": shape.head % 2 == 1,
    }
    for reason, refused in refusals.items():
        if refused:
            advice = "make it full-attention first: deepen scale --as llama" if "window" in reason else _CONVERTER
            raise UnsupportedModelError(f"llama.cpp's Llama graph has no {reason}", where=where, next=advice)
    return shape


def rope_type(shape: Shape) -> str:
    """The kind of rotary scaling, `"default"` if there is none."""
    return str(shape.rope.get("rope_type") or shape.rope.get("type") or "default")


def write_keys(writer: GGUFWriter, checkpoint: Checkpoint, shape: Shape) -> None:
    """Write the model's sizes and its rotary embedding."""
    writer.add_block_count(shape.layers)
    writer.add_context_length(shape.context)
    writer.add_embedding_length(shape.hidden)
    writer.add_feed_forward_length(shape.intermediate)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_layer_norm_rms_eps(shape.norm_epsilon)
    writer.add_vocab_size(shape.vocabulary)
    writer.add_key_length(shape.head)
    writer.add_value_length(shape.head)
    writer.add_rope_dimension_count(shape.head)
    writer.add_rope_freq_base(shape.rope_theta)
    kind = rope_type(shape)
    if kind in {"linear", "yarn"}:
        writer.add_rope_scaling_type(RopeScalingType(kind))
        writer.add_rope_scaling_factor(_number(checkpoint, shape.rope, "factor"))
    if kind == "yarn":
        _write_yarn(writer, checkpoint, shape)


def _write_yarn(writer: GGUFWriter, checkpoint: Checkpoint, shape: Shape) -> None:
    where = checkpoint.path / "config.json"
    # llama.cpp scales attention by 0.1 ln(factor) + 1 and rounds the correction range, as the paper's code does
    for name, usual in (("attention_factor", None), ("mscale", None), ("mscale_all_dim", None), ("truncate", True)):
        if shape.rope.get(name, usual) != usual:
            raise UnsupportedModelError(f"YaRN with its own {name}", where=where, next=_CONVERTER)
    writer.add_rope_scaling_orig_ctx_len(
        int(_number(checkpoint, shape.rope, "original_max_position_embeddings", shape.context))
    )
    writer.add_rope_scaling_yarn_beta_fast(_number(checkpoint, shape.rope, "beta_fast", 32.0))
    writer.add_rope_scaling_yarn_beta_slow(_number(checkpoint, shape.rope, "beta_slow", 1.0))


def rope_factors(checkpoint: Checkpoint, shape: Shape) -> Floats:
    """What llama.cpp divides each rotary frequency by to get Llama 3.1's scaling, shape (head / 2,).

    Frequencies with long wavelengths are divided by `factor`, short ones kept, those between blended
    (https://github.com/meta-llama/llama-models/blob/main/models/llama3/model.py, `apply_scaling`).
    """
    factor, low, high, original = (
        _number(checkpoint, shape.rope, name)
        for name in ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
    )
    wavelengths = 2 * math.pi * shape.rope_theta ** (np.arange(0, shape.head, 2) / shape.head)
    smooth = np.clip((original / wavelengths - low) / (high - low), 0, 1)
    return (1 / ((1 - smooth) / factor + smooth)).astype(np.float32)


def list_parts(checkpoint: Checkpoint, shape: Shape) -> list[Part]:
    """Every tensor of the GGUF in the order it is written, matched with the checkpoint's tensors by name and shape.

    Raises:
        CheckpointError: a tensor is missing, has another shape than the config says, or has no place in the graph.
    """
    parts, known = [], set()
    for source_name, name, size, rotary_head in _graph(shape):
        known.add(source_name)
        source = checkpoint.tensors.get(source_name)
        if source is None:
            raise CheckpointError(f"tensor {source_name!r} is missing", where=checkpoint.path, next="download the model again")
        if source.shape != size:
            raise CheckpointError(
                f"tensor {source_name!r} has the shape {source.shape}, but the config says {size}",
                where=source.file,
                next="give a checkpoint whose config.json belongs to its weights",
            )
        parts.append(Part(name, size, source, rotary_head))
    # files may carry what is recomputed (rotary frequencies) or ignored (the head of a tied model)
    strange = [
        name for name in checkpoint.tensors if name not in known and not name.endswith(".inv_freq") and name != "lm_head.weight"
    ]
    if strange:
        raise CheckpointError(
            f"{len(strange)} tensors have no place in a Llama graph, first {strange[0]!r}",
            where=checkpoint.path,
            next=_CONVERTER,
        )
    if rope_type(shape) == "llama3":
        parts.insert(0, Part("rope_freqs.weight", (shape.head // 2,), rope_factors(checkpoint, shape)))
    return parts


def _graph(shape: Shape) -> Iterator[tuple[str, str, tuple[int, ...], int]]:
    """Yield name in the checkpoint, name in the GGUF, shape, and rows per rotary head (0: rows as they are)."""
    queries, keys, hidden, inner = shape.heads * shape.head, shape.kv_heads * shape.head, shape.hidden, shape.intermediate
    modules = (
        ("self_attn.q_proj", "attn_q", (queries, hidden), shape.head, shape.attention_bias),
        ("self_attn.k_proj", "attn_k", (keys, hidden), shape.head, shape.attention_bias),
        ("self_attn.v_proj", "attn_v", (keys, hidden), 0, shape.attention_bias),
        ("self_attn.o_proj", "attn_output", (hidden, queries), 0, shape.attention_bias),
        ("mlp.gate_proj", "ffn_gate", (inner, hidden), 0, shape.mlp_bias),
        ("mlp.up_proj", "ffn_up", (inner, hidden), 0, shape.mlp_bias),
        ("mlp.down_proj", "ffn_down", (hidden, inner), 0, shape.mlp_bias),
    )
    yield "model.embed_tokens.weight", "token_embd.weight", (shape.vocabulary, hidden), 0
    for layer in range(shape.layers):
        source, target = f"model.layers.{layer}", f"blk.{layer}"
        yield f"{source}.input_layernorm.weight", f"{target}.attn_norm.weight", (hidden,), 0
        yield f"{source}.post_attention_layernorm.weight", f"{target}.ffn_norm.weight", (hidden,), 0
        for module, name, size, rotary_head, bias in modules:
            yield f"{source}.{module}.weight", f"{target}.{name}.weight", size, rotary_head
            if bias:
                yield f"{source}.{module}.bias", f"{target}.{name}.bias", size[:1], rotary_head
    yield "model.norm.weight", "output_norm.weight", (hidden,), 0
    if not shape.tied:
        yield "lm_head.weight", "output.weight", (shape.vocabulary, hidden), 0


def policy(shape: Shape, quantization: Quantization) -> Policy:
    """What chooses the format of each tensor of this model."""
    return Policy(quantization, shape.layers, shape.tied, shape.heads != shape.kv_heads)


def pieces(part: Part) -> Iterator[tuple[Part, int, int]]:
    """A tensor in ranges of rows that are read and converted at once (whole heads, where rows are re-ordered)."""
    rows, columns = (1, part.shape[0]) if len(part.shape) == 1 else part.shape
    for start, stop in row_blocks(rows, columns, part.rotary_head or 1):
        yield part, start, stop


def read_part(part: Part, start: int, stop: int) -> Floats:
    """Rows `start` to `stop` of a tensor in the checkpoint's order, shape (stop - start, columns); a vector is one row."""
    return read_rows(part.source, start, stop) if isinstance(part.source, Tensor) else part.source[np.newaxis]


def written_rows(part: Part, start: int, stop: int) -> Floats:
    """The same rows as the GGUF holds them, before rounding."""
    values = read_part(part, start, stop)
    if not part.rotary_head:
        return values
    return interleave(values.reshape(-1, part.shape[-1] if len(part.shape) > 1 else 1), part.rotary_head).reshape(values.shape)


def interleave(rows: Floats, head: int) -> Floats:
    """Re-order rows of whole heads from transformers' rotary layout (halves) to llama.cpp's (neighbours).

    transformers rotates row i of a head with row i + head/2; llama.cpp rotates row 2i with row 2i + 1.
    """
    return rows.reshape(-1, 2, head // 2, rows.shape[-1]).swapaxes(1, 2).reshape(rows.shape)


def deinterleave(rows: Floats, head: int) -> Floats:
    """Undo `interleave`."""
    result = np.empty_like(rows)
    heads, source = result.reshape(-1, head, rows.shape[-1]), rows.reshape(-1, head, rows.shape[-1])
    heads[:, : head // 2], heads[:, head // 2 :] = source[:, 0::2], source[:, 1::2]
    return result


def _integer(checkpoint: Checkpoint, name: str, default: int | None = None) -> int:
    value = checkpoint.config.get(name)
    value = default if value is None else value
    if type(value) is not int or not 0 < value < 2**31:
        raise CheckpointError(
            f"{name} must be a positive whole number, not {value!r}",
            where=checkpoint.path / "config.json",
            next="download config.json again",
        )
    return value


def _number(checkpoint: Checkpoint, settings: dict[str, Any], name: str, default: float | None = None) -> float:
    value = settings.get(name)
    value = default if value is None else value
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise CheckpointError(
            f"{name} must be a positive number, not {value!r}",
            where=checkpoint.path / "config.json",
            next="download config.json again",
        )
    return float(value)
