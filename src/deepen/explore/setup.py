"""From options to a search and its result: what is read, checked and bounded before the first plan is scored."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from deepen import architecture
from deepen.checkpoint import Checkpoint, resolve
from deepen.data.text import check_vocabulary
from deepen.errors import DataError, OptionError, UnsupportedModelError
from deepen.explore.candidates import candidates
from deepen.explore.material import Part, first_tokens, read_parts
from deepen.explore.memory import Memory, fit
from deepen.explore.network import Network, resident
from deepen.explore.race import Standing
from deepen.explore.results import Candidate, Exploration, Interval, Scored
from deepen.explore.score import Scorer
from deepen.explore.search import grid, intervals, ranked, rescore, scored, search, share_of
from deepen.explore.shares import check_units, share_out
from deepen.explore.statistics import Sample, draws, interval, means
from deepen.explore.sweep import evaluations
from deepen.journal import Journal
from deepen.likelihood import check_context
from deepen.model import load
from deepen.plan import Plan, read_architecture, read_facts
from deepen.plan.price import Facts, price
from deepen.progress import progress, say
from deepen.train.memory import free_bytes
from deepen.train.network import Words, open_trainable
from deepen.units import parse_bytes, parse_count

_BUDGET = 1.5  # SOLAR's own: 48 layers of 32
_LONGEST = 1024
_FREE = 0.8
_DTYPES = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True)
class Settings:
    """The options of a search; see `deepen.explore`."""

    model: str
    data: tuple[str, ...]
    add: int | None
    budget: str | float | None
    kinds: tuple[str, ...]
    tokens: str | int
    window: int
    held_out: tuple[str, ...] | None
    held_out_tokens: str | int | None
    keep: int
    objective: str
    guard: tuple[str, ...] | None
    exhaustive: bool
    template: str
    seed: int
    device: str
    dtype: str | None
    memory: str | int | None
    stream: bool
    recompute: bool


@dataclass(frozen=True)
class Prepared:
    """All that a search needs but the model's weights.

    Attributes:
        settings: the options.
        checkpoint: the base, by its headers.
        stack: its layers.
        pool: the plans.
        price: what a plan costs; see `Scored.cost`.
        search: what is scored.
        held_out: what the best are scored on again.
        guard: what they must not be worse on.
        memory: what is held at once.
        dtype: what is computed in.
        read: reads data for an objective, in such windows.
    """

    settings: Settings
    checkpoint: Checkpoint
    stack: architecture.Stack
    pool: list[Candidate]
    price: Callable[[Sequence[int]], dict[str, float]]
    search: list[Part]
    held_out: list[Part]
    guard: list[Part]
    memory: Memory
    dtype: str
    read: Callable[[Sequence[str], str], list[Part]]


def prepare(settings: Settings) -> Prepared:
    """Read and check everything that can be before weights are loaded.

    Raises:
        DeepenError: as `deepen.explore`.
    """
    checkpoint = open_trainable(resolve(settings.model))
    stack, sizes = read_architecture(checkpoint)
    facts, _ = read_facts(checkpoint)
    cost = pricer(facts)
    pool = expressible(
        candidates(stack.num_hidden_layers, kinds=settings.kinds, add=settings.add, allowed=_within(settings, cost)),
        checkpoint,
        stack,
    )
    words = Words(checkpoint)
    check_context(words.config, settings.window, "--window")
    reach = getattr(words.config.get_text_config(), "max_position_embeddings", _LONGEST)

    def read(data: Sequence[str], objective: str) -> list[Part]:
        parts = read_parts(
            data, words.tokenizer, objective=objective, window=settings.window, longest=min(_LONGEST, reach),
            template=settings.template, ends=words.ends,
        )  # fmt: skip
        for part in parts:
            if part:
                check_vocabulary(max(int(tokens.max()) for unit in part for tokens, _ in unit.rows), words.vocabulary)
        return parts

    searched, held_out = share_out(
        read(settings.data, settings.objective),
        len(pool),
        wanted=parse_count(settings.tokens),
        later=0 if settings.held_out is not None else parse_count(settings.held_out_tokens or settings.tokens),
    )
    if settings.held_out is not None:
        count = parse_count(settings.held_out_tokens or settings.tokens)
        held_out = [first_tokens(part, count)[0] for part in read(settings.held_out, settings.objective)]
    check_units(held_out, "--held-out")
    guard = [] if settings.guard is None else _guard(settings, read)
    dtype = settings.dtype or _dtype(checkpoint, settings.device)
    if dtype not in _DTYPES:
        raise OptionError(f"dtype {dtype!r} is unknown", where="--dtype", next=f"choose {', '.join(_DTYPES)}")
    every = [*searched, *held_out, *guard]
    memory = fit(
        facts,
        sizes,
        free=int(_FREE * free_bytes(settings.device)) if settings.memory is None else parse_bytes(settings.memory),
        element=_DTYPES[dtype],
        plans=len(pool) + 1,
        stream=settings.stream,
        recompute=settings.recompute,
        kind=settings.device.partition(":")[0],
        longest=max(unit.tokens for part in every for unit in part),
    )
    return Prepared(settings, checkpoint, stack, pool, cost, searched, held_out, guard, memory, dtype, read)


def run(prepared: Prepared, journal: Journal, out: Path) -> Exploration:
    """Search, score the best again, and say what was found."""
    settings, depth = prepared.settings, prepared.stack.num_hidden_layers
    say(f"{len(prepared.pool):,} plans to choose from; the search takes {prepared.memory}")
    network = open_network(prepared)
    first = prepared.search[0][0].rows[0][0]
    network.check_identity(torch.from_numpy(first[None].astype(np.int64)).to(settings.device))
    journal.begin(_head(prepared), out)
    exhaustive = _work(prepared.pool, prepared.search, depth, shared=True)
    total = exhaustive if settings.exhaustive else int(share_of(prepared.pool) * exhaustive)
    scorer = Scorer(network, journal, prepared.memory, torch.device(settings.device))
    with progress("Searching", total, "layer tokens") as advance:
        scorer.advance = advance
        found = search(
            scorer, prepared.search, prepared.pool,
            exhaustive=settings.exhaustive, keep=settings.keep, seed=settings.seed,
        )  # fmt: skip
    searching, scorer.work = scorer.work, 0
    chosen, others = finalists(found.standings, settings.keep)
    samples, guards = _held_out(scorer, prepared, [standing.candidate for standing in chosen])
    held_out = intervals(samples, settings.seed)

    def known(standing: Standing) -> Scored:
        layers = standing.candidate.layers
        return scored(standing, found.guess(layers), prepared.price(layers), settings.seed)

    plans = [
        replace(known(standing), held_out=held, guard=guard)
        for standing, held, guard in zip(chosen, held_out[1:], guards, strict=True)
    ]
    passed = [place for place, plan in enumerate(plans) if plan.guard is None or plan.guard.low <= 0]
    notes = _notes(prepared, len(plans) - len(passed))
    best = ranked([plans[place] for place in passed], _rows(samples, [place + 1 for place in passed]), settings.seed)
    rest = [replace(known(standing), rank=place) for place, standing in enumerate(others, start=len(best) + 1)]
    return Exploration(
        model=settings.model,
        depth=depth,
        objective=settings.objective,
        base=_base(found.standings, held_out[0], prepared),
        plans=(*best, *rest),
        candidates=len(prepared.pool),
        influence=found.likeness.facts(),
        grid=grid(found, depth),
        work={
            "actual": searching,
            "exhaustive": exhaustive,
            "naive": _work(prepared.pool, prepared.search, depth, shared=False),
            "held_out": scorer.work,
            "tokens": sum(unit.tokens for part in prepared.search for unit in part),
            "units": sum(len(part) for part in prepared.search),
        },
        settings={key: value for key, value in asdict(settings).items() if key != "memory"} | {"dtype": prepared.dtype},
        notes=tuple(notes),
    )


def finalists(best_first: Sequence[Standing], keep: int) -> tuple[list[Standing], list[Standing]]:
    """The `keep` best with SOLAR's own of their sizes, and the best of each other size.

    A plan that was seen on one unit only has no interval, and is not among the best.
    """
    known = [each for each in best_first if min(len(part.counts) for part in each.samples) > 1]
    chosen = known[:keep]
    taken = {each.candidate.layers for each in chosen}
    sizes = set(map(len, taken))
    others: dict[int, Standing] = {}
    for each in known:
        if len(each.candidate.layers) not in sizes:
            others.setdefault(len(each.candidate.layers), each)
    for each in best_first:
        layers = each.candidate.layers
        if "drop" in each.candidate.options and len(layers) in sizes and layers not in taken:
            chosen.append(each)
    return chosen, list(others.values())


def open_network(prepared: Prepared) -> Network:
    """The base, whole or layer by layer."""
    settings = prepared.settings
    if settings.stream:
        from deepen.explore.stream import streamed

        return streamed(prepared.checkpoint, prepared.stack, dtype=prepared.dtype, device=torch.device(settings.device))
    model, _ = load(prepared.checkpoint.path, dtype=prepared.dtype, device=settings.device)
    return resident(model, prepared.stack)


def pricer(facts: Facts) -> Callable[[Sequence[int]], dict[str, float]]:
    """What a plan costs, as a sum over its layers; see `deepen.plan.price`."""
    depth = len(facts.layers)
    single = [price(Plan(depth, (layer,)), facts) for layer in range(depth)]
    around, whole = 2 * facts.head_parameters, price(Plan(depth, tuple(range(depth))), facts)
    rest = sum(tensor.parameters for tensor in facts.rest)

    def cost(layers: Sequence[int]) -> dict[str, float]:
        flops = around + sum(single[layer]["flops_per_token"] - around for layer in layers)
        return {
            "added": len(layers) - depth,
            "parameters": rest + sum(single[layer]["parameters"] - rest for layer in layers),
            "flops_per_token": flops,
            "kv_bytes_per_token": sum(single[layer]["kv_bytes_per_token"] for layer in layers),
            "flops_ratio": flops / whole["flops_per_token"],
        }

    return cost


def expressible(pool: list[Candidate], checkpoint: Checkpoint, stack: architecture.Stack) -> list[Candidate]:
    """The plans that the family's config can say.

    Raises:
        UnsupportedModelError: it can say none of them, with the reason for the first.
    """
    found, reason = [], None
    for candidate in pool:
        try:
            architecture.deepen_config(checkpoint.config, candidate.layers, stack)
        except UnsupportedModelError as error:
            reason = reason or error
        else:
            found.append(candidate)
    if not found and reason is not None:
        raise reason
    return found


def _guard(settings: Settings, read: Callable[[Sequence[str], str], list[Part]]) -> list[Part]:
    assert settings.guard is not None
    other = "choices" if settings.objective == "perplexity" else "perplexity"
    for objective in (other, settings.objective, "mixture"):
        try:
            parts = read(settings.guard, objective)
        except DataError:
            if objective == "mixture":
                raise
            continue
        count = parse_count(settings.held_out_tokens or settings.tokens)
        guard = [first_tokens(part, count)[0] for part in parts]
        check_units(guard, "--guard")
        return guard
    raise AssertionError


def _held_out(scorer: Scorer, prepared: Prepared, chosen: Sequence[Candidate]) -> tuple[list[Sample], list[Interval | None]]:
    """Scores of the base and the best plans on held-out text, and each plan's difference to the base on the guard."""
    seed, plans = prepared.settings.seed, len(chosen) + 1
    tokens = sum(unit.tokens for part in (*prepared.held_out, *prepared.guard) for unit in part)
    with progress("Scoring the best again", tokens * plans * scorer.network.depth, "layer tokens") as advance:
        scorer.advance = advance
        samples = rescore(scorer, "held-out", prepared.held_out, chosen)
        if not prepared.guard:
            return samples, [None] * len(chosen)
        guard = rescore(scorer, "guard", prepared.guard, chosen)
    less = [Sample(part.sums[1:] - part.sums[0], part.counts) for part in guard]
    return samples, [interval(value, drawn) for value, drawn in zip(means(less), draws(less, seed), strict=True)]


