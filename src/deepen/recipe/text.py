"""YAML from a stranger, read with bounds."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from deepen.errors import RecipeError

_LIMIT_BYTES = 256 * 1024
_LIMIT_DEPTH = 12


def load_yaml(path: Path) -> Any:
    """Read a small YAML file from a stranger: YAML 1.2 scalars, no tags, no aliases, no duplicate keys, bounded.

    Raises:
        RecipeError: the file is missing, too large, too deep, or no such YAML.
    """
    try:
        with path.open("rb") as file:
            data = file.read(_LIMIT_BYTES + 1)
    except OSError as error:
        raise RecipeError(f"cannot be read ({error.strerror})", where=path, next="give a YAML file") from error
    if len(data) > _LIMIT_BYTES:
        raise RecipeError(f"is larger than {_LIMIT_BYTES // 1024} KiB", where=path, next="give a recipe or plan file")
    try:
        return parse_yaml(data.decode("utf-8-sig"), path)
    except UnicodeDecodeError as error:
        raise RecipeError("is not UTF-8 text", where=path, next="give a YAML file") from error


def parse_yaml(text: str, where: str | Path) -> Any:
    """Read YAML text under the same bounds.

    Raises:
        RecipeError: it is too deep, or no such YAML; the message names `where`.
    """
    try:
        depth = 0
        for event in yaml.parse(text, Loader=_Loader):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if isinstance(event, yaml.AliasEvent):
                raise RecipeError("aliases (*name) are not read", where=where, next="write the value out")
            if depth > _LIMIT_DEPTH:
                raise RecipeError("is nested too deeply", where=where, next="give a recipe or plan file")
        return yaml.load(text, Loader=_Loader)  # noqa: S506  a safe loader, see below
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f", line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or getattr(error, "reason", None) or "broken"
        raise RecipeError(f"is not valid YAML{place}: {problem}", where=where, next="mend the file") from error
    except ValueError as error:  # a number with thousands of digits
        raise RecipeError(f"holds a value that cannot be read: {error}", where=where, next="mend the file") from error


class _Loader(yaml.SafeLoader):
    """A safe loader that reads `8:24` and `yes` as text, `1e-4` as a number, and refuses duplicate keys."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set[str]()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.value in seen:
                problem = f"duplicate key {key.value!r}" if isinstance(key, yaml.ScalarNode) else "a key that is no text"
                raise yaml.constructor.ConstructorError(problem=problem, problem_mark=key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


_SCALARS = {  # YAML 1.2's core schema; what begins an octal number, a date or an hour stays text
    "null": (r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    "bool": (r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    "int": (r"[-+]?(0|[1-9][0-9_]*)", list("-+0123456789")),
    "float": (
        r"[-+]?([0-9]*\.[0-9]+|[0-9]+\.|[0-9]+(?=[eE]))([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        list("-+.0123456789"),
    ),
}
_Loader.yaml_implicit_resolvers = {}
for _tag, (_pattern, _first) in _SCALARS.items():
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(rf"^(?:{_pattern})$"), _first)
