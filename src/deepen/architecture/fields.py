"""Typed reads from the raw `config.json` dict: a wrong type or an absurd size is an error that names the field."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from deepen.errors import CheckpointError

Config = Mapping[str, Any]
Json = Any
LARGEST = 10**8


def integer(
    config: Config,
    key: str,
    default: int,
    *,
    where: str | Path = "config.json",
    minimum: int = 0,
    maximum: int = LARGEST,
) -> int:
    """The whole number in field `key`, or `default` where the field is absent or null.

    Raises:
        CheckpointError: the field holds something else, or lies outside `minimum..maximum`.
    """
    value = config.get(key)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int):
        raise CheckpointError(
            f"field {key!r} is {value!r}, not a whole number", where=where, next=f"correct {key!r} in config.json"
        )
    if not minimum <= value <= maximum:
        raise CheckpointError(
            f"field {key!r} is {value}, outside {minimum} to {maximum}",
            where=where,
            next=f"correct {key!r} in config.json",
        )
    return value


def first_integer(
    config: Config, keys: tuple[str, ...], default: int, *, where: str | Path = "config.json", minimum: int = 0
) -> int:
    """As `integer`, for a field that families spell differently: the first of `keys` that is set."""
    key = next((key for key in keys if config.get(key) is not None), keys[0])
    return integer(config, key, default, where=where, minimum=minimum)


def words(text: str) -> frozenset[str]:
    """A set of names, written as running text."""
    return frozenset(text.split())


def model_type(config: Config) -> str:
    """The family's name as transformers knows it; empty when the config has none."""
    value = config.get("model_type")
    return value if isinstance(value, str) else ""