def _rows(samples: Sequence[Sample], rows: Sequence[int]) -> list[Sample]:
    return [Sample(part.sums[list(rows)], part.counts) for part in samples]


def _base(standings: Sequence[Any], held_out: Interval, prepared: Prepared) -> dict[str, Any]:
    """The base, on the units that most plans have seen least: those of the plan that saw most."""
    longest = max(standings, key=lambda standing: sum(part.counts.sum() for part in standing.base))
    score = intervals(longest.base, prepared.settings.seed)[0]
    return {
        "layers": f"0:{prepared.stack.num_hidden_layers}",
        "score": score.value,
        "low": score.low,
        "high": score.high,
        "tokens": int(sum(part.counts.sum() for part in longest.base)),
        "held_out": held_out.value,
        "held_out_low": held_out.low,
        "held_out_high": held_out.high,
        "cost": prepared.price(range(prepared.stack.num_hidden_layers)),
    }


def _work(pool: Sequence[Candidate], parts: Sequence[Part], depth: int, *, shared: bool) -> int:
    """Layer evaluations times tokens of scoring every plan and the base on everything."""
    tokens = sum(unit.tokens for part in parts for unit in part)
    plans = [candidate.layers for candidate in pool]
    layers = evaluations(plans, depth + 1) if shared else sum(map(len, plans))
    return tokens * (depth + layers)


