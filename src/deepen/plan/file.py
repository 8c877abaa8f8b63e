"""Plan files: deepen's own YAML, and mergekit's `passthrough` configurations of one model."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeGuard

from deepen.errors import PlanError
from deepen.plan.layers import Plan, parse_slices
from deepen.recipe.text import load_yaml

# What a mergekit file may say besides its layer ranges; none of it is part of a layer plan
_MERGEKIT_KEYS = {"merge_method", "slices", "dtype", "out_dtype", "tokenizer_source", "tokenizer", "chat_template", "name"}


def read_plan(file: Path, source_layers: int) -> Plan:
    """Read a plan file written by `deepen plan` or `deepen explore`, or a mergekit passthrough YAML of one model.

    Of a mergekit file only the layer ranges count; types and tokenizers are options of `deepen scale`.

    Raises:
        PlanError: the file is missing, malformed, of another base's depth, or asks for more than a layer plan can say.
    """
    if not file.is_file():
        raise PlanError("no such plan file", where=file, next="give a file written by `deepen plan --output`")
    data = load_yaml(file)
    if not isinstance(data, dict):
        raise PlanError("not a plan file", where=file, next="it needs `layers:` or mergekit's `slices:`")
    try:
        plan = _mergekit(data, source_layers) if "slices" in data else _own(data, source_layers)
        if plan.source_layers != source_layers:
            raise PlanError(
                f"the plan is for a base of {plan.source_layers} layers, but this one has {source_layers}",
                next="give the base that it was made for, or another plan",
            )
        return plan
    except PlanError as error:
        raise PlanError(error.what, where=file, next=error.next) from error


def _own(data: dict[str, Any], source_layers: int) -> Plan:
    if unknown := set(data) - {"source_layers", "layers", "identity"}:
        raise PlanError(f"unknown key {sorted(map(str, unknown))[0]!r}", next="a plan has source_layers, layers and identity")
    layers, identity = data.get("layers"), data.get("identity", [])
    if isinstance(layers, str):
        layers = list(parse_slices(layers))
    if not (_integers(layers) and _integers(identity)):
        raise PlanError(
            "`layers` and `identity` must be slices or lists of whole numbers", next="for example layers: 0:24,8:32"
        )
    source = data.get("source_layers", source_layers)
    if type(source) is not int:
        raise PlanError("`source_layers` is not a whole number", next="give the depth of the base model")
    return Plan(source, tuple(layers), tuple(identity))


def _mergekit(data: dict[str, Any], source_layers: int) -> Plan:
    if data.get("merge_method") != "passthrough":
        raise PlanError(
            f"merge_method {data.get('merge_method')!r} is not a layer plan", next="use `deepen merge`, or a passthrough file"
        )
    if unknown := set(data) - _MERGEKIT_KEYS:
        raise PlanError(
            f"{sorted(map(str, unknown))[0]!r} has no meaning in a layer plan",
            next="remove it; for identity starts use --identity-init",
        )
    slices = data["slices"]
    if not isinstance(slices, list):
        raise PlanError("`slices` is not a list", next="write one entry per slice")
    layers: list[int] = []
    models = set()
    for number, entry in enumerate(slices):
        sources = entry.get("sources") if isinstance(entry, dict) and set(entry) == {"sources"} else None
        source = sources[0] if isinstance(sources, list) and len(sources) == 1 else None
        if not isinstance(source, dict) or set(source) != {"model", "layer_range"}:
            raise PlanError(f"slices[{number}] is not one source with model and layer_range", next="give each slice one source")
        bounds = source["layer_range"]
        if not _integers(bounds) or len(bounds) != 2:
            raise PlanError(f"slices[{number}]: layer_range {bounds!r} is not [start, end)", next="write two whole numbers")
        layers += parse_slices(f"{bounds[0]}:{bounds[1]}")
        models.add(str(source["model"]))
    if len(models) > 1:
        raise PlanError(f"the slices come from {len(models)} models", next="a layer plan is made of one model")
    return Plan(source_layers, tuple(layers))


def _integers(values: object) -> TypeGuard[list[int]]:
    return isinstance(values, list) and all(type(value) is int for value in values)
