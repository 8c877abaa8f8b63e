"""Number formats of GGUF tensors: which one a tensor gets, and rows of float32 to its bytes and back."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, LlamaFileType, quants
from numpy.typing import NDArray

from deepen.checkpoint import Tensor
from deepen.errors import CheckpointError, OptionError, UnsupportedModelError

Floats = NDArray[np.float32]

_ELEMENTS = 1 << 21  # converted at once: 8 MB of float32, small enough for the cache, large enough for the disk
_READABLE: dict[str, np.dtype[Any]] = {
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype("<u2"),
    "F64": np.dtype("<f8"),
}


@dataclass(frozen=True)
class Quantization:
    """A format that a whole file is written in.

    Attributes:
        name: as the user types it.
        type: the format of the matrices; vectors are always float32.
        file_type: what `general.file_type` says.
    """

    name: str
    type: GGMLQuantizationType
    file_type: LlamaFileType


QUANTIZATIONS = {
    quantization.name: quantization
    for quantization in (
        Quantization("F32", GGMLQuantizationType.F32, LlamaFileType.ALL_F32),
        Quantization("F16", GGMLQuantizationType.F16, LlamaFileType.MOSTLY_F16),
        Quantization("BF16", GGMLQuantizationType.BF16, LlamaFileType.MOSTLY_BF16),
        Quantization("Q8_0", GGMLQuantizationType.Q8_0, LlamaFileType.MOSTLY_Q8_0),
    )
}


def parse_quantization(name: str) -> Quantization:
    """The format of that name, in any case.

    Raises:
        OptionError: it is none that can be written.
    """
    try:
        return QUANTIZATIONS[name.upper()]
    except KeyError:
        raise OptionError(
            f"{name!r} is no format that can be written", where="--quantize", next=f"choose one of {', '.join(QUANTIZATIONS)}"
        ) from None


def tensor_type(shape: tuple[int, ...], quantization: Quantization) -> GGMLQuantizationType:
    """The format of one tensor: vectors stay float32, rows that a block does not divide become float16 (as in llama.cpp)."""
    if len(shape) == 1:
        return GGMLQuantizationType.F32
    block, _ = GGML_QUANT_SIZES[quantization.type]
    return quantization.type if shape[-1] % block == 0 else GGMLQuantizationType.F16


def tensor_bytes(shape: tuple[int, ...], kind: GGMLQuantizationType) -> int:
    """Size of a tensor in that format."""
    block, block_bytes = GGML_QUANT_SIZES[kind]
    size: int = math.prod(shape) // block * block_bytes
    return size


def encode(rows: Floats, kind: GGMLQuantizationType, name: str) -> bytes:
    """Rows of float32 as the bytes of `kind`, rounded to nearest even (Q8_0: blocks of 32 with one float16 scale).

    Raises:
        CheckpointError: a weight is infinite or no number.
        OptionError: a weight is too large for the format.
    """
    if not np.isfinite(rows).all():
        raise CheckpointError(f"tensor {name!r} holds values that are not finite", next="export a sound checkpoint")
    if np.abs(rows).max(initial=0.0) > _LARGEST.get(kind, np.inf):
        raise OptionError(
            f"tensor {name!r} holds values too large for {kind.name}", where="--quantize", next="choose BF16 or F32"
        )
    if kind == GGMLQuantizationType.F16:
        return rows.astype("<f2").tobytes()
    encoded: bytes = quants.quantize(rows, kind).tobytes()
    return encoded


# beyond these the float16 value, or the float16 scale of a block (its largest weight / 127), would be infinite
_LARGEST = {GGMLQuantizationType.F16: 65504.0, GGMLQuantizationType.Q8_0: 127 * 65504.0}


def largest_error(rows: Floats, kind: GGMLQuantizationType) -> Floats:
    """How far each decoded weight may lie from its source, by the format's definition.

    Half a unit in the last place for the floats; for Q8_0 half a step (largest of the block / 127), plus what rounding the step
    to float16 (relative 2^-11, below its normal range 2^-25 absolute) does to a level of at most 127.
    """
    sizes = np.abs(rows)
    if kind == GGMLQuantizationType.F32:
        return np.zeros_like(rows)
    if kind == GGMLQuantizationType.F16:
        return np.maximum(sizes * np.float32(2**-11), np.float32(2**-25))
    if kind == GGMLQuantizationType.BF16:
        return sizes * np.float32(2**-8)
    blocks = sizes.reshape(*rows.shape[:-1], -1, GGML_QUANT_SIZES[kind][0])
    step = blocks.max(axis=-1, keepdims=True) / np.float32(127)
    bound = step * np.float32(0.5001 + 127 * 2**-11) + np.float32(127 * 2**-25)
    return np.broadcast_to(bound, blocks.shape).reshape(rows.shape)


def row_blocks(rows: int, columns: int, multiple: int) -> Iterator[tuple[int, int]]:
    """Cut the rows of a matrix into ranges of bounded size, each a multiple of `multiple` rows but for the last."""
    step = max(_ELEMENTS // columns // multiple, 1) * multiple
    for start in range(0, rows, step):
        yield start, min(start + step, rows)


def read_rows(tensor: Tensor, start: int, stop: int) -> Floats:
    """Rows `start` to `stop` of a tensor as float32, read from disk (a vector is one row).

    Raises:
        UnsupportedModelError: the tensor is stored in a quantised or integer type.
        CheckpointError: the file became shorter.
    """
    dtype = _READABLE.get(tensor.dtype)
    if dtype is None:
        raise UnsupportedModelError(
            f"tensor {tensor.name!r} is stored as {tensor.dtype}, which is not read here",
            where=tensor.file,
            next="convert the checkpoint to BF16, F16 or F32 first",
        )
    columns = tensor.shape[-1]
    count = (stop - start) * columns
    raw = np.fromfile(tensor.file, dtype, count, offset=tensor.offset + start * columns * dtype.itemsize)
    if raw.size != count:
        raise CheckpointError("the file became shorter while it was read", where=tensor.file, next="run again")
    if tensor.dtype == "BF16":  # the upper half of a float32
        raw = (raw.astype(np.uint32) << 16).view(np.float32)
    result: Floats = raw.astype(np.float32, copy=False).reshape(stop - start, columns)
    return result
