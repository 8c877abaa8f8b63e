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

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from deepen.errors import OptionError, RecipeError
from deepen.recipe.text import load_yaml, parse_yaml
from deepen.units import parse_bytes, parse_count

_RECIPE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_STAGE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")  # no dot: files of a stage are named NAME.json and NAME.gguf


def _unit(parse: Callable[[Any], int]) -> BeforeValidator:
    def read(value: object) -> int:
        try:
            return parse(value)
        except OptionError as error:
            raise ValueError(error.what) from error

    return BeforeValidator(read)


def _name(pattern: re.Pattern[str], marks: str) -> BeforeValidator:
    def read(value: object) -> str:
        if not isinstance(value, str) or not pattern.fullmatch(value):
            raise ValueError(f"{value!r} is not a name: letters, digits, {marks}, at most 64")
        return value

    return BeforeValidator(read)


def _path(value: object) -> Path:
    if not isinstance(value, str) or not value or "\0" in value:
        raise ValueError(f"{value!r} is not a path")
    return Path(value)


def _paths(value: object) -> tuple[Path, ...]:
    return tuple(_path(each) for each in (value if isinstance(value, list) else [value]))


def _list(value: object) -> object:
    return tuple(value) if isinstance(value, list) else value


def _template(value: object) -> str | Path:
    return str(value) if value in ("model", "solar", "chatml") else _path(value)


RecipeName = Annotated[str, _name(_RECIPE_NAME, "dots, '_' and '-'")]
StageName = Annotated[str, _name(_STAGE_NAME, "'_' and '-'")]
Count = Annotated[int, _unit(parse_count), Field(gt=0)]
Bytes = Annotated[int, _unit(parse_bytes), Field(gt=0)]
File = Annotated[Path, BeforeValidator(_path)]
Files = Annotated[tuple[Path, ...], BeforeValidator(_paths), Field(min_length=1)]
Template = Annotated[str | Path, BeforeValidator(_template)]
Texts = Annotated[list[str], Field(min_length=1)]
Seed = Annotated[int, Field(ge=0)]
Precision = Literal["float32", "bfloat16", "float16"]


class Stage(BaseModel):
    """What every stage has. Options that a recipe leaves out keep the default of the verb's Python function."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)
    makes_model: ClassVar[bool] = True

    stage: str
    """The verb."""
    name: StageName = ""
    """Names the stage's output; the verb (and a number, if it occurs again) unless given."""
    from_: StageName = Field(default="base", alias="from")
    """The stage whose model goes in, or `base`; the stage before unless given. A merge has `models` instead."""

    def path_options(self) -> dict[str, tuple[Path, ...]]:
        """The options that name files, and the files."""
        found = {key: value if isinstance(value, tuple) else (value,) for key, value in self.options().items()}
        return {key: value for key, value in found.items() if isinstance(value[0], Path)}

    def options(self) -> dict[str, Any]:
        """The verb's options that the recipe gives, as keyword arguments of its Python function."""
        return self.model_dump(exclude_unset=True, exclude={"stage", "name", "from_"})

    def problems(self) -> Iterator[str]:
        """Rules that bind several options together; a sentence for each that is broken."""
        yield from ()


class PlannedStage(Stage):
    """A stage that takes a layer plan."""

    drop: int | None = None
    layers: str | None = None
    repeat: str | None = None
    expand: int | None = None
    plan: File | None = None
    identity_init: bool = False
    plans: ClassVar[tuple[str, ...]] = ("drop", "layers", "repeat", "expand", "plan")

    def problems(self) -> Iterator[str]:
        """At most one layer plan."""
        given = [key for key in self.plans if getattr(self, key) is not None]
        if len(given) > 1 or (self.makes_model and not given):
            yield f"needs exactly one of {', '.join(self.plans)}, and has {' and '.join(given) or 'none'}"


class ScaleStage(PlannedStage):
    """`stage: scale`."""

    as_: Literal["llama"] | None = Field(default=None, alias="as")
    max_position_embeddings: Count | None = None
    dtype: Literal["keep", "float32", "bfloat16", "float16"] = "keep"
    shard_size: Bytes = 5 * 10**9
    to: Literal["hf"] | None = None


