"""Which plans are worth an exact score: a guess from one forward pass of the base."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from deepen.explore.results import LayerFacts
from deepen.explore.statistics import Floats
from deepen.explore.sweep import Layers


@dataclass(frozen=True)
class Likeness:
    """How alike the base's hidden states are.

    Attributes:
        cosine: between the states before layer a and before layer b, mean over tokens, shape (layers + 1, layers + 1).
        norms: mean length of the states before each layer, shape (layers + 1,).
    """

    cosine: Floats
    norms: Floats

    def facts(self) -> tuple[LayerFacts, ...]:
        """What each layer does."""
        cosines = np.diagonal(self.cosine, 1)
        ratios = self.norms[1:] / self.norms[:-1]
        return tuple(
            LayerFacts(layer, float(cosine), float(1 - cosine), float(ratio))
            for layer, (cosine, ratio) in enumerate(zip(cosines, ratios, strict=True))
        )


def likeness(known: Sequence[Tensor], asked: Tensor) -> Likeness:
    """Compare the base's hidden states with each other.

    Args:
        known: before layer 0, 1, …, and after the last, each of shape (rows, length, hidden).
        asked: which places count, shape (rows, length).
    """
    states = [state[asked].float() for state in known]
    norms = torch.stack([state.norm(dim=-1) for state in states])
    unit = torch.stack([torch.nn.functional.normalize(state, dim=-1) for state in states])
    cosine = torch.einsum("ath,bth->ab", unit, unit) / unit.shape[1]
    return Likeness(cosine.double().cpu().numpy(), norms.double().mean(1).cpu().numpy())


def seams(layers: Layers) -> list[tuple[int, int]]:
    """Where a plan jumps: (a, b) for the state that layer b was not made for: that before layer a."""
    return [(one + 1, other) for one, other in pairwise(layers) if other != one + 1]


@dataclass(frozen=True)
class Guess:
    """What a plan is expected to cost, in nats per token: the sum over its seams of how unlike the states there are."""

    unlike: Floats

    def __call__(self, layers: Layers) -> float:
        """The expected difference to the base."""
        return float(sum(self.unlike[seam] for seam in seams(layers)))


def guess(alike: Likeness) -> Guess:
    """The guess that a base's hidden states allow."""
    return Guess(1 - alike.cosine)
