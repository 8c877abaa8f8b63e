"""Bytes on disk: what is read is what the safetensors library reads, what lies is refused, what is written is exact."""

import contextlib
import hashlib
import json
import os
import struct

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from deepen.checkpoint import copy as copying
from deepen.checkpoint import open_checkpoint
from deepen.checkpoint.convert import convert
from deepen.checkpoint.copy import Span, copy_spans
from deepen.checkpoint.manifest import read_manifest, write_manifest
from deepen.checkpoint.reader import read_header
from deepen.checkpoint.writer import Output, write_tensors
from deepen.errors import CheckpointError, UnsupportedModelError

TENSORS = {
    "a": torch.arange(12, dtype=torch.float32).reshape(3, 4),
    "b": torch.ones(5, dtype=torch.bfloat16),
    "c": torch.zeros(0, 4),
    "d": torch.tensor(7, dtype=torch.int64),
    "e": torch.tensor([True, False, True]),
    "f": torch.arange(6, dtype=torch.uint8),
    "g": torch.tensor([1.0, -2.0]).to(torch.float8_e4m3fn),
}


def folder_of(path, tensors=TENSORS, config=None):
    path.mkdir()
    save_file(tensors, path / "model.safetensors")
    (path / "config.json").write_text(json.dumps(config or {"model_type": "llama"}))
    return path


def raw_file(path, header, data=b"", length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)
    return path


