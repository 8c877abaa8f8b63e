"""Rows of a tensor: read as float32, encoded in a GGUF format on all cores, and how far off they may be afterwards.

The bytes of the quantised formats are ggml's own: its quantiser is an exported C function of the xllamacpp wheel.
"""

from __future__ import annotations

import ctypes
import math
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, quants
from numpy.typing import NDArray

from deepen.checkpoint import Tensor
from deepen.errors import CheckpointError, MissingDependencyError, OptionError, UnsupportedModelError

Floats = NDArray[np.float32]
Job = TypeVar("Job")
Result = TypeVar("Result")

_ELEMENTS = 1 << 18  # converted at once: 1 MB of float32, small enough for the cache of a core
_READABLE: dict[str, np.dtype[Any]] = {
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype("<u2"),
    "F64": np.dtype("<f8"),
}
_MOST_WORKERS = 32


def tensor_bytes(shape: tuple[int, ...], kind: GGMLQuantizationType) -> int:
    """Size of a tensor in that format."""
    block, block_bytes = GGML_QUANT_SIZES[kind]
    size: int = math.prod(shape) // block * block_bytes
    return size


def encode(rows: Floats, kind: GGMLQuantizationType, name: str) -> bytes:
    """Rows of float32, shape (rows, columns), as the bytes of `kind`.

    Raises:
        CheckpointError: a weight is infinite or no number.
        OptionError: a weight is too large for the format.
        MissingDependencyError: the format needs ggml's quantiser, and xllamacpp is not installed.
    """
    largest = max(rows.max(initial=0.0), -rows.min(initial=0.0))  # of which a NaN is larger than all
    if not math.isfinite(largest):
        raise CheckpointError(f"tensor {name!r} holds values that are not finite", next="export a sound checkpoint")
    if largest > _LARGEST.get(kind, _LARGEST_SCALE):
        raise OptionError(
            f"tensor {name!r} holds values too large for {kind.name}", where="--quantize", next="choose BF16 or F32"
        )
    if kind == GGMLQuantizationType.F16:
        return rows.astype("<f2").tobytes()
    if kind in {GGMLQuantizationType.F32, GGMLQuantizationType.BF16}:
        encoded: bytes = quants.quantize(rows, kind).tobytes()
        return encoded
    return _quantise(np.ascontiguousarray(rows), kind)


# beyond these the float16 value, or the float16 scale of a block (for Q8_0 its largest weight / 127), would be infinite
_LARGEST_SCALE = 65504.0
_LARGEST = {
    GGMLQuantizationType.F32: math.inf,
    GGMLQuantizationType.BF16: math.inf,
    GGMLQuantizationType.Q8_0: 127 * _LARGEST_SCALE,
}


def _quantise(rows: Floats, kind: GGMLQuantizationType) -> bytes:
    quantise = ggml_quantiser()
    if quantise is None:
        try:  # the simple formats are written to the same bytes by the gguf package
            return bytes(quants.quantize(rows, kind).tobytes())
        except NotImplementedError:
            raise MissingDependencyError(
                f"writing {kind.name} needs ggml's quantiser, in the package xllamacpp", next="pip install 'deepen[run]'"
            ) from None
    data = np.empty(tensor_bytes(rows.shape, kind), np.uint8)
    written = quantise(int(kind), rows.ctypes.data, data.ctypes.data, 0, *rows.shape, None)
    assert written == data.size, "ggml and gguf agree on the size of a block"
    return data.tobytes()


@cache
def ggml_quantiser() -> Callable[..., int] | None:
    """`ggml_quantize_chunk(type, source, target, first, rows, columns, importance)` of the xllamacpp wheel; None without it.

    It may be called from several threads at once, and ctypes lets go of Python's lock meanwhile.
    """
    spec = find_spec("xllamacpp")
    for place in (spec.submodule_search_locations if spec else None) or ():
        for binary in Path(place).glob("xllamacpp*.so"):
            function = getattr(ctypes.CDLL(str(binary)), "ggml_quantize_chunk", None)
            if function is not None:
                size, pointer = ctypes.c_int64, ctypes.c_void_p
                function.restype = ctypes.c_size_t
                function.argtypes = [ctypes.c_int, pointer, pointer, size, size, size, pointer]
                found: Callable[..., int] = function
                return found
    return None


# how far a weight may lie from its source, as a part of the largest of its block
_STEPS = {
    GGMLQuantizationType.Q8_0: 0.5001 / 127 + 2**-11,  # half a step, and the rounding of the step to float16 at level 127
    GGMLQuantizationType.Q4_0: 1.01 / 8,  # the side opposite to the largest weight has a level less
    GGMLQuantizationType.Q5_0: 1.01 / 16,
    GGMLQuantizationType.Q5_1: 1.05 / 31,  # half of a 31st of a range that reaches from -largest to +largest
    # ggml fits steps by least squares and lets single weights be cut off: twice what was seen of any distribution
    GGMLQuantizationType.Q4_K: 0.2,
    GGMLQuantizationType.Q5_K: 0.1,
    GGMLQuantizationType.Q6_K: 0.04,
}
_SMALLEST_STEP = 2**-25  # half of float16's smallest number


def largest_error(rows: Floats, kind: GGMLQuantizationType) -> Floats:
    """How far each decoded weight may lie from its source, by the format's definition (K-quants: by experience).

    Half a unit in the last place for the floats; for the others a part of the block's largest weight, plus what a step below
    float16's normal range does to the highest level.

    Returns:
        A bound for each block of a row, shape (rows, blocks, 1); a float is a block of its own.
    """
    sizes = np.abs(rows)[..., np.newaxis]
    if kind == GGMLQuantizationType.F32:
        return np.zeros_like(sizes)
    if kind == GGMLQuantizationType.F16:
        return np.maximum(sizes * np.float32(2**-11), np.float32(_SMALLEST_STEP))
    if kind == GGMLQuantizationType.BF16:
        return sizes * np.float32(2**-8)
    size = GGML_QUANT_SIZES[kind][0]
    levels = 63 * 32 if size == 256 else 127  # a K-quant multiplies its float16 by a scale and a level
    blocks = sizes.reshape(*rows.shape[:-1], -1, size)
    bound: Floats = blocks.max(axis=-1, keepdims=True) * np.float32(_STEPS[kind]) + np.float32(levels * _SMALLEST_STEP)
    return bound


def row_blocks(rows: int, columns: int, multiple: int) -> Iterator[tuple[int, int]]:
    """Cut the rows of a matrix into ranges of bounded size, each a multiple of `multiple` rows but for the last."""
    step = max(_ELEMENTS // columns // multiple, 1) * multiple
    for start in range(0, rows, step):
        yield start, min(start + step, rows)


def in_order(work: Callable[[Job], Result], jobs: Iterable[Job]) -> Iterator[tuple[Job, Result]]:
    """Do the jobs on all cores and yield each with its result in their order, holding only a few of them at a time."""
    workers = min(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1, _MOST_WORKERS)
    waiting: deque[tuple[Job, Future[Result]]] = deque()
    with ThreadPoolExecutor(workers) as pool:
        try:
            for job in jobs:
                waiting.append((job, pool.submit(work, job)))
                if len(waiting) > workers:
                    done, future = waiting.popleft()
                    yield done, future.result()
            while waiting:
                done, future = waiting.popleft()
                yield done, future.result()
        finally:
            for _, future in waiting:
                future.cancel()


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
