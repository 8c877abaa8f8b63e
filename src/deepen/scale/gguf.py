"""Deepen a GGUF by copying its tensors' bytes under new block numbers; nothing is decoded or quantised again.

What llama.cpp takes from a layer's position or from the number of layers is either rewritten for the plan or, where the format
cannot say it, refused with the reason. The facts about llama.cpp are those of its `src/models/*.cpp` and `llama-model.cpp`.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deepen.checkpoint.copy import Span, copy_spans
from deepen.checkpoint.gguf import ARRAY, STRING, UINT64, Field, Gguf, encode_field, gguf_header, value
from deepen.checkpoint.manifest import manifest, manifest_text
from deepen.checkpoint.reader import Tensor
from deepen.errors import CheckpointError, PlanError, UnsupportedModelError
from deepen.output import check_disk, check_target, new_file, write_file
from deepen.plan import Plan, parse_plan
from deepen.progress import progress

MAX_LAYERS = 512  # llama.cpp's LLAMA_MAX_LAYERS

_BLOCK = re.compile(r"blk\.(0|[1-9][0-9]{0,5})\.(.+)")
_STRANGE_TENSOR = re.compile(r"blk\.|layer|mtp|nextn|(^|\.)\d+(\.|$)")  # outside the stack, but speaks of layers
_LAYER_KEY = re.compile(r"layer|block|depth|interval|pattern|every_n|_step$|loops|cycles")
_FOREIGN = ("general.", "tokenizer.", "split.", "quantize.")  # namespaces that describe no layer

# Arrays with one element per layer
_PER_LAYER = {
    "attention.head_count", "attention.head_count_kv", "feed_forward_length", "expert_feed_forward_length", "expert_used_count",
    "attention.sliding_window_pattern", "attention.rope_pattern", "attention.recurrent_layers", "attention.indexer.types",
    "attention.compress_ratios", "activation_sparsity_scale", "swiglu_clamp_exp", "swiglu_clamp_shexp",
    "xielu.alpha_n", "xielu.alpha_p", "xielu.beta", "xielu.eps",
}  # fmt: skip
_NOT_PER_LAYER = {"rope.dimension_sections", "classifier.output_labels"}

# Keys that speak of layers and mean nothing for a plan, or that are rewritten or checked below
_KNOWN = _PER_LAYER | {
    "block_count", "leading_dense_block_count", "full_attention_interval", "interleave_moe_layer_step", "moe_every_n_layers",
    "attention.layer_norm_epsilon", "attention.layer_norm_rms_epsilon", "attention.indexer.block_size",
    "attention.indexer.local_blocks", "ssm.time_step_rank",
}  # fmt: skip
_REFUSED = {
    "nextn_predict_layers": "its last layers predict further tokens and do not belong to the stack",
    "attention.shared_kv_layers": "its last layers reuse the keys and values of others",
    "decoder_block_count": "it is an encoder-decoder model",
    "embedding_length_per_layer_input": "it has an embedding table with a column block per layer",
    "n_deepstack_layers": "image features are added to its first layers",
    "deepstack_mapping": "image features are added at given layers",
    "hash_layer_count": "its first layers route by token hash",
    "target_layers": "it drafts for another model and names that model's layers",
    "rescale_every_n_layers": "it rescales the stream by depth",
    "num_loops": "its layers run several times already",
}

# Kinds of layers that llama.cpp derives from their position: architecture -> period, unless a key of the file says otherwise
_WINDOW_PERIOD = {
    "gemma2": 2, "gemma3": 6, "cohere2": 4, "cohere2moe": 4, "gpt-oss": 2, "exaone4": 4, "exaone-moe": 4, "olmo2": 4,
    "plamo3": 8, "llama4": 4, "afmoe": 4, "laguna": 4, "muse-glimmer": 4, "mellum": 4, "smallthinker": 4,
}  # fmt: skip
_ALWAYS_WINDOWED = {"gemma2", "llama4"}  # even where the file names no window
_NO_ROPE_PERIOD = {"smollm3": 4, "llama4": 4, "afmoe": 4, "smallthinker": 4}
_RECURRENT_PERIOD = {"qwen35": 4, "qwen35moe": 4, "qwen3next": 4, "qwen4exp": 4, "minimax-01": 8}

# Depths at which llama.cpp takes a model for a certain release and computes differently
_SPECIAL_DEPTH = {
    "gemma2": (46, "the 27B release, with another attention scale"),
    "gemma3": (62, "the 27B release, with another attention scale"),
    "exaone4": (64, "the 32B release, with sliding windows"),
}
_DEPTH_BOUND = {
    "baichuan": "llama.cpp tells rotary from ALiBi positions by the number of layers",
    "minicpm3": "llama.cpp scales each layer by 1/sqrt(number of layers)",
    "gemma3n": "llama.cpp fixes which layers share keys and values, and which are sparse",
    "rwkv6": "its first layer is special", "rwkv7": "its first layer is special",
    "rwkv6qwen2": "its first layer is special", "arwkv7": "its first layer is special",
}  # fmt: skip

# Architectures whose blocks write to the residual stream through `_WRITERS` alone. A norm behind a writer (Gemma 2/3, OLMo 2)
# is an RMS norm without bias there, and turns zero into zero.
_IDENTITY_KNOWN = {
    "llama", "mistral3", "qwen2", "qwen2moe", "qwen3", "qwen3moe", "qwen3next", "qwen35", "qwen35moe", "gemma", "gemma2",
    "gemma3", "phi2", "phi3", "olmo", "olmo2", "olmoe", "smollm3", "gptneox", "gpt2", "granite", "granitemoe", "command-r",
    "cohere2", "gpt-oss", "deepseek", "deepseek2", "starcoder2", "stablelm", "falcon", "nemotron", "internlm2", "exaone4",
    "seed_oss",
}  # fmt: skip
_WRITERS = re.compile(r"(attn_output|ffn_down(_exps|_shexp|\.\d+)?|ssm_out)\.(weight|bias)")
_READERS = re.compile(
    r"(attn_(norm|norm_2|q|k|v|qkv|gate|sinks|rot_embd|(q|k)_norm|q_a|q_b|kv_a_mqa|kv_b|k_b|v_b|(q|kv)_a_norm)|ssm_(?!out)\w+|"
    r"rope_freqs|ffn_(norm|gate|up|gate_up|(gate|up|gate_up)_(exps|shexp)|gate_inp|gate_inp_shexp|(gate|up)\.\d+)|"
    r"exp_probs_b|post_attention_norm|post_ffw_norm)(\.(weight|bias|scale|input_scale))?|"
    r"(attn_output|ffn_down(_exps|_shexp)?)\.(scale|input_scale)|ssm_a"
)
FLOAT_TYPES = {
    "F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ2_XXS",
    "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "IQ1_S", "IQ1_M", "IQ4_NL", "IQ4_XS", "TQ1_0", "TQ2_0", "MXFP4", "NVFP4",
}  # fmt: skip
"""ggml types that the `gguf` package decodes; in each of them zero bytes are the number zero."""


@dataclass(frozen=True)
class Target:
    """A tensor of the deepened file: its name, the source tensor of the same shape, and whether zeros replace its bytes."""

    name: str
    source: Tensor
    zero: bool = False


def layer_count(source: Gguf) -> int:
    """The number of layers of a GGUF language model, after checking that its tensors agree.

    Raises:
        CheckpointError: the metadata are missing, of the wrong type, or disagree with the tensors.
        UnsupportedModelError: one part of a split file; not a decoder-only language model.
    """
    parts = source.get("split.count", 1)
    if parts != 1:
        raise UnsupportedModelError(
            f"part of a GGUF that is split into {parts} files",
            where=source.path,
            next="merge it first: llama-gguf-split --merge FIRST_PART.gguf WHOLE.gguf",
        )
    architecture = source.get("general.architecture")
    kind = source.get("general.type", "model")
    if not isinstance(architecture, str):
        raise _broken(source, "no general.architecture")
    if kind != "model" or architecture in {"clip", "eagle3", "dflash"}:
        what = f"a GGUF of type {kind!r} ({architecture}), not a language model"
        raise UnsupportedModelError(what, where=source.path, next="give the file of the language model itself")
    if source.get(f"{architecture}.attention.causal", True) is False:
        raise UnsupportedModelError(
            f"{architecture} is no causal language model", where=source.path, next="give a decoder-only language model"
        )
    layers = _natural(source, f"{architecture}.block_count", 0)
    found = {int(match[1]) for name in source.tensors if (match := _BLOCK.fullmatch(name))}
    if not found:
        raise _broken(source, "no tensor named blk.N., so there is no stack of layers")
    if layers != len(found) or max(found) != layers - 1:
        what = f"{architecture}.block_count is {layers}, but the tensors make {len(found)} layers, the last one {max(found)}"
        raise _broken(source, what)
    return layers


def deepened_fields(source: Gguf, plan: Plan) -> dict[str, Field]:
    """The key-value pairs of the deepened file.

    Raises:
        UnsupportedModelError: a key, or llama.cpp's reading of the architecture, cannot express the plan.
        PlanError: the plan was made for another depth.
    """
    layers, depth = layer_count(source), plan.num_hidden_layers
    if plan.source_layers != layers:
        raise PlanError(f"the plan is for {plan.source_layers} layers, the model has {layers}", where=source.path)
    architecture = str(source.get("general.architecture"))
    _check_depth(source, architecture, layers, depth)
    for period, why in _periods(source, architecture, layers):
        _check_phase(source, plan, period, why)
    fields = {}
    for key, field in source.fields.items():
        fields[key] = field
        if key.startswith(_FOREIGN):
            continue
        name = key.removeprefix(f"{architecture}.")
        if name == "block_count":
            fields[key] = encode_field(key, field.kind, depth)
        elif name == "leading_dense_block_count":
            fields[key] = encode_field(key, field.kind, _dense_prefix(source, plan, _natural(source, key, 0)))
        elif field.kind == ARRAY and name in _PER_LAYER:
            fields[key] = _permuted(source, field, plan)
        else:
            _check_key(source, name, field, layers)
    return fields


def deepened_tensors(source: Gguf, plan: Plan) -> list[Target]:
    """The tensors of the deepened file in order: those before the stack, the planned layers, those after it.

    Raises:
        UnsupportedModelError: a tensor outside the stack speaks of layers; a layer cannot be made the identity.
    """
    before: list[Target] = []
    after: list[Target] = []
    blocks: dict[int, list[tuple[str, Tensor]]] = {}
    for name, tensor in source.tensors.items():
        if match := _BLOCK.fullmatch(name):
            blocks.setdefault(int(match[1]), []).append((match[2], tensor))
        elif _STRANGE_TENSOR.search(name):
            raise UnsupportedModelError(
                f"the tensor {name!r} lies outside the stack but depends on its layers", where=source.path
            )
        else:
            (after if blocks else before).append(Target(name, tensor))
    identity = set(plan.identity)
    for layer in sorted({plan.layers[position] for position in identity}):
        _check_identity(source, layer, blocks[layer])
    stack = [
        Target(f"blk.{position}.{rest}", tensor, zero=position in identity and _WRITERS.fullmatch(rest) is not None)
        for position, layer in enumerate(plan.layers)
        for rest, tensor in blocks[layer]
    ]
    return [*before, *stack, *after]


def scale_gguf(
    source: Gguf, out: Path, plan_options: Mapping[str, Any], facts: Mapping[str, Any], start: float, *, overwrite: bool
) -> Path:
    """Scale the GGUF `source` into the file `out`, with its manifest beside it; see `deepen.scale.scale`.

    Args:
        source: the model, as `open_gguf` read it.
        out: the new file.
        plan_options: what `parse_plan` takes; positions in the plan's `identity` start as the identity.
        facts: `model` and `options` as the user gave them, for the manifest.
        start: when the work began (`time.monotonic()`), for the manifest.
        overwrite: replace an existing `out`.

    Raises:
        UnsupportedModelError: the model cannot be deepened so; nothing was written.
        OutputError, ResourceError, StorageError: the output cannot be written.
    """
    plan = parse_plan(layer_count(source), **plan_options)
    source_bytes = source.path.stat().st_size
    out = check_target(out, overwrite=overwrite)
    fields, targets = deepened_fields(source, plan), deepened_tensors(source, plan)
    if "general.parameter_count" in fields:
        parameters = sum(target.source.parameters for target in targets)
        fields["general.parameter_count"] = encode_field("general.parameter_count", UINT64, parameters)
    shapes = [(target.name, target.source.dtype, target.source.shape) for target in targets]
    header, offsets, size = gguf_header(fields, shapes, version=source.version, alignment=source.alignment)
    check_disk(out, size)
    with new_file(out, overwrite=overwrite) as partial:
        with partial.open("r+b") as stream:
            stream.write(header)
            stream.truncate(size)  # the padding, and the tensors that are zero
        spans: dict[str, list[Span]] = {}
        for target, offset in zip(targets, offsets, strict=True):
            if not target.zero:
                spans.setdefault(target.source.name, []).append(Span(partial, offset, target.source.nbytes))
        used = sorted((source.tensors[name] for name in spans), key=lambda tensor: tensor.offset)
        copies = [(Span(tensor.file, tensor.offset, tensor.nbytes), spans[tensor.name]) for tensor in used]
        total = sum(target.source.nbytes for target in targets if not target.zero)
        with progress("scale", total, "B") as advance:
            hashes = dict(zip((tensor.name for tensor in used), copy_spans(copies, advance), strict=True))
    content = manifest(
        verb="scale",
        options=facts["options"],
        source={"model": facts["model"], "format": "gguf", "bytes": source_bytes},
        seconds=time.monotonic() - start,
        plan=plan.to_dict(),
        tensors=_records(targets, hashes),
        header_sha256=hashlib.sha256(header).hexdigest(),
        header_bytes=len(header),
    )
    write_file(manifest_path(out), manifest_text(content))
    return out


def manifest_path(out: Path) -> Path:
    """Where the manifest of a single-file output lies: beside it."""
    return out.with_name(f"{out.name}.deepen.json")


def _check_depth(source: Gguf, architecture: str, layers: int, depth: int) -> None:
    if depth > MAX_LAYERS:
        raise _inexpressible(source, f"the plan has {depth} layers, but llama.cpp reads at most {MAX_LAYERS}")
    if depth == layers:
        return
    if architecture in _DEPTH_BOUND:
        raise _inexpressible(source, f"{architecture} cannot change its depth: {_DEPTH_BOUND[architecture]}")
    if architecture == "minicpm" and "minicpm.residual_scale" not in source.fields:
        raise _inexpressible(source, "minicpm without residual_scale: llama.cpp computes it from the number of layers")
    special, meaning = _SPECIAL_DEPTH.get(architecture, (0, ""))
    if special in {layers, depth}:
        raise _inexpressible(
            source, f"{layers} -> {depth} layers: llama.cpp takes an {architecture} of {special} layers for {meaning}"
        )


def _periods(source: Gguf, architecture: str, layers: int) -> list[tuple[int, str]]:
    """The periods, with their reasons, by which llama.cpp gives layers their kind."""

    def key(name: str, default: int) -> int:
        field = source.fields.get(f"{architecture}.{name}")
        return default if field is None or field.kind == ARRAY else _natural(source, field.key, default)

    window = key("attention.sliding_window", int(architecture in _ALWAYS_WINDOWED))
    if architecture == "exaone4" and layers != _SPECIAL_DEPTH["exaone4"][0]:
        window = 0
    # Many versions of llama.cpp ignore an array of window kinds where they know a period, so both have to agree
    periods = [
        (key("attention.sliding_window_pattern", _WINDOW_PERIOD.get(architecture, 0)) if window else 0, "sliding windows"),
        (
            0 if architecture == "llama4" and not window else _NO_ROPE_PERIOD.get(architecture, 0),
            "layers without rotary positions",
        ),
        (key("interleave_moe_layer_step", 0), "mixture-of-experts layers"),
        (key("moe_every_n_layers", 0), "mixture-of-experts layers"),
    ]
    if f"{architecture}.attention.recurrent_layers" not in source.fields:
        interval = key("full_attention_interval", _RECURRENT_PERIOD.get(architecture, 0))
        periods.append((interval, "full-attention layers"))
    return [(period, why) for period, why in periods if period > 1]


def _check_phase(source: Gguf, plan: Plan, period: int, why: str) -> None:
    for position, layer in enumerate(plan.layers):
        if (position - layer) % period:
            raise UnsupportedModelError(
                f"llama.cpp places the {why} of this architecture by position, every {period} layers; the plan puts layer"
                f" {layer} at position {position}, where it would become another kind of layer",
                where=source.path,
                next=f"choose a plan that moves layers by multiples of {period}, or deepen the original checkpoint folder",
            )


def _dense_prefix(source: Gguf, plan: Plan, dense_layers: int) -> int:
    dense = [layer < dense_layers for layer in plan.layers]
    if not all(dense[: sum(dense)]):
        raise _inexpressible(
            source, f"the first {dense_layers} layers are dense, and GGUF can only say that of a model's first layers"
        )
    return sum(dense)


def _permuted(source: Gguf, field: Field, plan: Plan) -> Field:
    elements = value(field)
    if len(elements) != plan.source_layers:
        raise _broken(source, f"{field.key} has {len(elements)} elements for {plan.source_layers} layers")
    return encode_field(field.key, ARRAY, [elements[layer] for layer in plan.layers], field.element_kind)


def _check_key(source: Gguf, name: str, field: Field, layers: int) -> None:
    """Refuse a key that depends on the layers in a way that is not known here."""
    if name in _REFUSED:
        harmless = field.kind not in {ARRAY, STRING} and value(field) <= int(name == "num_loops")
        if not harmless:
            raise _inexpressible(source, f"{field.key}: {_REFUSED[name]}")
    elif field.count == layers and name not in _NOT_PER_LAYER:
        raise _inexpressible(source, f"{field.key} has one element per layer, but its meaning is not known")
    elif name not in _KNOWN and _LAYER_KEY.search(name):
        raise _inexpressible(source, f"{field.key} speaks of layers, but its meaning is not known")


def _check_identity(source: Gguf, layer: int, block: list[tuple[str, Tensor]]) -> None:
    architecture = source.get("general.architecture")
    if architecture not in _IDENTITY_KNOWN:
        raise _inexpressible(source, f"how a layer of {architecture} becomes the identity is not known for GGUF")
    for rest, tensor in block:
        if _WRITERS.fullmatch(rest):
            if tensor.dtype not in FLOAT_TYPES:
                raise _inexpressible(source, f"{tensor.name} is stored as {tensor.dtype}, which has no known zero")
        elif not _READERS.fullmatch(rest):
            raise _inexpressible(source, f"layer {layer} cannot be made the identity: the part {rest!r} is not known")
        elif rest.startswith("post_") and rest.endswith(".bias"):
            raise _inexpressible(source, f"layer {layer} cannot be made the identity: {tensor.name} adds to its output")
    if not {"attn_output", "ssm_out"} & {rest.split(".")[0] for rest, _ in block}:
        raise _inexpressible(source, f"layer {layer} cannot be made the identity: it has no attn_output or ssm_out")


def _records(targets: list[Target], hashes: Mapping[str, str]) -> list[dict[str, str | None]]:
    zeros = {nbytes: _zero_hash(nbytes) for nbytes in {target.source.nbytes for target in targets if target.zero}}
    records: list[dict[str, str | None]] = []
    for target in targets:
        origin = None if target.zero else target.source.name
        digest = zeros[target.source.nbytes] if origin is None else hashes[origin]
        records.append({"name": target.name, "sha256": digest, "source": origin, "source_sha256": origin and digest})
    return records


def _zero_hash(nbytes: int) -> str:
    digest, chunk = hashlib.sha256(), bytes(1 << 20)
    for _ in range(nbytes >> 20):
        digest.update(chunk)
    digest.update(chunk[: nbytes & 0xFFFFF])
    return digest.hexdigest()


def _natural(source: Gguf, key: str, default: int) -> int:
    number = source.get(key, default)
    if type(number) is not int or number < 0:
        raise _broken(source, f"{key} is not a natural number")
    return number


def _broken(source: Gguf, what: str) -> CheckpointError:
    return CheckpointError(what, where=source.path, next="download the file again, or convert the model again")


def _inexpressible(source: Gguf, what: str) -> UnsupportedModelError:
    return UnsupportedModelError(what, where=source.path, next="deepen the original checkpoint folder, or choose another plan")