def test_headers_agree_with_the_library(tmp_path):
    checkpoint = open_checkpoint(folder_of(tmp_path / "m"))
    assert checkpoint.tensors.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        info = checkpoint.tensors[name]
        data = info.file.read_bytes()[info.offset : info.offset + info.nbytes]
        assert info.shape == tuple(tensor.shape)
        assert data == tensor.reshape(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else data == b""


def one(dtype="F32", shape=(2,), offsets=(0, 8)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


LIES = {
    "empty file": (b"", b"", None),
    "length beyond the file": ({"a": one()}, b"12345678", 10**6),
    "length beyond any file": ({"a": one()}, b"12345678", 2**63),
    "not JSON": (b"{hello", b"", None),
    "not UTF-8": (b'{"\xff": 1}', b"", None),
    "a list": ([1], b"", None),
    "deep nesting": (b"[" * 100_000, b"", None),
    "duplicate names": (b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"a":{"dtype":"F32","shape":[2],'
                        b'"data_offsets":[0,8]}}', b"12345678", None),
    "offset past the end": ({"a": one(offsets=(0, 80), shape=(20,))}, b"12345678", None),
    "overlap": ({"a": one(), "b": one(offsets=(4, 12))}, b"1" * 12, None),
    "hole": ({"a": one(), "b": one(offsets=(12, 20))}, b"1" * 20, None),
    "does not begin at 0": ({"a": one(offsets=(4, 12))}, b"1" * 12, None),
    "reversed": ({"a": one(offsets=(8, 0))}, b"1" * 8, None),
    "negative": ({"a": one(offsets=(-8, 0))}, b"1" * 8, None),
    "wrong size for its type": ({"a": one(dtype="F64")}, b"1" * 8, None),
    "unknown type": ({"a": one(dtype="F3")}, b"1" * 8, None),
    "type is a list": ({"a": one(dtype=["F32"])}, b"1" * 8, None),
    "float in the shape": ({"a": one(shape=(2.0,))}, b"1" * 8, None),
    "true in the shape": ({"a": one(shape=(True, 2))}, b"1" * 8, None),
    "negative shape": ({"a": one(shape=(-2,))}, b"1" * 8, None),
    "huge shape": ({"a": one(shape=(2**62, 2**62, 2**62))}, b"1" * 8, None),
    "shape is text": ({"a": {**one(), "shape": "22"}}, b"1" * 8, None),
    "no offsets": ({"a": {"dtype": "F32", "shape": [2]}}, b"1" * 8, None),
    "entry is a number": ({"a": 3}, b"1" * 8, None),
    "bytes after the last tensor": ({"a": one()}, b"1" * 9, None),
    "cut in the data": ({"a": one()}, b"1" * 7, None),
    "half-byte tensor": ({"a": one(dtype="F4", shape=(3,), offsets=(0, 1))}, b"1", None),
}  # fmt: skip


@pytest.mark.parametrize("lie", LIES)
def test_lying_headers(tmp_path, lie):
    header, data, length = LIES[lie]
    file = raw_file(tmp_path / "model.safetensors", header, data, length)
    if lie == "empty file":
        file.write_bytes(b"")
    with pytest.raises(CheckpointError) as caught:
        read_header(file)
    assert str(file) in str(caught.value)
    assert "Next:" in str(caught.value)


def test_a_hundred_megabytes_of_json(tmp_path):
    file = tmp_path / "model.safetensors"
    with file.open("wb") as stream:
        stream.write(struct.pack("<Q", 100_000_000) + b'{"a":')
        stream.truncate(100_000_008)
    with pytest.raises(CheckpointError, match="more than any model needs"):
        read_header(file)


@given(st.binary(max_size=300))
def test_any_bytes_are_a_header_or_an_error(data):
    import tempfile
    from pathlib import Path

    with tempfile.NamedTemporaryFile() as file:
        file.write(data)
        file.flush()
        with contextlib.suppress(CheckpointError):
            read_header(Path(file.name))


def test_every_cut_is_noticed(tmp_path):
    folder = folder_of(tmp_path / "m")
    file = folder / "model.safetensors"
    whole = file.read_bytes()
    for length in range(len(whole)):
        file.write_bytes(whole[:length])
        with pytest.raises(CheckpointError):
            open_checkpoint(folder)


def indexed(tmp_path, weight_map, shards):
    folder = tmp_path / "m"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    for name, tensors in shards.items():
        save_file(tensors, folder / name)
    return folder


A, B = {"a": torch.ones(2)}, {"b": torch.ones(2)}


@pytest.mark.parametrize(
    ("weight_map", "shards"),
    [
        ({"a": "../outside.safetensors"}, {"1.safetensors": A}),
        ({"a": "/etc/passwd"}, {"1.safetensors": A}),
        ({"a": "x/../../outside.safetensors"}, {"1.safetensors": A}),
        ({"a": "C:\\outside.safetensors"}, {"1.safetensors": A}),
        ({"a": "link.safetensors"}, {"1.safetensors": A}),
        ({"a": ""}, {"1.safetensors": A}),
        ({"a": "1.safetensors", "b": "2.safetensors"}, {"1.safetensors": A}),
        ({"a": "1.safetensors", "b": "1.safetensors"}, {"1.safetensors": A}),
        ({"a": "1.safetensors"}, {"1.safetensors": A | B}),
        ({"a": "1.safetensors", "b": "2.safetensors"}, {"1.safetensors": A | B, "2.safetensors": B}),
        ({"a": 7}, {"1.safetensors": A}),
        ({}, {"1.safetensors": A}),
        ([], {}),
    ],
)
def test_bad_index(tmp_path, weight_map, shards):
    save_file(A, tmp_path / "outside.safetensors")
    folder = indexed(tmp_path, weight_map, shards)
    (folder / "link.safetensors").symlink_to(tmp_path / "outside.safetensors")
    with pytest.raises(CheckpointError):
        open_checkpoint(folder)


def test_a_good_index(tmp_path):
    folder = indexed(tmp_path, {"a": "1.safetensors", "b": "2.safetensors"}, {"1.safetensors": A, "2.safetensors": B})
    assert set(open_checkpoint(folder).tensors) == {"a", "b"}


def test_a_hub_snapshot_may_link_to_its_blobs(tmp_path):
    blobs, snapshot = tmp_path / "models--o--n" / "blobs", tmp_path / "models--o--n" / "snapshots" / "abc"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    save_file(A, blobs / "1")
    (blobs / "2").write_text("{}")
    (snapshot / "model.safetensors").symlink_to("../../blobs/1")
    (snapshot / "config.json").symlink_to("../../blobs/2")
    assert set(open_checkpoint(snapshot).tensors) == {"a"}


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "no config.json"),
        ({"adapter_config.json": "{}", "adapter_model.safetensors": ""}, "LoRA adapter"),
        ({"config.json": "{}", "adapter_model.safetensors": ""}, "LoRA adapter"),
        ({"model_index.json": "{}"}, "diffusion"),
        ({"config.json": "{}", "pytorch_model.bin": ""}, "never read"),
        ({"config.json": "{}", "consolidated.00.pth": ""}, "never read"),
        ({"config.json": "{}"}, "neither"),
        ({"config.json": "{"}, "JSON"),
        ({"config.json": "[]"}, "object"),
        ({"config.json": '{"a": 1, "a": 2}'}, "twice"),
        ({"config.json": '"' + "x" * 50_000_001 + '"'}, "larger"),
    ],
)
def test_not_a_checkpoint(tmp_path, files, message):
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(CheckpointError, match=message) as caught:
        open_checkpoint(tmp_path)
    assert "Next:" in str(caught.value)


def test_side_files(tmp_path):
    folder = folder_of(tmp_path / "m")
    travels = [
        "tokenizer.model",
        "merges.txt",
        "LICENSE",
        "modeling_x.py",
        "additional_chat_templates/tool.jinja",
        "qwen.tiktoken",
    ]
    stays = ["pytorch_model.bin", ".gitattributes", "x.gguf", "README.md", "deepen.json", ".cache/x", "original/params.pth"]
    for name in travels + stays:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(name)
    assert {file.as_posix() for file in open_checkpoint(folder).side_files} == set(travels)
    (folder / "notes.txt").symlink_to("/etc/hostname")
    with pytest.raises(CheckpointError, match="outside"):
        open_checkpoint(folder)


