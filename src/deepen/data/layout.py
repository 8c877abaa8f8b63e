"""Folders in the layout of the Hub: which of them holds a data set, and which of its files hold what."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from deepen.errors import DataError

KINDS = (".parquet", ".jsonl", ".json", ".csv")
"""Files of rows."""

_USUAL_NAMES: Mapping[str, tuple[str, ...]] = {
    "allenai/ai2_arc": ("arc", "arc_challenge"),
    "cais/mmlu": ("hendrycks_test",),
    "truthfulqa/truthful_qa": ("truthfulqa",),
    "jannalu/crows_pairs_multilingual": ("crows_pairs",),
}
_SPLITS = {
    "train": "train",
    "test": "test",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "dev",
}
_SPLIT_NAME = re.compile(rf"(?:^|[-._ ])({'|'.join(_SPLITS)})(?=$|[-._ \d])")
_HEADER = re.compile(r"---\s*\n(.*?)\n---\s*(?:\n|$)", re.DOTALL)


def usual_names(source: str) -> list[str]:
    """Names that a local copy of a data set of the Hub may have, such as `ai2_arc` for `allenai/ai2_arc`."""
    owner, _, last = source.rpartition("/")
    spellings = [last, *(f"{owner}{mark}{last}" for mark in ("_", "__", "--", "-") if owner), *_USUAL_NAMES.get(source, ())]
    return list(dict.fromkeys(spellings))


def locate(data: Path, source: str) -> Path:
    """The folder that holds a data set of the Hub: named like it, in one of the usual spellings.

    Args:
        data: the folder that was given; the data set itself, or a folder of data sets.
        source: its id on the Hub, such as `allenai/ai2_arc`.

    Raises:
        DataError: there is none.
    """
    owner, _, last = source.rpartition("/")
    names = usual_names(source)
    wanted = {name.lower() for name in names}
    if not data.is_dir():
        raise DataError("the folder of benchmark data does not exist", where=data, next="name an existing folder with --data")
    inside = sorted(data.iterdir())
    nested = [each / last for each in inside if each.name.lower() == owner.lower()] if owner else []
    for place in [*inside, *nested, data]:
        if place.is_dir() and place.name.lower() in wanted:
            return place
    raise DataError(
        f"no folder for the data set {source}; looked for {', '.join(names)}",
        where=data,
        next=f"put a copy of {source} there, or leave --data away to take it from the Hub",
    )


def configurations(folder: Path) -> list[str]:
    """The configurations that the header of README.md lists; none without one.

    Raises:
        DataError: the header is broken.
    """
    return [str(each.get("config_name", "default")) for each in _header(folder)]


def split_files(folder: Path, config: str | None) -> dict[str, list[Path]]:
    """Which files hold which split of a configuration, by the header of README.md or else by the names of the files.

    Args:
        folder: the data set.
        config: of it; None for its default.

    Raises:
        DataError: the folder has no such configuration, or no files that are read.
    """
    configs = _header(folder)
    found: dict[str, list[Path]] = {}
    if configs:
        names = [str(each.get("config_name", "default")) for each in configs]
        place = names.index(config) if config in names else None
        if place is None and (config is None or names == ["default"]):
            place = next((number for number, each in enumerate(configs) if each.get("default")), 0)
        if place is not None:
            found = _listed(folder, configs[place])
    if not found:
        inner = folder / config if config else folder
        found = _named(inner if inner.is_dir() else folder, config)
    if not found:
        raise DataError(
            f"no configuration {config!r}" if config else "no rows in files of a known kind",
            where=folder,
            next=f"put {' or '.join(KINDS)} files there, named by their splits or listed in the header of README.md",
        )
    return found


def _header(folder: Path) -> list[dict[str, Any]]:
    """The configurations that the header of README.md lists."""
    readme = folder / "README.md"
    if not readme.is_file():
        return []
    match = _HEADER.match(readme.read_text(encoding="utf-8", errors="replace"))
    try:
        content = yaml.safe_load(match[1]) if match else None
    except yaml.YAMLError as error:
        raise DataError("the header of README.md is no valid YAML", where=readme, next="copy the data set again") from error
    configs = content.get("configs") if isinstance(content, dict) else None
    return [each for each in configs or () if isinstance(each, dict)]


def _listed(folder: Path, config: Mapping[str, Any]) -> dict[str, list[Path]]:
    """The files of a configuration in the header; a split without any is left out, since a task may not need it."""
    base = folder / str(config.get("data_dir") or "")
    listed = config.get("data_files")
    if listed is None:
        return _named(base, None)
    if isinstance(listed, Mapping):
        listed = [{"split": split, "path": path} for split, path in listed.items()]
    if isinstance(listed, str) or (isinstance(listed, list) and all(isinstance(each, str) for each in listed)):
        listed = [{"split": "train", "path": listed}]
    found: dict[str, list[Path]] = {}
    for each in listed:
        patterns = [each["path"]] if isinstance(each["path"], str) else each["path"]
        files = [file for pattern in patterns for file in sorted(base.glob(str(pattern).lstrip("/")))]
        inside = [file for file in files if file.is_file() and file.resolve().is_relative_to(folder.resolve())]
        if inside:
            found[str(each["split"])] = inside
    return found


def _named(folder: Path, config: str | None) -> dict[str, list[Path]]:
    """Files whose names say their splits: `test.parquet`, `train-00000-of-00001.parquet`, `main_test.jsonl`."""
    found: dict[str, list[Path]] = {}
    for file in sorted(folder.glob("*")) if folder.is_dir() else ():
        name = file.stem.lower().replace("_", "-")
        if config and name.startswith(config.lower().replace("_", "-") + "-"):
            name = name[len(config) + 1 :]
        if file.suffix in KINDS and (match := _SPLIT_NAME.search(name)):
            found.setdefault(_SPLITS[match[1]], []).append(file)
    if "dev" in found and "validation" not in found:
        found["validation"] = found["dev"]
    return found
