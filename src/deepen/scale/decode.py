"""Decode a GGUF into a checkpoint folder in Hugging Face layout.

Block formats become floats through ggml's own Python package, tensor by tensor in bounded memory; the vocabulary becomes a
tokenizer through transformers, corrected where it would cut text otherwise than llama.cpp does. Whatever would be lost on the
way (rotary scaling, experts, windows, a tensor without a place) is refused.
"""

from __future__ import annotations

import json
import os
import struct
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from deepen.checkpoint.convert import FLOATS, convert
from deepen.checkpoint.gguf import ARRAY, Gguf, open_gguf
from deepen.checkpoint.reader import SINGLE_FILE, Tensor
from deepen.errors import CheckpointError, MissingDependencyError, UnsupportedModelError
from deepen.output import check_disk, write_file
from deepen.progress import progress
from deepen.scale.gguf import FLOAT_TYPES, layer_count

DTYPES = {"keep": "F32", "float32": "F32", "float16": "F16", "bfloat16": "BF16"}
_ELEMENTS = 1 << 24  # decoded at once: 64 MB

# Tensors of a block: name in the GGUF -> name in transformers, and the dimensions, outermost first
_BLOCK = {
    "attn_norm.weight": ("input_layernorm.weight", "hidden"),
    "attn_q.weight": ("self_attn.q_proj.weight", "queries hidden"),
    "attn_k.weight": ("self_attn.k_proj.weight", "keys hidden"),
    "attn_v.weight": ("self_attn.v_proj.weight", "keys hidden"),
    "attn_output.weight": ("self_attn.o_proj.weight", "hidden queries"),
    "ffn_norm.weight": ("post_attention_layernorm.weight", "hidden"),
    "ffn_gate.weight": ("mlp.gate_proj.weight", "inner hidden"),
    "ffn_up.weight": ("mlp.up_proj.weight", "inner hidden"),
    "ffn_down.weight": ("mlp.down_proj.weight", "hidden inner"),
}
_BIASES = {f"attn_{x}.bias": (f"self_attn.{x}_proj.bias", "queries" if x == "q" else "keys") for x in "qkv"}
_HEAD_NORMS = {f"attn_{x}_norm.weight": (f"self_attn.{x}_norm.weight", "head") for x in "qk"}
_ARCHITECTURES: dict[str, tuple[str, dict[str, tuple[str, str]], dict[str, Any]]] = {
    "llama": ("LlamaForCausalLM", _BLOCK, {"attention_bias": False, "mlp_bias": False}),
    "qwen2": ("Qwen2ForCausalLM", _BLOCK | _BIASES, {"use_sliding_window": False}),
    "qwen3": ("Qwen3ForCausalLM", _BLOCK | _HEAD_NORMS, {"attention_bias": False, "use_sliding_window": False}),
}
_KEYS = {
    "block_count", "context_length", "embedding_length", "feed_forward_length", "vocab_size", "rope.freq_base",
    "rope.dimension_count", "attention.head_count", "attention.head_count_kv", "attention.layer_norm_rms_epsilon",
    "attention.key_length", "attention.value_length",
}  # fmt: skip

