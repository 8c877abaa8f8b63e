"""What was done, beside the output of each stage: the content of all that decides it, and the result."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from deepen.checkpoint import resolve
from deepen.output import write_file
from deepen.pipeline.steps import Step, matches

PICTURES = ".png"
# What tells of the making, and is no part of the model: it differs when the same model is made again
_ABOUT = {"deepen.json", "README.md", "metrics.jsonl"}


def write_record(step: Step, key: str, result: dict[str, Any] | None, seconds: float) -> dict[str, Any]:
    """Say what is done, or about to be; returns what the report shows of it."""
    record = {"key": key, "command": step.command, "seconds": round(seconds, 3), "result": result}
    write_file(step.record, json.dumps(record, indent=2, default=str) + "\n")
    return {"seconds": record["seconds"], "result": result}


def read_record(step: Step) -> dict[str, Any]:
    """What a stage's record says; nothing if there is none, or no sound one."""
    try:
        record = json.loads(step.record.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) and {"key", "seconds", "result"} <= record.keys() else {}


def key_of(step: Step) -> str:
    """A hash of what decides the output: the verb, its options, and the content of the model and of every file."""
    files = {key: [_data_fingerprint(file) for file in paths] for key, paths in step.stage.path_options().items()}
    if step.others:
        files["models" if "models" in step.options else "others"] = [_fingerprint(resolve(model)) for model in step.others]
    options = {key: value for key, value in step.options.items() if key not in files}
    content = {"verb": step.stage.stage, "options": options, "files": files, "model": _fingerprint(resolve(step.source))}
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()


def _data_fingerprint(path: Path) -> str:
    """A hash of the content of files; of a data set of the Hub, its name."""
    if path.exists():
        return _fingerprint(path)
    return "".join(map(_fingerprint, matches(str(path)))) or str(path)


def _fingerprint(path: Path) -> str:
    """A hash of the content of a file or folder, whatever its name, dates and manifest."""
    files = [path]
    if path.is_dir():
        files = sorted(f for f in path.rglob("*") if f.is_file() and f.name not in _ABOUT and f.suffix != PICTURES)
    total = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        total.update(f"{file.relative_to(path)}\0{digest}\n".encode())
    return total.hexdigest()
