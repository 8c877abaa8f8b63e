"""The model card: a README in Hub format, made from the manifest. Names from strangers are escaped before they go in."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import PurePath
from typing import Any

import yaml

from deepen.checkpoint.manifest import versions
from deepen.errors import printable

_FRONT_MATTER = re.compile(r"\A---\r?\n(.{0,20000}?)\r?\n---(\r?\n|\Z)", re.DOTALL)
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_LICENCE = ("license", "license_name", "license_link")
_INHERITED = (*_LICENCE, "language", "tags", "base_model")
_LONGEST = 300  # characters of a value from elsewhere
_MOST = 64  # of its entries, and rows of a drawing
_BAR = 48  # columns of a drawing


def model_card(manifest: Mapping[str, Any], *source_cards: str | None) -> str:
    """A model card for an output of deepen.

    Args:
        manifest: what `deepen.json` holds or will hold; `verb`, `options`, `source` and `plan` are used.
        source_cards: the README of the model, or of each model, it was made from. Languages and tags are taken over from
            the first, and the licence where all agree about it.

    Returns:
        Markdown with YAML front matter, as the Hugging Face Hub reads it.
    """
    source = manifest.get("source") or {}
    models = [str(each.get("model", "unknown model")) for each in source.get("models", [source])]
    # what was merged or trained since is no copy of its base's layers any more
    plan = manifest.get("plan") if manifest["verb"] == "scale" else None
    header = yaml.safe_dump(_header(models, source_cards), sort_keys=False, allow_unicode=True)
    names = " + ".join(escape_markdown(_short(model)) for model in models)
    parts = ["---\n" + header + "---\n"]
    parts += [f"# {names}{f', {_depth(plan)} layers' if plan else ''}\n"]
    parts += [_introduction(str(manifest["verb"]), names, plan)]
    if plan:
        parts += _plan_section(models[0], plan)
    parts += _reproduction(manifest, models)
    return "\n".join(parts)


def draw_layers(source_layers: int, layers: Sequence[int], identity: Sequence[int] = ()) -> str:
    """A plan as a drawing: a row per run of consecutive base layers, over the base from left to right.

    Args:
        source_layers: depth of the base.
        layers: base index of each layer of the deepened model.
        identity: positions that start as the identity; they are drawn lighter.
    """
    width = len(str(max(len(layers), source_layers) - 1))
    columns = min(_BAR, source_layers)
    light = set(identity)
    runs = list(_runs(layers))
    lines = []
    for number, (start, end) in enumerate(runs[:_MOST]):
        first, last = layers[start], layers[end - 1]
        cells = ["·"] * columns
        for position in sorted(range(start, end), key=lambda position: position not in light):  # what is not lighter wins
            left, right = layers[position] * columns // source_layers, -(-(layers[position] + 1) * columns // source_layers)
            cells[left:right] = ("▒" if position in light else "█") * (right - left)
        bar = "".join(cells)
        seam = ""
        if number:
            before = layers[start - 1]
            seam = f"   seam {before} → {first}, distance {abs(first - before)}"
        rows = f"{start:>{width}}-{end - 1:<{width}}"
        lines.append(f"{rows}  {bar}  base {first:>{width}}-{last:<{width}}{seam}".rstrip())
    if len(runs) > _MOST:
        lines.append(f"… and {len(runs) - _MOST} more")
    return "\n".join(lines)


def split_card(card: str) -> tuple[str, str]:
    """A card's header, YAML without its rules, and the text after it; the header is empty where there is none."""
    match = _FRONT_MATTER.match(card)
    return ("", card) if match is None else (match[1], card[match.end() :])


def _runs(layers: Sequence[int]) -> Iterator[tuple[int, int]]:
    start = 0
    for position in range(1, len(layers) + 1):
        if position == len(layers) or layers[position] != layers[position - 1] + 1:
            yield start, position
            start = position


def _header(models: Sequence[str], source_cards: Sequence[str | None]) -> dict[str, Any]:
    headers = [_front_matter(card) for card in source_cards]
    bases: list[str] = []
    for model, header in zip(models, headers, strict=True):
        name = model.partition("@")[0]
        base = name if _HUB_ID.fullmatch(name) and not name.endswith(".gguf") else header.get("base_model", [])
        bases += base if isinstance(base, list) else [base]
    bases = list(dict.fromkeys(bases))
    known = {key: value for key, value in headers[0].items() if key not in {"tags", "base_model"}}
    if any(header.get(key) != known.get(key) for header in headers for key in _LICENCE):
        known = {key: value for key, value in known.items() if key not in _LICENCE}
    tags = headers[0].get("tags", [])
    tags = [tags] if isinstance(tags, str) else tags
    return {
        **known,
        **({"base_model": bases[0] if len(bases) == 1 else bases} if bases else {}),
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": list(dict.fromkeys(["deepen", "depth-up-scaling" if len(models) == 1 else "merge", *tags])),
    }


