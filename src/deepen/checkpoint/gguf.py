"""Read and write the header of a GGUF file: key-value pairs, and where each tensor's bytes lie.

Nothing here trusts the file: every count, length, offset and type is checked before it is used. Values stay encoded until they
are asked for, so a vocabulary of 150,000 tokens costs a walk over its lengths and no Python strings, and unchanged pairs are
written back byte for byte. Format: the GGUF specification of the ggml project (versions 2 and 3, little-endian).
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from deepen.checkpoint.reader import Tensor
from deepen.errors import CheckpointError, StorageError

MAGIC = b"GGUF"
VERSIONS = (2, 3)
DEFAULT_ALIGNMENT = 32
MAX_HEADER_BYTES = 128 << 20  # the largest vocabularies take about 30 MB
MAX_DIMENSIONS = 4

UINT8, INT8, UINT16, INT16, UINT32, INT32, FLOAT32, BOOL, STRING, ARRAY, UINT64, INT64, FLOAT64 = range(13)
_NUMBERS = {
    UINT8: "B", INT8: "b", UINT16: "H", INT16: "h", UINT32: "I", INT32: "i", FLOAT32: "f", BOOL: "?",
    UINT64: "Q", INT64: "q", FLOAT64: "d",
}  # fmt: skip
_SIZES = {kind: struct.calcsize(f"<{code}") for kind, code in _NUMBERS.items()}
_U32, _U64 = struct.Struct("<I"), struct.Struct("<Q")
_MIN_PAIR_BYTES = 8 + 1 + 4 + 1  # key length, key, kind, value
_MIN_TENSOR_BYTES = 8 + 1 + 4 + 8 + 4 + 8  # name length, name, n_dims, one dimension, type, offset

TYPES: dict[int, tuple[str, int, int]] = {
    0: ("F32", 1, 4), 1: ("F16", 1, 2), 2: ("Q4_0", 32, 18), 3: ("Q4_1", 32, 20), 6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24), 8: ("Q8_0", 32, 34), 9: ("Q8_1", 32, 40), 10: ("Q2_K", 256, 84), 11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144), 13: ("Q5_K", 256, 176), 14: ("Q6_K", 256, 210), 15: ("Q8_K", 256, 292),
    16: ("IQ2_XXS", 256, 66), 17: ("IQ2_XS", 256, 74), 18: ("IQ3_XXS", 256, 98), 19: ("IQ1_S", 256, 50),
    20: ("IQ4_NL", 32, 18), 21: ("IQ3_S", 256, 110), 22: ("IQ2_S", 256, 82), 23: ("IQ4_XS", 256, 136), 24: ("I8", 1, 1),
    25: ("I16", 1, 2), 26: ("I32", 1, 4), 27: ("I64", 1, 8), 28: ("F64", 1, 8), 29: ("IQ1_M", 256, 56), 30: ("BF16", 1, 2),
    34: ("TQ1_0", 256, 54), 35: ("TQ2_0", 256, 66), 39: ("MXFP4", 32, 17), 40: ("NVFP4", 64, 36), 41: ("Q1_0", 128, 18),
    42: ("Q2_0", 64, 18),
}  # fmt: skip
"""ggml's tensor types by number: name, elements per block, bytes per block (the gaps are types that ggml removed)."""

_TYPE_NUMBERS = {name: number for number, (name, _, _) in TYPES.items()}


@dataclass(frozen=True)
class Field:
    """A key-value pair whose value is still encoded.

    Attributes:
        key: its name, such as `"llama.block_count"`.
        kind: the GGUF value type (`UINT32`, `STRING`, `ARRAY`, ...).
        raw: the value's bytes; an array's begin with its element type (4 bytes) and count (8 bytes).
    """

    key: str
    kind: int
    raw: bytes

    @property
    def element_kind(self) -> int | None:
        """The element type of an array, None for anything else."""
        return int(_U32.unpack_from(self.raw)[0]) if self.kind == ARRAY else None

    @property
    def count(self) -> int | None:
        """The number of elements of an array, None for anything else."""
        return int(_U64.unpack_from(self.raw, 4)[0]) if self.kind == ARRAY else None


