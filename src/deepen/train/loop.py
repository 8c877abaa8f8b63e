"""The training loop. Stages differ in three arguments: batches, loss, and what learns."""

from __future__ import annotations

import math
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor
from torch.nn import Module, Parameter

from deepen.errors import UserError
from deepen.progress import progress
from deepen.train import ranks
from deepen.train.metrics import METRICS_FILE, append_row, rewind
from deepen.train.state import load_state, save_state

_BETAS = (0.9, 0.95)  # usual for language models since GPT-3
_CLIP = 1.0
_TERMINATED = 128 + signal.SIGTERM


class MicroBatch(Protocol):
    """What goes through the model at once; the loop asks no more of it than how many terms its loss is a sum of."""

    @property
    def terms(self) -> int:
        """Label tokens, or pairs."""


AnyBatch = TypeVar("AnyBatch", bound=MicroBatch)


@dataclass(frozen=True)
class Batch:
    """A micro-batch of sequences.

    Attributes:
        tokens: ids, shape (rows, length).
        labels: the token to be predicted at each place, shape (rows, length), or -100.
        positions: shape (rows, length), restarting at 0 where a packed sequence begins; None where each row is one sequence.
        terms: how many places are labelled.
    """

    tokens: Tensor
    labels: Tensor
    positions: Tensor | None
    terms: int


@dataclass(frozen=True)
class Learner:
    """Parameters that learn, and the factor on their learning rate."""

    parameters: Sequence[Parameter]
    factor: float = 1.0


@dataclass(frozen=True)
class Run:
    """All about a run but its three arguments.

    Attributes:
        folder: the partial output, where metrics and states are kept.
        steps: optimizer steps in all, those before `begin` included.
        tokens: how many tokens all processes have read before a zero-based step; `tokens(steps)` is all.
        rate: the learning rate of a zero-based step.
        validate: measures the model; the values go to the log as they are.
        enough: told what was measured, says whether the run may end before its last step.
        every: steps between validations; before the first and after the last step there is always one.
        save_every: steps between saved states.
        keep: how many saved states are kept.
        seed: of everything random.
        device: where the model is.
        precision: what matrices are multiplied in; weights and optimizer are always as the model was loaded.
        energy: joules that all processes have used so far, or None.
        name: `control` for the base that is trained beside; None for the run itself.
        subject: what the bar on the terminal says.
        begin: the first step. Above 0 a run goes on with the model of the one before, which has measured it there and saved it,
            and with a new optimizer.
        followed: whether another run goes on after the last step.
    """

    folder: Path
    steps: int
    tokens: Callable[[int], int]
    rate: Callable[[int], float]
    validate: Callable[[], Mapping[str, float]]
    every: int
    save_every: int
    seed: int
    device: torch.device
    precision: torch.dtype
    keep: int = 1
    enough: Callable[[Mapping[str, float]], bool] = field(default=lambda _: False)
    energy: Callable[[], float | None] = field(default=lambda: None)
    name: str | None = None
    subject: str = "Training"
    begin: int = 0
    followed: bool = False


