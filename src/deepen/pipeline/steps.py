"""The stages of a recipe with their places on disk, checked before the first one runs."""

from __future__ import annotations

import glob
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deepen.checkpoint.hub import is_hub_id
from deepen.errors import DeepenError, OptionError, RecipeError
from deepen.pipeline.models import depth_of
from deepen.pipeline.shelf import find_recipe
from deepen.plan import parse_plan
from deepen.recipe import PlannedStage, Recipe, Stage, load_recipe

_MODELS = ("base", "teacher", "reference_model")  # options that name a model, or the stage that makes it


@dataclass(frozen=True)
class Step:
    """A stage with its places: the model that goes in, and the output (a model, or the record of a judgement)."""

    stage: Stage
    source: str
    out: Path
    options: dict[str, Any]

    @property
    def record(self) -> Path:
        """The file that says what was done and what came of it."""
        return self.out.with_name(f"{self.stage.name}.json")

    @property
    def model(self) -> str:
        """The model that the next stage takes."""
        return str(self.out) if self.stage.makes_model else self.source

    @property
    def others(self) -> tuple[str, ...]:
        """Further models that decide the output."""
        named = (self.options.get(key) for key in _MODELS)
        several = (*self.options.get("models", ())[1:], *self.options.get("compare", ()))
        return (*several, *(model for model in named if isinstance(model, str)))

    @property
    def command(self) -> str:
        """The same as words for a shell."""
        words = ["deepen", self.stage.stage, self.source, *([str(self.out)] if self.stage.makes_model else [])]
        if self.stage.stage == "explore":
            words += ["--out", str(self.out)]
        if "models" in self.options:
            words = ["deepen", self.stage.stage, str(self.out), *self.options["models"]]
        for key, value in self.options.items():
            if key == "models":
                continue
            if key == "kinds":
                value = ",".join(value)
            if key == "prompt":
                words.append(value)
                continue
            if key == "weights":
                value = ",".join(map(str, value))
            option = "--" + key.rstrip("_").replace("_", "-")
            for each in value if isinstance(value, list | tuple) else [value]:
                words += [option] if each is True else [] if each is None or each is False else [option, str(each)]
        return " ".join(map(shlex.quote, words))


def plan_steps(recipe: str | Path, set: Sequence[str], out: str | Path | None) -> tuple[Recipe, list[Step]]:  # noqa: A002
    """The recipe, and its stages with their places; nothing is looked up on the disk but the recipe."""
    words = load_recipe(find_recipe(recipe), set=set)
    folder = Path("runs") / words.name if out is None else Path(out)
    models = {"base": words.base}
    steps: list[Step] = []
    searches: list[str] = []  # stages that leave a folder with a layer plan in it
    for stage in words.stages:
        source, options = models[stage.from_], stage.options()
        for key in _MODELS:
            if isinstance(model := options.get(key), str):
                options[key] = models.get(model, model)
        for key in ("models", "compare"):
            if key in options:
                options[key] = tuple(models.get(model, model) for model in options[key])
        if "models" in options:
            source = options["models"][0]
        if isinstance(plan := options.get("plan"), Path) and plan.parts[0] in searches:
            options["plan"] = folder / plan
            stage = stage.model_copy(update={"plan": options["plan"]})
        is_file = stage.stage == "export" or (source.endswith(".gguf") and options.get("to") is None)
        suffix = "" if not is_file else ".gguf"
        if stage.stage == "explore":
            searches.append(stage.name)
        else:
            suffix = suffix if stage.makes_model else ".json"
        out = folder / f"{stage.name}{suffix}"
        steps.append(Step(stage, source, out, options))
        models[stage.name] = steps[-1].model
    return words, steps


def until_stage(steps: list[Step], until: str | None) -> list[Step]:
    """The stages up to one, that included; all of them unless one is named."""
    names = [step.stage.name for step in steps]
    if until is None:
        return steps
    if until not in names:
        raise OptionError(f"no stage is called {until!r}", where="--until", next=f"use one of {', '.join(names)}")
    return steps[: names.index(until) + 1]


def require_files(recipe: str | Path, words: Recipe, steps: Sequence[Step]) -> None:
    """Everything that can be known before the first stage, so that no hour of work ends at a missing file."""
    problems = []
    if not Path(words.base).exists() and (words.base.endswith(".gguf") or not is_hub_id(words.base)):
        problems.append(f"base: there is no {words.base}")
    for step in steps:
        for key, files in step.stage.path_options().items():
            missing = [file for file in files if not (_is_there(file) or _will_be_found(file, steps))]
            problems += [f"stage {step.stage.name!r}: {key}: there is no {file}" for file in missing]
    made = {step.model for step in steps}
    for step in steps:
        for model in step.options.get("models", ()):
            if model.endswith(".gguf"):
                problems.append(f"stage {step.stage.name!r}: models: {model} is a GGUF file, which cannot be merged")
            elif model not in made and not Path(model).exists() and not is_hub_id(model):
                problems.append(f"stage {step.stage.name!r}: models: there is no stage above, folder or Hub id {model}")
    problems += list(_plan_problems(words, steps))
    if problems:
        raise RecipeError(
            "some of it cannot work\n  " + "\n  ".join(problems),
            where=recipe,
            next="see the recipe's first lines for what it needs; paths are relative to the current folder",
        )


def _is_there(path: Path) -> bool:
    """Whether it exists, is a pattern that something matches, or may be a data set of the Hub."""
    word = str(path)
    return path.exists() or any(matches(word)) or (path.suffix == "" and is_hub_id(word.partition(":")[0]))


def _will_be_found(file: Path, steps: Sequence[Step]) -> bool:
    """Whether it is the plan that a search writes."""
    return file.name == "best.yaml" and any(step.stage.stage == "explore" and step.out == file.parent for step in steps)


def matches(word: str) -> list[Path]:
    """The files that a pattern stands for."""
    return sorted(map(Path, glob.glob(word, recursive=True))) if glob.has_magic(word) else []  # noqa: PTH207


def _plan_problems(words: Recipe, steps: Sequence[Step]) -> Iterator[str]:
    """Follow the number of layers through the stages."""
    if not Path(words.base).exists():
        return
    depths = {words.base: depth_of(words.base)}
    for step in steps:
        depth = depths.get(step.source)
        if depth is not None and isinstance(step.stage, PlannedStage):
            keys = (*PlannedStage.plans, "identity_init")
            chosen = {key: value for key, value in step.options.items() if key in keys}
            if isinstance(plan := chosen.get("plan"), Path) and not plan.exists() and _will_be_found(plan, steps):
                continue  # how deep it will be is not known yet, nor for what is made from it
            try:
                depth = parse_plan(depth, **chosen).num_hidden_layers if chosen else depth
            except DeepenError as error:
                yield f"stage {step.stage.name!r}: {error.what}"
                depth = None
        if step.stage.makes_model and depth is not None:
            depths[step.model] = depth
