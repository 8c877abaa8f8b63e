"""Checkpoints as GGUF files, which llama.cpp and everything built on it run."""

from __future__ import annotations

import hashlib
import math
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np

from deepen.checkpoint import Checkpoint, open_checkpoint, resolve
from deepen.checkpoint.folder import source_facts
from deepen.checkpoint.manifest import manifest, manifest_text
from deepen.errors import MissingDependencyError, UnsupportedModelError
from deepen.output import check_disk, check_target, new_file, write_file
from deepen.progress import progress

__all__ = ["check_export", "export"]

try:
    from gguf import GGUFWriter
except ImportError as _error:
    raise MissingDependencyError("exporting needs the package gguf", next="pip install 'deepen[run]'") from _error

from deepen.export.check import Tokenizer, check_export, require_equal
from deepen.export.llama import (
    ARCHITECTURE,
    Part,
    Shape,
    list_parts,
    pieces,
    policy,
    read_shape,
    write_keys,
    written_rows,
)
from deepen.export.metadata import read_card, write_metadata
from deepen.export.ollama import modelfile, template_renderer
from deepen.export.quantize import Policy, parse_quantization
from deepen.export.rows import encode, in_order, tensor_bytes
from deepen.export.vocabulary import Vocabulary, read_vocabulary, write_vocabulary

_HEADER_BYTES = 16_000_000  # keys, of which the vocabulary is nearly all


def export(model: str | Path, out: str | Path, *, quantize: str = "F16", ollama: bool = False, overwrite: bool = False) -> Path:
    """Write a checkpoint of the Llama family as one GGUF file, and check it against its source before it appears.

    Tensors are read, converted and written a few megabytes at a time, on all cores. A manifest, `OUT.deepen.json`, lies beside
    the file; its `check` says how close the GGUF is to its source.

    Args:
        model: a checkpoint folder or a Hub id.
        out: the new file.
        quantize: `F32`, `F16`, `BF16`, `Q8_0`, `Q6_K`, `Q5_K_M`, `Q4_K_M` or `Q4_0`: the format of the matrices, mixed as
            llama.cpp does (vectors are always float32).
        ollama: also write `OUT.Modelfile`, for `ollama create NAME -f OUT.Modelfile`.
        overwrite: replace an existing file.

    Returns:
        The path of the file.

    Raises:
        UnsupportedModelError: another family, or a feature, tokenizer or (for Ollama) template that cannot be said.
        MissingDependencyError: a quantised format needs xllamacpp.
        Refuted: the file, once written, was not equal to its source; nothing is left of it.
    """
    start = time.monotonic()
    quantization = parse_quantization(quantize)
    out = check_target(out, overwrite=overwrite)
    instructions = check_target(out.with_suffix(".Modelfile"), overwrite=overwrite) if ollama else None
    folder = resolve(model)
    if folder.is_file():
        raise UnsupportedModelError(
            "a GGUF file already", where=folder, next="decode it first: deepen scale MODEL OUT --to hf --layers 0:N"
        )
    checkpoint = open_checkpoint(folder)
    shape = read_shape(checkpoint)
    parts = list_parts(checkpoint, shape)
    vocabulary = read_vocabulary(folder, shape.vocabulary, checkpoint.config)
    chosen = policy(shape, quantization)
    size = sum(tensor_bytes(part.shape, chosen.type(part.name, part.shape)) for part in parts)
    check_disk(out, size + _HEADER_BYTES)
    tokenizer = Tokenizer(folder)
    text = _modelfile(out, folder, tokenizer, vocabulary, shape.context) if instructions else None
    with new_file(out, overwrite=overwrite) as partial:
        _write_header(partial, checkpoint, _name(model), shape, parts, vocabulary, chosen)
        _append_tensors(partial, parts, chosen, size)
        check = require_equal(folder, partial, out, tokenizer)
        with partial.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
    content = manifest(
        verb="export",
        options={"quantize": quantization.name},
        source=source_facts(folder, str(model)),
        seconds=time.monotonic() - start,
        files={out.name: digest},
        check=asdict(check),
    )
    write_file(out.with_name(f"{out.name}.deepen.json"), manifest_text(content))
    if instructions and text:
        write_file(instructions, text)
    return out


def _modelfile(out: Path, folder: Path, tokenizer: Tokenizer, vocabulary: Vocabulary, context: int) -> str:
    loaded, reason = tokenizer.get()
    if loaded is None or not loaded.chat_template:
        raise UnsupportedModelError(
            "a Modelfile needs the chat template" + (f" ({reason})" if reason else ", and the model has none"),
            where=folder,
            next="export without --ollama",
        )
    special = vocabulary.special or {}
    stops = [vocabulary.tokens[special[role]] for role in ("eos", "eot", "eom") if role in special]
    return modelfile(
        out,
        folder,
        template_renderer(loaded, adds_bos=vocabulary.add_bos),
        stops,
        context,
        read_card(folder).get("license"),
    )


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
    chosen: Policy,
) -> None:
    writer = GGUFWriter(file, ARCHITECTURE)
    parameters = sum(math.prod(part.shape) for part in parts)
    write_metadata(writer, checkpoint.path, name, parameters, chosen.quantization)
    write_keys(writer, checkpoint, shape)
    write_vocabulary(writer, vocabulary)
    for part in parts:
        kind = chosen.type(part.name, part.shape)
        writer.add_tensor_info(part.name, part.shape, np.dtype(np.float32), tensor_bytes(part.shape, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()


def _append_tensors(file: Path, parts: list[Part], chosen: Policy, size: int) -> None:
    def data(job: tuple[Part, int, int]) -> bytes:
        part, begin, end = job
        return encode(written_rows(part, begin, end), chosen.type(part.name, part.shape), part.name)

    jobs = (job for part in parts for job in pieces(part))
    before = None
    with file.open("ab") as stream, progress(f"export {chosen.quantization.name}", size, "B") as advance:
        for (part, _, _), rows in in_order(data, jobs):
            if part is not before:
                stream.write(bytes(-stream.tell() % 32))  # GGUF's default alignment
            before = part
            stream.write(rows)
            advance(len(rows))
        stream.write(bytes(-stream.tell() % 32))
