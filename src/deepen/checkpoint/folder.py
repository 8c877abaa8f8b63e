"""Write a whole checkpoint folder: weights, configuration, everything else of the model it comes from, card and manifest."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from deepen.checkpoint.card import model_card
from deepen.checkpoint.copy import hash_file
from deepen.checkpoint.manifest import MANIFEST_FILE, read_manifest, write_manifest
from deepen.checkpoint.reader import Checkpoint
from deepen.checkpoint.writer import Output, copy_side_files, file_hashes, write_tensors
from deepen.output import check_disk, new_folder, write_file
from deepen.progress import progress


def write_folder(
    out: Path,
    sources: Sequence[Checkpoint],
    outputs: Sequence[Output],
    config: str | bytes,
    facts: Mapping[str, Any],
    start: float,
    *,
    shard_bytes: int,
    overwrite: bool,
) -> Path:
    """Write the folder `out`; it appears when it is complete.

    Args:
        out: the new folder.
        sources: the models it is made from; the tokenizer and all other files are the first one's, byte for byte.
        outputs: its tensors.
        config: the text of its `config.json`.
        facts: what goes into the manifest besides hashes; `verb`, `options` and `source` are needed.
        start: when the work began, in seconds of `time.monotonic`.
        shard_bytes: the largest shard.
        overwrite: replace an existing `out`, when the new one is complete.

    Returns:
        `out`.
    """
    base = sources[0]
    total = sum(output.nbytes for output in outputs)
    check_disk(out, total + sum((base.path / file).stat().st_size for file in base.side_files))
    with new_folder(out, overwrite=overwrite) as partial:
        copy_side_files(base.path, base.side_files, partial)
        write_file(partial / "config.json", config)
        with progress(facts["verb"], total, "B") as advance:
            tensors, headers = write_tensors(partial, outputs, shard_bytes=shard_bytes, advance=advance)
        write_file(partial / "README.md", model_card(facts, *(_read_card(source.path) for source in sources)))
        files = file_hashes(partial, exclude=(*headers, MANIFEST_FILE))
        content = {**facts, "tensors": tensors, "shard_headers": headers, "files": files}
        write_manifest(partial, seconds=time.monotonic() - start, **content)
    return out


def source_facts(path: Path, model: str) -> dict[str, Any]:
    """What a manifest says about the checkpoint folder that something was made from: its name, and hashes."""
    facts = {"model": model, "format": "safetensors", "config_sha256": hash_file(path / "config.json")}
    if (path / MANIFEST_FILE).is_file():
        facts["manifest_sha256"] = read_manifest(path)["manifest_sha256"]
    return facts


def weights_hash(source: Checkpoint) -> str:
    """One hash for all weights of a checkpoint folder."""
    files = sorted({tensor.file for tensor in source.tensors.values()})
    return hashlib.sha256("".join(map(hash_file, files)).encode()).hexdigest()


def _read_card(path: Path) -> str | None:
    readme = path / "README.md"
    return readme.read_text(encoding="utf-8", errors="replace") if readme.is_file() else None
