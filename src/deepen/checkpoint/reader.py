"""Read a safetensors checkpoint folder by its headers alone.

Nothing here trusts the folder: every length, offset, name and path is checked before it is used, since a checkpoint may come
from a stranger. Format: the safetensors README (8-byte little-endian header length, JSON header, tensor data without holes).
"""

from __future__ import annotations

import json
import math
import os
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from deepen.errors import CheckpointError

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
DTYPE_BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "U16": 16, "I16": 16, "U32": 32, "I32": 32, "U64": 64, "I64": 64,
    "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8,
    "F16": 16, "BF16": 16, "F32": 32, "F64": 64, "C64": 64,
}  # fmt: skip
"""Bits per element of every safetensors dtype."""

MAX_HEADER_BYTES = 50_000_000  # a 500-layer mixture of experts needs about 15 MB
MAX_JSON_BYTES = 50_000_000
PICKLES = (".bin", ".pth", ".pt", ".ckpt", ".pkl", ".pickle")
# Weights in whatever format, and what describes them: never copied as side files
_WEIGHTS = (
    *PICKLES,
    ".safetensors",
    ".gguf",
    ".ggml",
    ".onnx",
    ".onnx_data",
    ".h5",
    ".msgpack",
    ".tflite",
    ".npz",
    ".mlmodel",
)
_OWN_FILES = {"deepen.json", "README.md", "metrics.jsonl", "recovery.png"}


@dataclass(frozen=True)
class Tensor:
    """Where one tensor's bytes lie.

    Attributes:
        name: its name in the checkpoint.
        dtype: element type as its container spells it (`"BF16"`, `"F32"`; in a GGUF also `"Q4_K"` and the like).
        shape: dimensions in the container's own order.
        file: the file that holds it.
        offset: first byte, counted from the beginning of the file.
        nbytes: length in bytes.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: Path
    offset: int
    nbytes: int

    @property
    def parameters(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint folder, read by its headers.

    Attributes:
        path: the folder (or, for headers read from the Hub, the repository's name).
        config: the parsed `config.json`.
        tensors: every tensor by name, in the order in which the files hold them.
        side_files: everything else that belongs to the model (tokenizer, templates, code, licence), relative to `path`.
    """

    path: Path
    config: dict[str, Any]
    tensors: dict[str, Tensor]
    side_files: tuple[Path, ...]


def open_checkpoint(path: str | Path) -> Checkpoint:
    """Read the headers of a checkpoint folder in Hugging Face layout.

    Raises:
        CheckpointError: not a checkpoint; a file missing, cut, lying or pointing outside; weights only as pickles; an adapter.
    """
    path = Path(path)
    if not path.exists():
        raise CheckpointError("no such file or folder", where=path, next="give a checkpoint folder, a .gguf file or a Hub id")
    if not path.is_dir():
        raise CheckpointError(
            "not a checkpoint folder",
            where=path,
            next="give the folder that holds config.json and the .safetensors files",
        )
    config = read_config(path)
    return Checkpoint(path, config, _read_tensors(path), _side_files(path))


def read_config(folder: Path) -> dict[str, Any]:
    """The parsed `config.json` of a folder, after saying what else the folder is if it is no language model."""
    file = folder / "config.json"
    if not file.is_file():
        if (folder / "adapter_config.json").is_file():
            raise CheckpointError(
                "a LoRA adapter, not a whole model",
                where=folder,
                next="merge it into its base first (peft: merge_and_unload, then save_pretrained) and give the merged folder",
            )
        if (folder / "model_index.json").is_file():
            raise CheckpointError(
                "a diffusion pipeline, which has no stack of decoder layers",
                where=folder,
                next="give a decoder-only language model",
            )
        raise CheckpointError(
            "no config.json, so this is no checkpoint folder", where=folder, next="give a folder in Hugging Face layout"
        )
    config = read_json(_inside(folder, "config.json"))
    if not isinstance(config, dict):
        raise CheckpointError("config.json does not hold a JSON object", where=file, next="download the model again")
    return config


def read_json(file: Path) -> Any:
    """Parse a JSON file of bounded size without duplicate keys."""
    if file.stat().st_size > MAX_JSON_BYTES:
        raise CheckpointError(f"larger than {MAX_JSON_BYTES} bytes", where=file, next="check that this is the right file")
    return _parse_json(file.read_bytes(), file)


def read_header(file: Path) -> tuple[dict[str, Tensor], int]:
    """Parse and check the header of one safetensors file.

    Returns:
        The tensors by name in file order, and the offset at which the data begins.

    Raises:
        CheckpointError: the header lies or the file is cut.
    """
    size = file.stat().st_size
    with file.open("rb") as stream:
        prefix = stream.read(8)
        if len(prefix) < 8:
            raise _broken(file, f"cut after {len(prefix)} bytes")
        (length,) = struct.unpack("<Q", prefix)
        if length > size - 8:
            raise _broken(file, f"the header claims {length} bytes, but the file holds {size - 8}")
        if length > MAX_HEADER_BYTES:
            raise _broken(file, f"the header claims {length} bytes, more than any model needs")
        header = _parse_json(stream.read(length), file)
    if not isinstance(header, dict):
        raise _broken(file, "the header is not a JSON object")
    header.pop("__metadata__", None)
    data = 8 + length
    tensors = [_tensor(file, name, entry, data) for name, entry in header.items()]
    tensors.sort(key=lambda tensor: (tensor.offset, tensor.nbytes))
    end = data
    for tensor in tensors:
        if tensor.offset != end:
            problem = "overlaps the tensor before it" if tensor.offset < end else "leaves a hole before it"
            raise _broken(file, f"tensor {tensor.name!r} {problem}")
        end += tensor.nbytes
    if end != size:
        problem = "cut" if end > size else "longer than its tensors"
        raise _broken(file, f"the file is {problem}: the header describes {end} bytes, the file has {size}")
    return {tensor.name: tensor for tensor in tensors}, data


