"""Checkpoints as GGUF files, which llama.cpp and everything built on it run."""

from __future__ import annotations

import hashlib
import math
import time
from pathlib import Path

import numpy as np

from deepen.checkpoint import Checkpoint, open_checkpoint, resolve
from deepen.checkpoint.manifest import manifest, manifest_text
from deepen.errors import MissingDependencyError, UnsupportedModelError
from deepen.output import check_disk, check_target, new_file, write_file
from deepen.progress import progress

__all__ = ["check_export", "export"]

try:
    from gguf import GGUFWriter
except ImportError as _error:
    raise MissingDependencyError("exporting needs the package gguf", next="pip install 'deepen[run]'") from _error

from deepen.export.check import check_export, require_equal
from deepen.export.llama import ARCHITECTURE, Part, Shape, interleave, list_parts, read_part, read_shape, write_keys
from deepen.export.metadata import write_metadata
from deepen.export.quantize import Quantization, encode, parse_quantization, row_blocks, tensor_bytes, tensor_type
from deepen.export.vocabulary import Vocabulary, read_vocabulary, write_vocabulary

_HEADER_BYTES = 16_000_000  # keys, of which the vocabulary is nearly all


def export(model: str | Path, out: str | Path, *, quantize: str = "F16", overwrite: bool = False) -> Path:
    """Write a checkpoint of the Llama family as one GGUF file, and check it against its source before it appears.

    Tensors are read, converted and written a few megabytes at a time. A manifest, `OUT.deepen.json`, lies beside the file.

    Args:
        model: a checkpoint folder or a Hub id.
        out: the new file.
        quantize: `F32`, `F16`, `BF16` or `Q8_0`: the format of the matrices (vectors are always float32).
        overwrite: replace an existing file.

    Returns:
        The path of the file.

    Raises:
        UnsupportedModelError: another family, or a feature or tokenizer that llama.cpp would treat differently.
        Refuted: the file, once written, was not equal to its source; nothing is left of it.
    """
    start = time.monotonic()
    quantization = parse_quantization(quantize)
    out = check_target(out, overwrite=overwrite)
    folder = resolve(model)
    if folder.is_file():
        raise UnsupportedModelError(
            "a GGUF file already", where=folder, next="decode it first: deepen scale MODEL OUT --to hf --layers 0:N"
        )
    checkpoint = open_checkpoint(folder)
    shape = read_shape(checkpoint)
    parts = list_parts(checkpoint, shape)
    vocabulary = read_vocabulary(folder, shape.vocabulary, checkpoint.config)
    size = sum(tensor_bytes(part.shape, tensor_type(part.shape, quantization)) for part in parts)
    check_disk(out, size + _HEADER_BYTES)
    with new_file(out, overwrite=overwrite) as partial:
        _write_header(partial, checkpoint, _name(model), shape, parts, vocabulary, quantization)
        _append_tensors(partial, parts, quantization, size)
        require_equal(folder, partial, out)
        with partial.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
    content = manifest(
        verb="export",
        options={"quantize": quantization.name},
        source={"model": str(model)},
        seconds=time.monotonic() - start,
        files={out.name: digest},
    )
    write_file(out.with_name(f"{out.name}.deepen.json"), manifest_text(content))
    return out


def _name(model: str | Path) -> str:
    """What to call the model: its folder, or the last part of its Hub id."""
    return Path(model).resolve().name if Path(model).exists() else str(model).partition("@")[0].rpartition("/")[2]


def _write_header(
    file: Path,
    checkpoint: Checkpoint,
    name: str,
    shape: Shape,
    parts: list[Part],
    vocabulary: Vocabulary,
    quantization: Quantization,
) -> None:
    writer = GGUFWriter(file, ARCHITECTURE)
    parameters = sum(math.prod(part.shape) for part in parts)
    write_metadata(writer, checkpoint.path, name, parameters, quantization)
    write_keys(writer, checkpoint, shape)
    write_vocabulary(writer, vocabulary)
    for part in parts:
        kind = tensor_type(part.shape, quantization)
        writer.add_tensor_info(part.name, part.shape, np.dtype(np.float32), tensor_bytes(part.shape, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()


def _append_tensors(file: Path, parts: list[Part], quantization: Quantization, size: int) -> None:
    with file.open("ab") as stream, progress(f"export {quantization.name}", size, "B") as advance:

        def align() -> None:
            stream.write(bytes(-stream.tell() % 32))  # GGUF's default alignment

        align()
        for part in parts:
            kind = tensor_type(part.shape, quantization)
            rows, columns = (1, part.shape[0]) if len(part.shape) == 1 else part.shape
            for start, stop in row_blocks(rows, columns, part.rotary_head or 1):
                values = read_part(part, start, stop)
                if part.rotary_head:
                    values = interleave(values.reshape(-1, columns if rows > 1 else 1), part.rotary_head).reshape(values.shape)
                data = encode(values, kind, part.name)
                stream.write(data)
                advance(len(data))
            align()
