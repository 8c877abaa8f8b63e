"""The recipes that come with deepen."""

from __future__ import annotations

import sys
from difflib import get_close_matches
from pathlib import Path

from deepen.errors import RecipeError


def recipes() -> list[dict[str, str]]:
    """The recipes that come with deepen: `name`, `about` (its first line) and `path` of each."""
    files = sorted(_recipe_folder().glob("*.yaml"))
    return [{"name": file.stem, "about": _first_line(file), "path": str(file)} for file in files]


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


def _first_line(file: Path) -> str:
    with file.open(encoding="utf-8") as lines:
        return lines.readline().lstrip("# ").strip()
