"""A checkpoint with the shapes of Mistral-7B-v0.1, or narrower ones, and random bits: real size, without a download."""

from __future__ import annotations

import json
import math
import os
import random
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

# Layers 8 to 23 are what SOLAR's plan repeats; as a file of their own, `cp` can write exactly the bytes that scaling writes
SHARDS = (range(8), range(8, 24), range(24, 32))


def mistral_config(size: int | None) -> dict[str, Any]:
    """The config.json of Mistral-7B-v0.1; with `size` bytes, as wide as fits into so many."""
    config: dict[str, Any] = {
        "architectures": ["MistralForCausalLM"], "bos_token_id": 1, "eos_token_id": 2, "hidden_act": "silu",
        "hidden_size": 4096, "initializer_range": 0.02, "intermediate_size": 14336, "max_position_embeddings": 32768,
        "model_type": "mistral", "num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 8,
        "rms_norm_eps": 1e-05, "rope_theta": 10000.0, "sliding_window": 4096, "tie_word_embeddings": False,
        "torch_dtype": "bfloat16", "transformers_version": "4.34.0.dev0", "use_cache": True, "vocab_size": 32000,
    }  # fmt: skip
    if size is not None:
        for hidden in range(64, 4096, 64):
            narrower = config | {"hidden_size": hidden, "intermediate_size": hidden * 7 // 2}
            if hidden == 64 or weight_bytes(narrower) <= 1.01 * size:
                chosen = narrower
        config = chosen
    return config


def shard_shapes(config: dict[str, Any]) -> list[dict[str, tuple[int, ...]]]:
    """Names and shapes of the tensors in each shard."""
    hidden, inner, vocabulary = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    key_value = hidden * config["num_key_value_heads"] // config["num_attention_heads"]
    layer = {
        "input_layernorm": (hidden,), "mlp.down_proj": (hidden, inner), "mlp.gate_proj": (inner, hidden),
        "mlp.up_proj": (inner, hidden), "post_attention_layernorm": (hidden,), "self_attn.k_proj": (key_value, hidden),
        "self_attn.o_proj": (hidden, hidden), "self_attn.q_proj": (hidden, hidden), "self_attn.v_proj": (key_value, hidden),
    }  # fmt: skip
    shards = [{f"model.layers.{i}.{name}.weight": shape for i in shard for name, shape in layer.items()} for shard in SHARDS]
    shards[0] = {"model.embed_tokens.weight": (vocabulary, hidden)} | shards[0]
    shards[2] |= {"model.norm.weight": (hidden,), "lm_head.weight": (vocabulary, hidden)}
    return shards


def weight_bytes(config: dict[str, Any], plan: Sequence[int] = range(32)) -> int:
    """Bytes of the bf16 tensors of the model with this layer plan."""
    sizes = {name: 2 * math.prod(shape) for shard in shard_shapes(config) for name, shape in shard.items()}
    inside = sum(size for name, size in sizes.items() if name.startswith("model.layers.0."))
    return sum(size for name, size in sizes.items() if ".layers." not in name) + len(plan) * inside


def make_source(folder: Path, config: dict[str, Any]) -> None:
    """Write the checkpoint: one block of random finite bf16 numbers, over and over, each time rolled by another distance."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    block = bytearray(os.urandom(64 << 20))
    # the sign and the last two bits of the exponent stay random, the others say 2^-7 to 2^-4: nothing is infinite or NaN
    block[1::2] = block[1::2].translate(bytes(byte & 0x81 | 0x3C for byte in range(256)))
    rolls, shards, weight_map = random.Random(0), shard_shapes(config), {}
    for number, shapes in enumerate(shards, start=1):
        header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        end = 0
        for name, shape in shapes.items():
            start, end = end, end + 2 * math.prod(shape)
            header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [start, end]}
            weight_map[name] = f"model-{number:05}-of-{len(shards):05}.safetensors"
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        with (folder / weight_map[name]).open("wb") as stream:
            stream.write(struct.pack("<Q", len(text)) + text)
            while end:
                roll = 2 * rolls.randrange(len(block) // 2)
                end -= stream.write(memoryview(block)[roll : roll + end])
    index = {"metadata": {"total_size": weight_bytes(config)}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")