# Pre-tokenizers by how llama.cpp cuts text before the merges (its src/llama-vocab.cpp)
_GPT2 = {"gpt-2", "phi-2", "mpt", "olmo", "jais", "trillion", "granite-docling", "mellum"}
_DIGITS_THEN_GPT2 = {"smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b", "mellum2"}
_WHOLE_WORDS_FIRST = {"llama3", "llama-v3", "llama-bpe", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2"}
_QWEN2 = {"qwen2", "deepseek-r1-qwen", "kormo", "f2llmv2"}


@dataclass(frozen=True)
class _Decoded:
    """A tensor of the folder: its name, shape (outermost dimension first), the stored one, and the rows of a rotary head."""

    name: str
    shape: tuple[int, ...]
    source: Tensor
    interleaved_rows: int = 0


def decode_gguf(path: Path, folder: Path, *, dtype: str = "keep") -> None:
    """Write the model of a GGUF into `folder`: config, weights, tokenizer, chat template, generation config.

    Args:
        path: the GGUF.
        folder: an existing, empty folder.
        dtype: one of `DTYPES`; `"keep"` means float32, which holds the values of every block format exactly.

    Raises:
        CheckpointError: the file is broken or its tensors do not fit its metadata.
        UnsupportedModelError: an architecture, key, tensor or tokenizer that would not survive.
        MissingDependencyError: transformers or gguf is not installed.
    """
    source = open_gguf(path)
    config = _config(source, DTYPES[dtype])
    tensors = _tensors(source, config)
    pre = _pre_tokenizer(source)
    if missing := [name for name in ("torch", "transformers", "gguf") if find_spec(name) is None]:
        raise MissingDependencyError(
            f"decoding a GGUF needs {' and '.join(missing)}", where=path, next='install them: pip install "deepen[train]"'
        )
    _write_tokenizer(source, pre, folder)
    ids = {key: config[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id") if key in config}
    write_file(folder / "generation_config.json", json.dumps(ids, indent=2) + "\n")
    write_file(folder / "config.json", json.dumps(config, indent=2) + "\n")
    _write_tensors(source, tensors, DTYPES[dtype], folder / SINGLE_FILE)


def _config(source: Gguf, dtype: str) -> dict[str, Any]:
    layers = layer_count(source)
    architecture = str(source.get("general.architecture"))
    if architecture not in _ARCHITECTURES:
        raise _lossy(source, f"decoding GGUFs of architecture {architecture} is not supported")
    class_name, _, extra = _ARCHITECTURES[architecture]
    prefix = f"{architecture}."
    for key, field in source.fields.items():
        if key.startswith(prefix) and (key.removeprefix(prefix) not in _KEYS or field.kind == ARRAY):
            raise _lossy(source, f"{key} has no place in the config of a {class_name}")

    def number(key: str, default: float | None = None) -> Any:
        result = source.get(prefix + key, default)
        if not isinstance(result, int | float) or isinstance(result, bool) or result <= 0:
            raise CheckpointError(f"{prefix}{key} is {result!r}, not a positive number", where=source.path, next=_AGAIN)
        return result

    hidden, heads = number("embedding_length"), number("attention.head_count")
    head = number("attention.key_length", number("rope.dimension_count", hidden // heads))
    for key in ("rope.dimension_count", "attention.value_length"):
        if number(key, head) != head:
            raise _lossy(source, f"{prefix}{key} is {number(key)}, unlike the size of the heads ({head})")
    stops = [source.get(f"tokenizer.ggml.{name}_token_id") for name in ("eos", "eot", "eom")]
    stop_ids = list(dict.fromkeys(stop for stop in stops if stop is not None))
    ids = {
        "bos_token_id": source.get("tokenizer.ggml.bos_token_id"),
        "eos_token_id": stop_ids[0] if len(stop_ids) == 1 else stop_ids or None,
        "pad_token_id": source.get("tokenizer.ggml.padding_token_id"),
    }
    theta = _short(number("rope.freq_base", 10000.0))
    return {
        "architectures": [class_name],
        "model_type": architecture,
        "vocab_size": _shape(source, "token_embd.weight")[0],
        "hidden_size": hidden,
        "intermediate_size": number("feed_forward_length"),
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": number("attention.head_count_kv", heads),
        "head_dim": head,
        "hidden_act": "silu",
        "max_position_embeddings": number("context_length"),
        "rms_norm_eps": _short(number("attention.layer_norm_rms_epsilon")),
        "rope_theta": theta,
        "rope_parameters": {"rope_type": "default", "rope_theta": theta},
        "tie_word_embeddings": "output.weight" not in source.tensors,
        **extra,
        **{key: value for key, value in ids.items() if value is not None},
        "dtype": {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}[dtype],
    }


def _tensors(source: Gguf, config: dict[str, Any]) -> list[_Decoded]:
    """Every tensor of the folder with where it comes from, after checking that the two sets match."""
    sizes = {
        "vocabulary": config["vocab_size"],
        "hidden": config["hidden_size"],
        "inner": config["intermediate_size"],
        "queries": config["num_attention_heads"] * config["head_dim"],
        "keys": config["num_key_value_heads"] * config["head_dim"],
        "head": config["head_dim"],
    }
    wanted = {
        "token_embd.weight": ("model.embed_tokens.weight", "vocabulary hidden"),
        "output_norm.weight": ("model.norm.weight", "hidden"),
    }
    if not config["tie_word_embeddings"]:
        wanted["output.weight"] = ("lm_head.weight", "vocabulary hidden")
    for layer in range(config["num_hidden_layers"]):
        block = _ARCHITECTURES[config["model_type"]][1]
        wanted |= {f"blk.{layer}.{name}": (f"model.layers.{layer}.{to}", dims) for name, (to, dims) in block.items()}
    if strange := [name for name in source.tensors if name not in wanted]:
        raise _lossy(source, f"the tensor {strange[0]!r} has no place in a {config['architectures'][0]}")
    tensors = []
    for name, (to, dimensions) in wanted.items():
        shape, expected = _shape(source, name), tuple(sizes[dimension] for dimension in dimensions.split())
        if shape != expected:
            what = f"the tensor {name!r} has the shape {list(shape)}, not {list(expected)} as the metadata say"
            raise CheckpointError(what, where=source.path, next=_AGAIN)
        if source.tensors[name].dtype not in FLOAT_TYPES:
            raise _lossy(source, f"the tensor {name!r} has the type {source.tensors[name].dtype}, which cannot be decoded")
        # llama.cpp keeps the two halves of a rotary head interleaved in this architecture
        rotary = config["model_type"] == "llama" and name.endswith((".attn_q.weight", ".attn_k.weight"))
        tensors.append(_Decoded(to, shape, source.tensors[name], config["head_dim"] if rotary else 0))
    return tensors


def _shape(source: Gguf, name: str) -> tuple[int, ...]:
    if name not in source.tensors:
        raise CheckpointError(f"the tensor {name!r} is missing", where=source.path, next=_AGAIN)
    return source.tensors[name].shape[::-1]


def _write_tensors(source: Gguf, tensors: list[_Decoded], dtype: str, file: Path) -> None:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for tensor in tensors:
        start, end = end, end + tensor.source.parameters * FLOATS[dtype]
        header[tensor.name] = {"dtype": dtype, "shape": tensor.shape, "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text = text.ljust(-(-len(text) // 8) * 8)
    check_disk(file, len(text) + end)
    with file.open("wb") as stream, source.path.open("rb") as stored, progress("decode", end, "B") as advance:
        stream.write(struct.pack("<Q", len(text)) + text)
        for tensor in tensors:
            for values in _values(tensor, stored.fileno()):
                data = convert(values.tobytes(), "F32", dtype, tensor.name)
                stream.write(data)
                advance(len(data))


def _values(tensor: _Decoded, descriptor: int) -> Iterator[np.ndarray[Any, np.dtype[np.float32]]]:
    """The values of a tensor in runs of whole rows (whole heads where these are interleaved)."""
    from gguf import GGMLQuantizationType
    from gguf.quants import dequantize

    columns = tensor.shape[-1]
    rows, row_bytes = tensor.source.parameters // columns, tensor.source.nbytes * columns // tensor.source.parameters
    unit = tensor.interleaved_rows or 1
    step = max(_ELEMENTS // (columns * unit), 1) * unit
    for row in range(0, rows, step):
        count = min(step, rows - row)
        data = os.pread(descriptor, count * row_bytes, tensor.source.offset + row * row_bytes)
        if len(data) < count * row_bytes:
            raise CheckpointError("the file became shorter while it was read", where=tensor.source.file, next=_AGAIN)
        raw = np.frombuffer(data, np.uint8).reshape(count, row_bytes)
        values = dequantize(raw, GGMLQuantizationType[tensor.source.dtype]).astype("<f4", copy=False)
        if tensor.interleaved_rows:
            values = values.reshape(-1, unit // 2, 2, columns).swapaxes(1, 2)
        yield values


def _pre_tokenizer(source: Gguf) -> str:
    kind, pre = source.get("tokenizer.ggml.model"), source.get("tokenizer.ggml.pre", "default")
    known = _GPT2 | _DIGITS_THEN_GPT2 | _WHOLE_WORDS_FIRST | _QWEN2
    if not (kind == "llama" or (kind == "gpt2" and pre in known)):
        raise _lossy(source, f"how its tokenizer (model {kind!r}, pre {pre!r}) cuts text is not known")
    return str(pre)


def _write_tokenizer(source: Gguf, pre: str, folder: Path) -> None:
    from tokenizers import normalizers, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    # only the file itself, so that nothing else in its folder changes what is loaded
    with tempfile.TemporaryDirectory() as place:
        (Path(place) / "model.gguf").symlink_to(source.path.resolve())
        tokenizer = PreTrainedTokenizerFast.from_pretrained(place, gguf_file="model.gguf")
    byte_level = source.get("tokenizer.ggml.model") == "gpt2"
    backend = tokenizer.backend_tokenizer
    if byte_level and pre in _DIGITS_THEN_GPT2:
        backend.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
    if byte_level:
        backend.model.ignore_merges = pre in _WHOLE_WORDS_FIRST
    else:
        # SentencePiece puts a space before every piece of text, also before one that begins with a space
        prefix = [normalizers.Prepend("▁")] if source.get("tokenizer.ggml.add_space_prefix", True) else []
        backend.normalizer = normalizers.Sequence([*prefix, normalizers.Replace(" ", "▁")])
        backend.pre_tokenizer = None
    # llama.cpp's defaults where the file does not say
    tokenizer.add_bos_token = source.get("tokenizer.ggml.add_bos_token", not byte_level or pre in _WHOLE_WORDS_FIRST)
    tokenizer.add_eos_token = source.get("tokenizer.ggml.add_eos_token", False)
    tokenizer.model_max_length = source.get(f"{source.get('general.architecture')}.context_length")
    tokenizer.save_pretrained(folder)
    # the class name that every version of transformers takes for "tokenizer.json as it is"
    file = folder / "tokenizer_config.json"
    settings = json.loads(file.read_text(encoding="utf-8")) | {"tokenizer_class": "PreTrainedTokenizerFast"}
    for key in ("is_local", "local_files_only", "name_or_path"):
        settings.pop(key, None)
    write_file(file, json.dumps(settings, indent=2, ensure_ascii=False) + "\n")


def _short(number: float) -> float:
    """The shortest decimal that is the same float32: 1e-05 instead of 9.999999747378752e-06."""
    return float(str(np.float32(number)))


_AGAIN = "download the file again, or convert the model again"


def _lossy(source: Gguf, what: str) -> UnsupportedModelError:
    advice = "use the original checkpoint folder, or deepen the GGUF as it is (without --to hf)"
    return UnsupportedModelError(what, where=source.path, next=advice)
