"""What was done, beside the output of each stage: the content of all that decides it, and of what came of it."""

from __future__ import annotations

import hashlib
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from deepen.checkpoint import resolve
from deepen.checkpoint.hub import is_hub_id
from deepen.output import partial_path, storage_errors, write_file
from deepen.pipeline.hashes import Hashes
from deepen.pipeline.steps import Step, matches


def begin_record(step: Step, key: str) -> None:
    """Say what is about to be done.

    The key is there before the output appears; outputs appear only when complete, so both together mean done.
    """
    _write(step, {"key": key, "command": step.command, "seconds": 0.0, "result": None, "output": None})


def finish_record(step: Step, key: str, result: dict[str, Any] | None, seconds: float, hashes: Hashes) -> dict[str, Any]:
    """Say what was done and what came of it; returns what the report shows of it."""
    result = json.loads(json.dumps(result, default=str))
    record = {"key": key, "command": step.command, "seconds": round(seconds, 3), "result": result}
    _write(step, record | {"output": _output(step, result, hashes)})
    return {"seconds": record["seconds"], "result": result}


def complete_record(step: Step, hashes: Hashes) -> dict[str, Any]:
    """The record of a stage that is done; what came of it is added where a run was stopped before it could say so."""
    record = read_record(step)
    if record.get("output") is None:
        record["output"] = _output(step, record["result"], hashes)
        _write(step, record)
    return {"seconds": record["seconds"], "result": record["result"]}


def adopt(step: Step, hashes: Hashes) -> None:
    """Take the output as it is from now on, and say so in the record."""
    record = read_record(step)
    found = _output(step, record["result"], hashes)
    change = {"at": datetime.now(UTC).isoformat(timespec="seconds"), "was": record["output"], "is": found}
    _write(step, record | {"output": found, "adopted": [*record.get("adopted", []), change]})


def read_record(step: Step) -> dict[str, Any]:
    """What a stage's record says; nothing if there is none, or no sound one."""
    try:
        record = json.loads(step.record.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) and {"key", "seconds", "result"} <= record.keys() else {}


def status(step: Step, key: str | None, hashes: Hashes) -> str:
    """Where a stage stands.

    `done`; `to do`; `changed`: there is an output, or a begun one, of other options or another input; or `edited`: the output
    is not what the stage had made.
    """
    record = read_record(step)
    if not step.out.exists():
        begun = partial_path(step.out).exists() and bool(record)
        return "changed" if begun and record["key"] != key else "to do"
    if key is None or record.get("key") != key:
        return "changed"
    if not step.stage.makes_model and record["result"] is None:
        return "to do"
    made = record.get("output")  # a run that was killed in between has not written it
    return "done" if made is None or made == _output(step, record["result"], hashes) else "edited"


def is_edited(step: Step, hashes: Hashes) -> bool:
    """Whether there is an output that is not what the stage had made, whatever its options are now."""
    record = read_record(step)
    return bool(record) and status(step, record["key"], hashes) == "edited"


def may_be_done(step: Step) -> bool:
    """Whether there is anything to compare with, so that nothing is read where there is not."""
    return step.out.exists() or partial_path(step.out).exists()


def key_of(step: Step, hashes: Hashes) -> str | None:
    """A hash of what decides the output: the verb, its options, and the content of the models and of every file.

    None while a model is not there yet.
    """
    if not all(Path(model).exists() or is_hub_id(model) for model in step.inputs):
        return None

    def data(path: Path) -> str:
        """The content of files; of a data set of the Hub, its name."""
        if path.exists():
            return hashes.content(path)
        return "".join(map(hashes.content, matches(str(path)))) or str(path)

    files = {key: [data(file) for file in paths] for key, paths in step.stage.path_options().items()}
    if step.others:
        files["models" if "models" in step.options else "others"] = [hashes.content(resolve(model)) for model in step.others]
    options = {key: value for key, value in step.options.items() if key not in files}
    content = {"verb": step.stage.stage, "options": options, "files": files, "model": hashes.content(resolve(step.source))}
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()


def _output(step: Step, result: object, hashes: Hashes) -> str:
    """A hash of what a stage left: its folder or file, or what it found."""
    if step.stage.makes_model or step.out.is_dir():
        return hashes.content(step.out)
    return hashlib.sha256(json.dumps(result, sort_keys=True).encode()).hexdigest()


def _write(step: Step, record: dict[str, Any]) -> None:
    with storage_errors(step.record):
        write_file(step.record, json.dumps(record, indent=2, default=str) + "\n")