class MergeStage(Stage):
    """`stage: merge`; each of its `models` may be the name of a stage."""

    models: Annotated[tuple[Annotated[str, Field(min_length=1)], ...], BeforeValidator(_list), Field(min_length=2)]
    method: Literal["average", "slerp"] = "average"
    weights: Annotated[tuple[float, ...], BeforeValidator(_list)] | None = None
    t: Annotated[float, Field(ge=0, le=1)] = 0.5
    dtype: Literal["keep", "float32", "bfloat16", "float16"] = "keep"
    shard_size: Bytes = 5 * 10**9

    def problems(self) -> Iterator[str]:
        """The models come from one place, and each has its weight."""
        if "from_" in self.model_fields_set:
            yield "takes its models from `models`, not from `from`"
        if self.weights is not None and len(self.weights) != len(self.models):
            yield f"has {len(self.weights)} weights for {len(self.models)} models"


class PretrainStage(Stage):
    """`stage: pretrain`; its `base` may be the name of a stage."""

    data: Files
    tokens: Count
    sequence_length: Count | None = None
    batch_tokens: Count | None = None
    micro_batch: Count | None = None
    learning_rate: Annotated[float, Field(gt=0)] | None = None
    schedule: Literal["cosine", "constant", "wsd"] | None = None
    warmup: Annotated[float, Field(ge=0)] | None = None
    validation: File | None = None
    validation_tokens: Count | None = None
    every: Count | None = None
    save_every: Count | None = None
    seed: Seed | None = None
    precision: Literal["auto", "float32", "bfloat16"] | None = None
    device: str | None = None
    base: str | None = None


class InstructStage(Stage):
    """`stage: instruct`."""

    data: Files
    template: Template | None = None
    epochs: Annotated[float, Field(gt=0)] | None = None
    sequence_length: Count | None = None
    too_long: Literal["error", "truncate", "drop"] | None = None
    cap: Texts | None = None
    batch_rows: Count | None = None
    batch_tokens: Count | None = None
    micro_batch: Count | None = None
    learning_rate: Annotated[float, Field(gt=0)] | None = None
    schedule: Literal["cosine", "constant", "wsd"] | None = None
    warmup: Annotated[float, Field(ge=0)] | None = None
    validation: File | None = None
    validation_rows: Count | None = None
    every: Count | None = None
    save_every: Count | None = None
    seed: Seed | None = None
    precision: Literal["auto", "float32", "bfloat16"] | None = None
    device: str | None = None

    def problems(self) -> Iterator[str]:
        """The size of a batch is said once."""
        if self.batch_rows is not None and self.batch_tokens is not None:
            yield "has both batch_rows and batch_tokens; give one of them"


class EvaluateStage(PlannedStage):
    """`stage: evaluate`."""

    makes_model = False

    data: Files
    suite: Literal["perplexity"] = "perplexity"
    tokens: Count | None = None
    window: Count | None = None
    stride: Count | None = None
    limit: Count | None = None
    device: str | None = None
    dtype: Precision | None = None


class ExportStage(Stage):
    """`stage: export`."""

    quantize: Literal["F32", "F16", "BF16", "Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q4_0"] | None = None
    ollama: bool | None = None


class GenerateStage(PlannedStage):
    """`stage: generate`."""

    makes_model = False

    prompt: Annotated[str, Field(min_length=1)]
    engine: str | None = None
    system: str | None = None
    max_new_tokens: Count | None = None
    temperature: Annotated[float, Field(ge=0)] | None = None
    seed: Seed | None = None
    greedy: bool | None = None
    raw: bool | None = None
    context: Count | None = None
    quantize: str | None = None
    device: str | None = None
    dtype: Precision | None = None


STAGES: dict[str, type[Stage]] = {
    "scale": ScaleStage,
    "merge": MergeStage,
    "pretrain": PretrainStage,
    "instruct": InstructStage,
    "evaluate": EvaluateStage,
    "export": ExportStage,
    "generate": GenerateStage,
}


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