@dataclass(frozen=True)
class Gguf:
    """A GGUF file, read by its header.

    Attributes:
        path: the file.
        version: 2 or 3 (the layout is the same).
        alignment: every tensor begins at a multiple of this many bytes in the data section.
        fields: the key-value pairs in file order.
        tensors: the tensors in file order; `dtype` is ggml's type name, `shape` has the innermost dimension first, as stored.
    """

    path: Path
    version: int
    alignment: int
    fields: dict[str, Field]
    tensors: dict[str, Tensor]

    def get(self, key: str, default: Any = None) -> Any:
        """The decoded value of a key, or `default` where the file lacks it."""
        return value(self.fields[key]) if key in self.fields else default


def is_gguf(path: str | Path) -> bool:
    """Whether `path` is a file that begins like a GGUF."""
    path = Path(path)
    if not path.is_file():
        return False
    with path.open("rb") as stream:
        return stream.read(len(MAGIC)) == MAGIC


def open_gguf(path: str | Path) -> Gguf:
    """Read the header of a GGUF file.

    Raises:
        CheckpointError: not a GGUF; an unknown version or byte order; a header that lies; a file that is cut.
        StorageError: the file cannot be read.
    """
    path = Path(path)
    if not path.is_file():
        problem = "not a file" if path.exists() else "no such file"
        raise CheckpointError(problem, where=path, next="give a .gguf file")
    try:
        with path.open("rb") as stream:
            return _read(path, stream)
    except PermissionError as error:
        raise CheckpointError("the file may not be read", where=path, next="change its permissions") from error
    except OSError as error:
        raise StorageError(f"the file cannot be read ({error.strerror})", where=path, next="check the disk") from error


def value(field: Field) -> Any:
    """Decode a field: int, float, bool, str or a list of one of them.

    Bytes that are not UTF-8 (some vocabularies hold them) become surrogates, which `encode_field` turns back.
    """
    if field.kind in _NUMBERS:
        return struct.unpack(f"<{_NUMBERS[field.kind]}", field.raw)[0]
    if field.kind == STRING:
        return _text(field.raw[8:])
    element_kind, count = field.element_kind, field.count
    assert element_kind is not None and count is not None  # noqa: PT018
    if element_kind in _NUMBERS:
        return list(struct.unpack(f"<{count}{_NUMBERS[element_kind]}", field.raw[12:]))
    strings, position = [], 12
    for _ in range(count):
        (length,) = _U64.unpack_from(field.raw, position)
        strings.append(_text(field.raw[position + 8 : position + 8 + length]))
        position += 8 + length
    return strings


def encode_field(key: str, kind: int, value: Any, element_kind: int | None = None) -> Field:
    """The field of a value; `kind` and, for an array, `element_kind` are GGUF value types."""
    if kind == ARRAY:
        assert element_kind is not None
        elements = b"".join(_encode(element_kind, element) for element in value)
        return Field(key, kind, _U32.pack(element_kind) + _U64.pack(len(value)) + elements)
    return Field(key, kind, _encode(kind, value))


def tensor_bytes(dtype: str, shape: Iterable[int]) -> int:
    """The size of a tensor of a ggml type, its innermost dimension being a whole number of blocks."""
    _, block, nbytes = TYPES[_TYPE_NUMBERS[dtype]]
    return math.prod(shape) // block * nbytes


