"""Exact scores of plans: the base's hidden states once per chunk of text, then only what each plan does otherwise."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from deepen.data.text import IGNORED
from deepen.explore.material import Part
from deepen.explore.memory import Memory
from deepen.explore.network import Network
from deepen.explore.screen import Likeness
from deepen.explore.statistics import Floats, Sample
from deepen.explore.sweep import Layers, evaluations, sweep
from deepen.journal import Journal
from deepen.progress import Advance


@dataclass(frozen=True)
class Chunk:
    """Units that are worked on together.

    Attributes:
        name: of the text and the place in it.
        units: what is scored.
        tokens: ids, shape (rows, length), padded at the end.
        labels: shape (rows, length).
    """

    name: str
    units: Part
    tokens: Tensor
    labels: Tensor


class Scorer:
    """Scores plans on units, remembers what is scored, and counts the work.

    Args:
        network: the base.
        journal: where scores are kept.
        memory: what may be held at once.
        device: where the network runs.
        advance: is told of layer evaluations times tokens.
    """

    def __init__(
        self, network: Network, journal: Journal, memory: Memory, device: torch.device, advance: Advance = lambda *_: None
    ) -> None:
        self.network, self._journal, self._memory, self._device = network, journal, memory, device
        self.advance = advance
        self.work = 0
        self._counted: set[str] = set()
        self._base: tuple[str, list[Tensor], list[dict[str, Any]]] | None = None

    @property
    def chunk_tokens(self) -> int:
        """Tokens of the chunk that is worked on."""
        return self._memory.chunk_tokens

    def kept(self, name: str, make: Callable[[], Likeness]) -> Likeness:
        """The base's likeness as the journal has it, or made now and kept."""
        found = self._journal.get(name)
        if found is None:
            made = make()
            found = {"cosine": made.cosine.tolist(), "norms": made.norms.tolist()}
            self._journal.keep(name, found)
        return Likeness(np.array(found["cosine"]), np.array(found["norms"]))

    def score(self, name: str, units: Part, plans: Sequence[Layers]) -> Sample:
        """Scores of plans on units of one part.

        Args:
            name: of the units.
            units: what is scored.
            plans: base layers in order.

        Returns:
            Nats per unit; for questions, of the right choice among the choices.
        """
        sums = [self._chunk(chunk, plans) for chunk in chunks(name, units, self._memory.chunk_tokens)]
        return collect(units, np.concatenate(sums, axis=1))

    def states(self, chunk: Chunk) -> tuple[list[Tensor], list[dict[str, Any]]]:
        """The base's hidden states before each layer and after the last, and what each layer is told besides."""
        if self._base is None or self._base[0] != chunk.name:
            self._base = None  # before the next ones are made
            hidden, given = self.network.enter(chunk.tokens.to(self._device))
            known = [hidden]
            for index in range(self.network.depth):
                with self.network.open_layer(index) as layer:
                    parts = torch.split(known[-1], self._rows(chunk))
                    known.append(torch.cat([self.network.run(layer, part, given[index]) for part in parts]))
            self._base = chunk.name, known, given
        return self._base[1], self._base[2]

    def _chunk(self, chunk: Chunk, plans: Sequence[Layers]) -> Floats:
        """Nats per row, shape (plans, rows). Work is counted here, whether it was done now or by the run before."""
        found = np.empty((len(plans), len(chunk.tokens)))
        order = sorted(range(len(plans)), key=lambda plan: plans[plan])  # those that begin alike together
        if not self._memory.recompute and chunk.name not in self._counted:
            self._counted.add(chunk.name)
            self._count(chunk, self.network.depth)
        for first in range(0, len(order), self._memory.plans):
            numbers = order[first : first + self._memory.plans]
            group = [plans[number] for number in numbers]
            name = f"{chunk.name} {_digest(group)}"
            nats = self._journal.get(name)
            if nats is None:
                nats = self._group(chunk, group)
                self._journal.keep(name, nats)
            found[numbers] = nats
            self._count(chunk, evaluations(group, 1 if self._memory.recompute else self.network.depth + 1))
        return found

    def _group(self, chunk: Chunk, plans: Sequence[Layers]) -> list[list[float]]:
        if self._memory.recompute:
            hidden, given = self.network.enter(chunk.tokens.to(self._device))
            known = [hidden]
        else:
            known, given = self.states(chunk)
        tokens, labels = chunk.tokens[:1].to(self._device), chunk.labels.to(self._device)
        found: list[list[float]] = [[] for _ in plans]
        for numbers, states in sweep(self.network, plans, known, given, self._rows(chunk)):
            losses = self.network.leave(states, tokens, labels.repeat(len(numbers), 1))
            rows = losses.double().sum(1).view(len(numbers), -1).tolist()
            for number, nats in zip(numbers, rows, strict=True):
                found[number] = nats
        return found

    def _rows(self, chunk: Chunk) -> int:
        return max(1, self._memory.rows_tokens // chunk.tokens.shape[1])

    def _count(self, chunk: Chunk, layers: int) -> None:
        self.work += layers * chunk.tokens.numel()
        self.advance(layers * chunk.tokens.numel())


def chunks(name: str, units: Part, tokens: int) -> Iterator[Chunk]:
    """Units in chunks of at most so many tokens (or of one unit), each padded to its longest row."""
    some: list[Any] = []
    first = 0
    for unit in (*units, None):
        rows = [row for each in some for row in each.rows]
        if some and (unit is None or _padded([*rows, *unit.rows]) > tokens):
            yield _chunk(f"{name}:{first}+{len(some)}", tuple(some))
            first, some = first + len(some), []
        if unit is not None:
            some.append(unit)


def collect(units: Part, nats: Floats) -> Sample:
    """What rows scored as what units did: sums for text and chats.

    For a question the nats of the right choice among all of them: -log softmax of each choice's mean log-likelihood per token,
    which is smooth where accuracy jumps, and does not favour short choices.

    Args:
        units: what was scored.
        nats: shape (plans, rows).
    """
    sums, counts, row = np.empty((len(nats), len(units))), np.ones(len(units)), 0
    for place, unit in enumerate(units):
        part = nats[:, row : row + len(unit.rows)]
        row += len(unit.rows)
        if unit.right is None:
            sums[:, place], counts[place] = part.sum(1), unit.counts.sum()
        else:
            likely = -part / unit.counts
            sums[:, place] = np.logaddexp.reduce(likely, axis=1) - likely[:, unit.right]
    return Sample(sums, counts)


def _padded(rows: Sequence[Any]) -> int:
    return len(rows) * max(len(tokens) for tokens, _ in rows)


def _chunk(name: str, units: Part) -> Chunk:
    rows = [row for unit in units for row in unit.rows]
    length = max(len(tokens) for tokens, _ in rows)
    tokens = np.zeros((len(rows), length), dtype=np.int64)
    labels = np.full((len(rows), length), IGNORED, dtype=np.int64)
    for row, (ids, wanted) in enumerate(rows):
        tokens[row, : len(ids)], labels[row, : len(ids)] = ids, wanted
    return Chunk(name, units, torch.from_numpy(tokens), torch.from_numpy(labels))


def _digest(plans: Sequence[Layers]) -> str:
    return hashlib.sha256(repr(plans).encode()).hexdigest()[:16]
