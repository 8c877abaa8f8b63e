"""What an interrupted run needs to continue as if nothing had happened: weights, optimizer, step, and its settings.

It lies in a hidden folder inside the run's partial output: `RUN/STEP/`, as torch's distributed checkpoints, which any number of
processes can read, whatever number wrote them. A state is written beside the others and renamed, so a whole one always
survives. The data order and the random numbers follow from (seed, step), so neither needs to be stored.
"""

from __future__ import annotations

import json
import os
import shutil
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict, set_state_dict
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from deepen.checkpoint.manifest import MANIFEST_FILE, read_manifest
from deepen.errors import OptionError
from deepen.output import write_file
from deepen.train.metrics import METRICS_FILE
from deepen.train.ranks import rank, wait

_FOLDER = ".training"
_SETTINGS = "settings.json"
_PARTIAL = ".partial"
# names of parameters instead of their numbers, which makes it independent of how the model is sharded
_OPTIONS = StateDictOptions(flatten_optimizer_state_dict=True, ignore_frozen_params=True, strict=False)


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
    if (folder / MANIFEST_FILE).exists():  # written last of all
        _check_same(read_manifest(folder)["settings"], settings, folder)
        discard_state(folder)
        return True
    noted = noted_settings(folder)
    if noted and any((folder / _FOLDER).glob("*/[0-9]*")):
        _check_same(noted, settings, folder)
    (folder / _FOLDER).mkdir(exist_ok=True)
    write_file(folder / _FOLDER / _SETTINGS, json.dumps(dict(settings), indent=2))
    return False


def noted_settings(folder: Path) -> dict[str, Any]:
    """The settings of the run that was begun in a partial output; empty if none was."""
    file = folder / _FOLDER / _SETTINGS
    settings: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    return settings


def save_state(
    folder: Path, run: str, step: int, model: torch.nn.Module, optimizer: torch.optim.Optimizer, *, keep: int
) -> None:
    """Save a run's state after `step` steps; all processes call it. A kill at any moment leaves the states before it whole.

    Args:
        folder: the partial output.
        run: its name.
        step: how many steps are done.
        model: what is trained; only what learns is saved.
        optimizer: with its moments.
        keep: how many states are kept, the newest ones.

    Raises:
        OSError: the disk is full or failing.
    """
    states = folder / _FOLDER / run
    partial = states / f"{step}{_PARTIAL}"
    if rank() == 0:
        _flush(folder / METRICS_FILE)  # the rows up to this step must survive whatever the state survives
        states.mkdir(exist_ok=True)
        for left in states.glob(f"*{_PARTIAL}"):
            shutil.rmtree(left)
    wait()
    weights, moments = get_state_dict(model, optimizer, options=_OPTIONS)
    with warnings.catch_warnings(), _own_errors():
        warnings.filterwarnings("ignore", message="torch.distributed is (disabled|unavailable)")  # one process is a group too
        try:
            save({"model": weights, "optimizer": moments}, checkpoint_id=partial)
        except CheckpointException as error:  # a full disk comes wrapped, and not as an Exception
            raise next((each for each, _ in error.failures.values() if isinstance(each, OSError)), error) from error
    if rank() == 0:
        _flush(partial)
        partial.replace(states / str(step))
        _flush(states)
        for old in _steps(states)[:-keep]:
            shutil.rmtree(states / str(old))
    wait()


def saved_step(folder: Path, run: str) -> int:
    """How many steps were done in the newest saved state of a run; 0 when nothing was saved."""
    return max(_steps(folder / _FOLDER / run), default=0)


def load_state(folder: Path, run: str, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """Put the newest saved state of a run back in place; all processes call it.

    Returns:
        How many steps were done; 0 when nothing was saved.
    """
    steps = _steps(folder / _FOLDER / run)
    if not steps:
        return 0
    weights, moments = get_state_dict(model, optimizer, options=_OPTIONS)
    with warnings.catch_warnings(), _own_errors():
        warnings.filterwarnings("ignore", message="torch.distributed is (disabled|unavailable)")
        load({"model": weights, "optimizer": moments}, checkpoint_id=folder / _FOLDER / run / str(steps[-1]))
    set_state_dict(model, optimizer, model_state_dict=weights, optim_state_dict=moments, options=_OPTIONS)
    optimizer.zero_grad()
    return steps[-1]


def scratch(folder: Path) -> Path:
    """A folder for unfinished files, which goes with the state."""
    path = folder / _FOLDER / "scratch"
    path.mkdir(parents=True, exist_ok=True)
    return path


def discard_state(folder: Path, run: str = "") -> None:
    """Remove what only an unfinished run needs: a run's states, or all that is there."""
    shutil.rmtree(folder / _FOLDER / run, ignore_errors=True)


@contextmanager
def _own_errors() -> Iterator[None]:
    """Raise what failed itself: torch wraps it, a full disk too, in an exception that is no `Exception`."""
    try:
        yield
    except CheckpointException as error:
        raise next(failure for failure, _ in error.failures.values()) from None


def _steps(states: Path) -> list[int]:
    return sorted(int(path.name) for path in states.glob("[0-9]*") if path.name.isdigit())


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