def gguf_header(
    fields: Mapping[str, Field],
    tensors: Iterable[tuple[str, str, tuple[int, ...]]],
    *,
    version: int = VERSIONS[-1],
    alignment: int = DEFAULT_ALIGNMENT,
) -> tuple[bytes, list[int], int]:
    """Build the header of a new file.

    Args:
        fields: key-value pairs in the order in which they are written.
        tensors: name, ggml type name and shape (innermost dimension first) of each tensor, in the order of their data.
        version: GGUF version.
        alignment: must agree with `general.alignment` where the fields hold it.

    Returns:
        The header, padded to the data section; the absolute offset of each tensor; and the size of the whole file. Tensors
        follow each other without holes but for the padding that the alignment asks for, as llama.cpp demands.
    """
    tensors = list(tensors)
    parts = [MAGIC, _U32.pack(version), _U64.pack(len(tensors)), _U64.pack(len(fields))]
    for field in fields.values():
        parts += [_encode(STRING, field.key), _U32.pack(field.kind), field.raw]
    end, relative = 0, []
    for name, dtype, shape in tensors:
        parts += [_encode(STRING, name), _U32.pack(len(shape)), struct.pack(f"<{len(shape)}Q", *shape)]
        parts += [_U32.pack(_TYPE_NUMBERS[dtype]), _U64.pack(end)]
        relative.append(end)
        end = _aligned(end + tensor_bytes(dtype, shape), alignment)
    header = b"".join(parts)
    data = _aligned(len(header), alignment)
    return header.ljust(data, b"\0"), [data + offset for offset in relative], data + end


def _encode(kind: int, value: Any) -> bytes:
    if kind == STRING:
        text: bytes = value.encode("utf-8", "surrogateescape")
        return _U64.pack(len(text)) + text
    return struct.pack(f"<{_NUMBERS[kind]}", value)


