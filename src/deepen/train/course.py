"""The steps of an alignment: one chunk of pairs after the other, each with the model of the step before as its reference."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from deepen.data.preference import Pair
from deepen.progress import progress
from deepen.train import ranks
from deepen.train.dpo import Objective, PairBatch, pack_pairs, preference_losses, reward_sums
from deepen.train.epochs import Order
from deepen.train.options import Shared
from deepen.train.references import Known, kept, measure_pairs
from deepen.train.schedule import warmup_steps
from deepen.train.stage import Part, Place

_Learned = tuple[Pair, Known]
"""A pair, and the log-probabilities of its answers under the reference."""


@dataclass(frozen=True)
class Chunk:
    """The pairs of a step of sDPO, or all of them, and the data they are from."""

    data: str
    pairs: Sequence[Pair]


class Course:
    """What is learned in which order, and what came of it.

    Args:
        chunks: at least one.
        held_out: pairs to measure on, between and within the steps.
        objective: the loss.
        options: of the verb; `epochs` and `batch_rows` are used.
        shared: the options that all stages share.
        device: where the network is.

    Attributes:
        steps: optimizer steps in all.
        table: for each chunk, in the order that it was learned in, what it did; filled when all are learned.
    """

    def __init__(
        self,
        chunks: Sequence[Chunk],
        held_out: Sequence[Pair],
        objective: Objective,
        options: Mapping[str, Any],
        shared: Shared,
        device: torch.device,
    ) -> None:
        self._chunks, self._held_out, self._objective = chunks, held_out, objective
        self._options, self._shared, self._device = options, shared, device
        orders = [self._order([(pair, np.empty(0, np.float32)) for pair in chunk.pairs]) for chunk in chunks]
        self.steps = sum(order.steps for order in orders)
        for order in orders:
            warmup_steps(shared["warmup"], order.steps)  # refused before anything is begun
        self.table: list[dict[str, Any]] = []
        self._measured: Known | None = None

    def parts(self, network: Any, place: Place) -> Iterator[Part[PairBatch]]:
        """One part per chunk, in the order that the network's own accuracy on them gives."""
        _without_dropout(network)
        self._measured = None
        starts = [self._known(network, place, f"pairs-0-{index}", chunk.pairs) for index, chunk in enumerate(self._chunks)]
        accuracies = [_standing(known)["accuracy"] for known in starts]
        order = sorted(range(len(self._chunks)), key=lambda index: -accuracies[index])
        levels, steps, tokens = [], 0, 0
        for number, index in enumerate(order):
            pairs = self._chunks[index].pairs
            reference = starts[index] if number == 0 else self._known(network, place, f"pairs-{number}", pairs)
            levels.append(self._level(network, place, number))
            part = self._part(list(zip(pairs, reference, strict=True)), levels[-1], place, steps, tokens)
            yield part
            steps, tokens = part.steps, part.tokens(part.steps)
        levels.append(self._level(network, place, len(order)))
        if place.run is None:
            self.table = [
                self._told(self._chunks[index], accuracies[index], before, after)
                for index, before, after in zip(order, levels, levels[1:], strict=False)
            ]

    def _order(self, learned: Sequence[_Learned]) -> Order[_Learned]:
        return Order(
            learned,
            epochs=self._options["epochs"],
            batch=self._options["batch_rows"],
            seed=self._shared["seed"],
            size=lambda each: each[0].tokens,
        )

    def _known(self, network: Any, place: Place, name: str, pairs: Sequence[Pair]) -> Known:
        def measure() -> Known:
            with progress("Measuring the reference", sum(pair.tokens for pair in pairs), "tokens") as advance:
                return self._measure(network, pairs, place, advance)

        return kept(place, name, measure)

    def _level(self, network: Any, place: Place, number: int) -> Known:
        """Held-out pairs under the network after so many steps; the validation at the end of the last one has measured them."""
        name, measured = f"held-out-{number}", self._measured
        return self._known(network, place, name, self._held_out) if measured is None else kept(place, name, lambda: measured)

    def _measure(
        self, network: Any, pairs: Sequence[Pair], place: Place, advance: Callable[[int], None] = lambda _: None
    ) -> Known:
        return measure_pairs(network, pairs, self._shared["micro_batch"], self._device, place.precision, advance)

    def _part(
        self, learned: Sequence[_Learned], level: Known, place: Place, steps_before: int, tokens_before: int
    ) -> Part[PairBatch]:
        order = self._order(learned)
        reference = torch.from_numpy(level)
        answers = torch.tensor([[row.terms for row in pair.rows] for pair in self._held_out])

        def validate(network: Any) -> dict[str, float]:
            self._measured = self._measure(network, self._held_out, place)
            policy = torch.from_numpy(self._measured)
            losses = preference_losses(policy, reference, answers, self._objective)
            sums = {"loss": losses.sum(), **reward_sums(policy, reference, self._objective.beta)}
            return {f"validation_{name}": value.item() / len(policy) for name, value in sums.items()}

        return Part(
            batches=lambda step: _micro_batches(order.rows_of(step - steps_before), self._shared["micro_batch"], self._device),
            validate=validate,
            steps=steps_before + order.steps,
            tokens=lambda step: tokens_before + order.tokens(step - steps_before),
        )

    def _told(self, chunk: Chunk, accuracy: float, before: Known, after: Known) -> dict[str, Any]:
        rewards = self._objective.beta * (after - before)
        return {
            "data": chunk.data,
            "pairs": len(chunk.pairs),
            "start_reward_accuracy": accuracy,
            "chosen_tokens": float(np.mean([pair.chosen.terms for pair in chunk.pairs])),
            "rejected_tokens": float(np.mean([pair.rejected.terms for pair in chunk.pairs])),
            "before": _standing(before),
            "after": _standing(after),
            "reward_accuracy": float(np.mean(rewards[:, 0] > rewards[:, 1])),
            "reward_margin": float(np.mean(rewards[:, 0] - rewards[:, 1])),
        }


def _micro_batches(learned: Sequence[_Learned], size: int, device: torch.device) -> list[PairBatch]:
    """This process's part of the pairs of a step, as micro-batches of at most `size` pairs."""
    size = min(size, -(-len(learned) // ranks.world_size()))
    parts = [(learned[first : first + size], True) for first in range(0, len(learned), size)]
    mine = ranks.share(parts, lambda part: (part[0], False))
    return [
        pack_pairs(
            [pair for pair, _ in part],
            torch.from_numpy(np.stack([reference for _, reference in part])),
            device,
            counts=counts,
        )
        for part, counts in mine
    ]


def _without_dropout(network: Any) -> None:
    for module in network.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        if isinstance(getattr(module, "attention_dropout", None), float):
            module.attention_dropout = 0.0


def _standing(known: Known) -> dict[str, float]:
    """How a model by itself stands to pairs: how often it finds the chosen answer likelier, and by how many nats."""
    chosen, rejected = known.astype(np.float64).T
    return {
        "accuracy": float(np.mean(chosen > rejected)),
        "margin": float(np.mean(chosen - rejected)),
        "chosen_log_probability": float(np.mean(chosen)),
        "rejected_log_probability": float(np.mean(rejected)),
    }
