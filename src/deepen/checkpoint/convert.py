"""Turn one floating-point type into another while streaming, rounding to nearest even, in bounded memory."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from deepen.checkpoint.copy import Files, Span, write_at
from deepen.errors import CheckpointError, UnsupportedModelError

FLOATS = {"F16": 2, "BF16": 2, "F32": 4, "F64": 8}
"""Bytes per element of the types that can be converted into each other."""

DTYPES = {"keep": None, "bfloat16": "BF16", "float16": "F16", "float32": "F32"}
"""What `--dtype` may be, and the element type it means."""

_CONFIG_NAMES = {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}
_ELEMENTS = 1 << 18

Floats = np.ndarray[tuple[int], np.dtype[np.floating]]


def with_dtype(config: dict[str, Any], dtype: str) -> dict[str, Any]:
    """A config that says that its weights are of `dtype`."""
    return config | {"torch_dtype" if "torch_dtype" in config else "dtype": _CONFIG_NAMES[dtype]}


def read_chunks(files: Files, span: Span, dtype: str) -> Iterator[bytes]:
    """The bytes of a tensor in pieces of a fixed number of elements, the same for every type.

    Raises:
        CheckpointError: the file became shorter.
    """
    size, done = _ELEMENTS * FLOATS[dtype], 0
    while done < span.nbytes:
        count = min(size, span.nbytes - done)
        data = os.pread(files.reading(span.file), count, span.offset + done)
        if len(data) != count:
            raise CheckpointError("the file became shorter while it was read", where=span.file, next="run again")
        yield data
        done += count


def convert_span(
    files: Files,
    source: Span,
    source_dtype: str,
    targets: list[Span],
    dtype: str,
    name: str,
    advance: Callable[..., None],
) -> tuple[str, str]:
    """Convert a tensor's bytes from `source_dtype` to `dtype` and write them to every target.

    Args:
        files: open descriptors.
        source: where the tensor lies; its length is a multiple of the element size.
        source_dtype: one of `FLOATS`.
        targets: where it goes.
        dtype: one of `FLOATS`.
        name: the tensor's name, for messages.
        advance: called with the number of bytes written.

    Returns:
        The SHA-256 of the source bytes and of the written bytes.

    Raises:
        CheckpointError: a finite value does not fit the new type, or the file became shorter.
    """
    _check_floats(source_dtype, dtype, name)
    read_hash, write_hash, written = hashlib.sha256(), hashlib.sha256(), 0
    for data in read_chunks(files, source, source_dtype):
        result = convert(data, source_dtype, dtype, name)
        for target in targets:
            write_at(files, target.file, result, target.offset + written)
            advance(len(result))
        read_hash.update(data)
        write_hash.update(result)
        written += len(result)
    return read_hash.hexdigest(), write_hash.hexdigest()


def convert(data: bytes, source_dtype: str, dtype: str, name: str) -> bytes:
    """Convert little-endian elements; NaN stays NaN, infinity stays infinity, nothing finite may overflow.

    Raises:
        CheckpointError: a finite value would become infinite.
        UnsupportedModelError: one of the types is not a plain float.
    """
    _check_floats(source_dtype, dtype, name)
    return data if source_dtype == dtype else encode(decode(data, source_dtype), dtype, name)


def encode(values: Floats, dtype: str, name: str) -> bytes:
    """Floats as little-endian elements of `dtype`, rounded to nearest even; see `convert`."""
    if dtype == "BF16":
        result, finite = _to_bfloat16(values)
    else:
        with np.errstate(over="ignore"):
            result = values.astype({"F16": "<f2", "F32": "<f4", "F64": "<f8"}[dtype])
        finite = np.isfinite(result)
    if not finite.all() and not (finite | ~np.isfinite(values)).all():
        raise CheckpointError(f"{name} holds values too large for {dtype}", next="use bfloat16 or float32 instead")
    return result.tobytes()


def decode(data: bytes, dtype: str) -> Floats:
    """Little-endian elements of a type in `FLOATS` as numbers, exactly; a BF16 as float32."""
    if dtype == "BF16":
        return (np.frombuffer(data, "<u2").astype("<u4") << 16).view("<f4")
    return np.frombuffer(data, {"F16": "<f2", "F32": "<f4", "F64": "<f8"}[dtype])


def _check_floats(source_dtype: str, dtype: str, name: str) -> None:
    if source_dtype not in FLOATS or dtype not in FLOATS:
        raise UnsupportedModelError(
            f"{name}: {source_dtype} cannot be converted to {dtype}",
            next="leave out --dtype to keep the bytes as they are",
        )


def _to_bfloat16(
    values: Floats,
) -> tuple[np.ndarray[tuple[int], np.dtype[np.uint16]], np.ndarray[tuple[int], np.dtype[np.bool_]]]:
    with np.errstate(over="ignore"):
        bits = values.astype("<f4").view("<u4")
    # round to nearest, ties to even; only NaNs wrap around, and a NaN keeps a set mantissa bit so that it stays one
    rounded = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2")
    result = np.where(np.isnan(values), (bits >> 16).astype("<u2") | 0x40, rounded).astype("<u2")
    return result, (result & 0x7F80) != 0x7F80
