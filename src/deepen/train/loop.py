"""The training loop. Stages differ in three arguments: batches, loss, and what learns."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import Module, Parameter

from deepen.errors import UserError
from deepen.progress import progress
from deepen.train.metrics import METRICS_FILE, append_row, rewind
from deepen.train.state import load_state, save_state

_BETAS = (0.9, 0.95)  # usual for language models since GPT-3
_CLIP = 1.0


@dataclass(frozen=True)
class Batch:
    """A micro-batch: what goes through the model at once.

    Attributes:
        tokens: ids, shape (rows, length).
        labels: what is learned at each place, shape (rows, length), or -100.
        terms: how many terms the loss is a sum of (label tokens).
    """

    tokens: Tensor
    labels: Tensor
    terms: int


@dataclass(frozen=True)
class Run:
    """All about a run but its three arguments.

    Attributes:
        folder: the partial output, where metrics and state are kept.
        steps: optimizer steps in all.
        tokens: how many tokens are read before a zero-based step; `tokens(steps)` is all.
        rate: the learning rate of a zero-based step.
        validate: measures the model, in nats per token.
        every: steps between validations; before the first and after the last step there is always one.
        save_every: steps between saved states.
        seed: of everything random.
        precision: what matrices are multiplied in; weights and optimizer are always as the model was loaded.
    """

    folder: Path
    steps: int
    tokens: Callable[[int], int]
    rate: Callable[[int], float]
    validate: Callable[[], float]
    every: int
    save_every: int
    seed: int
    precision: torch.dtype


def train(
    model: Module,
    *,
    batches: Callable[[int], Sequence[Batch]],
    loss: Callable[[Module, Batch], Tensor],
    learns: Iterable[Parameter],
    run: Run,
) -> None:
    """Train a model in place, from the last saved state if there is one, and log to `metrics.jsonl`.

    Args:
        model: what is trained, in float32.
        batches: the micro-batches of a zero-based step; a pure function, which makes resuming exact.
        loss: the summed loss of a micro-batch; it is divided by the terms of the step's whole batch.
        learns: the parameters that the optimizer moves.
        run: the rest.

    Raises:
        UserError: a loss or gradient is not finite. The optimizer has not moved, and the last saved state is kept.
    """
    parameters = list(learns)
    optimizer = torch.optim.AdamW(parameters, lr=0.0, betas=_BETAS, weight_decay=0.0, fused=True)
    step = first = load_state(run.folder, model, optimizer)
    metrics = run.folder / METRICS_FILE
    rewind(metrics, step)
    model.train()

    with progress("Training", run.tokens(run.steps) - run.tokens(first), "tokens") as advance:
        while True:
            if step % run.every == 0 or step == run.steps:
                append_row(metrics, _validation(run, step))

            if step % run.save_every == 0 and first < step < run.steps:
                save_state(run.folder, step, model, optimizer)

            if step == run.steps:
                break

            start = time.perf_counter()
            torch.manual_seed(run.seed + step)  # dropout, where a model has it, depends on (seed, step) alone
            micro_batches = batches(step)
            terms = sum(batch.terms for batch in micro_batches)
            mean = 0.0
            for batch in micro_batches:
                with torch.autocast(batch.tokens.device.type, run.precision, enabled=run.precision != torch.float32):
                    part = loss(model, batch) / terms
                part.backward()  # type: ignore[no-untyped-call]
                mean += part.item()

            norm = torch.nn.utils.clip_grad_norm_(parameters, _CLIP).item()
            _check_finite(run, step, loss=mean, gradient=norm)

            for group in optimizer.param_groups:
                group["lr"] = run.rate(step)
            optimizer.step()
            optimizer.zero_grad()
            step += 1

            seconds = time.perf_counter() - start
            read = run.tokens(step) - run.tokens(step - 1)
            append_row(
                metrics,
                {
                    "step": step,
                    "tokens": run.tokens(step),
                    "loss": mean,
                    "learning_rate": run.rate(step - 1),
                    "gradient_norm": norm,
                    "tokens_per_second": round(read / seconds, 1),
                    "seconds": round(seconds, 4),
                    "energy_joules": None,
                },
            )
            advance(read, note=f"loss {mean:.3f}")


def _validation(run: Run, step: int) -> dict[str, float]:
    loss = run.validate()
    perplexity = math.exp(loss) if loss < 700 else math.inf
    _check_finite(run, step, **{"validation loss": loss, "validation perplexity": perplexity})
    return {"step": step, "tokens": run.tokens(step), "validation_loss": loss, "validation_perplexity": perplexity}


def _check_finite(run: Run, step: int, **values: float) -> None:
    for name, value in values.items():
        if not math.isfinite(value):
            raise UserError(
                f"the {name} is not finite ({value}) after {step} of {run.steps} steps; the optimizer has not moved since",
                where=run.folder,
                next="lower the learning rate, or check the model; the last saved state is kept",
            )
