"""The layer plan: which base layers the deepened model is made of, in order."""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from deepen.checkpoint.card import draw_layers
from deepen.errors import PlanError

MAX_LAYERS = 1000  # the deepest released models have some 130
_SLICE = re.compile(r"^\s*([0-9]{1,9})\s*:\s*([0-9]{1,9})\s*$")
_REPEAT = re.compile(r"^\s*([0-9]{1,9})\s*:\s*([0-9]{1,9})\s*(?:x\s*([0-9]{1,9})\s*)?$")


@dataclass(frozen=True)
class Seam:
    """A place where the plan jumps: the layer at `position` is not the base's next one.

    Attributes:
        position: index in the deepened model of the first layer after the jump.
        source: base index of the layer before the jump.
        target: base index of the layer after it.
    """

    position: int
    source: int
    target: int

    @property
    def distance(self) -> int:
        """|target - source|: SOLAR's layer distance (arXiv 2312.15166, section 2)."""
        return abs(self.target - self.source)


@dataclass(frozen=True)
class Plan:
    """The base layers of a deepened model, in order.

    Attributes:
        source_layers: depth of the base model.
        layers: for each layer of the deepened model, its index in the base.
        identity: positions in the deepened model whose layer starts as the identity (it writes nothing to the residual stream).

    Raises:
        PlanError: empty, out of range, or too deep.
    """

    source_layers: int
    layers: tuple[int, ...]
    identity: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not self.layers:
            raise PlanError("the plan has no layers", next="give at least one non-empty slice such as 0:24")
        if len(self.layers) > MAX_LAYERS:
            raise PlanError(f"the plan has {len(self.layers)} layers; at most {MAX_LAYERS} are allowed")
        if outside := [layer for layer in self.layers if not 0 <= layer < self.source_layers]:
            raise PlanError(
                f"layer {outside[0]} is out of range: the base has {self.source_layers} layers",
                next=f"use indices from 0 to {self.source_layers - 1}; slices end before their second number",
            )
        if outside := [position for position in self.identity if not 0 <= position < len(self.layers)]:
            raise PlanError(f"identity position {outside[0]} is out of range: the plan has {len(self.layers)} layers")

    @property
    def num_hidden_layers(self) -> int:
        """Depth of the deepened model."""
        return len(self.layers)

    @property
    def seams(self) -> tuple[Seam, ...]:
        """Every place where a layer is not followed by its successor in the base."""
        pairs = enumerate(pairwise(self.layers), start=1)
        return tuple(Seam(position, a, b) for position, (a, b) in pairs if b != a + 1)

    @property
    def repeated(self) -> tuple[int, ...]:
        """Positions of later occurrences: layers that stand earlier in the plan already."""
        first = {layer: position for position, layer in reversed(list(enumerate(self.layers)))}
        return tuple(position for position, layer in enumerate(self.layers) if first[layer] < position)

    @property
    def unused(self) -> tuple[int, ...]:
        """Base layers that the plan leaves out."""
        return tuple(sorted(set(range(self.source_layers)) - set(self.layers)))

    @property
    def spec(self) -> str:
        """The plan as half-open slices, as `--layers` reads them: `0:24,8:32`."""
        return ",".join(f"{first}:{last + 1}" for _, first, last in self.runs())

    def runs(self) -> list[tuple[int, int, int]]:
        """Maximal runs of consecutive base layers as (position, first base index, last base index)."""
        starts = [0, *(seam.position for seam in self.seams)]
        ends = [*starts[1:], len(self.layers)]
        return [(start, self.layers[start], self.layers[end - 1]) for start, end in zip(starts, ends, strict=True)]

    def to_dict(self) -> dict[str, Any]:
        """The plan as plain data, for manifests and YAML."""
        data: dict[str, Any] = {"source_layers": self.source_layers, "layers": self.spec}
        return data | ({"identity": list(self.identity)} if self.identity else {})

    def to_yaml(self) -> str:
        """The plan as a file that `--plan` reads."""
        import yaml

        return f"# deepen layer plan: {self.source_layers} -> {self.num_hidden_layers} layers\n" + yaml.safe_dump(
            self.to_dict(), sort_keys=False, default_flow_style=None
        )

    def explain(self) -> str:
        """The plan as text: its slices, and a drawing with a row per run of base layers and the seams between."""
        drawing = draw_layers(self.source_layers, self.layers, self.identity)
        return f"{self.source_layers} layers become {self.num_hidden_layers}: {self.spec}\n\n{drawing}"