def outputs_of(folder, dtype=None, fill=None):
    return [
        Output(name, tensor, dtype if dtype and tensor.dtype in {"F32", "BF16"} else tensor.dtype, fill)
        for name, tensor in open_checkpoint(folder).tensors.items()
    ]


@pytest.mark.parametrize("shard_bytes", [1, 20, 60, 10**9])
def test_shards_are_bounded_and_exact(tmp_path, shard_bytes):
    folder, out = folder_of(tmp_path / "m"), tmp_path / "out"
    out.mkdir()
    outputs = [*outputs_of(folder), *(Output(f"{o.name}.again", o.source, o.dtype) for o in outputs_of(folder))]
    records, headers = write_tensors(out, outputs, shard_bytes=shard_bytes, advance=lambda _: None)
    (out / "config.json").write_text("{}")
    shards = sorted(out.glob("*.safetensors"))
    assert {shard.name for shard in shards} == set(headers)
    found = {name: tensor for shard in shards for name, tensor in load_file(shard).items()}
    for name, tensor in TENSORS.items():
        for copy in (found[name], found[f"{name}.again"]):
            assert copy.dtype == tensor.dtype
            assert torch.equal(
                copy.view(torch.uint8) if copy.ndim else copy, tensor.view(torch.uint8) if tensor.ndim else tensor
            )
    for shard in shards:
        tensors, _ = read_header(shard)
        assert len(tensors) == 1 or sum(tensor.nbytes for tensor in tensors.values()) <= shard_bytes
        assert json.loads(shard.read_bytes()[8:].split(b"}}")[0] + b"}}")["__metadata__"] == {"format": "pt"}
    assert set(open_checkpoint(out).tensors) == set(found)
    assert all(record["sha256"] == record["source_sha256"] for record in records)


def test_each_source_byte_is_read_once(tmp_path, monkeypatch):
    folder, out = folder_of(tmp_path / "m"), tmp_path / "out"
    out.mkdir()
    outputs = [Output(f"{o.name}.{i}", o.source, o.dtype) for o in outputs_of(folder) for i in range(3)]
    read = []
    original = os.preadv
    monkeypatch.setattr(os, "preadv", lambda *arguments: read.append(original(*arguments)) or read[-1])
    write_tensors(out, outputs, shard_bytes=10**9, advance=lambda _: None)
    assert sum(read) == sum(tensor.nbytes for tensor in open_checkpoint(folder).tensors.values())


def no_direct_writes(monkeypatch):
    monkeypatch.delattr(os, "O_DIRECT")


def blocks_that_do_not_suit(monkeypatch):
    original = os.pwrite

    def pwrite(descriptor, data, offset):
        import fcntl

        if fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_DIRECT:
            raise OSError(22, "Invalid argument")
        return original(descriptor, data, offset)

    monkeypatch.setattr(os, "pwrite", pwrite)


def short_writes(monkeypatch):
    original = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda descriptor, data, offset: original(descriptor, data[:5000], offset))


def nothing(_):
    pass


# source offset, target offset, size: misaligned, aligned and larger than the buffer, aligned with a rest, empty
RANGES = [(5, 9, 2 << 20), (0, 4096, 9 << 20), (8, 8192, (1 << 20) + 77), (3, 0, 0)]


@pytest.mark.parametrize("trouble", [nothing, no_direct_writes, blocks_that_do_not_suit, short_writes])
@pytest.mark.parametrize(("source_offset", "offset", "size"), RANGES)
def test_bytes_arrive_whatever_the_file_system_can_do(tmp_path, monkeypatch, trouble, source_offset, offset, size):
    data = os.urandom(10 << 20)
    (tmp_path / "a").write_bytes(data)
    before = os.urandom(11 << 20)
    (tmp_path / "b").write_bytes(before)
    (tmp_path / "c").write_bytes(before)
    trouble(monkeypatch)
    moved = []
    targets = [Span(tmp_path / name, offset, size) for name in "bc"]
    (digest,) = copy_spans([(Span(tmp_path / "a", source_offset, size), targets)], moved.append)
    expected = before[:offset] + data[source_offset : source_offset + size] + before[offset + size :]
    assert (tmp_path / "b").read_bytes() == (tmp_path / "c").read_bytes() == expected
    assert sum(moved) == 2 * size
    assert digest == hashlib.sha256(data[source_offset : source_offset + size]).hexdigest()


