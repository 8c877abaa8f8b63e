"""Data sets in local folders with the Hub's layout, read as they lie there: no network, no cache, nothing written.

The `datasets` library prepares a folder in its own cache, for 57 subjects of MMLU in a quarter of a minute, and recognises it
there by time and size. These sets are small, so they are read each time.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from deepen.errors import DataError, NetworkError

_SPLITS = {
    "train": "train",
    "test": "test",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "dev",
}
_SPLIT_NAME = re.compile(rf"(?:^|[-._ ])({'|'.join(_SPLITS)})(?=$|[-._ \d])")
_KINDS = (".parquet", ".jsonl", ".json", ".csv")
_HEADER = re.compile(r"---\s*\n(.*?)\n---\s*(?:\n|$)", re.DOTALL)


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
            next=f"put {' or '.join(_KINDS)} files there, named by their splits or listed in the header of README.md",
        )
    return found


def read_folder(folder: Path, config: str | None, columns: Sequence[str] = ()) -> dict[str, Any]:
    """The splits of a configuration as `datasets.Dataset`s.

    Args:
        folder: the data set.
        config: of it; None for its default.
        columns: that each split must have.

    Raises:
        DataError: a file is broken or empty, or lacks a column.
    """
    import datasets

    splits = {}
    for split, files in split_files(folder, config).items():
        tables = [_read(file) for file in files]
        rows = datasets.concatenate_datasets(tables) if len(tables) > 1 else tables[0]
        if not len(rows):
            raise DataError(f"split {split} has no rows", where=files[0], next="copy the file again")
        lacking = [column for column in columns if column not in rows.column_names]
        if lacking:
            raise DataError(
                f"no column {lacking[0]!r}; there are {', '.join(rows.column_names)}",
                where=files[0],
                next="give the data set in the form that it has on the Hub",
            )
        splits[split] = rows
    return splits


def read_hub(source: str, config: str | None, arguments: Mapping[str, Any]) -> Any:
    """The splits of a data set of the Hub.

    Raises:
        DataError: it is absent or gated, or not here and the Hub is not to be asked.
        NetworkError: the connection broke.
    """
    import datasets
    from huggingface_hub import constants

    from deepen.checkpoint.hub import is_connection_error

    advice = f"put a copy of {source} into a folder and name that with --data"
    if constants.HF_HUB_OFFLINE or datasets.config.HF_HUB_OFFLINE:
        absent = f"the data set {source} is not among those downloaded before, and HF_HUB_OFFLINE is set"
    else:
        absent = f"the data set {source} is absent from the Hub, or gated"
        advice += ", or log in (hf auth login) if it is gated"
    where = f"{source}, configuration {config}" if config else source
    try:
        return datasets.load_dataset(source, config, **arguments)
    except (ValueError, FileNotFoundError, datasets.exceptions.DatasetsError) as error:
        raise DataError(absent, where=where, next=advice) from error
    except Exception as error:
        if not is_connection_error(error):
            raise
        if constants.HF_HUB_OFFLINE:
            raise DataError(absent, where=where, next=advice) from error
        raise NetworkError(
            f"the data set {source} cannot be had: the Hub failed or the connection broke", where=where, next=advice
        ) from error


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
        if file.suffix in _KINDS and (match := _SPLIT_NAME.search(name)):
            found.setdefault(_SPLITS[match[1]], []).append(file)
    if "dev" in found and "validation" not in found:
        found["validation"] = found["dev"]
    return found


def _read(file: Path) -> Any:
    import datasets
    import pyarrow
    from pyarrow import csv, parquet
    from pyarrow import json as arrow_json

    try:
        if file.suffix == ".parquet":
            return datasets.Dataset(parquet.read_table(file))
        if file.suffix == ".csv":
            return datasets.Dataset(csv.read_csv(file))
        if file.suffix == ".json" and (text := file.read_text(encoding="utf-8").lstrip()).startswith("["):
            return datasets.Dataset.from_list(json.loads(text))
        return datasets.Dataset(arrow_json.read_json(file))
    except (pyarrow.ArrowException, ValueError, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(f"the file cannot be read: {reason[:200]}", where=file, next="copy the file again") from error
