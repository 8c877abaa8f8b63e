"""The manifest `deepen.json`: what an output was made from, how, with which versions, and the hash of every tensor and file."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from deepen.errors import CheckpointError
from deepen.output import write_file

MANIFEST_FILE = "deepen.json"
_PACKAGES = ("deepen", "numpy", "torch", "transformers", "safetensors", "gguf", "xllamacpp")


def manifest(
    *,
    verb: str,
    options: Mapping[str, Any],
    source: Mapping[str, Any] | None,
    seconds: float,
    energy_joules: float | None = None,
    plan: Mapping[str, Any] | None = None,
    tensors: Sequence[Mapping[str, Any]] | None = None,
    **extra: Any,
) -> dict[str, Any]:
    """The manifest of one output as a dictionary, sealed by its own hash.

    Args:
        verb: the verb that made the output.
        options: the verb's options as the user gave them.
        source: the model it was made from: `model` as given, and hashes.
        seconds: how long it took.
        energy_joules: what it used, if that was measured.
        plan: the layer plan, if there is one.
        tensors: a record per tensor: `name`, `sha256`, `source`, `source_sha256`.
        **extra: further facts, such as `files` (name to SHA-256) or `metrics`.
    """
    content: dict[str, Any] = {
        "verb": verb,
        "options": dict(options),
        "source": None if source is None else dict(source),
        "plan": None if plan is None else dict(plan),
        "seconds": round(seconds, 3),
        "energy_joules": energy_joules,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": versions(),
        **extra,
    }
    if tensors is not None:
        content["tensors"] = [dict(record) for record in tensors]
    return {"manifest_sha256": _seal(content), **content}


def write_manifest(folder: Path, **facts: Any) -> dict[str, Any]:
    """Write `deepen.json` into a folder; takes what `manifest` takes and returns what it wrote."""
    content = manifest(**facts)
    write_file(folder / MANIFEST_FILE, manifest_text(content))
    return content


def manifest_text(content: Mapping[str, Any]) -> str:
    """A manifest as JSON: indented, but with one line per tensor, since there are hundreds."""
    tensors = content.get("tensors")
    text = json.dumps({**content, "tensors": []} if tensors else content, indent=2, ensure_ascii=False)
    if tensors:
        lines = ",\n".join("    " + json.dumps(record, ensure_ascii=False) for record in tensors)
        text = text.replace('"tensors": []', f'"tensors": [\n{lines}\n  ]')
    return text + "\n"


def read_manifest(path: Path) -> dict[str, Any]:
    """Read a manifest file, or the one in a folder, and check its seal.

    Raises:
        CheckpointError: there is none, it is no valid manifest, or it was changed after it was written.
    """
    file = path / MANIFEST_FILE if path.is_dir() else path
    if not file.is_file():
        raise CheckpointError("no manifest (deepen.json)", where=path, next="give an output of deepen")
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise CheckpointError("the manifest is not valid JSON", where=file, next="make the output again") from error
    if not isinstance(content, dict) or not isinstance(content.get("manifest_sha256"), str):
        raise CheckpointError("not a manifest of deepen", where=file, next="make the output again")
    if content["manifest_sha256"] != _seal({key: value for key, value in content.items() if key != "manifest_sha256"}):
        raise CheckpointError("the manifest was changed after it was written", where=file, next="make the output again")
    return content


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that shape results, where installed."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _seal(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