def test_a_source_that_shrinks_is_noticed(tmp_path):
    (tmp_path / "a").write_bytes(b"x" * 100)
    (tmp_path / "b").write_bytes(bytes(200))
    with pytest.raises(CheckpointError, match="shorter"):
        copy_spans([(Span(tmp_path / "a", 0, 200), [Span(tmp_path / "b", 0, 200)])], lambda _: None)


def test_a_source_that_changes_is_noticed(tmp_path):
    (tmp_path / "a").write_bytes(b"x" * 100)
    (tmp_path / "b").write_bytes(bytes(100))
    spans = [(Span(tmp_path / "a", 0, 100), [Span(tmp_path / "b", 0, 100)])]
    with pytest.raises(CheckpointError, match="changed"):
        copy_spans(spans, lambda _: (tmp_path / "a").write_bytes(b"y" * 100))


def test_an_interrupted_copy_ends_at_once(tmp_path):
    (tmp_path / "a").write_bytes(bytes(1 << 20))
    (tmp_path / "b").write_bytes(bytes(1 << 20))
    spans = [(Span(tmp_path / "a", 0, 1 << 20), [Span(tmp_path / "b", 0, 1 << 20)])] * 500
    calls = []

    def interrupt(_):
        calls.append(1)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        copy_spans(spans, interrupt)
    assert len(calls) == 1


TORCH = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32, "F64": torch.float64}


@pytest.mark.parametrize("source", TORCH)
@pytest.mark.parametrize("target", TORCH)
def test_conversion_rounds_as_torch_does(source, target):
    values = torch.randn(20_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    special = [0.0, -0.0, 1e-40, -1e-8, 6e-8, 1.0 + 2**-8, 1.0 + 2**-9, 1.0 + 3 * 2**-9, float("inf"), float("-inf")]
    values = torch.cat([values, values * 1e-4, torch.tensor(special, dtype=torch.float64)]).to(TORCH[source])
    data = convert(values.view(torch.uint8).numpy().tobytes(), source, target, "x")
    if (source, target) == ("F64", "F16"):  # torch rounds twice here, over float32
        expected = torch.from_numpy(values.numpy().astype("<f2"))
    else:
        expected = values.float().to(TORCH[target]) if target == "BF16" else values.to(TORCH[target])
    assert data == expected.view(torch.uint8).numpy().tobytes()


@pytest.mark.parametrize("target", ["F16", "BF16", "F32"])
def test_nan_stays_nan(target):
    bits = np.array([0x7F800001, 0xFFFFFFFF, 0x7FC00000], "<u4").tobytes()
    result = torch.frombuffer(bytearray(convert(bits, "F32", target, "x")), dtype=TORCH[target])
    assert result.isnan().all()


@pytest.mark.parametrize(
    ("value", "source", "target"), [(70000.0, "F32", "F16"), (3.4e38, "F32", "BF16"), (1e300, "F64", "F32")]
)
def test_overflow_is_refused(value, source, target):
    data = struct.pack({"F32": "<f", "F64": "<d"}[source], value)
    with pytest.raises(CheckpointError, match="too large"):
        convert(data, source, target, "x")


def test_quantised_tensors_are_not_converted():
    with pytest.raises(UnsupportedModelError):
        convert(b"1234", "F8_E4M3", "F32", "x")


def test_written_conversions_and_constants(tmp_path):
    folder, out = folder_of(tmp_path / "m"), tmp_path / "out"
    out.mkdir()
    constants = [Output(f"{o.name}.0", o.source, o.dtype, -1.0) for o in outputs_of(folder) if o.name in {"a", "b"}]
    outputs = [*outputs_of(folder, dtype="F16"), *constants]
    records, _ = write_tensors(out, outputs, shard_bytes=10**9, advance=lambda _: None)
    found = load_file(out / "model.safetensors")
    assert torch.equal(found["a"], TENSORS["a"].half())
    assert torch.equal(found["d"], TENSORS["d"])
    assert torch.equal(found["a.0"], torch.full((3, 4), -1.0))
    for record in records:
        tensor = read_header(out / "model.safetensors")[0][record["name"]]
        assert copying.hash_span(Span(tensor.file, tensor.offset, tensor.nbytes)) == record["sha256"]


def test_a_manifest_notices_every_change(tmp_path):
    write_manifest(tmp_path, verb="scale", options={"drop": 8}, source={"model": "x"}, seconds=1.0, tensors=[{"name": "ä"}])
    assert read_manifest(tmp_path)["tensors"] == [{"name": "ä"}]
    file = tmp_path / "deepen.json"
    whole = file.read_bytes()
    meaningful = [i for i, byte in enumerate(whole) if byte not in b" \n"]
    for position in meaningful:
        file.write_bytes(whole[:position] + bytes([whole[position] ^ 1]) + whole[position + 1 :])
        with pytest.raises(CheckpointError):
            read_manifest(tmp_path)