def train(
    model: Module,
    *,
    batches: Callable[[int], Sequence[AnyBatch]],
    loss: Callable[[Module, AnyBatch], tuple[Tensor, Mapping[str, Tensor]]],
    learns: Sequence[Learner],
    run: Run,
) -> None:
    """Train a model in place, from the last saved state if there is one, and log to `metrics.jsonl`.

    Args:
        model: what is trained, in float32; sharded by FSDP2 where several processes train it.
        batches: this process's micro-batches of a zero-based step; a pure function, which makes resuming exact. All processes
            have as many, since each forward pass of a sharded model needs all of them.
        loss: the summed loss of a micro-batch, and further sums to be logged. All are divided by the terms of the step's whole
            batch, over all micro-batches and processes.
        learns: the parameters that the optimizer moves.
        run: the rest.

    Raises:
        UserError: a loss or gradient is not finite. The optimizer has not moved, and the last saved state is kept.
        SystemExit: the process was told to end (SIGTERM); the state was saved.
    """
    parameters = [parameter for learner in learns for parameter in learner.parameters]
    groups = [{"params": list(learner.parameters)} for learner in learns]
    optimizer = torch.optim.AdamW(groups, lr=0.0, betas=_BETAS, weight_decay=0.0, fused=True)
    step = first = load_state(run.folder, run.name or "run", model, optimizer)
    follows = 0 < run.begin == first  # the run before has logged, measured and saved this very step
    if follows:
        optimizer.state.clear()
    log = _Log(run, step, rewound=follows)
    model.train()

    with log.progress(first) as advance, _terminations() as asked:
        stopping = False
        while True:
            if (step % run.every == 0 or step == run.steps) and not (follows and step == first):
                measured = run.validate()
                _check_finite(run, step, measured)
                log.row({"step": step, "tokens": run.tokens(step), **measured})
                if run.enough(measured):
                    break

            last = step == run.steps
            due = step % run.save_every == 0 or stopping or last
            if first < step and due and (run.followed or not last):
                save_state(run.folder, run.name or "run", step, model, optimizer, keep=run.keep)

            if last and not (run.followed and stopping):
                break
            if stopping:
                print(f"told to end: stopped after step {step} of {run.steps}; the same command continues", file=sys.stderr)
                raise SystemExit(_TERMINATED)

            start = time.perf_counter()
            # dropout, where a model has it, depends on (seed, step) alone, and differs between processes
            torch.manual_seed(run.seed + step + ranks.rank() * 2**32)
            micro_batches = batches(step)
            own_terms = sum(batch.terms for batch in micro_batches)
            terms, *told = ranks.totals(own_terms, asked(), device=run.device)
            terms = max(terms, 1)  # a step in which nothing is asked moves nothing
            sums: dict[str, float] = {}
            for batch in micro_batches:
                with torch.autocast(run.device.type, run.precision, enabled=run.precision != torch.float32):
                    part, extras = loss(model, batch)
                # sharded gradients are averaged over the processes, but the loss is a sum over them
                (part / terms * ranks.world_size()).backward()  # type: ignore[no-untyped-call]
                for name, value in {"loss": part, **extras}.items():
                    sums[name] = sums.get(name, 0.0) + value.item() / terms
            ranks.average_plain_gradients(parameters)
            means = dict(zip(sums, ranks.totals(*sums.values(), device=run.device), strict=True))

            norm = _whole(torch.nn.utils.clip_grad_norm_(parameters, _CLIP)).item()
            _check_finite(run, step, {"loss": means["loss"], "gradient": norm})

            for group, learner in zip(optimizer.param_groups, learns, strict=True):
                group["lr"] = run.rate(step) * learner.factor
            optimizer.step()
            optimizer.zero_grad()
            step += 1
            stopping = told[0] > 0

            read = run.tokens(step) - run.tokens(step - 1)
            log.step(step, read, means, norm, time.perf_counter() - start)
            advance(read, note=f"loss {means['loss']:.3f}")


class _Log:
    """Rows of `metrics.jsonl` and the bar on the terminal; only the first process writes."""

    def __init__(self, run: Run, step: int, *, rewound: bool) -> None:
        self._run, self._file = run, run.folder / METRICS_FILE
        self._joules = run.energy()
        if ranks.rank() == 0 and not rewound:
            rewind(self._file, step, run.name)
        ranks.wait()

    def progress(self, step: int) -> Any:
        run = self._run
        subject = run.subject if run.name is None else f"{run.subject} the {run.name}"
        return progress(subject, run.tokens(run.steps) - run.tokens(step), "tokens")

    def row(self, values: Mapping[str, Any]) -> None:
        if ranks.rank() == 0:
            append_row(self._file, {**values, **({"run": self._run.name} if self._run.name else {})})

    def step(self, step: int, read: int, means: Mapping[str, float], norm: float, seconds: float) -> None:
        before, self._joules = self._joules, self._run.energy()
        used = None if before is None or self._joules is None else round(self._joules - before, 3)
        self.row(
            {
                "step": step,
                "tokens": self._run.tokens(step),
                **means,
                "learning_rate": self._run.rate(step - 1),
                "gradient_norm": norm,
                "tokens_per_second": round(read / seconds, 1),
                "seconds": round(seconds, 4),
                "energy_joules": used,
            }
        )


@contextmanager
def _terminations() -> Iterator[Callable[[], bool]]:
    """Whether the process was told to end, instead of ending at once; a second time it does."""
    told = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield told.is_set
        return

    def note(number: int, _frame: Any) -> None:
        told.set()
        signal.signal(number, before)

    before = signal.signal(signal.SIGTERM, note)
    try:
        yield told.is_set
    finally:
        signal.signal(signal.SIGTERM, before)


def _whole(norm: Tensor) -> Tensor:
    return norm.full_tensor() if hasattr(norm, "full_tensor") else norm


def _check_finite(run: Run, step: int, values: Mapping[str, float]) -> None:
    for name, value in values.items():
        if not math.isfinite(value):
            raise UserError(
                f"the {name.replace('_', ' ')} is not finite ({value}) after {step} of {run.steps} steps; the optimizer has not"
                " moved since",
                where=run.folder,
                next="lower the learning rate, or check the model; the last saved state is kept",
            )
