"""The GGUF header reader and writer, and the rules by which a GGUF is deepened."""

from __future__ import annotations

import contextlib
import struct
import tempfile
import time
import tracemalloc
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deepen.checkpoint import gguf as container
from deepen.checkpoint.gguf import Field, encode_field, gguf_header, is_gguf, open_gguf, value
from deepen.errors import CheckpointError, PlanError, UnsupportedModelError, UserError
from deepen.plan import Plan, parse_plan
from deepen.scale.decode import decode_gguf
from deepen.scale.gguf import FLOAT_TYPES, deepened_fields, deepened_tensors, layer_count, manifest_path, scale_gguf

LAYERS, HIDDEN = 6, 32


def write_gguf(
    path: Path,
    architecture: str = "llama",
    layers: int = LAYERS,
    keys: dict[str, Any] | None = None,
    extra: tuple[str, ...] = (),
) -> Path:
    """A tiny GGUF: `keys` are added under the architecture (or as they are, after a leading dot); None leaves one out."""
    writer = gguf.GGUFWriter(path, architecture)
    plain = {
        "block_count": layers,
        "embedding_length": HIDDEN,
        "attention.head_count": 4,
        "attention.layer_norm_rms_epsilon": 1e-5,
    }
    for key, entry in (plain | (keys or {})).items():
        name = key[1:] if key.startswith(".") else f"{architecture}.{key}"
        if name == "general.alignment":
            writer.add_custom_alignment(entry)
        elif isinstance(entry, list):
            writer.add_array(name, entry)
        elif isinstance(entry, bool):
            writer.add_bool(name, entry)
        elif isinstance(entry, int):
            writer.add_uint32(name, entry)
        elif isinstance(entry, float):
            writer.add_float32(name, entry)
        elif isinstance(entry, str):
            writer.add_string(name, entry)
    writer.add_array("tokenizer.ggml.tokens", [f"t{i}" for i in range(layers)])  # as many as layers, and not per layer
    random = np.random.default_rng(0)
    writer.add_tensor("token_embd.weight", random.normal(size=(8, HIDDEN)).astype(np.float32))
    for layer in range(layers):
        writer.add_tensor(f"blk.{layer}.attn_norm.weight", random.normal(size=HIDDEN).astype(np.float32))
        for name, kind in (("attn_output", gguf.GGMLQuantizationType.Q8_0), ("ffn_down", gguf.GGMLQuantizationType.Q4_1)):
            weight = gguf.quants.quantize(random.normal(size=(HIDDEN, HIDDEN)).astype(np.float32), kind)
            writer.add_tensor(f"blk.{layer}.{name}.weight", weight, raw_dtype=kind)
    for name in ("output_norm.weight", *extra):
        writer.add_tensor(name, random.normal(size=HIDDEN).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def scaled(source: Path, out: Path, **plan: Any) -> Path:
    return scale_gguf(open_gguf(source), out, plan, {"model": str(source), "options": plan}, time.monotonic(), overwrite=False)


def plan_for(path: Path, spec: str, identity_init: bool = False) -> Plan:
    return parse_plan(layer_count(open_gguf(path)), layers=spec, identity_init=identity_init)


def data(path: Path) -> dict[str, bytes]:
    content = path.read_bytes()
    return {name: content[t.offset : t.offset + t.nbytes] for name, t in open_gguf(path).tensors.items()}


# ── reading ──────────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_reads_what_the_gguf_package_reads(tmp_path: Path) -> None:
    path = write_gguf(
        tmp_path / "a.gguf", keys={"x": [1.5, 2.5], ".general.name": "naïve", "flag": True, "head_count": [1, 2, 3]}
    )
    ours, theirs = open_gguf(path), gguf.GGUFReader(path)
    assert {key: value(field) for key, field in ours.fields.items()} == {
        key: field.contents() for key, field in theirs.fields.items() if not key.startswith("GGUF.")
    }
    for tensor in theirs.tensors:
        mine = ours.tensors[tensor.name]
        assert (mine.dtype, list(mine.shape), mine.offset, mine.nbytes) == (
            tensor.tensor_type.name, list(tensor.shape), tensor.data_offset, tensor.n_bytes,
        )  # fmt: skip
    assert ours.get("llama.block_count") == LAYERS
    assert ours.get("missing", 7) == 7
    assert is_gguf(path)
    assert not is_gguf(tmp_path)


def test_the_block_sizes_are_those_of_ggml() -> None:
    sizes = {name: (block, nbytes) for name, block, nbytes in container.TYPES.values()}
    for kind, (block, nbytes) in gguf.GGML_QUANT_SIZES.items():
        assert container.TYPES[int(kind)][0] == kind.name
        assert sizes[kind.name] == (block, nbytes)


def test_writes_the_header_it_read(tmp_path: Path) -> None:
    for alignment in (None, 64):
        path = write_gguf(tmp_path / f"{alignment}.gguf", keys={".general.alignment": alignment} if alignment else None)
        source = open_gguf(path)
        shapes = [(tensor.name, tensor.dtype, tensor.shape) for tensor in source.tensors.values()]
        header, offsets, size = gguf_header(source.fields, shapes, version=source.version, alignment=source.alignment)
        assert source.alignment == (alignment or 32)
        assert path.read_bytes().startswith(header)
        assert offsets == [tensor.offset for tensor in source.tensors.values()]
        assert size == path.stat().st_size


def test_a_large_vocabulary_is_read(tmp_path: Path) -> None:
    fields = {
        key: encode_field(key, container.ARRAY, [f"Ġtoken{i}" for i in range(150_000)], container.STRING)
        for key in ("tokenizer.ggml.tokens", "tokenizer.ggml.merges")
    }
    path = tmp_path / "large.gguf"
    path.write_bytes(gguf_header(fields, [])[0])
    source = open_gguf(path)
    assert source.get("tokenizer.ggml.merges")[149_999] == "Ġtoken149999"


_NUMBER_VALUES = {
    container.UINT8: st.integers(0, 2**8 - 1), container.INT8: st.integers(-(2**7), 2**7 - 1),
    container.UINT16: st.integers(0, 2**16 - 1), container.INT16: st.integers(-(2**15), 2**15 - 1),
    container.UINT32: st.integers(0, 2**32 - 1), container.INT32: st.integers(-(2**31), 2**31 - 1),
    container.UINT64: st.integers(0, 2**64 - 1), container.INT64: st.integers(-(2**63), 2**63 - 1),
    container.FLOAT32: st.floats(width=32, allow_nan=False), container.FLOAT64: st.floats(allow_nan=False),
    container.BOOL: st.booleans(),
    container.STRING: st.text(),
}  # fmt: skip


@settings(max_examples=50, deadline=None)
@given(st.data())
def test_fields_survive_a_round_trip(draw: st.DataObject) -> None:
    kind = draw.draw(st.sampled_from(sorted(_NUMBER_VALUES)))
    single, many = draw.draw(_NUMBER_VALUES[kind]), draw.draw(st.lists(_NUMBER_VALUES[kind]))
    field, array = encode_field("a", kind, single), encode_field("b", container.ARRAY, many, kind)
    assert value(field) == single
    assert value(array) == many
    assert (array.element_kind, array.count) == (kind, len(many))
    header = gguf_header({"a": field, "b": array}, [])[0]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.gguf"
        path.write_bytes(header)
        assert open_gguf(path).fields == {"a": field, "b": array}


def test_bytes_that_are_no_utf8_survive() -> None:
    field = Field("t", container.STRING, struct.pack("<Q", 2) + b"\xff\x80")
    assert encode_field("t", container.STRING, value(field)) == field


# ── hostile files ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def u32(number: int) -> bytes:
    return struct.pack("<I", number)


def u64(number: int) -> bytes:
    return struct.pack("<Q", number)


def text(content: bytes | str) -> bytes:
    raw = content.encode() if isinstance(content, str) else content
    return u64(len(raw)) + raw


def tensor(name: str = "t", shape: tuple[int, ...] = (32,), kind: int = 0, offset: int = 0) -> bytes:
    return text(name) + u32(len(shape)) + b"".join(map(u64, shape)) + u32(kind) + u64(offset)


def file(pairs: tuple[bytes, ...] = (), tensors: tuple[bytes, ...] = (), version: int = 3, **claimed: int) -> bytes:
    counts = u64(claimed.get("tensor_count", len(tensors))) + u64(claimed.get("pair_count", len(pairs)))
    return b"GGUF" + u32(version) + counts + b"".join(pairs) + b"".join(tensors) + bytes(4096)


HOSTILE = {
    "empty": (b"", "not a GGUF"),
    "another format": (b"PK\x03\x04" + bytes(100), "not a GGUF"),
    "only the magic": (b"GGUF", "not a GGUF"),
    "version 1": (file(version=1), "version 1"),
    "big-endian": (b"GGUF" + struct.pack(">I", 3) + bytes(100), "big-endian"),
    "pairs beyond the file": (file(pair_count=2**40), "do not fit"),
    "tensors beyond the file": (file(tensor_count=2**63), "do not fit"),
    "key beyond the file": (file((u64(2**62) + b"key",)), "ends at byte"),
    "empty key": (file((text("") + u32(4) + u32(1),)), "empty"),
    "key not UTF-8": (file((text(b"\xff\xfe") + u32(4) + u32(1),)), "UTF-8"),
    "string beyond the file": (file((text("k") + u32(8) + u64(2**63),)), "ends at byte"),
    "array beyond the file": (file((text("k") + u32(9) + u32(4) + u64(2**61),)), "ends at byte"),
    "strings beyond the file": (file((text("k") + u32(9) + u32(8) + u64(2**60),)), "more than the file holds"),
    "string in an array beyond the file": (
        file((text("k") + u32(9) + u32(8) + u64(2) + text("a") + u64(2**63),)),
        "ends at byte",
    ),
    "nested arrays": (file((text("k") + u32(9) + u32(9) + u64(1) + u32(4) + u64(0),)), "nested"),
    "unknown value type": (file((text("k") + u32(13) + u32(1),)), "unknown type 13"),
    "unknown element type": (file((text("k") + u32(9) + u32(77) + u64(1),)), "unknown type 77"),
    "the same key twice": (file((text("k") + u32(4) + u32(1),) * 2), "occurs twice"),
    "alignment 0": (file((text("general.alignment") + u32(4) + u32(0),)), "power of two"),
    "alignment 24": (file((text("general.alignment") + u32(4) + u32(24),)), "power of two"),
    "alignment as text": (file((text("general.alignment") + u32(8) + text("32"),)), "32-bit"),
    "no dimensions": (file((), (tensor(shape=()),)), "0 dimensions"),
    "five dimensions": (file((), (tensor(shape=(1,) * 5),)), "5 dimensions"),
    "2^32 dimensions": (file((), (text("t") + u32(2**32 - 1),)), "dimensions"),
    "dimension 0": (file((), (tensor(shape=(0, 4)),)), "absurd"),
    "product overflow": (file((), (tensor(shape=(2**32, 2**32)),)), "absurd"),
    "unknown tensor type": (file((), (tensor(kind=4),)), "unknown type 4"),
    "part of a block": (file((), (tensor(shape=(33,), kind=8),)), "whole blocks"),
    "offset not aligned": (file((), (tensor(offset=4),)), "multiple"),
    "offset beyond the file": (file((), (tensor(offset=2**40),)), "beyond"),
    "tensor past the end": (file((), (tensor(shape=(32, 1000)),)), "inside the tensor"),
    "overlapping tensors": (file((), (tensor("a"), tensor("b", offset=96), tensor("c", offset=64))), "overlaps"),
    "the same bytes twice": (file((), (tensor("a"), tensor("b"))), "overlaps"),
    "name twice": (file((), (tensor("a"), tensor("a", offset=128))), "occurs twice"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_lying_file_is_refused(name: str, tmp_path: Path) -> None:
    content, message = HOSTILE[name]
    path = tmp_path / "hostile.gguf"
    path.write_bytes(content)
    start = time.process_time()
    with pytest.raises(CheckpointError) as caught:
        open_gguf(path)
    assert message in caught.value.what
    assert caught.value.where == str(path)
    assert caught.value.next
    assert time.process_time() - start < 5  # no hang, whatever the file claims


def test_a_file_cut_anywhere_is_refused(tmp_path: Path) -> None:
    whole = write_gguf(tmp_path / "whole.gguf", layers=2).read_bytes()
    end = max(tensor.offset + tensor.nbytes for tensor in open_gguf(tmp_path / "whole.gguf").tensors.values())
    path = tmp_path / "cut.gguf"
    for length in [*range(0, 1200, 7), *range(1200, end, 211), end - 1]:
        path.write_bytes(whole[:length])
        with pytest.raises(CheckpointError):
            open_gguf(path)
    path.write_bytes(whole[:end])
    assert open_gguf(path).tensors


@settings(deadline=None)
@given(st.data())
def test_a_flipped_byte_in_the_header_never_breaks_the_reader(draw: st.DataObject) -> None:
    fields = {
        "a": encode_field("a", container.ARRAY, ["x", "y"], container.STRING),
        "b": encode_field("b", container.UINT32, 3),
    }
    header, _, size = gguf_header(fields, [("t", "Q8_0", (64, 2)), ("u", "F32", (3,))])
    content = bytearray(header.ljust(size, b"\0"))
    content[draw.draw(st.integers(0, len(header) - 1))] = draw.draw(st.integers(0, 255))
    with tempfile.TemporaryDirectory() as folder, contextlib.suppress(CheckpointError):
        path = Path(folder) / "a.gguf"
        path.write_bytes(content)
        for field in open_gguf(path).fields.values():
            value(field)


def test_a_sparse_giant_with_a_giant_header_is_refused_in_little_memory(tmp_path: Path) -> None:
    path = tmp_path / "giant.gguf"
    with path.open("wb") as stream:
        stream.write(b"GGUF" + u32(3) + u64(0) + u64(1) + text("k") + u32(8) + u64(2**33))
        stream.truncate(2**34)
    tracemalloc.start()
    with pytest.raises(CheckpointError, match="longer than"):
        open_gguf(path)
    assert tracemalloc.get_traced_memory()[1] < 20 << 20
    tracemalloc.stop()


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "missing.gguf"):
        with pytest.raises(CheckpointError):
            open_gguf(path)


# ── deepening ────────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_identity_plan_changes_nothing(tmp_path: Path) -> None:
    source = write_gguf(tmp_path / "a.gguf", keys={"attention.head_count_kv": [1, 2, 3, 4, 2, 1]})
    out = scaled(source, tmp_path / "b.gguf", layers="0:6")
    assert data(out) == data(source)
    assert open_gguf(out).fields == open_gguf(source).fields
    assert out.read_bytes() == source.read_bytes()


def test_a_plan_moves_bytes_and_per_layer_arrays(tmp_path: Path) -> None:
    keys = {"attention.head_count_kv": [1, 2, 3, 4, 5, 6], "attention.sliding_window_pattern": [True, False] * 3}
    source = write_gguf(tmp_path / "a.gguf", keys=keys)
    out = scaled(source, tmp_path / "b.gguf", layers="0:4,2:6")
    plan = [0, 1, 2, 3, 2, 3, 4, 5]
    before, after = data(source), data(out)
    assert len(after) == 2 + 3 * 8
    for name, content in after.items():
        parts = name.split(".")
        origin = ".".join(["blk", str(plan[int(parts[1])]), *parts[2:]]) if parts[0] == "blk" else name
        assert content == before[origin]
    result = open_gguf(out)
    assert result.get("llama.block_count") == 8
    assert result.get("llama.attention.head_count_kv") == [layer + 1 for layer in plan]
    assert result.get("llama.attention.sliding_window_pattern") == [layer % 2 == 0 for layer in plan]
    assert result.get("tokenizer.ggml.tokens") == open_gguf(source).get("tokenizer.ggml.tokens")
    assert next(iter(result.tensors)) == "token_embd.weight"
    assert list(result.tensors)[-1] == "output_norm.weight"


def test_identity_init_zeroes_what_writes_to_the_stream(tmp_path: Path) -> None:
    source = write_gguf(tmp_path / "a.gguf")
    out = scaled(source, tmp_path / "b.gguf", layers="0:4,2:6", identity_init=True)
    after = data(out)
    for position in (4, 5):
        assert not any(after[f"blk.{position}.attn_output.weight"])
        assert not any(after[f"blk.{position}.ffn_down.weight"])
        assert any(after[f"blk.{position}.attn_norm.weight"])
    assert all(any(content) for name, content in after.items() if not name.startswith(("blk.4", "blk.5")))
    for tensor in gguf.GGUFReader(out).tensors:
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        assert (not values.any()) == (tensor.name.startswith(("blk.4", "blk.5")) and "norm" not in tensor.name)


def test_zero_bytes_are_zero_in_every_type_that_is_zeroed() -> None:
    for name in sorted(FLOAT_TYPES):
        kind = gguf.GGMLQuantizationType[name]
        _, nbytes = gguf.GGML_QUANT_SIZES[kind]
        with np.errstate(all="ignore"):
            values = gguf.quants.dequantize(np.zeros((2, 4 * nbytes), np.uint8), kind)
        assert values.size > 0
        assert not values.any(), name


def test_the_output_is_atomic_and_not_overwritten(tmp_path: Path) -> None:
    source, out = write_gguf(tmp_path / "a.gguf"), tmp_path / "b.gguf"
    out.write_bytes(b"mine")
    with pytest.raises(UserError, match="exists"):
        scaled(source, out, drop=1)
    assert out.read_bytes() == b"mine"
    assert not manifest_path(out).exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.gguf", "b.gguf"]


def test_a_plan_for_another_depth_is_refused(tmp_path: Path) -> None:
    source = write_gguf(tmp_path / "a.gguf")
    other = plan_for(write_gguf(tmp_path / "b.gguf", layers=5), "0:5")
    with pytest.raises(PlanError):
        deepened_fields(open_gguf(source), other)


REFUSED = {
    "split": ("llama", {".split.count": 3}, "0:6", "merge"),
    "adapter": ("llama", {".general.type": "adapter"}, "0:6", "adapter"),
    "projector": ("clip", {}, "0:6", "clip"),
    "encoder": ("bert", {"attention.causal": False}, "0:6", "causal"),
    "encoder-decoder": ("t5", {"decoder_block_count": 6}, "0:4,2:6", "encoder-decoder"),
    "more layers than tensors": ("llama", {"block_count": 7}, "0:6", "6 layers"),
    "fewer layers than tensors": ("llama", {"block_count": 5}, "0:6", "6 layers"),
    "absurd layer count": ("llama", {"block_count": 2**32 - 1}, "0:6", "6 layers"),
    "no layer count": ("llama", {"block_count": None}, "0:6", "block_count"),
    "layer count as text": ("llama", {"block_count": "six"}, "0:6", "natural"),
    "array of a wrong length": ("llama", {"attention.head_count_kv": [1, 2, 3]}, "0:4,2:6", "3 elements"),
    "unknown array per layer": ("llama", {"strange": [1, 2, 3, 4, 5, 6]}, "0:4,2:6", "one element per layer"),
    "unknown key about layers": ("llama", {"skipped_layers": 2}, "0:4,2:6", "speaks of layers"),
    "prediction layers": ("deepseek2", {"nextn_predict_layers": 1}, "0:4,2:6", "do not belong"),
    "shared keys and values": ("gemma4", {"attention.shared_kv_layers": 2}, "0:4,2:6", "reuse the keys"),
    "dense layers in the middle": ("deepseek2", {"leading_dense_block_count": 3}, "0:4,2:6", "dense"),
    "gemma 2 out of phase": ("gemma2", {}, "0:4,3:6", "sliding windows"),
    "gemma 2 with an array": ("gemma2", {"attention.sliding_window_pattern": [True, False] * 3}, "0:4,3:6", "sliding windows"),
    "gemma 3 out of phase": ("gemma3", {"attention.sliding_window": 512}, "0:4,2:6", "every 6"),
    "gemma 3 of period 4": (
        "gemma3", {"attention.sliding_window": 8, "attention.sliding_window_pattern": 4}, "0:5,2:6", "every 4",
    ),
    "gpt-oss out of phase": ("gpt-oss", {"attention.sliding_window": 128}, "0:4,3:6", "sliding windows"),
    "cohere 2 out of phase": ("cohere2", {"attention.sliding_window": 128}, "0:4,2:6", "every 4"),
    "llama 4 experts": ("llama4", {"interleave_moe_layer_step": 2, "attention.sliding_window": 0}, "0:4,3:6", "mixture"),
    "smollm3 rotary": ("smollm3", {}, "0:4,2:6", "rotary"),
    "qwen 3.5 attention": ("qwen35", {}, "0:4,2:6", "full-attention"),
    "unknown with an interval": ("novel", {"full_attention_interval": 3}, "0:4,2:6", "full-attention"),
    "gemma 3n": ("gemma3n", {}, "0:4,2:6", "depth"),
    "baichuan": ("baichuan", {}, "0:4,2:6", "ALiBi"),
    "minicpm": ("minicpm", {}, "0:4,2:6", "residual_scale"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_expressed_is_refused(name: str, tmp_path: Path) -> None:
    architecture, keys, spec, message = REFUSED[name]
    source = write_gguf(tmp_path / "a.gguf", architecture, keys=keys)
    with pytest.raises((CheckpointError, UnsupportedModelError)) as caught:
        scaled(source, tmp_path / "b.gguf", layers=spec)
    assert message in str(caught.value)
    assert caught.value.next
    assert [path.name for path in tmp_path.iterdir()] == ["a.gguf"]


ALLOWED = {
    "gemma 2 in phase": ("gemma2", {}, "0:4,2:6"),
    "gemma 3 without windows": ("gemma3", {"attention.sliding_window": 0}, "0:4,2:6"),
    "gpt-oss in phase": ("gpt-oss", {"attention.sliding_window": 128}, "0:4,2:6"),
    "qwen 3.5 with a list": ("qwen35", {"attention.recurrent_layers": [True, True, True, False, True, True]}, "0:4,2:6"),
    "no prediction layers": ("deepseek2", {"nextn_predict_layers": 0}, "0:4,2:6"),
    "minicpm with its scale": ("minicpm", {"residual_scale": 0.5}, "0:4,2:6"),
    "rotary sections": ("qwen2vl", {"rope.dimension_sections": [1, 2, 3, 4, 5, 6]}, "0:4,2:6"),
    "an architecture never heard of": ("novel", {}, "0:4,2:6"),
}


@pytest.mark.parametrize("name", ALLOWED)
def test_what_can_be_expressed_is_allowed(name: str, tmp_path: Path) -> None:
    architecture, keys, spec = ALLOWED[name]
    out = scaled(write_gguf(tmp_path / "a.gguf", architecture, keys=keys), tmp_path / "b.gguf", layers=spec)
    assert layer_count(open_gguf(out)) == 8


def test_a_dense_prefix_is_counted_again(tmp_path: Path) -> None:
    source = write_gguf(tmp_path / "a.gguf", "deepseek2", keys={"leading_dense_block_count": 2})
    for spec, dense in (("0:4,2:6", 2), ("0:2,0:6", None), ("1:6,3:6", 1), ("2:6", 0), ("0:2,1:6", 3)):
        plan = plan_for(source, spec)
        if dense is None:
            dense = 4
        assert value(deepened_fields(open_gguf(source), plan)["deepseek2.leading_dense_block_count"]) == dense


@pytest.mark.parametrize(("architecture", "source_depth", "spec"), [("gemma2", 44, "0:44,42:44"), ("gemma2", 46, "0:46,44:46"),
    ("gemma3", 56, "0:56,50:56"), ("gemma3", 62, "0:62,56:62"), ("exaone4", 60, "0:60,56:60")])  # fmt: skip
def test_depths_that_llama_cpp_takes_for_another_release(
    architecture: str, source_depth: int, spec: str, tmp_path: Path
) -> None:
    source = write_gguf(tmp_path / "a.gguf", architecture, source_depth, keys={"attention.sliding_window": 512})
    with pytest.raises(UnsupportedModelError, match="release"):
        deepened_fields(open_gguf(source), plan_for(source, spec))
    same = plan_for(source, f"0:{source_depth}")
    assert deepened_fields(open_gguf(source), same) == open_gguf(source).fields


def test_more_layers_than_llama_cpp_reads(tmp_path: Path) -> None:
    source = write_gguf(tmp_path / "a.gguf")
    spec = ",".join(["0:6"] * 86)
    with pytest.raises(UnsupportedModelError, match="at most 512"):
        deepened_fields(open_gguf(source), plan_for(source, spec))


@pytest.mark.parametrize(
    "name", ["per_layer_token_embd.weight", "enc.blk.0.attn_q.weight", "v.blk.3.ln.weight", "mtp.0.norm.weight"]
)
def test_tensors_outside_the_stack_that_depend_on_it(name: str, tmp_path: Path) -> None:
    source = write_gguf(tmp_path / "a.gguf", extra=(name,))
    with pytest.raises(UnsupportedModelError, match="outside the stack"):
        deepened_tensors(open_gguf(source), plan_for(source, "0:4,2:6"))


@pytest.mark.parametrize(
    ("architecture", "extra", "message"),
    [
        ("novel", (), "not known for GGUF"),
        ("llama", ("blk.3.mystery.weight",), "mystery"),
        ("llama", ("blk.3.post_ffw_norm.bias",), "adds to"),
    ],
)
def test_layers_that_cannot_be_made_the_identity(
    architecture: str, extra: tuple[str, ...], message: str, tmp_path: Path
) -> None:
    source = write_gguf(tmp_path / "a.gguf", architecture, extra=extra)
    with pytest.raises(UnsupportedModelError, match=message):
        deepened_tensors(open_gguf(source), plan_for(source, "0:4,2:6", identity_init=True))
    assert deepened_tensors(open_gguf(source), plan_for(source, "0:4,2:6"))


# ── decoding ─────────────────────────────────────────────────────────────────────────────────────────────────────────────────

UNDECODABLE = {
    "an architecture without a mapping": ("gemma2", {}, (), "not supported"),
    "rotary scaling": ("llama", {"rope.scaling.factor": 8.0}, (), "rope.scaling.factor"),
    "experts": ("llama", {"expert_count": 8}, (), "expert_count"),
    "heads by layer": ("llama", {"attention.head_count_kv": [1, 2, 3, 4, 5, 6]}, (), "head_count_kv"),
    "partial rotary positions": ("llama", {"rope.dimension_count": 4, "attention.key_length": 8}, (), "size of the heads"),
    "a broken number": ("llama", {"attention.head_count": 0}, (), "positive"),
    "a text as number": ("llama", {"attention.head_count": "four"}, (), "positive"),
    "scaled rotary frequencies": ("llama", {}, ("rope_freqs.weight",), "rope_freqs.weight"),
    "missing tensors": ("llama", {}, (), "is missing"),
}


@pytest.mark.parametrize("name", UNDECODABLE)
def test_what_decoding_would_lose_is_refused(name: str, tmp_path: Path) -> None:
    architecture, keys, extra, message = UNDECODABLE[name]
    keys = {"context_length": 64, "feed_forward_length": HIDDEN} | keys
    source = write_gguf(tmp_path / "a.gguf", architecture, keys=keys, extra=extra)
    (tmp_path / "out").mkdir()
    with pytest.raises((CheckpointError, UnsupportedModelError)) as caught:
        decode_gguf(source, tmp_path / "out")
    assert message in str(caught.value)
    assert not list((tmp_path / "out").iterdir())