def _front_matter(card: str | None) -> dict[str, Any]:
    """What is taken over from the source's card; nothing where it has no readable header."""
    match = _FRONT_MATTER.match(card or "")
    if match is None:
        return {}
    try:
        header = yaml.load(match[1], Loader=yaml.BaseLoader)  # noqa: S506  builds nothing but texts, lists and dicts
    except (yaml.YAMLError, RecursionError):
        return {}
    found: dict[str, Any] = {}
    for key in _INHERITED if isinstance(header, dict) else ():
        value = header.get(key)
        if isinstance(value, str) and value:
            found[key] = printable(value)[:_LONGEST]
        elif isinstance(value, list):
            found[key] = [printable(each)[:_LONGEST] for each in value[:_MOST] if isinstance(each, str)]
    return found


def _introduction(verb: str, names: str, plan: Mapping[str, Any] | None) -> str:
    if plan:
        return (
            f"Made by depthwise scaling from {names}: {plan['source_layers']} layers became {_depth(plan)}, each a copy of the"
            " base's bytes. Nothing in it was trained since.\n"
        )
    return f"Made by `deepen {_code(verb)}` from {names}.\n"


def _plan_section(model: str, plan: Mapping[str, Any]) -> list[str]:
    slices = _slices(plan)
    layers = [layer for first, end in slices for layer in range(first, end)]
    identity = plan.get("identity", ())
    drawing = draw_layers(plan["source_layers"], layers, identity)
    note = f"\n{len(identity)} layers start as the identity: their output projections are zero.\n" if identity else ""
    name = _code(_short(model))
    entries = "".join(f"  - sources:\n      - model: {name}\n        layer_range: [{first}, {end}]\n" for first, end in slices)
    return [
        "## Layer plan\n",
        f"Each row is a run of base layers, drawn over the base's depth.\n\n```text\n{drawing}\n```\n{note}",
        f"The same as slices:\n\n```yaml\nmerge_method: passthrough\nslices:\n{entries}```\n",
    ]


def _reproduction(manifest: Mapping[str, Any], models: Sequence[str]) -> list[str]:
    verb, short = str(manifest["verb"]), [_short(model) for model in models]
    words = ["deepen", verb, *(["OUT", *short] if verb == "merge" else [*short, "OUT"])]
    for key, value in manifest["options"].items():
        option = "--" + str(key).rstrip("_").replace("_", "-")
        if key == "weights" and value is not None:
            value = ",".join(map(str, value))
        for each in value if isinstance(value, list | tuple) else [value]:
            words += [option] if each is True else [] if each is None or each is False else [option, str(each)]
    command = _code(" ".join(shlex.quote(word) for word in words))
    used = ", ".join(f"{name} {number}" for name, number in manifest.get("versions", versions()).items())
    parts = [f"## How it was made\n\n```sh\n{command}\n```\n\nWith {escape_markdown(used)}.\n"]
    if verb == "scale":
        parts += [
            "The manifest `deepen.json` holds a SHA-256 of every tensor and of the tensor it was copied from. This reads all of"
            f" them again:\n\n```sh\ndeepen verify . --source {_code(shlex.quote(short[0]))}\n```\n"
        ]
    return parts


def _slices(plan: Mapping[str, Any]) -> list[tuple[int, int]]:
    bounds = [part.split(":") for part in plan["layers"].split(",")]
    return [(int(first), int(end)) for first, end in bounds]


def _depth(plan: Mapping[str, Any]) -> int:
    return sum(end - first for first, end in _slices(plan))


def _short(model: str) -> str:
    """A model's name without the folders of the machine it was made on."""
    return PurePath(model).name if PurePath(model).is_absolute() or model.startswith((".", "~")) else model


def escape_markdown(value: str) -> str:
    """A value inside Markdown text: one line, no markup, no control characters."""
    line = " ".join(printable(value).split())[:_LONGEST]
    return re.sub(r"([\\`*_{}\[\]<>#|!&~])", r"\\\1", line)


def _code(value: str) -> str:
    """A value inside a code block: one line that cannot end the block."""
    return " ".join(printable(value).split()).replace("`", "'")[: 10 * _LONGEST]