def _notes(prepared: Prepared, excluded: int) -> list[str]:
    notes = []
    if excluded:
        notes.append(f"{excluded} plans were left out, as the guard fell by more than its interval")
    if prepared.dtype == "float32" and "bfloat16" in str(prepared.checkpoint.config.get("dtype", "")):
        notes.append("scores were computed in float32; in the checkpoint's bfloat16 they differ by its rounding")
    return notes


def _within(settings: Settings, cost: Callable[[Sequence[int]], dict[str, float]]) -> Callable[[Candidate], bool]:
    if settings.budget is None and settings.add is not None:
        return lambda _: True
    text = str(_BUDGET if settings.budget is None else settings.budget)
    try:
        most = float(text.removesuffix("x"))
    except ValueError:
        most = 0.0
    if not 1 < most < math.inf:
        raise OptionError(f"{text!r} is no bound on the cost", where="--budget", next="write a factor above 1, such as 1.3x")
    return lambda candidate: cost(candidate.layers)["flops_ratio"] <= most


def _dtype(checkpoint: Checkpoint, device: str) -> str:
    if device.partition(":")[0] == "cpu":
        return "float32"  # bfloat16 took three times as long on a CPU without instructions for it
    own = str(checkpoint.config.get("dtype") or checkpoint.config.get("torch_dtype") or "float32")
    return own.removeprefix("torch.")


def _head(prepared: Prepared) -> dict[str, Any]:
    """What scores depend on."""
    digest = hashlib.sha256()
    for parts in (prepared.search, prepared.held_out, prepared.guard):
        for part in parts:
            digest.update(b"part")
            for unit in part:
                for tokens, labels in unit.rows:
                    digest.update(tokens.tobytes() + labels.tobytes())
    tensors = [(name, tensor.nbytes) for name, tensor in prepared.checkpoint.tensors.items()]
    memory = prepared.memory
    return {
        "model": hashlib.sha256(repr((sorted(prepared.checkpoint.config.items(), key=str), tensors)).encode()).hexdigest(),
        "data": digest.hexdigest(),
        "plans": hashlib.sha256(repr([each.layers for each in prepared.pool]).encode()).hexdigest(),
        "options": {
            key: getattr(prepared.settings, key) for key in ("keep", "exhaustive", "seed", "objective", "device", "stream")
        },
        "dtype": prepared.dtype,
        "memory": [memory.chunk_tokens, memory.rows_tokens, memory.plans, memory.recompute],
    }