def _tensor(file: Path, name: str, entry: object, data: int) -> Tensor:
    if not isinstance(entry, dict) or not {"dtype", "shape", "data_offsets"} <= entry.keys():
        raise _broken(file, f"tensor {name!r} lacks dtype, shape or data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPE_BITS:
        raise _broken(file, f"tensor {name!r} has the unknown dtype {dtype!r}")
    if not _naturals(shape) or len(shape) > 16:
        raise _broken(file, f"tensor {name!r} has no sane shape")
    if not _naturals(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise _broken(file, f"tensor {name!r} has no sane data_offsets")
    nbytes, odd_bits = divmod(math.prod(shape) * DTYPE_BITS[dtype], 8)
    if odd_bits or nbytes != offsets[1] - offsets[0]:
        raise _broken(file, f"tensor {name!r}: {dtype} {shape} does not take {offsets[1] - offsets[0]} bytes")
    return Tensor(name, dtype, tuple(shape), file, data + offsets[0], nbytes)


def _naturals(values: object) -> bool:
    return isinstance(values, list) and all(type(value) is int and 0 <= value < 2**63 for value in values)


def _read_tensors(folder: Path) -> dict[str, Tensor]:
    if (folder / SINGLE_FILE).exists() or (folder / SINGLE_FILE).is_symlink():
        return _nonempty(read_header(_inside(folder, SINGLE_FILE))[0], folder)
    if not (folder / INDEX_FILE).exists():
        raise _no_weights(folder)
    index_file = _inside(folder, INDEX_FILE)
    index = read_json(index_file)
    weight_map = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(weight_map, dict) or not all(isinstance(shard, str) for shard in weight_map.values()):
        raise CheckpointError("the index has no weight_map of names to files", where=index_file, next="download it again")
    tensors: dict[str, Tensor] = {}
    for shard in dict.fromkeys(weight_map.values()):
        for name, tensor in read_header(_inside(folder, shard))[0].items():
            if name in tensors:
                raise _broken(tensor.file, f"tensor {name!r} is in {tensors[name].file.name} too")
            if weight_map.get(name) != shard:
                raise CheckpointError(
                    f"the index does not place {name!r} in {shard}", where=index_file, next="download it again"
                )
            tensors[name] = tensor
    if missing := [name for name in weight_map if name not in tensors]:
        raise CheckpointError(
            f"the index names {len(missing)} tensors that the shards lack, first {missing[0]!r}",
            where=index_file,
            next="download the shards again",
        )
    return _nonempty(tensors, folder)


def _nonempty(tensors: dict[str, Tensor], folder: Path) -> dict[str, Tensor]:
    if not tensors:
        raise CheckpointError("the checkpoint holds no tensors", where=folder, next="download it again")
    return tensors


def _no_weights(folder: Path) -> CheckpointError:
    names = sorted(entry.name for entry in folder.iterdir())
    if pickles := [name for name in names if name.endswith(PICKLES)]:
        return CheckpointError(
            f"only pickle weights ({pickles[0]}), which can run code when opened and are never read here",
            where=folder,
            next="convert them where you trust them: AutoModelForCausalLM.from_pretrained(...).save_pretrained(NEW_FOLDER)",
        )
    if adapters := [name for name in names if name.startswith("adapter_")]:
        return CheckpointError(
            f"a LoRA adapter ({adapters[0]}), not a whole model",
            where=folder,
            next="merge it into its base first (peft: merge_and_unload, then save_pretrained) and give the merged folder",
        )
    return CheckpointError(f"neither {SINGLE_FILE} nor {INDEX_FILE}", where=folder, next="download the weights as well")


def _side_files(folder: Path) -> tuple[Path, ...]:
    found = []
    for root, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name != "__pycache__")
        relative = Path(root).relative_to(folder)
        found += [
            relative / name
            for name in sorted(files)
            if not name.startswith(".")
            and not name.endswith((*_WEIGHTS, ".index.json"))
            and str(relative / name) not in {"config.json", *_OWN_FILES}
        ]
    for file in found:
        _inside(folder, file.as_posix())
    return tuple(found)


def _inside(folder: Path, name: str) -> Path:
    """The file `name` of a folder, refused if it leads out of it."""
    pure = PurePosixPath(name)
    if not name or pure.is_absolute() or ".." in pure.parts or "\0" in name or "\\" in name:
        raise CheckpointError(f"the file name {name!r} points outside the folder", where=folder, next="do not trust this model")
    real, file = folder.resolve(), folder / pure
    # a Hub cache keeps the files of a snapshot as links to blobs of the same repository
    root = real.parent.parent if real.parent.name == "snapshots" else real
    target = file.resolve()
    if not target.is_relative_to(root):
        raise CheckpointError(f"{name} is a link that leads outside the folder", where=folder, next="put the file itself there")
    if not target.is_file():
        raise CheckpointError(f"{name} is missing", where=folder, next="download the model again")
    return file


def _parse_json(data: bytes, file: Path) -> Any:
    try:
        return json.loads(data.decode("utf-8"), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)[:200]
        raise _broken(file, f"not valid JSON ({reason})") from error


def _unique(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, value in pairs:
        if key in result:
            raise ValueError(f"the name {key!r} occurs twice")
        result[key] = value
    return result


def _broken(file: Path, problem: str) -> CheckpointError:
    return CheckpointError(problem, where=file, next="download the file again; if it stays so, do not trust it")