def parse_plan(
    source_layers: int,
    *,
    drop: int | None = None,
    layers: str | None = None,
    repeat: str | None = None,
    expand: int | None = None,
    plan: str | Path | Plan | None = None,
    identity_init: bool = False,
) -> Plan:
    """Make the plan for a base of `source_layers` layers from exactly one of the five options.

    Args:
        source_layers: depth of the base.
        drop: depth up-scaling (arXiv 2312.15166, section 2): the base without its last `drop` layers, then without its first.
        layers: half-open slices such as `0:24,8:32`.
        repeat: `I:J` or `I:JxK`: that block K times in all (twice by default), in place.
        expand: that many identity copies spread evenly, each after the block it copies (arXiv 2401.02415, section 3.2).
        plan: a plan file, or a Plan.
        identity_init: let every later occurrence of a layer start as the identity.

    Raises:
        PlanError: none or several of the options, or one that is malformed or does not fit the base.
    """
    given = {"drop": drop, "layers": layers, "repeat": repeat, "expand": expand, "plan": plan}
    named = [f"--{name}" for name, value in given.items() if value is not None]
    if len(named) != 1:
        raise PlanError(
            f"{' and '.join(named)} exclude each other" if named else "no layer plan is given",
            next="give exactly one of --drop M, --layers SPEC, --repeat I:J, --expand K, --plan FILE",
        )
    if drop is not None:
        result = _dropped(source_layers, drop)
    elif layers is not None:
        result = Plan(source_layers, parse_slices(layers))
    elif repeat is not None:
        result = _repeated(source_layers, repeat)
    elif expand is not None:
        result = _expanded(source_layers, expand)
    elif isinstance(plan, Plan):
        result = plan
    else:
        from deepen.plan.file import read_plan

        result = read_plan(Path(str(plan)), source_layers)
    if result.source_layers != source_layers:
        raise PlanError(f"the plan is for a base of {result.source_layers} layers, but this one has {source_layers}")
    return Plan(source_layers, result.layers, result.repeated) if identity_init and expand is None else result


def _dropped(n: int, drop: int) -> Plan:
    drop = _natural("drop", drop)
    if 2 * drop > n:
        raise PlanError(
            f"--drop {drop} leaves {max(2 * (n - drop), 0)} layers, fewer than the base's {n}",
            next=f"drop at most {n // 2}; s = 2 (n - M)",
        )
    return Plan(n, (*range(n - drop), *range(drop, n)))


def parse_slices(spec: str) -> tuple[int, ...]:
    """Half-open slices such as `0:24,8:32` as layer indices."""
    layers: list[int] = []
    for part in str(spec).split(","):
        match = _SLICE.match(part)
        if match is None:
            raise PlanError(f"{part!r} is not a slice", next="write half-open slices such as 0:24,8:32")
        layers += _block("layers", int(match[1]), int(match[2]))
        _check_size(len(layers))
    return tuple(layers)


def _repeated(n: int, text: str) -> Plan:
    match = _REPEAT.match(str(text))
    if match is None:
        raise PlanError(f"{text!r} is not a block to repeat", next="write --repeat I:J, or I:JxK for K times in all")
    start, end, times = int(match[1]), int(match[2]), int(match[3] or 2)
    block = _block("repeat", start, end)
    if end > n:
        raise PlanError(f"--repeat {text} is out of range: the base has {n} layers", next=f"end at {n} at the latest")
    if times < 2:
        raise PlanError(f"--repeat {text} repeats nothing", next="the number after x counts all passes; write 2 or more")
    _check_size(n + (times - 1) * len(block))
    return Plan(n, (*range(end), *(block * (times - 1)), *range(end, n)))


def _expanded(n: int, expand: int) -> Plan:
    expand = _natural("expand", expand)
    if not 1 <= expand <= n:
        raise PlanError(f"--expand {expand} is out of range", next=f"give 1 to {n} new blocks")
    after = {-(-(k + 1) * n // expand) - 1 for k in range(expand)}
    layers: list[int] = []
    identity = []
    for layer in range(n):
        layers.append(layer)
        if layer in after:
            identity.append(len(layers))
            layers.append(layer)
    return Plan(n, tuple(layers), tuple(identity))


def _block(option: str, start: int, end: int) -> list[int]:
    if start >= end:
        problem = "is empty" if start == end else "is reversed"
        raise PlanError(f"{option}: the slice {start}:{end} {problem}", next="a slice I:J holds the layers I to J-1, so I < J")
    _check_size(end - start)
    return list(range(start, end))


def _check_size(count: int) -> None:
    if count > MAX_LAYERS:
        raise PlanError(f"the plan has {count} layers or more; at most {MAX_LAYERS} are allowed")


def _natural(option: str, value: int) -> int:
    if type(value) is not int or value < 0:
        raise PlanError(f"--{option} {value!r} is not a whole number of layers", next="give 0, 1, 2, …")
    return value
