"""The recipes that come with deepen."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from deepen.errors import RecipeError

_COLUMNS = ("on", "memory", "disk", "tokens", "time", "gpu_hours", "energy")


def recipes() -> list[dict[str, Any]]:
    """The recipes that come with deepen.

    Returns:
        Of each `name`, `about` (its first line), `path`, and `needs`: for three sizes of machine `on`, `memory`, `disk`,
        `tokens`, `time`, `gpu_hours` and `energy`, as its head states them.
    """
    found = []
    for file in sorted(_recipe_folder().glob("*.yaml")):
        head = file.read_text(encoding="utf-8").splitlines()
        found.append({"name": file.stem, "about": head[0].lstrip("# ").strip(), "path": str(file), "needs": _needs(head)})
    return found


def find_recipe(name: str | Path) -> Path:
    """The file of a recipe: a path, or the name of one that comes with deepen.

    Raises:
        RecipeError: there is neither.
    """
    if Path(name).exists():
        return Path(name)
    known = {each["name"]: Path(each["path"]) for each in recipes()}
    if str(name) in known:
        return known[str(name)]
    near = get_close_matches(str(name), [*known], n=1)
    advice = f'did you mean "{near[0]}"?' if near else f"give a file, or one of {', '.join(known) or 'your own'}"
    raise RecipeError("no such recipe", where=name, next=advice)


def _recipe_folder() -> Path:
    # beside the sources in a checkout; where a wheel puts its data otherwise
    checkout = Path(__file__).parents[3] / "recipes"
    return checkout if checkout.is_dir() else Path(sys.prefix) / "share" / "deepen" / "recipes"


def _needs(head: Sequence[str]) -> list[dict[str, str]]:
    """The table in the comments at the top of a recipe, whose columns two spaces or more keep apart."""
    rows = []
    for line in head[next((place for place, line in enumerate(head) if line.startswith("# Costs: on")), len(head)) + 1 :]:
        cells = re.split(r" {2,}", line.lstrip("# ").strip())
        if len(cells) != len(_COLUMNS):
            break
        rows.append(dict(zip(_COLUMNS, cells, strict=True)))
    return rows
