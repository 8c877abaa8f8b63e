"""Recipes: a whole pipeline in words. Read, checked against the settings of each stage, all problems at once.

A recipe names a `base` model and a list of `stages`. Each stage is a verb with its options, spelled as in Python:

    name: demo
    base: org/model
    data: texts             # optional: the folder that relative paths of data start from
    stages:
      - stage: scale        # the model from the base
        drop: 8
      - stage: evaluate     # a stage that makes no model hands on the one it was given
        data: held_out.txt
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from deepen.errors import RecipeError
from deepen.recipe.links import link_problems, nearest
from deepen.recipe.stages import STAGES, File, PlannedStage, RecipeName, Stage, TrainStage
from deepen.recipe.text import load_yaml, parse_yaml

__all__ = ["STAGES", "PlannedStage", "Recipe", "Stage", "TrainStage", "load_recipe", "read_recipe", "refuse"]


class Recipe(BaseModel):
    """A checked recipe: every stage has a name, and `from_` names the stage (or `base`) whose model it takes."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    name: RecipeName
    base: Annotated[str, Field(min_length=1)]
    data: File | None = None
    stages: tuple[Stage, ...]


def load_recipe(path: str | Path, *, set: Sequence[str] = ()) -> Recipe:  # noqa: A002
    """Read and check a recipe.

    Args:
        path: the YAML file.
        set: overrides such as `scale.drop=5` (stage name, key, YAML value) or `base=org/model`.

    Raises:
        RecipeError: the file cannot be read, or the recipe has problems; the message lists all of them.
    """
    recipe, problems = read_recipe(path, set=set)
    if problems or recipe is None:
        raise refuse(path, problems)
    return recipe


def read_recipe(path: str | Path, *, set: Sequence[str] = ()) -> tuple[Recipe | None, list[str]]:  # noqa: A002
    """A recipe with the stages that are sound, and what is wrong with the others; no recipe if its head is unsound.

    Args:
        path: the YAML file.
        set: as for `load_recipe`.

    Raises:
        RecipeError: the file cannot be read, or holds no mapping.
    """
    content = load_yaml(Path(path))
    if not isinstance(content, dict):
        raise RecipeError("a recipe is a mapping with name, base and stages", where=path, next=_HELP)
    problems: list[str] = []
    stages = _stage_mappings(content.get("stages"), problems)
    for override in set:
        _apply(override, content, stages, problems)
    linked = [dict(stage) for stage in stages]
    checked = [_check_stage(mapping, problems) for mapping in stages]
    head = _check(Recipe, "", {**content, "stages": ()}, problems)
    problems += link_problems(linked)
    if not isinstance(head, Recipe):
        return None, problems
    return head.model_copy(update={"stages": tuple(stage for stage in checked if stage is not None)}), problems


def refuse(path: str | Path, problems: Sequence[str]) -> RecipeError:
    """The error that lists all problems of a recipe."""
    count = "a problem" if len(problems) == 1 else f"{len(problems)} problems"
    return RecipeError(f"{count}\n  " + "\n  ".join(problems), where=path, next=_HELP)


_HELP = (
    "mend the recipe and try it with `deepen check`; see its first lines for what it needs; paths are relative to the current"
    " folder, or to the recipe's `data`; `deepen recipes` lists examples"
)


def _stage_mappings(stages: object, problems: list[str]) -> list[dict[str, Any]]:
    """The stages as mappings in which `name` and `from` are filled in."""
    if not isinstance(stages, list) or not stages:
        problems.append("stages: give a list with at least one stage")
        return []
    mappings, names = [], set[object]()
    before: object = "base"
    for index, stage in enumerate(stages):
        if not isinstance(stage, dict) or not isinstance(stage.get("stage"), str):
            problems.append(f"stages.{index}: give a mapping with `stage: VERB`, one of {', '.join(STAGES)}")
            continue
        verb, number = stage["stage"], 1
        name = stage.get("name") or verb
        while "name" not in stage and name in names:
            number += 1
            name = f"{verb}-{number}"
        mapping = ({} if verb == "merge" else {"from": before}) | stage | {"name": name, "index": index}
        names.add(name if isinstance(name, str) else None)
        mappings.append(mapping)
        before = name if verb not in STAGES or STAGES[verb].makes_model else mapping["from"]
    return mappings


def _apply(override: str, content: dict[str, Any], stages: list[dict[str, Any]], problems: list[str]) -> None:
    key, equals, text = override.partition("=")
    stage_name, dot, option = key.rpartition(".")
    try:
        value = parse_yaml(text, "--set")
    except RecipeError as error:
        problems.append(f"--set {override}: {error.what}")
        return
    if not equals or not option:
        problems.append(f"--set {override}: write stage.key=value")
    elif not dot and option in {"name", "base", "data"}:
        content[option] = value
    elif found := [stage for stage in stages if stage["name"] == stage_name]:
        found[0][option] = value
    else:
        problems.append(f"--set {override}: no such stage{nearest(stage_name, [str(s['name']) for s in stages])}")


def _check_stage(mapping: dict[str, Any], problems: list[str]) -> Stage | None:
    index = mapping.pop("index")
    verb = mapping["stage"]
    if verb not in STAGES:
        problems.append(f"stages.{index}.stage: no such verb {verb!r}{nearest(verb, STAGES)}")
        return None
    stage = _check(STAGES[verb], f"stages.{index}.", mapping, problems)
    if isinstance(stage, Stage):
        problems.extend(f"stages.{index}: {problem}" for problem in stage.problems())
        return stage.at(index)
    return None


def _check(model: type[BaseModel], prefix: str, mapping: Mapping[str, Any], problems: list[str]) -> BaseModel | None:
    known = [field.alias or name for name, field in model.model_fields.items()]
    try:
        return model.model_validate({str(key): value for key, value in mapping.items()})
    except ValidationError as error:
        for each in error.errors():
            key = ".".join(map(str, each["loc"]))
            match each["type"]:
                case "extra_forbidden":
                    text = f"unknown key{nearest(key, known)}"
                case "missing":
                    text = "is missing"
                case "value_error":
                    text = str(each["ctx"]["error"])
                case _:
                    text = f"{each['msg'][0].lower()}{each['msg'][1:]}, not {each['input']!r:.60}"
            problems.append(f"{prefix}{key}: {text}")
        return None
