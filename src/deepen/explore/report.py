"""What a search leaves behind: `plans.json`, `best.yaml`, pictures, and a page to look at."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from deepen.explore.depth import depth_curve
from deepen.explore.results import Cell, Exploration
from deepen.output import write_file
from deepen.plan import parse_plan
from deepen.report.plans import BASE, Block, Curve, Point, front_picture, healing_curves, heatmap, influence_curve
from deepen.report.plans_page import plans_page
from deepen.report.plans_words import ends, words

PLANS_FILE, BEST_FILE, PAGE_FILE = "plans.json", "best.yaml", "report.html"


def write_report(folder: Path, exploration: Exploration) -> None:
    """Write everything that a search leaves behind. The same search gives the same bytes: no time and no date is in them.

    `plans.json`, `best.yaml` (a plan file for `deepen scale --plan`), `report.html`, `heatmap.png`, `influence.png`,
    `front.png` and, after healing trials, `healing.png`.

    Args:
        folder: where to.
        exploration: what was found.
    """
    document = describe(exploration)
    write_file(folder / PLANS_FILE, json.dumps(document, indent=2, allow_nan=False) + "\n")
    if document["best"] is not None:
        write_file(folder / BEST_FILE, parse_plan(exploration.depth, **document["best"]).to_yaml())
    write_file(folder / PAGE_FILE, plans_page(document))
    _draw(folder, document)


def describe(exploration: Exploration) -> dict[str, Any]:
    """The content of `plans.json`.

    What the search found, and: `curve`, the best plan of each size (see `depth_curve`); `best`, the options of the plan that
    `best.yaml` holds, or None if there is none; and `marks`: the blocks that the best plan and `--drop` of its size repeat, if
    they repeat one (else the best `--drop`), and the layers that the best one has more than once.
    """
    plans, depth = exploration.plans, exploration.depth
    found: dict[str, Any] = exploration.to_dict() | {"depth": depth, "curve": depth_curve(plans), "best": None}
    marks: dict[str, Any] = {"best": None, "solar": None, "repeated": []}
    if plans:
        best = plans[0]
        trials = sorted(best.healed, key=lambda each: float(each["value"]))
        identity = {"identity_init": True} if trials and trials[0]["start"] == "identity" else {}
        layers = best.candidate.layers
        marks = {
            "best": _block(best.candidate.options, depth),
            "solar": _solar(exploration.grid, depth, len(layers)),
            "repeated": sorted({layer for layer in layers if layers.count(layer) > 1}),
        }
        found["best"] = dict(best.candidate.options) | identity
    described: dict[str, Any] = _known(found | {"marks": marks})
    return described


def _known(value: Any) -> Any:
    """The same with None for what is not a number: the interval of a plan that was given up after one window."""
    if isinstance(value, Mapping):
        return {key: _known(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_known(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _solar(grid: Sequence[Cell], depth: int, layers: int) -> list[int] | None:
    """The block that `--drop` repeats, of as many layers as the best plan has; as it makes even numbers only, else its best."""
    drops = [cell for cell in grid if cell.first + cell.end == depth]
    if not drops:
        return None
    chosen = min(drops, key=lambda cell: (depth + cell.end - cell.first != layers, not cell.exact, cell.difference))
    return [chosen.first, chosen.end]


def _block(options: Mapping[str, Any], depth: int) -> list[int] | None:
    """Where the block begins and ends that runs twice, if the plan is one such block."""
    if "drop" in options:
        drop = int(options["drop"])
        return [drop, depth - drop] if 2 * drop < depth else None
    block = str(options.get("repeat", "")).split(":")
    return [int(each) for each in block] if len(block) == 2 and block[1].isdecimal() else None


def _draw(folder: Path, document: Mapping[str, Any]) -> None:
    marks = document["marks"]
    cells = [Block(each["first"], each["end"], each["difference"], each["exact"]) for each in document["grid"]]
    best, solar = (None if marks[name] is None else (marks[name][0], marks[name][1]) for name in ("best", "solar"))
    name = document["model"].rstrip("/").rsplit("/", 1)[-1]
    heatmap(folder / "heatmap.png", cells, document["depth"], best=best, solar=solar, name=name)
    influence_curve(
        folder / "influence.png",
        [each["influence"] for each in document["influence"]],
        [each["norm_ratio"] for each in document["influence"]],
        repeated=marks["repeated"],
    )
    points = [Point(BASE, 1.0, 0.0, 0.0, 0.0, deepest=False)]
    points += [
        Point(each["layers"], each["cost"]["flops_ratio"], each["difference"], *ends(each), each["deepest"])
        for each in document["curve"]
    ]
    healed: dict[str, list[tuple[float, float]]] = {}
    for plan in document["plans"]:
        for end in plan["healed"]:
            healed.setdefault(end["start"], []).append((plan["cost"]["flops_ratio"], end["difference"]["value"]))
    front_picture(folder / "front.png", points, healed)
    if document["trials"] is not None:
        control = dict(document["trials"]["control"]["curve"])
        curves = [
            Curve(words(each["options"]), each["start"], [(tokens, loss - control[tokens]) for tokens, loss in each["curve"]])
            for each in document["trials"]["trials"]
        ]
        healing_curves(folder / "healing.png", curves)
