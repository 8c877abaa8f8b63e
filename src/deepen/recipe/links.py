"""How the stages of a recipe hang together: names, and which model each is made from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from typing import Any

MODELS = ("from", "models", "compare", "base", "teacher", "reference_model")
"""Options that name a model: a stage, or all but the first also a folder or a Hub id."""


def link_problems(stages: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Names that are taken, models from nowhere, from below, and in a circle.

    Args:
        stages: the mappings of a recipe, with `name`, `index` and, but for a merge, `from`.
    """
    seen = ["base"]
    makes = {stage["name"]: stage for stage in reversed(stages) if isinstance(stage["name"], str)}
    for stage in stages:
        where = f"stages.{stage['index']}"
        if stage["name"] in seen:
            yield f"{where}.name: the name {stage['name']!r} is taken; give another `name`"
        for key, model in _named(stage):
            if model in seen:
                continue
            if model in makes:
                circle = _way(makes, model, stage["name"])
                yield f"{where}.{key}: " + (
                    f"a circle: {stage['name']!r} is made from {' from '.join(map(repr, circle))}"
                    if circle
                    else f"the stage {model!r} comes later; move it above this one"
                )
            elif key == "from":
                yield f"{where}.from: no stage {model!r} above{nearest(model, seen)}"
        if isinstance(stage["name"], str):
            seen.append(stage["name"])


def nearest(word: str, known: Sequence[str] | Mapping[str, Any]) -> str:
    """The end of a sentence about an unknown word: the nearest known one, or all of them."""
    near = get_close_matches(word, list(known), n=1)
    return f', did you mean "{near[0]}"?' if near else f" (there is {', '.join(known)})"


def _named(stage: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Where a stage names a model, and the name."""
    for key in MODELS:
        value = stage.get(key)
        for place, model in enumerate(value if isinstance(value, list) else [value]):
            if isinstance(model, str):
                yield f"{key}.{place}" if isinstance(value, list) else key, model


def _way(makes: Mapping[str, Mapping[str, Any]], model: str, goal: str) -> list[str]:
    """The stages on a way from a model to one that it is made from; none if there is no way."""
    ways = [[model]]
    met = {model}
    while ways:
        way = ways.pop(0)
        if way[-1] == goal:
            return way
        for _, source in _named(makes[way[-1]]):
            if source in makes and source not in met:
                met.add(source)
                ways.append([*way, source])
    return []
