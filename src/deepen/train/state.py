"""What an interrupted run needs to continue as if nothing had happened: weights, optimizer, step, and its settings.

It lies in a hidden folder inside the run's partial output. A state is written beside the last one and renamed over it, so a
whole one always survives. The data order and the random numbers follow from (seed, step), so neither needs to be stored.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from deepen.checkpoint.manifest import MANIFEST_FILE, read_manifest
from deepen.errors import OptionError
from deepen.output import write_file
from deepen.train.metrics import METRICS_FILE

_FOLDER = ".training"
_STATE, _SETTINGS = "state.pt", "settings.json"


def begin(folder: Path, settings: Mapping[str, Any], *, resume: bool) -> bool:
    """Note the settings of a run, or check that an interrupted one is continued with the same.

    Args:
        folder: the partial output.
        settings: everything that determines the result, as plain JSON values.
        resume: whether to keep what an interrupted run left there.

    Returns:
        Whether an earlier run finished all its files already, so that nothing is left to do but to publish them.

    Raises:
        OptionError: an interrupted run had other settings; the message shows the differences.
    """
    if not resume:
        for entry in folder.iterdir():
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
    state, noted = folder / _FOLDER / _STATE, folder / _FOLDER / _SETTINGS
    if (folder / MANIFEST_FILE).exists():  # written last of all
        _check_same(read_manifest(folder)["settings"], settings, folder)
        discard_state(folder)
        return True
    if state.exists():
        _check_same(json.loads(noted.read_text(encoding="utf-8")), settings, folder)
    noted.parent.mkdir(exist_ok=True)
    write_file(noted, json.dumps(dict(settings), indent=2))
    return False


def save_state(folder: Path, step: int, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Save the run's state after `step` steps; a kill at any moment leaves this state or the one before it, whole."""
    _flush(folder / METRICS_FILE)  # the rows up to this step must survive whatever the state survives
    state = folder / _FOLDER / _STATE
    partial = state.with_suffix(".partial")
    torch.save({"step": step, "model": model.state_dict(), "optimizer": optimizer.state_dict()}, partial)
    _flush(partial)
    partial.replace(state)
    _flush(state.parent)


def load_state(folder: Path, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """Put a saved state back in place.

    Returns:
        How many steps were done; 0 when nothing was saved.
    """
    file = folder / _FOLDER / _STATE
    if not file.exists():
        return 0
    state = torch.load(file, map_location="cpu", weights_only=True)
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    return int(state["step"])


def scratch(folder: Path) -> Path:
    """A folder for unfinished files, which goes with the state."""
    path = folder / _FOLDER / "scratch"
    path.mkdir(parents=True, exist_ok=True)
    return path


def discard_state(folder: Path) -> None:
    """Remove what only an unfinished run needs."""
    shutil.rmtree(folder / _FOLDER, ignore_errors=True)


def _check_same(before: Mapping[str, Any], now: Mapping[str, Any], folder: Path) -> None:
    changed = [key for key in {**before, **now} if before.get(key) != now.get(key)]
    if changed:
        difference = "; ".join(f"{key} was {before.get(key)}, is {now.get(key)}" for key in changed)
        raise OptionError(
            f"an interrupted run with other settings lies here: {difference}",
            where=folder,
            next="use the same settings to continue it, --no-resume to start anew, or another output",
        )


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
