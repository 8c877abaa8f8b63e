"""What the search finds: layer plans with their scores, what each costs, and how sure one may be."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Candidate:
    """A layer plan in the race.

    Attributes:
        options: as `deepen scale` takes them, such as `{"repeat": "5:19"}` or `{"drop": 8}`.
        layers: base layers in the order in which they run.
    """

    options: Mapping[str, Any]
    layers: tuple[int, ...]

    @property
    def slices(self) -> str:
        """The plan as `--layers` takes it, such as `0:19,5:30`."""
        parts: list[list[int]] = []
        for layer in self.layers:
            if parts and parts[-1][1] == layer:
                parts[-1][1] = layer + 1
            else:
                parts.append([layer, layer + 1])
        return ",".join(f"{first}:{last}" for first, last in parts)


@dataclass(frozen=True)
class Interval:
    """A mean and its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Scored:
    """A layer plan as the search knows it. Scores are nats per token; lower is better.

    Attributes:
        candidate: the plan.
        score: on the text that was searched on.
        difference: the score less the base's on the same windows, with the interval of the paired difference.
        tokens: how many tokens the score is the mean of; plans that were dropped early have fewer.
        predicted: what the screening expected; None for a plan that was not screened.
        held_out: on text that the search has not seen; only for the best.
        guard: of the guard metric on the same rows; only for the best, and if one was asked for.
        cost: `added`, `parameters`, `flops_per_token` and `kv_bytes_per_token`, and `flops_ratio` to the base.
        healed: what healing trials came to, one for each start (`copies`, `identity`); empty without trials.
        rank: its place, from 1; plans that cannot be told apart from the one before share its place.
    """

    candidate: Candidate
    score: Interval
    difference: Interval
    tokens: int
    cost: Mapping[str, float]
    predicted: float | None = None
    held_out: Interval | None = None
    guard: Interval | None = None
    healed: tuple[Mapping[str, Any], ...] = ()
    rank: int = 0

    def to_dict(self) -> dict[str, Any]:
        """The plan's entry in `plans.json`."""
        return {
            "layers": self.candidate.slices,
            "options": dict(self.candidate.options),
            "added": int(self.cost["added"]),
            "score": self.score.value,
            "low": self.score.low,
            "high": self.score.high,
            "difference": asdict(self.difference),
            "tokens": self.tokens,
            "predicted": self.predicted,
            "held_out": None if self.held_out is None else self.held_out.value,
            "held_out_low": None if self.held_out is None else self.held_out.low,
            "held_out_high": None if self.held_out is None else self.held_out.high,
            "guard": None if self.guard is None else asdict(self.guard),
            "healed": [dict(each) for each in self.healed],
            "rank": self.rank,
            "cost": dict(self.cost),
        }


@dataclass(frozen=True)
class Cell:
    """A block i:j run twice, as a cell of the heat-map.

    Attributes:
        first: i.
        end: j.
        difference: its score less the base's on the same windows, in nats per token.
        exact: whether it was scored; else it was predicted.
        tokens: how many tokens were scored; 0 for a prediction.
    """

    first: int
    end: int
    difference: float
    exact: bool
    tokens: int


@dataclass(frozen=True)
class LayerFacts:
    """What one layer does to the hidden states of the base, averaged over tokens.

    Attributes:
        layer: which one.
        cosine: between what it reads and what it writes.
        influence: 1 - cosine: block influence (Men et al. 2024, arXiv:2403.03853, section 2.2).
        norm_ratio: of what it writes to what it reads.
    """

    layer: int
    cosine: float
    influence: float
    norm_ratio: float


@dataclass(frozen=True)
class Exploration:
    """What a search found.

    Attributes:
        model: as it was given.
        depth: layers of the base.
        objective: what the score is, in words: `perplexity`, `choices` or `mixture`.
        base: the base itself, as an entry of `plans.json` has it: `score`, `low`, `high`, `held_out`, …, `cost`.
        plans: the best, in the order of their held-out scores; then the best of every other size, in the order of the search.
        candidates: how many plans there were to choose from.
        influence: what each layer of the base does.
        grid: blocks run twice, scored or predicted.
        work: layer evaluations times tokens: `actual` (the search as it was), `exhaustive` (every plan on all tokens with
            shared states), `naive` (every plan from the start), `held_out`; and the `tokens` and `units` of the search.
        settings: the options that shape the result.
        notes: what the user should know, one sentence each.
        trials: of healing, as `Trials.to_dict` has them, if there were some; the plans are then in the order of their ends.
    """

    model: str
    depth: int
    objective: str
    base: Mapping[str, Any]
    plans: tuple[Scored, ...]
    candidates: int
    influence: tuple[LayerFacts, ...]
    grid: tuple[Cell, ...]
    work: Mapping[str, float]
    settings: Mapping[str, Any]
    notes: tuple[str, ...] = ()
    trials: Mapping[str, Any] | None = None

    def to_dict(self) -> dict[str, Any]:
        """The content of `plans.json`."""
        return {
            "model": self.model,
            "objective": self.objective,
            "base": dict(self.base),
            "plans": [plan.to_dict() for plan in self.plans],
            "candidates": self.candidates,
            "influence": [asdict(each) for each in self.influence],
            "grid": [asdict(each) for each in self.grid],
            "trials": None if self.trials is None else dict(self.trials),
            "work": dict(self.work),
            "settings": dict(self.settings),
            "notes": list(self.notes),
        }
