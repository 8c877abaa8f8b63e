"""Prove from its manifest that an output is what it claims to be."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deepen.checkpoint import Tensor, open_checkpoint, resolve
from deepen.checkpoint.copy import Span, hash_file, hash_span, hash_spans
from deepen.checkpoint.gguf import is_gguf, open_gguf
from deepen.checkpoint.manifest import MANIFEST_FILE, read_manifest
from deepen.checkpoint.writer import header_hash
from deepen.errors import CheckpointError, OptionError, Refuted
from deepen.progress import progress


@dataclass(frozen=True)
class Verification:
    """What a verification found.

    Attributes:
        tensors: how many tensors the manifest describes.
        equal: how many of them are byte-equal to what the manifest proves.
        different: names of tensors (and files) whose bytes are others.
        missing: names that the manifest has and the output lacks.
        unexpected: names that the output has and the manifest lacks.
    """

    tensors: int
    equal: int
    different: tuple[str, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Whether everything is as it should be."""
        return self.equal == self.tensors and not (self.different or self.missing or self.unexpected)

    def to_dict(self) -> dict[str, Any]:
        """The JSON of `deepen verify --json`: counts, and the names behind them."""
        names = {"different": self.different, "missing": self.missing, "unexpected": self.unexpected}
        return {
            "tensors": self.tensors,
            "equal": self.equal,
            **{key: len(value) for key, value in names.items()},
            "names": {key: list(value) for key, value in names.items()},
        }


def verify(out: str | Path, source: str | Path | None = None) -> Verification:
    """Re-read and re-hash every byte of an output, and of its source if given, and compare with the manifest.

    Args:
        out: a folder or `.gguf` file that deepen wrote.
        source: the model it was made from; its tensors are hashed too, and each copy compared with its original.

    Raises:
        CheckpointError: there is no output, or it has no manifest.
        OptionError: a source was given for an output that was merged from several.
        Refuted: the manifest itself was changed.
    """
    path = resolve(out)
    file = path.with_name(f"{path.name}.deepen.json") if path.is_file() else path / MANIFEST_FILE
    try:
        content = read_manifest(file)
    except CheckpointError as error:
        if file.exists():
            raise Refuted(error.what, where=file, next=error.next) from error
        raise
    if source is not None and "models" in (content.get("source") or {}):
        raise OptionError(
            "a merged model is no copy of a source",
            where="--source",
            next="leave it out; the manifest holds their hashes",
        )
    records = {record["name"]: record for record in content.get("tensors", [])}
    damaged = _damaged_files(path, content)
    try:
        tensors = _tensors(path)
    except CheckpointError as error:
        return Verification(len(records), 0, damaged or (str(error.where),), (), ())
    originals = {} if source is None else _tensors(resolve(source))
    used = sorted({record["source"] for record in records.values()} & originals.keys())

    present = [name for name in records if name in tensors]
    total = sum(originals[name].nbytes for name in used) + sum(tensors[name].nbytes for name in present)
    with progress("verify", total, "B") as advance:
        source_hashes = dict(zip(used, hash_spans([_span(originals[name]) for name in used], advance), strict=True))
        hashes = dict(zip(present, hash_spans([_span(tensors[name]) for name in present], advance), strict=True))

    def holds(name: str) -> bool:
        record = records[name]
        proved = source is None or record["source_sha256"] in {None, source_hashes.get(record["source"])}
        return proved and hashes[name] == record["sha256"]

    changed = [name for name in present if not holds(name)]
    missing = [name for name in records if name not in tensors]
    unexpected = sorted(set(tensors) - set(records)) if "tensors" in content else []
    equal = len(present) - len(changed)
    return Verification(len(records), equal, (*damaged, *changed), tuple(missing), tuple(unexpected))


def _tensors(path: Path) -> Mapping[str, Tensor]:
    return open_gguf(path).tensors if is_gguf(path) else open_checkpoint(path).tensors


def _span(tensor: Tensor) -> Span:
    return Span(tensor.file, tensor.offset, tensor.nbytes)


def _damaged_files(path: Path, content: Mapping[str, Any]) -> tuple[str, ...]:
    folder = path if path.is_dir() else path.parent
    files, headers = content.get("files", {}), content.get("shard_headers", {})
    damaged = [name for name, digest in files.items() if not (folder / name).is_file() or hash_file(folder / name) != digest]
    damaged += [
        name for name, digest in headers.items() if not (folder / name).is_file() or header_hash(folder / name) != digest
    ]
    if "header_sha256" in content and (
        hash_span(Span(path, 0, content["header_bytes"])) != content["header_sha256"] or not _gaps_are_zero(path)
    ):
        damaged.append(path.name)
    return tuple(damaged)


def _gaps_are_zero(path: Path) -> bool:
    # GGUF pads each tensor to its alignment, and a flipped bit in the padding is a flipped bit
    try:
        tensors = sorted(open_gguf(path).tensors.values(), key=lambda tensor: tensor.offset)
    except CheckpointError:
        return False
    ends = [*(tensor.offset for tensor in tensors[1:]), path.stat().st_size]
    with path.open("rb") as stream:
        for tensor, end in zip(tensors, ends, strict=True):
            stream.seek(tensor.offset + tensor.nbytes)
            if any(stream.read(end - tensor.offset - tensor.nbytes)):
                return False
    return True