def _text(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")


def _aligned(position: int, alignment: int) -> int:
    return -(-position // alignment) * alignment


class _Header:
    """A bounded, growing window on the header, read in order. `size` is the size of the file."""

    def __init__(self, path: Path, stream: BinaryIO) -> None:
        self.path, self.position = path, 0
        self._stream, self._data = stream, bytearray()
        self.size = stream.seek(0, 2)
        stream.seek(0)

    def error(self, problem: str) -> CheckpointError:
        return CheckpointError(problem, where=self.path, next="download the file again; if it stays so, do not trust it")

    def fill(self, end: int, what: str) -> None:
        """Have the bytes up to `end` at hand, after checking that they exist."""
        if end > self.size:
            raise self.error(f"the file ends at byte {self.size}, inside {what}")
        if end > MAX_HEADER_BYTES:
            raise self.error(f"the header is longer than {MAX_HEADER_BYTES} bytes, more than any model needs ({what})")
        while len(self._data) < end:
            chunk = self._stream.read(max(1 << 20, end - len(self._data)))
            if not chunk:
                raise self.error(f"the file became shorter while it was read, inside {what}")
            self._data += chunk

    def skip(self, count: int, what: str) -> int:
        """Move over `count` bytes; the position before them."""
        start = self.position
        self.fill(start + count, what)
        self.position += count
        return start

    def take(self, count: int, what: str) -> bytes:
        start = self.skip(count, what)
        return bytes(self._data[start : self.position])

    def u32(self, what: str) -> int:
        return int(_U32.unpack_from(self._data, self.skip(4, what))[0])

    def u64(self, what: str) -> int:
        return int(_U64.unpack_from(self._data, self.skip(8, what))[0])

    def name(self, what: str) -> str:
        data = self.take(self.u64(what), what)
        try:
            name = data.decode()
        except UnicodeDecodeError as error:
            raise self.error(f"{what} is not UTF-8: {data[:40]!r}") from error
        if not name:
            raise self.error(f"{what} is empty")
        return name

    def skip_strings(self, count: int, what: str) -> None:
        # a vocabulary and its merges are half a million of these, so the loop works on locals and checks once per string
        data, position, unpack = self._data, self.position, _U64.unpack_from
        for _ in range(count):
            if position + 8 > len(data):
                self.fill(position + 8, what)
            position += 8 + unpack(data, position)[0]
        self.fill(position, what)
        self.position = position


def _read(path: Path, stream: BinaryIO) -> Gguf:
    header = _Header(path, stream)
    if header.size < 24 or header.take(4, "the magic") != MAGIC:
        raise CheckpointError("not a GGUF file", where=path, next="give a .gguf file made by llama.cpp's converter")
    version = header.u32("the version")
    if version not in VERSIONS:
        big_endian = version & 0xFFFF == 0
        kind = "a big-endian GGUF file" if big_endian else f"GGUF version {version}, only 2 and 3 are read"
        raise CheckpointError(kind, where=path, next="convert the model again with a current llama.cpp, little-endian")
    tensor_count, pair_count = header.u64("the tensor count"), header.u64("the pair count")
    if pair_count * _MIN_PAIR_BYTES + tensor_count * _MIN_TENSOR_BYTES > header.size:
        raise header.error(f"{pair_count} pairs and {tensor_count} tensors do not fit into {header.size} bytes")
    fields: dict[str, Field] = {}
    for _ in range(pair_count):
        field = _read_field(header)
        if field.key in fields:
            raise header.error(f"the key {field.key!r} occurs twice")
        fields[field.key] = field
    alignment = _alignment(header, fields.get("general.alignment"))
    entries = [_read_tensor(header, alignment) for _ in range(tensor_count)]
    data = _aligned(header.position, alignment)
    tensors: dict[str, Tensor] = {}
    for name, dtype, shape, offset in entries:
        if name in tensors:
            raise header.error(f"the tensor {name!r} occurs twice")
        tensors[name] = Tensor(name, dtype, shape, path, data + offset, tensor_bytes(dtype, shape))
    end = data
    for tensor in sorted(tensors.values(), key=lambda tensor: tensor.offset):
        if tensor.offset < end:
            raise header.error(f"the tensor {tensor.name!r} overlaps the one before it")
        end = tensor.offset + tensor.nbytes
        if end > header.size:
            raise header.error(f"the file ends at byte {header.size}, inside the tensor {tensor.name!r} (to byte {end})")
    return Gguf(path, version, alignment, fields, tensors)


def _read_field(header: _Header) -> Field:
    key = header.name("a key")
    what = f"the value of {key!r}"
    kind = header.u32(what)
    start = header.position
    if kind == ARRAY:
        element_kind, count = header.u32(what), header.u64(what)
        if element_kind == STRING:
            if count * 8 > header.size - header.position:
                raise header.error(f"{what} claims {count} strings, more than the file holds")
            header.skip_strings(count, what)
        elif element_kind in _SIZES:
            header.skip(count * _SIZES[element_kind], what)
        else:
            problem = "nested arrays" if element_kind == ARRAY else f"elements of the unknown type {element_kind}"
            raise header.error(f"{what} is an array of {problem}")
    elif kind == STRING:
        header.skip(header.u64(what), what)
    elif kind in _SIZES:
        header.skip(_SIZES[kind], what)
    else:
        raise header.error(f"{what} has the unknown type {kind}")
    length, header.position = header.position - start, start
    return Field(key, kind, header.take(length, what))


def _alignment(header: _Header, field: Field | None) -> int:
    if field is None:
        return DEFAULT_ALIGNMENT
    if field.kind != UINT32:
        raise header.error("general.alignment is not a 32-bit unsigned integer")
    alignment = int(value(field))
    if alignment == 0 or alignment & (alignment - 1):
        raise header.error(f"general.alignment is {alignment}, not a power of two")
    return alignment


def _read_tensor(header: _Header, alignment: int) -> tuple[str, str, tuple[int, ...], int]:
    name = header.name("a tensor's name")
    what = f"the tensor {name!r}"
    dimensions = header.u32(what)
    if not 1 <= dimensions <= MAX_DIMENSIONS:
        raise header.error(f"{what} has {dimensions} dimensions, not 1 to {MAX_DIMENSIONS}")
    shape = tuple(header.u64(what) for _ in range(dimensions))
    number, offset = header.u32(what), header.u64(what)
    if number not in TYPES:
        raise header.error(f"{what} has the unknown type {number}")
    dtype, block, _ = TYPES[number]
    if min(shape) == 0 or math.prod(shape) >= 2**63:
        raise header.error(f"{what} has the absurd shape {list(shape)}")
    if shape[0] % block:
        raise header.error(f"{what}: rows of {shape[0]} are no whole blocks of {dtype} ({block})")
    if offset % alignment:
        raise header.error(f"{what} begins at {offset}, not at a multiple of {alignment}")
    if offset > header.size:
        raise header.error(f"{what} begins at {offset}, beyond the file's {header.size} bytes")
    return name, dtype, shape, offset
