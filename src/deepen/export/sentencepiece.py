"""Read a SentencePiece `tokenizer.model`: a protocol-buffers message of pieces, scores and a few settings.

Field numbers: google/sentencepiece, `src/sentencepiece_model.proto`; wire format: protobuf.dev, "Encoding".
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from deepen.errors import CheckpointError, UnsupportedModelError

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_BPE = 2  # TrainerSpec.model_type


@dataclass(frozen=True)
class Pieces:
    """A SentencePiece BPE model.

    Attributes:
        texts: the pieces in id order.
        scores: how early each is merged (higher is earlier).
        types: normal 1, unknown 2, control 3, user-defined 4, unused 5, byte 6; the same numbers as in GGUF.
        add_prefix_space: text is encoded with a space before it.
    """

    texts: list[str]
    scores: list[float]
    types: list[int]
    add_prefix_space: bool


def read_pieces(file: Path) -> Pieces:
    """Parse `tokenizer.model`.

    Raises:
        CheckpointError: it is no SentencePiece model or is cut.
        UnsupportedModelError: it is not of the BPE kind, or it changes the text before it splits it.
    """
    texts: list[str] = []
    scores: list[float] = []
    types: list[int] = []
    model_type, prefix_space, rewrites = 1, True, True  # the defaults of the format
    try:
        for number, value in _fields(file.read_bytes()):
            if not isinstance(value, bytes):
                continue
            fields = dict(_fields(value)) if number in {1, 2, 3} else {}
            if number == 1:
                texts.append(_bytes(fields.get(1, b"")).decode("utf-8"))
                scores.append(struct.unpack("<f", _bytes(fields.get(2, b"\0\0\0\0")))[0])
                types.append(_number(fields.get(3, 1)))
            elif number == 2:
                model_type = _number(fields.get(3, model_type))
            elif number == 3:
                prefix_space = bool(fields.get(3, 1))
                rewrites = bool(fields.get(2, b"")) or bool(fields.get(4, 1))
    except (ValueError, IndexError, TypeError, struct.error) as error:
        raise CheckpointError("not a SentencePiece model", where=file, next="download the tokenizer again") from error
    if not texts:
        raise CheckpointError("a SentencePiece model without pieces", where=file, next="download the tokenizer again")
    if model_type != _BPE or rewrites:
        problem = "normalises text before it splits it" if model_type == _BPE else "is not of the BPE kind"
        raise UnsupportedModelError(
            f"the SentencePiece model {problem}", where=file, next="convert it with llama.cpp's convert_hf_to_gguf.py"
        )
    return Pieces(texts, scores, types, prefix_space)


def _fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Yield the fields of a message: number, and its value (fixed-size numbers as raw bytes)."""
    position = 0
    while position < len(message):
        tag, position = _varint(message, position)
        kind = tag & 7
        if kind == _VARINT:
            value, position = _varint(message, position)
            yield tag >> 3, value
            continue
        if kind == _BYTES:
            length, position = _varint(message, position)
        elif kind in {_FIXED32, _FIXED64}:
            length = 4 if kind == _FIXED32 else 8
        else:
            raise ValueError(f"wire type {kind}")
        if position + length > len(message):
            raise ValueError("cut")
        yield tag >> 3, message[position : position + length]
        position += length


def _varint(message: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[position]
        value |= (byte & 0x7F) << shift
        position, shift = position + 1, shift + 7
        if byte < 0x80:
            return value, position
        if shift > 63:
            raise ValueError("a number of more than 64 bits")


def _bytes(value: int | bytes) -> bytes:
    if isinstance(value, int):
        raise TypeError("a number in the place of bytes")
    return value


def _number(value: int | bytes) -> int:
    if isinstance(value, bytes):
        raise TypeError("bytes in the place of a number")
    return value
