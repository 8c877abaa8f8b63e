"""Sequences as micro-batches, and the losses of their tokens: what pretraining and instruction tuning have in common."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from deepen.data.text import IGNORED
from deepen.likelihood import Teacher, distillation_losses, evaluating, token_losses
from deepen.train import ranks
from deepen.train.loop import Batch


def sequence(tokens: Any, labels: Any, positions: Any = None) -> Batch:
    """One row as a micro-batch, of numpy arrays of shape (length,)."""
    read, learned = (torch.from_numpy(each).long()[None] for each in (tokens, labels))
    places = None if positions is None else torch.from_numpy(positions).long()[None]
    return Batch(read, learned, places, int((learned != IGNORED).sum()))


def micro_batches(rows: Sequence[Batch], size: int, device: torch.device) -> list[Batch]:
    """This process's part of the rows of a step, as micro-batches of at most `size` rows, padded to the longest."""
    size = min(size, -(-len(rows) // ranks.world_size()))
    joined = [_pad(rows[first : first + size]) for first in range(0, len(rows), size)]
    return [_to(batch, device) for batch in ranks.share(joined, without_labels)]


def pack_sequences(rows: Sequence[Batch], length: int) -> list[Batch]:
    """The rows laid one after the other into as few rows of at most `length` tokens as first fit finds, the longest first.

    No token sees those of another row, and nothing is padded or cut.
    """
    bins: list[list[Batch]] = []
    for row in sorted(rows, key=lambda row: -row.tokens.shape[1]):
        size = row.tokens.shape[1]
        fitting = (each for each in bins if sum(other.tokens.shape[1] for other in each) + size <= length)
        chosen = next(fitting, None)
        if chosen is None:
            bins.append([row])
        else:
            chosen.append(row)
    return [_concatenate(each) for each in bins]


def without_labels(batch: Batch) -> Batch:
    """The same rows with nothing to learn."""
    return replace(batch, labels=torch.full_like(batch.labels, IGNORED), terms=0)


def token_loss(network: Any, batch: Batch, teacher: Teacher | None) -> tuple[Tensor, dict[str, Tensor]]:
    """Summed loss of the labelled tokens of a micro-batch; with a teacher, the tokens' own part of it besides."""
    if teacher is None:
        return token_losses(network, batch.tokens, batch.labels, batch.positions).sum(), {}
    loss, token = distillation_losses(network, batch.tokens, batch.labels, batch.positions, teacher)
    return loss.sum(), {"token_loss": token.sum()}


def mean_token_loss(network: Any, rows: Sequence[Batch], device: torch.device) -> float:
    """Nats per labelled token over many rows, which all processes measure together, one row at a time.

    Args:
        network: the model; its training mode is left as it was.
        rows: what is measured.
        device: where the network is.
    """
    total, terms = 0.0, 0
    with evaluating(network):
        for row in ranks.share(rows, without_labels):
            mine = _to(row, device)
            total += token_losses(network, mine.tokens, mine.labels, mine.positions).double().sum().item()
            terms += row.terms
    total, count = ranks.totals(total, terms, device=device)
    return total / count


def _pad(rows: Sequence[Batch]) -> Batch:
    """Rows of unequal lengths as one batch. What follows the end of a row is not learned, and no token looks ahead to it."""
    if len(rows) == 1:
        return rows[0]
    longest = max(row.tokens.shape[1] for row in rows)

    def joined(parts: Sequence[Tensor], filling: int) -> Tensor:
        padded = [torch.nn.functional.pad(part, (0, longest - part.shape[1]), value=filling) for part in parts]
        return torch.cat(padded)

    positions = None
    if any(row.positions is not None for row in rows):
        # a padded place goes on counting, so that it is no beginning of a document
        counted = [torch.arange(row.tokens.shape[1])[None] if row.positions is None else row.positions for row in rows]
        positions = torch.cat([_counted_on(part, longest) for part in counted])
    return Batch(
        joined([row.tokens for row in rows], 0),
        joined([row.labels for row in rows], IGNORED),
        positions,
        sum(row.terms for row in rows),
    )


def _counted_on(positions: Tensor, length: int) -> Tensor:
    further = length - positions.shape[1]
    return torch.cat([positions, positions[:, -1:] + torch.arange(1, further + 1)], dim=1)


def _concatenate(rows: Sequence[Batch]) -> Batch:
    positions = None if len(rows) == 1 else torch.cat([torch.arange(row.tokens.shape[1]) for row in rows])[None]
    return Batch(
        torch.cat([row.tokens for row in rows], dim=1),
        torch.cat([row.labels for row in rows], dim=1),
        positions,
        sum(row.terms for row in rows),
    )


def _to(batch: Batch, device: torch.device) -> Batch:
    positions = None if batch.positions is None else batch.positions.to(device)
    return Batch(batch.tokens.to(device), batch.labels.to(device), positions, batch.terms)
