"""Write a safetensors checkpoint: shards of bounded size, laid out before the first byte moves."""

from __future__ import annotations

import hashlib
import json
import os
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from deepen.checkpoint.convert import FLOATS, convert, convert_span
from deepen.checkpoint.copy import BLOCK, Files, Span, copy_spans, hash_file, hash_span, write_at
from deepen.checkpoint.reader import DTYPE_BITS, INDEX_FILE, SINGLE_FILE, Tensor, read_header
from deepen.output import write_file

Write = Callable[[bytes], None]
"""Takes the next bytes of a tensor."""


@dataclass(frozen=True)
class Output:
    """One tensor to be written.

    Attributes:
        name: its new name.
        source: the tensor it is made from (shape, and bytes unless `fill` or `compute` is given).
        dtype: its new element type; equal to the source's for a plain copy.
        fill: write this constant instead of the source's bytes.
        compute: write what this computes instead: it hands all bytes to the function it is given, in order, and returns the
            SHA-256 of each tensor that it read.
    """

    name: str
    source: Tensor
    dtype: str
    fill: float | None = None
    compute: Callable[[Files, Write], list[str]] | None = None

    @property
    def nbytes(self) -> int:
        """Length of the written tensor in bytes."""
        return self.source.parameters * DTYPE_BITS[self.dtype] // 8


def write_tensors(
    folder: Path, outputs: Sequence[Output], *, shard_bytes: int, advance: Callable[..., None]
) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Write tensors as `model.safetensors`, or as numbered shards of at most `shard_bytes` with their index.

    A tensor larger than a shard gets a shard of its own. Each source byte is read and hashed once, however often it is written.

    Args:
        folder: an existing folder.
        outputs: the tensors, in the order in which they should lie.
        shard_bytes: the largest shard, in bytes of tensor data.
        advance: called with the number of bytes written.

    Returns:
        One record per tensor for the manifest (`name`, `sha256`, `source`, `source_sha256`, and `fill` where one was written,
        and `sources_sha256` where one was computed), and the SHA-256 of each shard's header.
    """
    shards = _shards(outputs, shard_bytes)
    names = (
        [SINGLE_FILE]
        if len(shards) == 1
        else [f"model-{i:05}-of-{len(shards):05}.safetensors" for i in range(1, len(shards) + 1)]
    )
    place: dict[str, Span] = {}
    headers = {}
    for name, shard in zip(names, shards, strict=True):
        header = _header(shard)
        (folder / name).write_bytes(header)
        headers[name] = hashlib.sha256(header).hexdigest()
        offset = len(header)
        for output in shard:
            place[output.name] = Span(folder / name, offset, output.nbytes)
            offset += output.nbytes
        os.truncate(folder / name, offset)
    if len(shards) > 1:
        index = {
            "metadata": {"total_size": sum(output.nbytes for output in outputs)},
            "weight_map": {output.name: place[output.name].file.name for shard in shards for output in shard},
        }
        write_file(folder / INDEX_FILE, json.dumps(index, indent=2) + "\n")
    return _move(outputs, place, advance), headers


def hash_tensors(folder: Path) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """What `write_tensors` returns, for a folder whose tensors were trained and so have no source."""
    tensors = [tensor for file in sorted(folder.glob("*.safetensors")) for tensor in read_header(file)[0].values()]
    records = [
        {"name": tensor.name, "sha256": hash_span(_span(tensor)), "source": None, "source_sha256": None} for tensor in tensors
    ]
    return records, {file.name: header_hash(file) for file in {tensor.file for tensor in tensors}}


def header_hash(file: Path) -> str:
    """The SHA-256 of a safetensors file's header, length prefix included."""
    with file.open("rb") as stream:
        prefix = stream.read(8)
        return hashlib.sha256(prefix + stream.read(struct.unpack("<Q", prefix)[0])).hexdigest()


def copy_side_files(source: Path, files: Sequence[Path], folder: Path) -> None:
    """Copy files byte for byte, with the folders they lie in."""
    for file in files:
        target = folder / file
        target.parent.mkdir(parents=True, exist_ok=True)
        target.touch()
        size = (source / file).stat().st_size
        copy_spans([(Span(source / file, 0, size), [Span(target, 0, size)])], lambda _: None)


def file_hashes(folder: Path, exclude: Sequence[str]) -> dict[str, str]:
    """The SHA-256 of every file below a folder but hidden ones and the excluded names, by relative path."""
    names = {path.relative_to(folder): path for path in sorted(folder.rglob("*")) if path.is_file()}
    visible = {name.as_posix(): path for name, path in names.items() if not any(part.startswith(".") for part in name.parts)}
    return {name: hash_file(path) for name, path in visible.items() if name not in exclude}


