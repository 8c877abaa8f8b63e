"""Recipes: a whole pipeline in words. Read, checked against the settings of each stage, all problems at once.

A recipe names a `base` model and a list of `stages`. Each stage is a verb with its options, spelled as in Python:

    name: demo
    base: org/model
    stages:
      - stage: scale        # the model from the base
        drop: 8
      - stage: evaluate     # a stage that makes no model hands on the one it was given
        data: held_out.txt
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from deepen.errors import RecipeError
from deepen.recipe.stages import STAGES, PlannedStage, RecipeName, Stage
from deepen.recipe.text import load_yaml, parse_yaml

__all__ = ["STAGES", "PlannedStage", "Recipe", "Stage", "load_recipe"]


class Recipe(BaseModel):
    """A checked recipe: every stage has a name, and `from_` names the stage (or `base`) whose model it takes."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    name: RecipeName
    base: Annotated[str, Field(min_length=1)]
    stages: tuple[Stage, ...]


def load_recipe(path: str | Path, *, set: Sequence[str] = ()) -> Recipe:  # noqa: A002
    """Read and check a recipe.

    Args:
        path: the YAML file.
        set: overrides such as `scale.drop=5` (stage name, key, YAML value) or `base=org/model`.

    Raises:
        RecipeError: the file cannot be read, or the recipe has problems; the message lists all of them.
    """
    path = Path(path)
    content = load_yaml(path)
    if not isinstance(content, dict):
        raise RecipeError("a recipe is a mapping with name, base and stages", where=path, next=_HELP)
    problems: list[str] = []
    stages = _stage_mappings(content.get("stages"), problems)
    for override in set:
        _apply(override, content, stages, problems)
    checked = [_check_stage(index, mapping, problems) for index, mapping in enumerate(stages)]
    head = _check(Recipe, "", {**content, "stages": ()}, problems)
    _check_links(stages, problems)
    if problems or not isinstance(head, Recipe):
        count = "a problem" if len(problems) == 1 else f"{len(problems)} problems"
        raise RecipeError(f"{count}\n  " + "\n  ".join(problems), where=path, next=_HELP)
    return head.model_copy(update={"stages": tuple(stage for stage in checked if stage is not None)})


_HELP = "mend the recipe and try it with `deepen check`; `deepen recipes` lists examples"


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
    elif not dot and option in {"name", "base"}:
        content[option] = value
    elif found := [stage for stage in stages if stage["name"] == stage_name]:
        found[0][option] = value
    else:
        problems.append(f"--set {override}: no such stage{_nearest(stage_name, [str(s['name']) for s in stages])}")


def _check_stage(index: int, mapping: dict[str, Any], problems: list[str]) -> Stage | None:
    index = mapping.pop("index", index)
    verb = mapping["stage"]
    if verb not in STAGES:
        problems.append(f"stages.{index}.stage: no such verb {verb!r}{_nearest(verb, STAGES)}")
        return None
    stage = _check(STAGES[verb], f"stages.{index}.", mapping, problems)
    if isinstance(stage, Stage):
        problems.extend(f"stages.{index}: {problem}" for problem in stage.problems())
        return stage
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
                    text = f"unknown key{_nearest(key, known)}"
                case "missing":
                    text = "is missing"
                case "value_error":
                    text = str(each["ctx"]["error"])
                case _:
                    text = f"{each['msg'][0].lower()}{each['msg'][1:]}, not {each['input']!r:.60}"
            problems.append(f"{prefix}{key}: {text}")
        return None


def _check_links(stages: list[dict[str, Any]], problems: list[str]) -> None:
    """Names are unique, and a model comes from a stage above."""
    seen = ["base"]
    for stage in stages:
        where = f"stage {stage['name']!r}"
        if stage["name"] in seen:
            problems.append(f"{where}: this name is taken; give another `name`")
        source = stage.get("from", "base")
        if source not in seen:
            problems.append(f"{where}: from: no stage {source!r} above{_nearest(str(source), seen)}")
        seen.append(stage["name"])


def _nearest(word: str, known: Sequence[str] | Mapping[str, Any]) -> str:
    near = get_close_matches(word, list(known), n=1)
    return f', did you mean "{near[0]}"?' if near else f" (there is {', '.join(known)})"
