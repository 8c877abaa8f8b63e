"""What the source model says next, computed from its files a few rows at a time: the reference that a GGUF is checked against.

The Llama graph in float32, written from its definition (Touvron et al. 2023, "LLaMA", section 2.2; grouped heads: Ainslie et
al. 2023; RoPE: Su et al. 2021, in the layout of transformers). No weight stays in memory, so a model of any size is checked.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from deepen.checkpoint import Checkpoint
from deepen.export.llama import Shape, rope_factors, rope_type
from deepen.export.rows import Floats, read_rows, row_blocks


def next_token_log_probabilities(checkpoint: Checkpoint, shape: Shape, tokens: Sequence[int]) -> Floats:
    """Natural-log probability of every token of the vocabulary after each of `tokens`, shape (len(tokens), vocabulary)."""
    cosine, sine = _rotary(checkpoint, shape, len(tokens))
    embedding = checkpoint.tensors["model.embed_tokens.weight"]
    state = np.concatenate([read_rows(embedding, token, token + 1) for token in tokens])
    for layer in range(shape.layers):
        prefix = f"model.layers.{layer}."
        state = state + _attention(
            checkpoint, shape, prefix, _norm(checkpoint, shape, f"{prefix}input_layernorm", state), cosine, sine
        )
        normed = _norm(checkpoint, shape, f"{prefix}post_attention_layernorm", state)
        gate = _linear(checkpoint, f"{prefix}mlp.gate_proj", normed)
        inner = gate / (1 + np.exp(-np.maximum(gate, -80))) * _linear(checkpoint, f"{prefix}mlp.up_proj", normed)
        state = state + _linear(checkpoint, f"{prefix}mlp.down_proj", inner)
    state = _norm(checkpoint, shape, "model.norm", state)
    logits = _linear(checkpoint, "model.embed_tokens" if shape.tied else "lm_head", state)
    logits -= logits.max(axis=-1, keepdims=True)
    logits -= np.log(np.exp(logits).sum(axis=-1, keepdims=True, dtype=np.float64)).astype(np.float32)
    return logits


def _attention(checkpoint: Checkpoint, shape: Shape, prefix: str, state: Floats, cosine: Floats, sine: Floats) -> Floats:
    length, group = len(state), shape.heads // shape.kv_heads
    queries, keys, values = (
        _linear(checkpoint, f"{prefix}self_attn.{name}_proj", state).reshape(length, -1, shape.head).swapaxes(0, 1)
        for name in "qkv"
    )
    queries, keys = _rotate(queries, cosine, sine), _rotate(keys, cosine, sine)
    future = np.triu(np.full((length, length), -np.inf, np.float32), 1)
    heads = []
    for head in range(shape.heads):
        scores = queries[head] @ keys[head // group].T / np.float32(math.sqrt(shape.head)) + future
        weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
        heads.append(weights / weights.sum(axis=-1, keepdims=True) @ values[head // group])
    return _linear(checkpoint, f"{prefix}self_attn.o_proj", np.concatenate(heads, axis=-1))


def _linear(checkpoint: Checkpoint, module: str, state: Floats) -> Floats:
    weight, bias = checkpoint.tensors[f"{module}.weight"], checkpoint.tensors.get(f"{module}.bias")
    rows, columns = weight.shape
    parts = [state @ read_rows(weight, start, stop).T for start, stop in row_blocks(rows, columns, 1)]
    result: Floats = np.concatenate(parts, axis=-1)
    return result if bias is None else result + read_rows(bias, 0, 1)


def _norm(checkpoint: Checkpoint, shape: Shape, module: str, state: Floats) -> Floats:
    scale = np.float32(1) / np.sqrt((state**2).mean(axis=-1, keepdims=True) + np.float32(shape.norm_epsilon))
    result: Floats = state * scale * read_rows(checkpoint.tensors[f"{module}.weight"], 0, 1)
    return result


def _rotate(heads: Floats, cosine: Floats, sine: Floats) -> Floats:
    first, second = np.split(heads, 2, axis=-1)
    result: Floats = np.concatenate([first * cosine - second * sine, second * cosine + first * sine], axis=-1)
    return result


def _rotary(checkpoint: Checkpoint, shape: Shape, length: int) -> tuple[Floats, Floats]:
    """Cosine and sine of every position and frequency, shape (length, head / 2)."""
    frequencies = shape.rope_theta ** (-np.arange(0, shape.head, 2) / shape.head)
    kind, amplitude = rope_type(shape), 1.0
    if kind == "linear":
        frequencies = frequencies / shape.rope["factor"]
    elif kind == "llama3":
        frequencies = frequencies / rope_factors(checkpoint, shape)
    elif kind == "yarn":
        frequencies, amplitude = _yarn(shape, frequencies)
    angles = np.arange(length)[:, np.newaxis] * frequencies
    return (np.cos(angles) * amplitude).astype(np.float32), (np.sin(angles) * amplitude).astype(np.float32)


def _yarn(shape: Shape, frequencies: np.ndarray) -> tuple[np.ndarray, float]:
    """Peng et al. 2023, "YaRN", section 3: slow frequencies are interpolated, fast ones kept, those between blended."""
    factor, original = shape.rope["factor"], shape.rope.get("original_max_position_embeddings", shape.context)

    def dimension(rotations: float) -> float:
        return shape.head * math.log(original / (rotations * 2 * math.pi)) / (2 * math.log(shape.rope_theta))

    low = max(math.floor(dimension(shape.rope.get("beta_fast") or 32)), 0)
    high = min(math.ceil(dimension(shape.rope.get("beta_slow") or 1)), shape.head - 1)
    ramp = np.clip((np.arange(shape.head // 2) - low) / max(high - low, 0.001), 0, 1)
    return frequencies / factor * ramp + frequencies * (1 - ramp), 0.1 * math.log(factor) + 1
