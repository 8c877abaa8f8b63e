"""Data sets of the Hub, and folders in its layout, through the `datasets` library."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, NamedTuple

from deepen.checkpoint.hub import is_connection_error, reachable
from deepen.errors import DataError, MissingDependencyError, NetworkError

_HEADER = re.compile(r"---\s*\n(.*?\n)?(configs|dataset_info):.*?\n---\s*$", re.DOTALL | re.MULTILINE)


class Name(NamedTuple):
    """`name[@revision][:config][:split]` in parts; an empty part is the default."""

    name: str
    revision: str
    config: str
    split: str


def parse(word: str) -> Name:
    """Take the name of a data set apart."""
    path, _, rest = word.partition(":")
    config, _, split = rest.partition(":")
    name, _, revision = path.partition("@")
    return Name(name, revision, config, split)


def is_data_set(folder: Path) -> bool:
    """Whether a folder is in the layout of the Hub: its README has a header that names what it holds."""
    readme = folder / "README.md"
    return readme.is_file() and _HEADER.match(readme.read_text(encoding="utf-8", errors="replace")) is not None


def open_rows(word: str) -> Any:
    """The rows of `name[@revision][:config][:split]` as a `datasets.Dataset`; the split is `train` unless named.

    Raises:
        DataError: there is no such data set, configuration or split, it is gated or broken, or the Hub cannot be reached.
        MissingDependencyError: `datasets` is not installed.
        NetworkError: the connection broke, or the Hub failed, on the way.
    """
    try:
        import datasets
    except ImportError as error:
        raise MissingDependencyError(
            "reading a data set needs the `datasets` library", where=word, next="pip install 'deepen[train]'"
        ) from error
    from huggingface_hub import constants

    name = parse(word)
    if not (Path(name.name).exists() or constants.HF_HUB_OFFLINE or reachable()):
        raise DataError(
            "no such file or folder here, and the Hub cannot be reached",
            where=word,
            next="give a path that exists, connect, or set HF_HUB_OFFLINE=1 to use what was downloaded before",
        )
    try:
        return datasets.load_dataset(
            name.name, name.config or None, split=name.split or "train", revision=name.revision or None
        )
    except (ValueError, datasets.exceptions.DatasetsError) as error:
        raise DataError(
            f"the data set cannot be read: {_reason(error)}",
            where=word,
            next="write org/name[@revision][:config][:split]; log in (hf auth login) if it is gated",
        ) from error
    except Exception as error:
        if not is_connection_error(error):
            raise
        if constants.HF_HUB_OFFLINE:
            raise DataError(
                "no such file or folder here, and no such data set among those downloaded before (HF_HUB_OFFLINE is set)",
                where=word,
                next="give a path that exists, or connect and run again without HF_HUB_OFFLINE",
            ) from error
        raise NetworkError("the Hub failed or the connection broke on the way", where=word, next="run again") from error


def _reason(error: BaseException) -> str:
    """What the library says, on one line; where something broke inside it, what that was."""
    inner = error.__cause__ if type(error).__name__ == "DatasetGenerationError" and error.__cause__ else error
    return " ".join(str(inner).split("Example of usage")[0].split())[:300] or type(inner).__name__
