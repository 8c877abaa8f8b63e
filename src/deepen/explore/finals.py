"""The finals: the best plans are healed for a while, and stand in the order in which they end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from deepen.errors import DataError
from deepen.explore.material import Unit
from deepen.explore.results import Exploration, Scored
from deepen.explore.setup import Prepared
from deepen.explore.trials import Trials, heal_trials
from deepen.train.loop import Batch
from deepen.train.sequences import sequence

FINALISTS = 3
"""Plans that are healed, besides SOLAR's own of their sizes."""

_BATCH_TOKENS, _MICRO_TOKENS = 1024, 512


def heal_finalists(found: Exploration, prepared: Prepared, *, steps: int, folder: Path) -> Exploration:
    """Heal the best plans of a search and rank by where they end; see `heal_trials`.

    What is learned is the data without what is held out, in the rows that were searched on: text and chats, no questions.

    Args:
        found: what the search found.
        prepared: what it searched.
        steps: optimizer steps of each trial.
        folder: where finished trials are kept.

    Returns:
        The same with the plans that were healed first, in that order.

    Raises:
        DataError: there is no text and no chat to learn from or to measure on.
        ResourceError: the deepest plan would not fit into memory.
    """
    held_out = [unit for part in prepared.held_out for unit in part if unit.right is None]
    seen = {_content(unit) for unit in held_out}
    data = prepared.read(prepared.settings.data, prepared.settings.objective)
    learned = [unit for part in data for unit in part if unit.right is None and _content(unit) not in seen]
    if not learned or not held_out:
        raise DataError(
            "healing trials learn from text or chats, and there are only questions",
            where="--heal",
            next="give --data of text too and --objective mixture, or leave out --heal",
        )
    trials = heal_trials(
        prepared.checkpoint.path,
        [plan.candidate for plan in found.plans[:FINALISTS]],
        rows=_rows(learned),
        held_out=_rows(held_out),
        folder=folder,
        steps=steps,
        batch_rows=max(1, _BATCH_TOKENS // prepared.settings.window),
        micro_batch=max(1, _MICRO_TOKENS // prepared.settings.window),
        seed=prepared.settings.seed,
        device=prepared.settings.device,
    )
    return replace(found, plans=_by_healing(found.plans, trials), trials=trials.to_dict())


def _by_healing(plans: Sequence[Scored], trials: Trials) -> tuple[Scored, ...]:
    """Those that were healed by the better of their two ends, then the others as they were."""
    healed = [replace(plan, healed=trials.of(plan.candidate)) for plan in plans]
    first = sorted((plan for plan in healed if plan.healed), key=lambda plan: float(plan.healed[0]["value"]))
    others = [plan for plan in healed if not plan.healed]
    ends = [int(plan.healed[0]["rank"]) for plan in first]
    return (
        *(replace(plan, rank=1 + sum(other < end for other in ends)) for plan, end in zip(first, ends, strict=True)),
        *(replace(plan, rank=len(first) + 1 + sum(other.rank < plan.rank for other in others)) for plan in others),
    )


def _content(unit: Unit) -> bytes:
    return b"".join(tokens.tobytes() + labels.tobytes() for tokens, labels in unit.rows)


def _rows(units: Sequence[Unit]) -> list[Batch]:
    return [sequence(tokens, labels) for unit in units for tokens, labels in unit.rows]