def _shards(outputs: Sequence[Output], shard_bytes: int) -> list[list[Output]]:
    shards: list[list[Output]] = [[]]
    used = 0
    for output in outputs:
        if shards[-1] and used + output.nbytes > shard_bytes:
            shards.append([])
            used = 0
        shards[-1].append(output)
        used += output.nbytes
    # whole blocks first keeps them on block boundaries; then wide elements first keeps every tensor aligned to its element size
    return [sorted(shard, key=lambda output: (output.nbytes % BLOCK != 0, -DTYPE_BITS[output.dtype])) for shard in shards]


def _header(shard: Sequence[Output]) -> bytes:
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}  # some versions of transformers refuse a file without it
    offset = 0
    for output in shard:
        entries[output.name] = {
            "dtype": output.dtype,
            "shape": list(output.source.shape),
            "data_offsets": [offset, offset + output.nbytes],
        }
        offset += output.nbytes
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-(8 + len(text)) % BLOCK)  # the data begin at a block boundary, where disks write fastest
    return struct.pack("<Q", len(text)) + text


def _move(outputs: Sequence[Output], place: dict[str, Span], advance: Callable[..., None]) -> list[dict[str, Any]]:
    copied: dict[str, list[Output]] = {}
    converted: dict[str, list[Output]] = {}
    sources = {output.source.name: output.source for output in outputs}
    for output in outputs:
        if output.fill is None and output.compute is None:
            (copied if output.dtype == output.source.dtype else converted).setdefault(output.source.name, []).append(output)
    hashes: dict[str, tuple[str, str]] = {}
    computed: dict[str, list[str]] = {}

    spans = [(_span(sources[name]), [place[output.name] for output in group]) for name, group in copied.items()]
    for (_, group), digest in zip(copied.items(), copy_spans(spans, advance), strict=True):
        hashes |= {output.name: (digest, digest) for output in group}

    with Files() as files:
        for name, group in converted.items():
            source = sources[name]
            targets = [place[output.name] for output in group]
            digests = convert_span(files, _span(source), source.dtype, targets, group[0].dtype, name, advance)
            hashes |= {output.name: digests for output in group}
        for output in outputs:
            if output.name not in hashes:
                produce = output.compute or partial(_fill, output)
                computed[output.name], digest = _produce(produce, files, place[output.name], advance)
                hashes[output.name] = ("", digest)
        files.check_unchanged()

    by_source = {output.source.name: hashes[output.name][0] for output in outputs if output.name not in computed}
    return [
        _record(output, hashes[output.name][1], by_source.get(output.source.name), computed.get(output.name))
        for output in outputs
    ]


def _record(output: Output, digest: str, source_digest: str | None, computed: list[str] | None) -> dict[str, Any]:
    record: dict[str, Any] = {
        "name": output.name,
        "sha256": digest,
        "source": output.source.name,
        "source_sha256": source_digest,
    }
    if output.compute is not None:
        record["sources_sha256"] = computed
    if output.fill is not None:
        record["fill"] = output.fill
    if output.dtype != output.source.dtype:
        record["source_dtype"], record["dtype"] = output.source.dtype, output.dtype
    return record


def _produce(
    compute: Callable[[Files, Write], list[str]], files: Files, span: Span, advance: Callable[..., None]
) -> tuple[list[str], str]:
    digest, written = hashlib.sha256(), 0

    def write(data: bytes) -> None:
        nonlocal written
        digest.update(data)
        write_at(files, span.file, data, span.offset + written)
        written += len(data)
        advance(len(data))

    sources = compute(files, write)
    assert written == span.nbytes
    return sources, digest.hexdigest()


def _fill(output: Output, _files: Files, write: Write) -> list[str]:
    element = filled(output.dtype, output.fill or 0.0, 1)
    block, left = element * ((1 << 20) // len(element)), output.nbytes
    while left > 0:
        write(block[:left])
        left -= len(block)
    return []


def filled(dtype: str, value: float, count: int) -> bytes:
    """`count` elements of `value` as bytes of `dtype`, one of the plain floats."""
    one = convert(struct.pack("<d", value), "F64", dtype, "fill")
    assert len(one) == FLOATS[dtype]
    return one * count


def _span(tensor: Tensor) -> Span:
    return Span(tensor.file, tensor.offset, tensor.nbytes)
