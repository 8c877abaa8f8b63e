"""Whether the base's licence allows what a recipe makes."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from deepen.checkpoint import open_checkpoint
from deepen.checkpoint.card import split_card
from deepen.checkpoint.gguf import is_gguf, open_gguf
from deepen.checkpoint.hub import is_hub_id, read_card
from deepen.errors import CheckpointError, printable

# cc-by-nd-4.0, cc-by-nc-nd-4.0, "No Derivatives", "no-derivs"
_FORBIDS = re.compile(r"(?:^|[^a-z])nd(?:[^a-z]|$)|no[ _-]?deriv", re.IGNORECASE)
_HEAD = 4000  # characters of a licence file in which its name stands
_LONGEST = 80


def licence_warning(base: str) -> str | None:
    """A sentence with the licence's name if the base's own words say that it forbids derivatives; else None."""
    for name in _licences(base):
        if _FORBIDS.search(name):
            return (
                f"the licence of the base {base}, {printable(name)[:_LONGEST]}, forbids derivatives: what this recipe makes is"
                " one, and may not be passed on without its authors' leave"
            )
    return None


def _licences(base: str) -> Iterator[str]:
    """What the model card, the configuration, the licence file and a GGUF's metadata call the licence."""
    if is_hub_id(base):
        yield from _of_card(read_card(base) or "")
        return
    path = Path(base)
    if not path.exists():
        return
    try:
        if is_gguf(path):
            gguf = open_gguf(path)
            yield from _texts(gguf.get(key) for key in ("general.license", "general.license.name"))
            return
        yield from _texts([open_checkpoint(path).config.get("license")])
    except CheckpointError:
        return  # what is wrong with it is told elsewhere
    for file in sorted(path.glob("*")):
        if file.name == "README.md":
            yield from _of_card(file.read_text(encoding="utf-8", errors="replace"))
        elif file.stem.upper() in {"LICENSE", "LICENCE"} and file.is_file():
            head = file.read_text(encoding="utf-8", errors="replace")[:_HEAD]
            yield next((line.strip() for line in head.splitlines() if _FORBIDS.search(line)), "")


def _of_card(card: str) -> Iterator[str]:
    try:
        header = yaml.load(split_card(card)[0], Loader=yaml.BaseLoader)  # noqa: S506  builds nothing but texts, lists and dicts
    except (yaml.YAMLError, RecursionError):
        return
    if isinstance(header, dict):
        yield from _texts(header.get(key) for key in ("license", "license_name"))


def _texts(values: Any) -> Iterator[str]:
    for value in values:
        yield from (each for each in (value if isinstance(value, list) else [value]) if isinstance(each, str))
