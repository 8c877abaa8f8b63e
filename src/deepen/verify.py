"""Prove from its manifest that an output is what it claims to be."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from deepen.checkpoint import Tensor, open_checkpoint, resolve
from deepen.checkpoint.copy import Span, hash_file, hash_span, hash_spans
from deepen.checkpoint.folder import weights_hash
from deepen.checkpoint.gguf import is_gguf, open_gguf
from deepen.checkpoint.manifest import MANIFEST_FILE, read_manifest
from deepen.checkpoint.writer import header_hash
from deepen.errors import CheckpointError, OptionError, Refuted
from deepen.progress import progress


@dataclass(frozen=True)
class Link:
    """A model on the way from an output back to its base.

    Attributes:
        model: where it lies, or how the manifest calls it if it is not there.
        verb: what made it; None for a model without a manifest, such as the base.
        status: `equal`, `different`, or `absent`.
        different: what is not as the manifest of the output made from it says, and names of its own tensors and files.
    """

    model: str
    verb: str | None
    status: str
    different: tuple[str, ...] = ()


@dataclass(frozen=True)
class Verification:
    """What a verification found.

    Attributes:
        tensors: how many tensors the manifest describes.
        equal: how many of them are byte-equal to what the manifest proves.
        different: names of tensors (and files) whose bytes are others.
        missing: names that the manifest has and the output lacks.
        unexpected: names that the output has and the manifest lacks.
        chain: the models that it was made from, back to the base, nearest first.
    """

    tensors: int
    equal: int
    different: tuple[str, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    chain: tuple[Link, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether everything that is there is as it should be."""
        broken = any(link.status == "different" for link in self.chain)
        return self.equal == self.tensors and not (self.different or self.missing or self.unexpected or broken)

    def to_dict(self) -> dict[str, Any]:
        """The JSON of `deepen verify --json`: counts, and the names behind them."""
        names = {"different": self.different, "missing": self.missing, "unexpected": self.unexpected}
        return {
            "tensors": self.tensors,
            "equal": self.equal,
            **{key: len(value) for key, value in names.items()},
            "names": {key: list(value) for key, value in names.items()},
            "chain": [asdict(link) | {"different": list(link.different)} for link in self.chain],
        }


def verify(out: str | Path, source: str | Path | None = None) -> Verification:
    """Re-read and re-hash every byte of an output, and of its source if given, and compare with the manifest.

    The models that it was made from are verified too, by their own manifests, back to the base, as far as they are still where
    they were or lie beside the output; each must be the one that the next was made from.

    Args:
        out: a folder or `.gguf` file that deepen wrote.
        source: the model it was made from; its tensors are hashed too, and each copy compared with its original.

    Raises:
        CheckpointError: there is no output, or it has no manifest.
        OptionError: a source was given for an output that was merged from several.
        Refuted: the manifest itself was changed.
    """
    path = resolve(out)
    content = _manifest(path)
    if source is not None and "models" in (content.get("source") or {}):
        raise OptionError(
            "a merged model is no copy of a source",
            where="--source",
            next="leave it out; the manifest holds their hashes",
        )
    found = _verify_one(path, content, None if source is None else resolve(source))
    return replace(found, chain=tuple(_chain(path, content, source)))


def _manifest(path: Path) -> dict[str, Any]:
    file = _manifest_file(path)
    try:
        return read_manifest(file)
    except CheckpointError as error:
        if file.exists():
            raise Refuted(error.what, where=file, next=error.next) from error
        raise


def _manifest_file(path: Path) -> Path:
    return path.with_name(f"{path.name}.deepen.json") if path.is_file() else path / MANIFEST_FILE


def _chain(path: Path, content: Mapping[str, Any], given: str | Path | None) -> Iterator[Link]:
    """Verify all that an output was made from, each model once, the nearest first."""
    waiting: deque[tuple[Path, Mapping[str, Any], str | Path | None]] = deque([(path, content, given)])
    seen = {path.resolve()}
    while waiting:
        path, content, given = waiting.popleft()
        told = content.get("source") or {}
        for source in told.get("models", [told] if told else []):
            place = _place(path, source, given)
            if place is None:
                yield Link(str(source.get("model")), None, "absent")
                continue
            wrong = list(_broken_claims(place, source, content))
            first = place.resolve() not in seen
            seen.add(place.resolve())
            verb = None
            if _manifest_file(place).is_file():
                try:
                    made = _manifest(place)
                    verb = str(made["verb"])
                    if first:
                        own = _verify_one(place, made, None)
                        wrong += [*own.different, *own.missing, *own.unexpected]
                        waiting.append((place, made, None))
                except Refuted as error:
                    wrong.append(error.what)
            if first or wrong:
                yield Link(str(place), verb, "different" if wrong else "equal", tuple(wrong))


def _place(out: Path, source: Mapping[str, Any], given: str | Path | None) -> Path | None:
    """Where a source lies: where it was said to, or beside the output; of several the one that is right."""
    name = str(source.get("model", ""))
    if given is not None:
        return resolve(given)
    places = [Path(name), out.parent / Path(name).name] if name else []
    found = [place for place in places if place.exists() and place.resolve() != out.resolve()]
    return next((place for place in found if not list(_broken_facts(place, source))), found[0] if found else None)


def _broken_facts(place: Path, source: Mapping[str, Any]) -> Iterator[str]:
    """What small files of a source say otherwise than the manifest of what was made from it."""
    config = place / "config.json"
    if "config_sha256" in source and not (config.is_file() and hash_file(config) == source["config_sha256"]):
        yield "config.json"
    if "manifest_sha256" in source:
        try:
            same = read_manifest(_manifest_file(place))["manifest_sha256"] == source["manifest_sha256"]
        except CheckpointError:
            same = False
        if not same:
            yield MANIFEST_FILE


def _broken_claims(place: Path, source: Mapping[str, Any], content: Mapping[str, Any]) -> Iterator[str]:
    """What of a source is not as the manifest of the output made from it says."""
    yield from _broken_facts(place, source)
    try:
        if "weights_sha256" in source and weights_hash(open_checkpoint(place)) != source["weights_sha256"]:
            yield "weights"
        if "sha256" in source and hash_file(place) != source["sha256"]:
            yield place.name
        claims = {record["source"]: record["source_sha256"] for record in content.get("tensors", []) if record.get("source")}
        if claims and content["verb"] == "scale" and "sha256" not in source:
            originals = _tensors(place)
            known = {name: digest for name, digest in claims.items() if digest is not None}
            present = [name for name in known if name in originals]
            hashes = hash_spans([_span(originals[name]) for name in present], lambda _: None)
            same = {name for name, digest in zip(present, hashes, strict=True) if digest == known[name]}
            yield from (name for name in known if name not in same)
    except CheckpointError as error:
        yield error.what


def _verify_one(path: Path, content: Mapping[str, Any], source: Path | None) -> Verification:
    """An output against its own manifest, and its tensors against those they were copied from."""
    records = {record["name"]: record for record in content.get("tensors", [])}
    damaged = _damaged_files(path, content)
    try:
        tensors = _tensors(path)
    except CheckpointError as error:
        return Verification(len(records), 0, damaged or (str(error.where),), (), ())
    originals = {} if source is None else _tensors(source)
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
