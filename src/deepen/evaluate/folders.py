"""Data sets in local folders with the Hub's layout, read as they lie there: no network, no cache, nothing written.

The `datasets` library prepares a folder in its own cache, for 57 subjects of MMLU in a quarter of a minute, and recognises it
there by time and size. These sets are small, so they are read each time.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from deepen.data.layout import split_files
from deepen.errors import DataError, NetworkError


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
