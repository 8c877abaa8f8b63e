"""Healing trials: the last few plans are trained for a while on equal tokens, and stand where they end.

A plan's score says how much its copies harm before any training. What counts is what remains after some, and the two orders
differ: repeating 8:22 in SmolLM2-135M harms more than 5:19, and yet is ahead of it at once if its copies start as the identity.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import ModuleList, Parameter

from deepen.data.text import rows_of_step
from deepen.errors import DataError, OptionError, ResourceError
from deepen.explore.results import Candidate, Interval
from deepen.explore.statistics import Sample, draws, interval, ranks
from deepen.likelihood import evaluating, token_losses
from deepen.model import load
from deepen.output import write_file
from deepen.plan import parse_plan, plan, read_facts
from deepen.plan.memory import Setup, training_bytes
from deepen.plan.price import price
from deepen.progress import say
from deepen.train.account import loss_and_perplexity
from deepen.train.loop import Batch, Learner, Run, train
from deepen.train.memory import free_bytes
from deepen.train.metrics import METRICS_FILE, read_rows
from deepen.train.network import PRECISIONS, open_trainable, release, speed_up
from deepen.train.schedule import learning_rate as rate_of_step
from deepen.train.schedule import warmup_steps
from deepen.train.sequences import micro_batches, token_loss
from deepen.units import format_bytes, format_seconds

STARTS = ("copies", "identity")
"""How the repeated layers begin: as plain copies, or as the identity."""

_WARMUP = 0.1
_MEASURES = 10  # at most, along a trial

Losses = NDArray[np.float64]
"""Summed nats of each held-out row, shape (rows,)."""


@dataclass(frozen=True)
class Trial:
    """What a short training made of a plan.

    Attributes:
        candidate: the plan; None for the control, which is the base.
        start: `copies` or `identity`; empty for the control.
        curve: tokens trained on and held-out loss in nats per token, in order.
        loss: on the held-out rows after the last step.
        difference: that less the control's on the same rows, with the interval of the paired difference.
        rank: its place, from 1, among all but the control; a trial that cannot be told apart from the first of a place shares
            it.
    """

    candidate: Candidate | None
    start: str
    curve: tuple[tuple[int, float], ...]
    loss: Interval
    difference: Interval
    rank: int = 0

    def to_dict(self) -> dict[str, Any]:
        """The entry under `healed` in `plans.json`."""
        return {
            "start": self.start,
            "rank": self.rank,
            **asdict(self.loss),
            "difference": asdict(self.difference),
            "curve": [list(point) for point in self.curve],
        }


@dataclass(frozen=True)
class Trials:
    """All trials of a search.

    Attributes:
        control: the base on the same tokens.
        trials: of the plans, best first.
        steps: optimizer steps of each.
        tokens: that each was trained on.
    """

    control: Trial
    trials: tuple[Trial, ...]
    steps: int
    tokens: int

    def of(self, candidate: Candidate) -> tuple[dict[str, Any], ...]:
        """What came of a plan, best first: `Scored.healed`."""
        return tuple(trial.to_dict() for trial in self.trials if trial.candidate == candidate)

    def to_dict(self) -> dict[str, Any]:
        """The entry `trials` in `plans.json`."""
        trials = [
            {"layers": trial.candidate.slices, "options": dict(trial.candidate.options), **trial.to_dict()}
            for trial in self.trials
            if trial.candidate is not None
        ]
        return {"steps": self.steps, "tokens": self.tokens, "control": self.control.to_dict(), "trials": trials}


def heal_trials(
    model: str | Path,
    finalists: Sequence[Candidate],
    *,
    rows: Sequence[Batch],
    held_out: Sequence[Batch],
    folder: Path,
    steps: int,
    starts: Sequence[str] = STARTS,
    batch_rows: int = 2,
    learning_rate: float = 1e-4,
    micro_batch: int = 1,
    seed: int = 0,
    device: str | None = None,
    precision: str | None = None,
) -> Trials:
    """Train each plan, from plain copies and from an identity start, and the base, on the same rows in the same order.

    The loop is that of `deepen pretrain`: AdamW, all weights learn, a cosine after a tenth of warm-up. One model is in memory
    at a time. A finished trial is kept in `folder` and not repeated; one that was interrupted goes on from its last state.

    Args:
        model: the base: a checkpoint folder, or what else `deepen.load` takes.
        finalists: the plans. `--drop` of the same size runs beside them (see `with_drop`).
        rows: what is learned, one sequence each; beyond one epoch they come again.
        held_out: what is measured; none of it among `rows`.
        folder: where trials are kept; the caller removes it when all is written.
        steps: optimizer steps of each trial.
        starts: how the repeated layers begin.
        batch_rows: rows of a step.
        learning_rate: the peak.
        micro_batch: rows that go through the model at once.
        seed: of the order of the rows.
        device: a GPU where there is one, unless given.
        precision: what matrices are multiplied in; bfloat16 on a GPU and float32 elsewhere, unless given.

    Raises:
        OptionError: no steps.
        DataError: too few rows to learn from or to measure on.
        ResourceError: the deepest plan would not fit into memory.
        UserError: a loss is not finite.
    """
    if steps < 1:
        raise OptionError(f"{steps} steps heal nothing", where="--heal", next="use 20 or more")
    if not rows or len(held_out) < 2:
        raise DataError(
            f"{len(rows)} rows to learn from and {len(held_out)} to measure on are too few for healing trials",
            next="give more text, or leave out --heal",
        )
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    precision = precision or ("bfloat16" if device.startswith("cuda") else "float32")
    finalists = with_drop(finalists, plan(model, layers="0:1").source_layers)
    _check_memory(Path(model), finalists, rows, device, precision, micro_batch)
    race: list[tuple[Candidate | None, str]] = [(None, "")]
    race += [(candidate, start) for candidate in finalists for start in starts]
    shared = _Shared(rows, held_out, steps, batch_rows, learning_rate, micro_batch, seed, device, precision)
    folder.mkdir(parents=True, exist_ok=True)
    ended: list[_Ended] = []
    begin, trained = time.monotonic(), 0
    for number, (candidate, start) in enumerate(race, start=1):
        kept = folder / f"{shared.key(candidate, start)}.json"
        if not kept.is_file():
            seconds = (time.monotonic() - begin) / trained * (len(race) - number + 1) if trained else None
            left = "" if seconds is None else f"; about {format_seconds(seconds)} left"
            say(f"healing trial {number} of {len(race)}: {_name(candidate, start)}{left}")
            network = _network(model, candidate, start, device)
            _write(kept, _heal(network, shared, kept.with_suffix(""), f"Trial {number} of {len(race)}"))
            del network
            release(device)
            trained += 1
        ended.append(_read(kept))
    return _ranked(race, ended, shared)


def with_drop(finalists: Sequence[Candidate], source_layers: int) -> list[Candidate]:
    """The finalists and, for every size among them, SOLAR's own plan (`--drop`) where there is one of that size.

    That has 2 (n - m) layers: an even number, at most twice the base's.
    """
    everyone = list(finalists)
    for size in dict.fromkeys(len(candidate.layers) for candidate in finalists):
        if size % 2 == 0 and source_layers < size <= 2 * source_layers:
            drop = source_layers - size // 2
            layers = parse_plan(source_layers, drop=drop).layers
            if all(candidate.layers != layers for candidate in everyone):
                everyone.append(Candidate({"drop": drop}, layers))
    return everyone


@dataclass(frozen=True)
class _Shared:
    """What all trials of a search have in common."""

    rows: Sequence[Batch]
    held_out: Sequence[Batch]
    steps: int
    batch_rows: int
    learning_rate: float
    micro_batch: int
    seed: int
    device: str
    precision: str

    def rows_of(self, step: int) -> list[Batch]:
        """The rows of a zero-based step."""
        return [self.rows[row] for row in rows_of_step(step, rows=len(self.rows), batch=self.batch_rows, seed=self.seed)]

    def key(self, candidate: Candidate | None, start: str) -> str:
        """Names a trial by all that decides its result."""
        content = hashlib.sha256()
        for row in (*self.rows, *self.held_out):
            content.update(row.tokens.numpy().tobytes() + row.labels.numpy().tobytes())
        numbers = (self.steps, self.batch_rows, self.learning_rate, self.micro_batch, self.seed, self.precision)
        slices = None if candidate is None else candidate.slices
        content.update(json.dumps([len(self.rows), *numbers, slices, start]).encode())
        return content.hexdigest()[:16]


@dataclass(frozen=True)
class _Ended:
    """A trial by itself."""

    curve: tuple[tuple[int, float], ...]
    losses: Losses


def _heal(network: Any, shared: _Shared, folder: Path, subject: str) -> _Ended:
    speed_up(network, compile=False, activation_checkpointing=False)
    folder.mkdir(exist_ok=True)
    device, losses = torch.device(shared.device), np.zeros(0)
    terms = sum(row.terms for row in shared.held_out)

    def validate() -> Mapping[str, float]:
        nonlocal losses
        losses = _measure(network, shared.held_out, device)
        return loss_and_perplexity(float(losses.sum()) / terms)

    def batches(step: int) -> list[Batch]:
        return micro_batches(shared.rows_of(step), shared.micro_batch, device)

    read = [sum(row.tokens.numel() for row in shared.rows_of(step)) for step in range(shared.steps)]
    tokens, rising = [0, *accumulate(read)], warmup_steps(_WARMUP, shared.steps)
    train(
        network,
        batches=batches,
        loss=lambda network, batch: token_loss(network, batch, None),
        learns=[Learner(list(network.parameters()))],
        run=Run(
            folder=folder,
            steps=shared.steps,
            tokens=lambda step: tokens[step],
            rate=lambda step: rate_of_step(
                step, peak=shared.learning_rate, steps=shared.steps, warmup=rising, schedule="cosine"
            ),
            validate=validate,
            every=max(1, -(-shared.steps // _MEASURES)),
            save_every=50,
            seed=shared.seed,
            device=device,
            precision=PRECISIONS[shared.precision],
            subject=subject,
        ),
    )
    measured = [row for row in read_rows(folder / METRICS_FILE) if "validation_loss" in row]
    return _Ended(tuple((row["tokens"], row["validation_loss"]) for row in measured), losses)


def _network(model: str | Path, candidate: Candidate | None, start: str, device: str) -> Any:
    """The model that is trained, in float32: every layer has weights of its own."""
    if candidate is None:
        return load(model, dtype="float32", device=device)[0]
    options = {"layers": candidate.slices, "identity_init": start == "identity"}
    network: Any = load(model, options, dtype="float32", device=device)[0]
    layers = max((each for each in network.modules() if isinstance(each, ModuleList)), key=len)
    seen: set[int] = set()
    for layer in layers:
        for module in layer.modules():
            for name, parameter in module._parameters.items():
                if parameter is not None and (id(parameter) in seen or not parameter.requires_grad):
                    module._parameters[name] = Parameter(parameter.detach().clone())
        seen |= {id(parameter) for parameter in layer.parameters()}
    return network


def _measure(network: Any, rows: Sequence[Batch], device: torch.device) -> Losses:
    with evaluating(network):
        places = [None if row.positions is None else row.positions.to(device) for row in rows]
        return np.array(
            [
                token_losses(network, row.tokens.to(device), row.labels.to(device), place).double().sum().item()
                for row, place in zip(rows, places, strict=True)
            ]
        )


def _ranked(race: Sequence[tuple[Candidate | None, str]], ended: Sequence[_Ended], shared: _Shared) -> Trials:
    """Each trial against the control, and in the order of where they ended."""
    order = [0, *sorted(range(1, len(race)), key=lambda place: ended[place].losses.sum())]
    losses = np.stack([ended[place].losses for place in order])
    less = losses - losses[0]
    terms = np.array([row.terms for row in shared.held_out], np.float64)
    drawn, apart = (draws([Sample(sums, terms)], 0) for sums in (losses, less))
    places = [0, *ranks(drawn[1:])]
    control, *trials = [
        Trial(
            *race[place],
            ended[place].curve,
            interval(losses[row].sum() / terms.sum(), drawn[row]),
            interval(less[row].sum() / terms.sum(), apart[row]),
            places[row],
        )
        for row, place in enumerate(order)
    ]
    return Trials(control, tuple(trials), shared.steps, control.curve[-1][0])


def _check_memory(
    model: Path, finalists: Sequence[Candidate], rows: Sequence[Batch], device: str, precision: str, micro_batch: int
) -> None:
    """Refuse trials whose deepest plan would not fit into memory, before the first one begins."""
    if model.is_file():
        return
    source = open_trainable(model)
    facts, _ = read_facts(source)
    deepest = max(finalists, key=lambda candidate: len(candidate.layers))
    setup = Setup(
        max(row.tokens.shape[1] for row in rows), micro_batch, precision=precision, packed=rows[0].positions is not None
    )
    base = sum(training_bytes(source, setup, device).values())
    layers = len(facts.layers)
    before, after = (
        price(parse_plan(layers, layers=slices), facts)["train_bytes"]["float32_adamw"]
        for slices in (f"0:{layers}", deepest.slices)
    )
    needed = after + (base - before) * len(deepest.layers) // layers
    if (free := free_bytes(device)) < needed:
        raise ResourceError(
            f"healing trials need about {format_bytes(needed)} of memory, and {format_bytes(free)} are free on {device}",
            where="--heal",
            next="leave out --heal, add fewer layers, or use a machine with more memory",
        )


def _name(candidate: Candidate | None, start: str) -> str:
    if candidate is None:
        return "the base, as control"
    words = " ".join(f"{name} {value}" for name, value in candidate.options.items())
    return f"{words}, from {'plain copies' if start == 'copies' else 'an identity start'}"


def _write(file: Path, ended: _Ended) -> None:
    write_file(file, json.dumps({"curve": ended.curve, "losses": ended.losses.tolist()}))
    shutil.rmtree(file.with_suffix(""))


def _read(file: Path) -> _Ended:
    kept = json.loads(file.read_text(encoding="utf-8"))
    return _Ended(tuple((tokens, loss) for tokens, loss in kept["curve"]), np.array(kept["losses"]))
